"""Entry point of the evaluation container: /input and the baked-in ground truth -> /output/metrics.json.

A submission that is broken in some or all cases, or holds nothing that could be scored, is scored with those failures
in it, and the exit status is 0. It is 1, with one line on standard error, when the evaluation itself is impossible: no
ground truth or a broken one, no folder of predictions, flags or click steps that do not fit.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from autopet.errors import AutopetError, one_line
from evaluation.editions import EDITIONS
from evaluation.evaluate import evaluate
from evaluation.policies import POLICIES
from evaluation.surface import TOLERANCE_MM

DATA = Path("/opt/ml/input/data")
EDITION_VARIABLE = "AUTOPET_EDITION"
FAILED_VARIABLE = "AUTOPET_FAILED"


def parse(arguments: Sequence[str] | None, *, edition: str, failed: str) -> argparse.Namespace:
    """Flags, with the platform's paths as defaults."""
    parser = argparse.ArgumentParser(prog="python -m evaluation", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--input", type=Path, default=Path("/input"), help="predictions.json with jobs, or masks")
    parser.add_argument("--ground-truth", type=Path, default=DATA / "ground_truth", help="masks, or a prepared cohort")
    parser.add_argument("--output", type=Path, default=Path("/output/metrics.json"))
    parser.add_argument("--images", type=Path, default=DATA / "images", help="PET (SUV) for previews; none without it")
    parser.add_argument("--name", default="", help="name of the submission")
    parser.add_argument("--edition", default=edition, help=f"one of {', '.join(EDITIONS)}; also {EDITION_VARIABLE}")
    policies = f"policy for lost cases, one of {', '.join(POLICIES)} (constant:dice=0,fpv_ml=500)"
    parser.add_argument("--failed", default=failed, help=f"{policies}; also {FAILED_VARIABLE}")
    parser.add_argument("--workers", type=int, default=1, help="processes that work side by side")
    parser.add_argument("--surface", action="store_true", help="also surface Dice and 95 %% Hausdorff distance")
    parser.add_argument("--tolerance-mm", type=float, default=TOLERANCE_MM, help="of the surface Dice")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate; 0 when metrics.json was written, 1 with one line on standard error otherwise."""
    variables = {EDITION_VARIABLE: "III", FAILED_VARIABLE: "empty"}
    edition, failed = (os.environ.get(name) or default for name, default in variables.items())
    flags = parse(arguments, edition=edition, failed=failed)
    images = flags.images if flags.images.is_dir() else None
    try:
        metrics = evaluate(
            flags.ground_truth,
            flags.input,
            flags.output,
            name=flags.name,
            edition=flags.edition,
            failed=flags.failed,
            images=images,
            workers=flags.workers,
            previews=images is not None,
            surface=flags.surface,
            tolerance_mm=flags.tolerance_mm,
        )
    except AutopetError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    for note in metrics["notes"]:
        print(f"warning: {note}", file=sys.stderr)
    print(f"{metrics['cases']['scored']} of {metrics['cases']['all']} cases scored, wrote {flags.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
