"""Entry point of the evaluation container: /input and the baked-in ground truth -> /output/metrics.json."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from autopet.errors import AutopetError, one_line
from evaluation.aggregate import POLICIES
from evaluation.evaluate import evaluate
from evaluation.metrics import EDITIONS

DATA = Path("/opt/ml/input/data")
EDITION_VARIABLE = "AUTOPET_EDITION"


def parse(arguments: Sequence[str] | None, *, edition: str) -> argparse.Namespace:
    """Flags, with the platform's paths as defaults."""
    parser = argparse.ArgumentParser(prog="python -m evaluation", description=__doc__)
    parser.add_argument("--input", type=Path, default=Path("/input"), help="predictions.json with jobs, or masks")
    parser.add_argument("--ground-truth", type=Path, default=DATA / "ground_truth", help="masks, or a prepared cohort")
    parser.add_argument("--output", type=Path, default=Path("/output/metrics.json"))
    parser.add_argument("--images", type=Path, default=DATA / "images", help="PET (SUV) for previews; none without it")
    parser.add_argument("--name", default="", help="name of the submission")
    parser.add_argument("--edition", default=edition, help=f"one of {', '.join(EDITIONS)}; also {EDITION_VARIABLE}")
    parser.add_argument("--failed", default="empty", help=f"policy for lost cases, one of {', '.join(POLICIES)}")
    parser.add_argument("--workers", type=int, default=1)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate; 0 when metrics.json was written, 1 with one line on standard error otherwise."""
    flags = parse(arguments, edition=os.environ.get(EDITION_VARIABLE) or "III")
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
