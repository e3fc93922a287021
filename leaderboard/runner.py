"""Running a method on every case of a cohort, in the platform's layout, so that the evaluation reads it unchanged.

out/predictions.json                       the platform's list of jobs, one per case
out/<pk>/output/images/<socket>/<name>.mha what the container wrote
out/<pk>/log.txt and run.json              what it said, and its record: seconds per stage, what was dropped
"""

from __future__ import annotations

import json
import shutil
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autopet.checkpoint import SUMS, open_to_all, sha256
from autopet.cohort import Case
from autopet.container import RUN
from autopet.engine import Limits, Outcome, image_id, run_case
from autopet.errors import AutopetError, one_line
from autopet.folders import whole_file
from autopet.images import find_images, read_image, write_image
from autopet.progress import console, track
from autopet.sockets import CT, INPUTS_JSON, LESIONS, PET, Socket

JOBS = "predictions.json"
LONGEST_ORIGIN = 10_000  # bytes
ORIGIN = "origin.json"  # which image or method, with which weights, the predictions are from
SUCCEEDED, FAILED = "Succeeded", "Failed"
LONGEST_RECORD = 1_000_000  # bytes of a run.json that is looked into; images of others may write anything


@dataclass(frozen=True)
class Entry:
    """What is run: a method's name and model, in an image or locally."""

    name: str
    target: str  # image tag for engine docker, method name for engine local
    engine: str
    model: Path | None = None
    limits: Limits = field(default_factory=Limits)


def case_pk(case: Case) -> str:
    """A stable job identifier for a case."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"autopet:{case.name}"))


def run_cohort(entry: Entry, cases: Sequence[Case], out: Path) -> list[dict[str, Any]]:
    """Run an entry on all cases; cases that succeeded before are kept, failed ones are tried again.

    Predictions of another image or of other weights are not kept: all cases are run again, and it says so.

    Returns
    -------
    list of dict
        The jobs, as in predictions.json; one that failed has status `Failed` and `error_message`.
    """
    out.mkdir(parents=True, exist_ok=True)
    _start_anew_if_changed(entry, out)
    jobs = {job["pk"]: job for job in finished_jobs(out, cases)}
    todo = [case for case in cases if case_pk(case) not in jobs]
    if jobs:
        console.print(f"{entry.name}: {len(jobs)} of {len(cases)} cases are done already", highlight=False)
    for case in track(todo, f"{entry.name} ({entry.engine})") if todo else ():
        job = _run(entry, case, out)
        jobs[job["pk"]] = job
        _write_jobs(out, [jobs[case_pk(known)] for known in cases if case_pk(known) in jobs])
    return [jobs[case_pk(case)] for case in cases]


def _start_anew_if_changed(entry: Entry, out: Path) -> None:
    sums = entry.model / SUMS if entry.model else None
    origin = {
        "entry": image_id(entry.target) if entry.engine == "docker" else entry.target,
        "model": sha256(sums) if sums and sums.is_file() else "",
    }
    text = json.dumps(origin, indent=2) + "\n"
    path = out / ORIGIN
    if (out / JOBS).is_file() and (not path.is_file() or path.read_text() != text):
        console.print(f"{entry.name}: the image or the weights have changed, all cases are run again", highlight=False)
        (out / JOBS).unlink()
    path.write_text(text)


def read_origin(submission: Path) -> dict[str, str] | None:
    """The texts of origin.json; None without one, or where it is not one that `autopet run` wrote."""
    path = submission / ORIGIN
    if not path.is_file() or path.is_symlink():
        return None
    try:
        known = json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size <= LONGEST_ORIGIN else None
    except (OSError, ValueError, RecursionError):
        return None
    return {key: text for key, text in known.items() if isinstance(text, str)} if isinstance(known, dict) else None


def finished_jobs(out: Path, cases: Sequence[Case]) -> list[dict[str, Any]]:
    """The jobs of an earlier run that succeeded and whose outputs are still there."""
    listing = out / JOBS
    if not listing.is_file():
        return []
    wanted = {case_pk(case): _fingerprint(case) for case in cases}
    jobs = json.loads(listing.read_text())
    return [
        job
        for job in jobs
        if job["status"] == SUCCEEDED
        and job.get("case_fingerprint") == wanted.get(job["pk"], "unknown")
        and has_mask(out / job["pk"])
    ]


def has_mask(folder: Path) -> bool:
    """Whether a case's folder holds exactly one mask where the platform looks for it."""
    masks = folder / "output" / LESIONS.relative_path
    return masks.is_dir() and len(find_images(masks)) == 1


def _fingerprint(case: Case) -> str:
    """Changes when the case is converted anew."""
    return "-".join(f"{path.stat().st_size}.{path.stat().st_mtime_ns}" for path in (case.suv, case.ct) if path.exists())


def _write_jobs(out: Path, jobs: list[dict[str, Any]]) -> None:
    with whole_file(out / JOBS) as part:
        part.write_text(json.dumps(jobs, indent=2) + "\n")


def _run(entry: Entry, case: Case, out: Path) -> dict[str, Any]:
    pk = case_pk(case)
    shutil.rmtree(out / pk, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="autopet-case-") as name:
        try:
            folder = stage_case(case, Path(name) / "input")
        except AutopetError as error:  # this case cannot be run; the others can
            outcome = Outcome(False, 0.0, one_line(error))
        else:
            outcome = run_case(
                entry.target, folder, out / pk / "output", engine=entry.engine, model=entry.model, limits=entry.limits
            )
    if outcome.ok and not has_mask(out / pk):
        outcome = replace(outcome, ok=False, error=f"expected exactly one mask in /output/{LESIONS.relative_path}")
    if not outcome.ok:
        console.print(f"{entry.name}: {case.name} failed: {outcome.error}", style="red", highlight=False, markup=False)
    (out / pk).mkdir(exist_ok=True)
    (out / pk / "log.txt").write_text(outcome.log)
    dropped = _keep_record(out / pk)
    if dropped:
        said = f"{entry.name}: {case.name}: {dropped} left out for want of time or memory, see {out / pk / RUN}"
        console.print(said, style="yellow", highlight=False, markup=False)
    return _job(pk, case, outcome)


def _keep_record(folder: Path) -> int:
    """Move a case's run.json from its outputs to its log; returns how many things it says were dropped."""
    written, kept = folder / "output" / RUN, folder / RUN
    if not written.is_file():
        return 0
    written.replace(kept)
    if kept.stat().st_size > LONGEST_RECORD:
        return 0
    try:
        dropped = json.loads(kept.read_text())["dropped"]
    except (ValueError, KeyError, TypeError, RecursionError):  # the record of an image that is not of this project
        return 0
    return len(dropped) if isinstance(dropped, list) else 0


def stage_case(case: Case, folder: Path) -> Path:
    """The case as /input has it: one .mha per socket, and inputs.json; readable by any user."""
    for socket, path in ((PET, case.suv), (CT, case.ct)):
        write_image(folder / socket.relative_path / f"{case.name}.mha", read_image(path))
    (folder / INPUTS_JSON).write_text(json.dumps(_inputs(case), indent=2))
    open_to_all(folder)
    return folder


def _interface(socket: Socket) -> dict[str, str]:
    kind = {"image": "Image", "mask": "Segmentation", "json": "Bool"}[socket.kind]
    super_kind = "Value" if socket.kind == "json" else "Image"
    return {"slug": socket.slug, "relative_path": socket.relative_path, "kind": kind, "super_kind": super_kind}


def _inputs(case: Case) -> list[dict[str, Any]]:
    image = {"name": f"{case.name}.mha", "pk": case_pk(case)}
    return [
        {"socket": _interface(socket), "interface": _interface(socket), "value": None, "file": None, "image": image}
        for socket in (PET, CT)
    ]


def _job(pk: str, case: Case, outcome: Outcome) -> dict[str, Any]:
    return {
        "pk": pk,
        "status": SUCCEEDED if outcome.ok else FAILED,
        "error_message": outcome.error,
        "case_fingerprint": _fingerprint(case),
        "exec_duration": f"PT{outcome.seconds:.3f}S",
        "inputs": _inputs(case),
        "outputs": [{"socket": _interface(LESIONS), "interface": _interface(LESIONS), "value": None, "file": None}],
    }
