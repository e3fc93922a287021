"""The front end inside an algorithm container: sockets -> Volumes -> method -> sockets.

`exec`: one process per case, exit status 0 on success, the last line of standard error says what went wrong.
`invoke`: an HTTP server on port 4743 that loads the model once; GET /health and POST /invoke.
The same entry point runs outside a container (`autopet predict --engine local`).
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

from autopet.checkpoint import CONFIG
from autopet.deadline import Deadline
from autopet.errors import AutopetError, one_line
from autopet.methods import find_method
from autopet.sockets import read_inputs, write_outputs

PORT = 4743
UPLOADED_MODEL = Path("/opt/ml/model")  # model.tar.gz, unpacked by the platform
BAKED_MODEL = Path("/opt/algorithm/model")  # weights that are part of the image
logger = logging.getLogger("autopet")


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
    loading_s: float = field(default=0.0)

    def load(self) -> None:
        """Load the weights; the time it takes counts towards the first case."""
        started = time.monotonic()
        self.model = self.predict.load(self.model_dir, choose_device(self.device))
        self.loading_s = time.monotonic() - started

    def run(self) -> None:
        """One case: read, predict, write."""
        deadline = Deadline(max(self.time_limit_s - self.loading_s, 1.0))
        self.loading_s = 0.0
        inputs = read_inputs(self.input_dir, self.predict.INPUTS)
        for warning in inputs.warnings:
            logger.warning("warning: %s", warning)
        outputs = self.predict.predict(self.model, inputs, deadline)
        for path in write_outputs(self.output_dir, self.predict.OUTPUTS, outputs, inputs):
            logger.info("wrote %s after %.1f s", path, deadline.elapsed_s)


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
    try:
        runner.load()
        server.ready.set()
        logger.info("model loaded in %.1f s, waiting on port %d", runner.loading_s, port)
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
        "--time-limit", type=float, default=float(env("AUTOPET_TIME_LIMIT_S", "inf")), help="seconds per case"
    )
    parser.add_argument("--port", type=int, default=PORT, help="port of the invoke server")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the image; returns the exit status."""
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
            runner.load()
            runner.run()
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
    sys.exit(main())
