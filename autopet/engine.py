"""Running one case of a method: in a container with the organisers' flags, or the same entry point in a subprocess."""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from autopet.build import REPOSITORY
from autopet.checkpoint import open_to_all
from autopet.container import PORT
from autopet.errors import AutopetError
from autopet.methods import find_method

if TYPE_CHECKING:
    import docker
    from docker.models.containers import Container

API_LABEL = "org.grand-challenge.api-method"
LONGEST_CASE_S = 86400.0  # the platform's longest time limit
MOST_OUTPUT_FILES = 10_000
LONGEST_MESSAGE = 500
HEALTH_LIMIT_S = 300.0  # the platform's limit until /health must be 200
ASK = """
import sys, urllib.request
verb, url, timeout_s = sys.argv[1:]
print(urllib.request.urlopen(urllib.request.Request(url, method=verb), timeout=float(timeout_s)).status)
"""


@dataclass(frozen=True)
class Limits:
    """The flags that the autoPET organisers fixed, and the time limit per case."""

    memory: str = "30g"
    shared_memory: str = "128m"
    pids: int = 256
    time_limit_s: float = math.inf
    output_bytes: int = 8 * 1024**3  # most that a container may leave in /output


@dataclass(frozen=True)
class Outcome:
    """How a case went: seconds, and the last line of standard error when it failed."""

    ok: bool
    seconds: float
    error: str = ""
    log: str = ""


def connect() -> docker.DockerClient:
    """The local Docker engine; AutopetError when none answers."""
    import docker
    from docker.errors import DockerException

    try:
        client = docker.from_env(timeout=int(LONGEST_CASE_S))
        client.ping()
    except DockerException as error:
        raise AutopetError(
            "no Docker engine answers; start one (docker/start-engine.sh on Debian as root) or use --engine local"
        ) from error
    return client


def image_id(tag: str) -> str:
    """The content identifier of a local image."""
    from docker.errors import ImageNotFound

    try:
        return str(connect().images.get(tag).id)
    except ImageNotFound as error:
        raise AutopetError(_no_image(tag)) from error


def _no_image(tag: str) -> str:
    return f"image {tag} is not here; build it with `autopet build` or load it with docker load"


def run_local(
    method: str, input_dir: Path, output_dir: Path, *, model: Path | None, limits: Limits, device: str = "auto"
) -> Outcome:
    """The container's entry point in a subprocess of this Python: no isolation, for development and trusted methods."""
    command = [sys.executable, "-m", "autopet.container", "--method", find_method(method).package, "--api", "exec"]
    command += ["--device", device, "--time-limit", str(limits.time_limit_s), "--input", str(input_dir.resolve())]
    command += ["--model", str(model.resolve())] if model else []
    started = time.monotonic()
    with _published(output_dir, apart_from=(input_dir, model)) as partial:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
        process = subprocess.Popen(
            [*command, "--output", str(partial)],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            errors="replace",
            start_new_session=True,
            env=environment,
        )
        try:
            _, log = process.communicate(timeout=None if math.isinf(limits.time_limit_s) else limits.time_limit_s)
        except subprocess.TimeoutExpired:
            _stop(process)
            raise _CaseFailedError(f"stopped after the time limit of {limits.time_limit_s:g} s", "") from None
        except BaseException:
            _stop(process)
            raise
        if process.returncode:
            raise _CaseFailedError(_last_line(log) or f"exit status {process.returncode}", log)
    return Outcome(True, time.monotonic() - started, log=log)


def _stop(process: subprocess.Popen) -> None:
    """Kill a process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def run_container(
    image: str,
    input_dir: Path,
    output_dir: Path,
    *,
    mounts: Mapping[str, Path] | None = None,
    command: Sequence[str] = (),
    limits: Limits = Limits(),
) -> Outcome:
    """One case in a container, with the organisers' fixed flags.

    /input and the other `mounts` (container path -> folder) are read-only, /output is a fresh volume, there is no
    network; the outputs are copied out of the stopped container, as plain files only. `exec` and `invoke` images are
    told apart by their label.
    """
    client = connect()
    started = time.monotonic()
    log = ""
    with ExitStack() as stack:
        partial = stack.enter_context(_published(output_dir, apart_from=(input_dir, *(mounts or {}).values())))
        folders = {"/input": input_dir, **(mounts or {})}
        staged = {where: stack.enter_context(_readable(folder)) for where, folder in folders.items()}
        box = stack.enter_context(_container(client, image, staged, command, limits))
        api = (box.image.labels or {}).get(API_LABEL, "exec")
        if api not in ("exec", "invoke"):
            raise AutopetError(f"image {image}: label {API_LABEL} is {api!r}, expected exec or invoke")
        box.start()
        try:
            if api == "exec":
                with _watched(box, limits):
                    _await_exit(box)
            else:
                _invoke(box, limits)
        finally:
            log = box.logs(stdout=False, tail=200).decode(errors="replace")
        _copy_out(box, partial, limits.output_bytes)
    return Outcome(True, time.monotonic() - started, log=log)


class _CaseFailedError(AutopetError):
    """A case that failed in the method's own code; becomes an Outcome."""

    def __init__(self, reason: str, log: str) -> None:
        super().__init__(reason)
        self.log = log


def run_case(
    method_or_image: str, input_dir: Path, output_dir: Path, *, engine: str, model: Path | None, limits: Limits
) -> Outcome:
    """Run one case with engine `docker` (an image) or `local` (a method); a failure is an outcome, not an exception."""
    started = time.monotonic()
    try:
        if engine == "docker":
            mounts = {"/opt/ml/model": model} if model else {}
            return run_container(method_or_image, input_dir, output_dir, mounts=mounts, limits=limits)
        return run_local(method_or_image, input_dir, output_dir, model=model, limits=limits)
    except _CaseFailedError as error:
        return Outcome(False, time.monotonic() - started, str(error), error.log)


@contextmanager
def _published(output_dir: Path, *, apart_from: Sequence[Path | None] = ()) -> Iterator[Path]:
    """A folder to write to: becomes `output_dir`'s content when the body succeeds, vanishes when it does not.

    Only the innermost folders that were written (one per socket) replace what is there under their name.
    """
    output_dir = output_dir.resolve()
    if output_dir in [place.resolve() for place in apart_from if place]:
        raise AutopetError(f"{output_dir} is an input, too; choose a folder of its own for the output")
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".part-", dir=output_dir.parent))
    try:
        yield partial
        output_dir.mkdir(exist_ok=True)
        for path in sorted(path for path in partial.rglob("*") if path.is_file()):
            if not path.exists():  # its folder has been moved as a whole
                continue
            leaf = path if path.parent == partial else path.parent
            target = output_dir / leaf.relative_to(partial)
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(leaf, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _readable(given: Path) -> Iterator[Path]:
    """The folder to mount, or a copy of it when a non-root container could not read it."""
    folder = given.resolve()
    if not folder.is_dir():
        raise AutopetError(f"folder {given} does not exist")
    if all(_open_to_others(path) for path in [folder, *folder.rglob("*")]):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="autopet-input-") as name:
        staged = Path(name) / "copy"
        shutil.copytree(folder, staged)
        open_to_all(staged)
        yield staged


def _open_to_others(path: Path) -> bool:
    if path.is_symlink():  # it may lead out of what is mounted
        if not path.exists():
            raise AutopetError(f"{path} is a link that leads nowhere; remove or mend it")
        return False
    wanted = stat.S_IROTH | (stat.S_IXOTH if path.is_dir() else 0)
    return path.stat().st_mode & wanted == wanted


@contextmanager
def _container(
    client: docker.DockerClient, image: str, folders: Mapping[str, Path], command: Sequence[str], limits: Limits
) -> Iterator[Container]:
    """A created container with its own output volume; both are removed afterwards, whatever happened."""
    from docker.errors import APIError, ImageNotFound
    from docker.types import DeviceRequest, LogConfig, Mount

    name = f"autopet-{uuid.uuid4().hex[:12]}"
    mounts = [Mount(where, str(folder.resolve()), type="bind", read_only=True) for where, folder in folders.items()]
    mounts.append(Mount("/output", name, type="volume"))
    limit = {} if math.isinf(limits.time_limit_s) else {"AUTOPET_TIME_LIMIT_S": str(limits.time_limit_s)}
    volume = client.volumes.create(name)
    box = None
    try:
        box = client.containers.create(
            image,
            name=name,
            mounts=mounts,
            command=list(command),
            environment=limit,
            network_mode="none",
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            pids_limit=limits.pids,
            mem_limit=limits.memory,
            memswap_limit=limits.memory,
            shm_size=limits.shared_memory,
            log_config=LogConfig(type="json-file", config={"max-size": "10m", "max-file": "1"}),
            device_requests=[DeviceRequest(count=-1, capabilities=[["gpu"]])] if _has_gpu(client) else None,
        )
        _open_output(box)
        yield box
    except ImageNotFound as error:
        raise AutopetError(_no_image(image)) from error
    except APIError as error:
        raise AutopetError(f"the Docker engine refused to run {image}: {error.explanation or error}") from error
    finally:
        if box is not None:
            box.remove(force=True)
        volume.remove(force=True)


def _has_gpu(client: docker.DockerClient) -> bool:
    return "nvidia" in client.info().get("Runtimes", {})


def _open_output(box: Container) -> None:
    """Let any user write to /output, also for images that did not make the folder for their own user."""
    folder = tarfile.TarInfo("output")
    folder.type, folder.mode = tarfile.DIRTYPE, 0o777
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(folder)
    box.put_archive("/", buffer.getvalue())


@contextmanager
def _watched(box: Container, limits: Limits) -> Iterator[None]:
    """Kill the container when its time is up, whatever it or we are waiting for."""
    from docker.errors import APIError

    expired = threading.Event()

    def stop() -> None:
        expired.set()
        with contextlib.suppress(APIError):  # it has just ended by itself
            box.kill()

    timer = threading.Timer(min(limits.time_limit_s, threading.TIMEOUT_MAX), stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    except _CaseFailedError:
        if not expired.is_set():
            raise
    finally:
        timer.cancel()
    if expired.is_set():
        raise _CaseFailedError(f"stopped after the time limit of {limits.time_limit_s:g} s", "")


def _await_exit(box: Container) -> None:
    status = box.wait()["StatusCode"]
    if status:
        log = box.logs(stdout=False, tail=50).decode(errors="replace")
        box.reload()
        killed = " (out of memory)" if box.attrs["State"].get("OOMKilled") else ""
        raise _CaseFailedError(
            f"{_last_line(log) or 'no message on standard error'}; exit status {status}{killed}", log
        )


def _invoke(box: Container, limits: Limits) -> None:
    """Wait for /health, post /invoke; asked from inside the container, which has no network.

    The case's time starts with the request, as the container counts it; loading the model has a limit of its own.
    """
    started = time.monotonic()
    while not _ask(box, "GET", "health", 10.0, expected=200):
        box.reload()
        log = box.logs(stdout=False, tail=50).decode(errors="replace")
        if box.status == "exited":
            raise _CaseFailedError(_last_line(log) or "the server stopped before it was healthy", log)
        if time.monotonic() - started > HEALTH_LIMIT_S:
            raise _CaseFailedError(f"/health was not 200 within {HEALTH_LIMIT_S:g} s", log)
        time.sleep(0.5)
    with _watched(box, limits):
        done = _ask(box, "POST", "invoke", LONGEST_CASE_S, expected=201)
        log = box.logs(stdout=False, tail=50).decode(errors="replace")
        if not done:
            raise _CaseFailedError(_last_line(log) or "/invoke did not answer 201", log)
    box.stop(timeout=2)


def _ask(box: Container, verb: str, path: str, timeout_s: float, *, expected: int) -> bool:
    command: list[Any] = ["python3", "-c", ASK, verb, f"http://127.0.0.1:{PORT}/{path}", str(timeout_s)]
    try:
        answer = box.exec_run(command)
    except Exception:  # the container has just stopped: the caller looks at why
        return False
    return answer.exit_code == 0 and answer.output.decode().strip() == str(expected)


def _copy_out(box: Container, target: Path, most_bytes: int) -> None:
    """Unpack /output of the stopped container: plain files and folders only, never more than `most_bytes`."""
    with tempfile.TemporaryFile() as spool:
        if not _spool(box, spool, most_bytes):
            raise _CaseFailedError(f"the container left more than {most_bytes / 1024**3:.3g} GiB in /output", "")
        spool.seek(0)
        try:
            _unpack(spool, target)
        except (tarfile.TarError, OSError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise _CaseFailedError(f"the container's /output cannot be copied: {error}", "") from error
    if not any(target.iterdir()):
        raise _CaseFailedError("the container ended without an error but wrote nothing to /output", "")


def _unpack(spool: IO[bytes], target: Path) -> None:
    with tarfile.open(fileobj=spool) as archive:
        for count, member in enumerate(archive):
            if count > MOST_OUTPUT_FILES:
                raise _CaseFailedError(f"the container left more than {MOST_OUTPUT_FILES} files in /output", "")
            inside = Path(*Path(member.name).parts[1:])
            if inside == Path("."):
                continue
            if not (member.isfile() or member.isdir()):
                raise _CaseFailedError(
                    f"the container left {inside}, which is neither a file nor a folder, in /output", ""
                )
            archive.extract(_renamed(member, inside), target, filter="data")


def _spool(box: Container, spool: IO[bytes], most_bytes: int) -> bool:
    """Write the archive of /output to a file; False when it is larger than allowed.

    Returns before anything is raised: the engine cannot remove a container while its archive is still being read, and
    the connection closes only when nothing, no traceback either, refers to the stream any more.
    """
    stream, _ = box.get_archive("/output")
    size = 0
    for chunk in stream:
        size += len(chunk)
        if size > most_bytes:
            return False
        spool.write(chunk)
    return True


def _renamed(member: tarfile.TarInfo, name: Path) -> tarfile.TarInfo:
    """The archive member under another name, readable by its owner."""
    return member.replace(name=str(name), mode=0o755 if member.isdir() else 0o644, deep=False)


def _last_line(log: str) -> str:
    """The last line that says something, without control characters and not longer than a message should be."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    text = "".join(letter for letter in lines[-1] if letter.isprintable()) if lines else ""
    return text if len(text) <= LONGEST_MESSAGE else text[:LONGEST_MESSAGE] + "..."
