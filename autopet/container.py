"""The front end inside an algorithm container: sockets -> Volumes -> method -> sockets.

`exec`: one process per case, exit status 0 on success, the last line of standard error says what went wrong.
`invoke`: an HTTP server on port 4743 that loads the model once; GET /health and POST /invoke.
The same entry point runs outside a container (`autopet predict --engine local`).

A case's time starts with the process (`exec`) or with the request (`invoke`). Beside the outputs lies run.json: method,
version, device, limit and elapsed seconds, seconds per stage, what was dropped for want of time, notes, warnings.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from autopet import __version__
from autopet.checkpoint import CONFIG, load_config, no_weights, settings_from_dict
from autopet.deadline import Deadline, process_started_s
from autopet.errors import AutopetError, one_line
from autopet.folders import whole_file
from autopet.methods import find_method
from autopet.sockets import CT, PET, Inputs, fallback_outputs, read_inputs, write_outputs

if TYPE_CHECKING:
    from autopet.postprocessing import Rules

PORT = 4743
UPLOADED_MODEL = Path("/opt/ml/model")  # model.tar.gz, unpacked by the platform
BAKED_MODEL = Path("/opt/algorithm/model")  # weights that are part of the image
RUN = "run.json"
LAST_MARGIN_S, LAST_MARGIN_SHARE = 1.0, 0.005  # of the limit; kept to write empty masks where a method is not ready
logger = logging.getLogger("autopet")
T = TypeVar("T")


@dataclass
class Runner:
    """A method, its model (loaded once) and the folders of a case."""

    predict: ModuleType
    model_dir: Path
    input_dir: Path
    output_dir: Path
    device: str = "auto"
    time_limit_s: float = math.inf
    model: Any = None
    loaded: bool = False

    def __post_init__(self) -> None:
        self.device = choose_device(self.device)

    @property
    def method(self) -> str:
        """The method's name."""
        return self.predict.__name__.removesuffix(".predict").rpartition(".")[2]

    def load(self, deadline: Deadline | None = None) -> None:
        """Load the weights; with a deadline their time is part of the case's."""
        self.model, self.loaded = self._load(deadline or Deadline()), True

    def _load(self, deadline: Deadline) -> Any:
        with deadline.journal.stage("load"):
            return self.predict.load(self.model_dir, self.device)

    def run(self, deadline: Deadline | None = None) -> None:
        """One case: read, predict, clean up the masks, write; its time starts now when no deadline is given."""
        deadline = deadline or Deadline(self.time_limit_s)
        journal = deadline.journal
        (self.output_dir / RUN).unlink(missing_ok=True)  # of another case
        rules = postprocessing_rules(self.model_dir)
        with journal.stage("read"):
            inputs = read_inputs(self.input_dir, self.predict.INPUTS)
        for warning in inputs.warnings:
            logger.warning("warning: %s", warning)
        with journal.stage("predict"):
            outputs = self._predict(inputs, deadline)
        if rules:
            outputs = self._clean(outputs, inputs, rules, deadline)
        with journal.stage("write"):
            written = write_outputs(self.output_dir, self.predict.OUTPUTS, outputs, inputs)
        for path in written:
            logger.info("wrote %s after %.1f s", path, deadline.elapsed_s)
        self._write_record(deadline, inputs.warnings)

    def _predict(self, inputs: Inputs, deadline: Deadline) -> Mapping[str, Any]:
        """What the method returns, loaded first if need be; empty masks if it is not ready just before the deadline.

        Methods watch the clock themselves. This is for what they cannot interrupt (weights on a slow disk,
        preprocessing that takes longer than the limit, a hanging library), so that there is a mask in time whatever
        happens.
        """
        known, loaded = self.model, self.loaded

        def work(own: Deadline) -> tuple[Any, Mapping[str, Any]]:
            model = known if loaded else self._load(own)
            return model, self.predict.predict(model, inputs, own)

        done = _in_time(work, deadline)
        if done is not None:
            (self.model, outputs), self.loaded = done, True
            return outputs
        self.model, self.loaded = None, False  # the thread goes on using the model
        deadline.journal.drop(f"the whole prediction: not ready after {deadline.elapsed_s:.1f} s, empty masks instead")
        return fallback_outputs(self.predict.OUTPUTS, inputs)

    def _clean(self, outputs: Mapping[str, Any], inputs: Inputs, rules: Rules, deadline: Deadline) -> Mapping[str, Any]:
        """The outputs after post-processing; as the method returned them if that is not ready in time."""
        cleaned = _in_time(lambda own: self._postprocess(outputs, inputs, rules, own), deadline)
        if cleaned is not None:
            return cleaned
        deadline.journal.drop(f"post-processing: not ready after {deadline.elapsed_s:.1f} s, the masks as predicted")
        return outputs

    def _postprocess(
        self, outputs: Mapping[str, Any], inputs: Inputs, rules: Rules, deadline: Deadline
    ) -> Mapping[str, Any]:
        """The outputs with their masks cleaned; one sentence in the notes per rule that removed something."""
        from autopet.postprocessing import apply_rules

        images = {"suv": inputs.images.get(PET.slug), "ct": inputs.images.get(CT.slug)}
        cleaned = dict(outputs)
        removed: list[str] = []
        with deadline.journal.stage("postprocess"):
            for socket in self.predict.OUTPUTS:
                if socket.kind == "mask" and socket.slug in outputs:
                    cleaned[socket.slug], said = apply_rules(outputs[socket.slug], rules, **images)
                    removed += said
        deadline.journal.note("postprocessing", removed)
        return cleaned

    def _write_record(self, deadline: Deadline, warnings: Sequence[str]) -> None:
        """run.json; the outputs are complete without it, so that a disk that is full by now is no failure."""
        journal = deadline.journal
        record = {
            "method": self.method,
            "version": __version__,
            "device": self.device,
            "limit_s": deadline.limit_s if deadline.limited else None,
            "elapsed_s": round(deadline.elapsed_s, 3),
            "stages": {name: round(seconds, 3) for name, seconds in journal.stages.items()},
            "dropped": journal.dropped,
            "notes": journal.notes,
            "warnings": list(warnings),
        }
        try:
            with whole_file(self.output_dir / RUN) as part:
                part.write_text(json.dumps(record, indent=2, default=str) + "\n")
        except OSError as error:
            logger.warning("warning: %s was not written: %s", self.output_dir / RUN, error)


def _in_time(work: Callable[[Deadline], T], deadline: Deadline) -> T | None:
    """What `work` returns; None when it is not ready just before the deadline (its thread goes on, unheard)."""
    if not deadline.limited:
        return work(deadline)
    own = deadline.fork()
    answer: Future[T] = Future()
    Thread(target=_answer, args=(answer, work, own), daemon=True).start()
    left_s = deadline.remaining_s - LAST_MARGIN_S - LAST_MARGIN_SHARE * deadline.limit_s
    done, _ = wait([answer], max(left_s, 0.0))
    deadline.journal.join(own.journal)
    return answer.result() if done else None


def _answer(answer: Future, work: Callable[..., Any], *arguments: Any) -> None:
    """Run `work` and keep what it returns or raises."""
    try:
        answer.set_result(work(*arguments))
    except BaseException as error:  # raised again where the answer is asked for
        answer.set_exception(error)


def postprocessing_rules(model_dir: Path) -> Rules | None:
    """What the model folder's config.json wants done to every mask; None when it names no rule."""
    config = model_dir / CONFIG
    values = load_config(model_dir).get("postprocessing") if config.is_file() else None
    if not values:
        return None
    from autopet.postprocessing import Rules

    return settings_from_dict(Rules, values, f"{config}: postprocessing")


def choose_device(name: str) -> str:
    """`auto` is `cuda` when torch is installed and sees a GPU, else `cpu`."""
    if name != "auto":
        return name
    try:
        import torch
    except ModuleNotFoundError:
        return "cpu"
    return "cuda" if torch.cuda.is_available() else "cpu"


def model_folder(given: Path | None) -> Path:
    """The folder given, else the uploaded model, else the one baked into the image."""
    if given is not None:
        return given
    uploaded = UPLOADED_MODEL.is_dir() and any(UPLOADED_MODEL.iterdir())
    return BAKED_MODEL if (BAKED_MODEL / CONFIG).is_file() and not uploaded else UPLOADED_MODEL


class Handler(BaseHTTPRequestHandler):
    """Answers the platform: /health is 200 once the model is loaded, /invoke is 201 once the outputs are written."""

    server: Server

    def do_GET(self) -> None:
        """Health."""
        if self.path != "/health":
            return self._answer(404, "GET /health or POST /invoke")
        ready = self.server.ready.is_set()
        self._answer(200 if ready else 503, "ready" if ready else "the model is loading")

    def do_POST(self) -> None:
        """Run the case that lies in /input."""
        if self.path != "/invoke":
            return self._answer(404, "GET /health or POST /invoke")
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self.server.ready.is_set():
            return self._answer(503, "the model is loading")
        with self.server.one_case:
            status, text = self._run()
        self._answer(status, text)

    def _run(self) -> tuple[int, str]:
        try:
            self.server.runner.run()
        except AutopetError as error:
            logger.error("error: %s", one_line(error))
            return 422, one_line(error)
        except Exception as error:  # the server outlives a case that fails
            logger.exception("error: %s", one_line(error))
            return 500, f"{type(error).__name__}: {one_line(error)}"
        return 201, "done"

    def _answer(self, status: int, text: str) -> None:
        body = (text + "\n").encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests go to the log, not past it."""
        logger.debug(format, *args)


class Server(ThreadingHTTPServer):
    """One runner, one case at a time; health is answered meanwhile."""

    daemon_threads = True

    def __init__(self, runner: Runner, port: int = PORT) -> None:
        self.runner = runner
        self.ready = threading.Event()
        self.one_case = threading.Lock()
        super().__init__(("0.0.0.0", port), Handler)


def serve(runner: Runner, port: int = PORT) -> None:
    """Answer /health at once, load the model, then take cases until the process is stopped."""
    server = Server(runner, port)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    loading = Deadline()
    try:
        runner.load()
        server.ready.set()
        logger.info("model loaded in %.1f s, waiting on port %d", loading.elapsed_s, port)
        thread.join()
    finally:
        server.shutdown()
        server.server_close()


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    env = os.environ.get
    parser = argparse.ArgumentParser(prog="python -m autopet.container", description=__doc__.splitlines()[0])
    parser.add_argument("--method", default=env("AUTOPET_METHOD"), help="name or package of the method")
    parser.add_argument("--api", default=env("AUTOPET_API", "exec"), choices=("exec", "invoke"))
    parser.add_argument("--input", type=Path, default=Path("/input"))
    parser.add_argument("--output", type=Path, default=Path("/output"))
    parser.add_argument("--model", type=Path, default=None, help=f"default: {UPLOADED_MODEL}, else {BAKED_MODEL}")
    parser.add_argument("--device", default=env("AUTOPET_DEVICE", "auto"), help="auto, cpu or cuda")
    parser.add_argument(
        "--time-limit", type=float, default=env("AUTOPET_TIME_LIMIT_S") or "inf", help="seconds per case"
    )
    parser.add_argument("--port", type=int, default=PORT, help="port of the invoke server")
    return parser.parse_args(argv)


def run_once(runner: Runner, started_s: float) -> None:
    """`exec`: one case, whose time started with the process."""
    deadline = Deadline(runner.time_limit_s, started_s=started_s)
    deadline.journal.add("start", deadline.elapsed_s)
    if not runner.model_dir.is_dir() or not any(runner.model_dir.iterdir()):
        raise no_weights(runner.model_dir, runner.method)
    runner.run(deadline)


def main(argv: Sequence[str] | None = None, *, started_s: float | None = None) -> int:
    """Entry point of the image; returns the exit status. `started_s`: when the process started (default: now)."""
    started_s = time.monotonic() if started_s is None else started_s
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    args = _arguments(argv)
    try:
        if not args.method:
            raise AutopetError("no method: give --method or set AUTOPET_METHOD")
        predict = find_method(args.method).module("predict")
        runner = Runner(predict, model_folder(args.model), args.input, args.output, args.device, args.time_limit)
        if args.api == "invoke":
            serve(runner, args.port)
        else:
            run_once(runner, started_s)
    except AutopetError as error:
        logger.error("error: %s", one_line(error))
        return 1
    except KeyboardInterrupt:
        logger.error("error: interrupted")
        return 130
    except Exception as error:
        logger.exception("unexpected error")
        logger.error("error: %s: %s", type(error).__name__, one_line(error))
        return 1
    return 0


if __name__ == "__main__":
    status = main(started_s=process_started_s())
    if threading.active_count() > 1:  # work that was given up goes on in a thread; nothing waits for it
        logging.shutdown()
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)
