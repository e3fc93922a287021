"""Commands that make and change data: phantom, prep, collect, split, convert, to-dicom."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autopet.commands.options import Workers
from autopet.errors import AutopetError, one_line
from autopet.progress import console

if TYPE_CHECKING:
    from autopet.splitting import Place

app = typer.Typer()
SOME_FAILED = 3  # exit status
DEFAULT_FRACTIONS = "0.6,0.2,0.2"  # of train, val and test


class Tracer(StrEnum):
    """Tracers of a phantom cohort."""

    fdg = "fdg"
    psma = "psma"
    mixed = "mixed"


class SuvMode(StrEnum):
    """Rules of the SUV factor."""

    qiba = "qiba"
    challenge = "challenge"


class SuvKind(StrEnum):
    """What uptake is divided by."""

    bw = "bw"
    lbm = "lbm"
    bsa = "bsa"


class ImageFormat(StrEnum):
    """Formats of a cohort's images."""

    nifti = "nifti"
    mha = "mha"


class Size(StrEnum):
    """Matrix sizes of a phantom cohort."""

    small = "small"
    full = "full"


@app.command(epilog="Example: autopet phantom dicom --cases 12 --seed 7 --tracer fdg")
def phantom(
    out: Annotated[Path, typer.Argument(help="Folder to write the DICOM studies to, in the TCIA layout.")],
    cases: Annotated[int, typer.Option(min=1, help="Number of patients, one study each.")] = 12,
    seed: Annotated[int, typer.Option(help="The same seed gives the same cohort.")] = 0,
    organ_maps: Annotated[
        Path | None, typer.Option(help="Folder of organ label maps (NIfTI) to use as anatomy.")
    ] = None,
    size: Annotated[
        Size, typer.Option(help="small: about 4x4x6 mm PET, for CPU training; full: real matrix sizes.")
    ] = Size.small,
    tracer: Annotated[Tracer, typer.Option(help="mixed: both in turn.")] = Tracer.mixed,
    positive_fraction: Annotated[float, typer.Option(min=0, max=1, help="Share of patients with lesions.")] = 0.75,
    workers: Workers = 1,
) -> None:
    """Write a cohort of simulated PET/CT patients as real DICOM (CT, PT, SEG)."""
    from data_prep.phantom import write_cohort

    rows = write_cohort(
        out,
        cases=cases,
        seed=seed,
        organ_maps=organ_maps,
        size=size.value,
        tracer=tracer.value if tracer is Tracer.mixed else tracer.value.upper(),
        positive_fraction=positive_fraction,
        workers=workers,
    )
    console.print(f"{len(rows)} studies in {out}; convert them with: autopet prep {out} nifti", highlight=False)


@app.command(epilog="Example: autopet prep /data/FDG-PET-CT-Lesions nifti --segments Lesion --workers 4")
def prep(
    source: Annotated[Path, typer.Argument(help="Folder with DICOM studies anywhere below it.")],
    out: Annotated[Path, typer.Argument(help="Folder for CT, PET, SUV, CTres, SEG per study, prep.csv, prep.html.")],
    segments: Annotated[str, typer.Option(help="Segment names or numbers, with commas; all united without it.")] = "",
    series_uid: Annotated[
        list[str] | None, typer.Option(help="SeriesInstanceUID to take instead of the one chosen; repeatable.")
    ] = None,
    suv_mode: Annotated[
        SuvMode, typer.Option(help="qiba: vendor-neutral rules; challenge: the official script's equation.")
    ] = SuvMode.qiba,
    suv_kind: Annotated[
        SuvKind, typer.Option(help="SUV by body weight, lean body mass or body surface area.")
    ] = SuvKind.bw,
    image_format: Annotated[ImageFormat, typer.Option("--format", help="Format of the images.")] = ImageFormat.nifti,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Studies converted side by side; default: by cores and memory.")
    ] = None,
    scheduler: Annotated[
        str, typer.Option(help="Address of a Dask scheduler (tcp://host:8786) that studies are sent to.")
    ] = "",
    resume: Annotated[bool, typer.Option(help="Keep studies that an earlier call converted whole.")] = True,
) -> None:
    """Convert DICOM studies: SUV, CT on the PET grid, lesion mask, and an audit of how.

    Exit status 3 when a study failed (prep.csv and prep.html say why), 1 when none could be tried.
    """
    from autopet.parallel import default_workers
    from data_prep.convert import prepare
    from data_prep.study import Settings

    names = tuple(name.strip() for name in segments.split(",") if name.strip())
    settings = Settings(names, suv_mode.value, suv_kind.value, image_format.value)
    rows = prepare(
        source, out, settings, series_uids=series_uid or [],
        workers=workers or default_workers(), scheduler=scheduler, resume=resume,
    )  # fmt: skip
    _report_rows(rows, out)


@app.command(
    epilog="Example: autopet collect sts cohort --pet PET_image.nii.gz --ct CT_image.nii.gz --mask PET_mask.nii.gz"
)
def collect(
    source: Annotated[Path, typer.Argument(help="Folder with one folder per patient.")],
    out: Annotated[Path, typer.Argument(help="Cohort folder to write, like that of `autopet prep`.")],
    pet: Annotated[str, typer.Option(help="Name of the PET image in SUV, in each patient's folder.")] = "SUV.nii.gz",
    ct: Annotated[str, typer.Option(help="Name of the CT image in HU; resampled to the PET grid.")] = "CT.nii.gz",
    mask: Annotated[str, typer.Option(help="Name of the lesion mask; empty when there is none.")] = "SEG.nii.gz",
) -> None:
    """Make a cohort of images that are converted already."""
    from data_prep.collect import collect as collect_cohort

    _report_rows(collect_cohort(source, out, pet=pet, ct=ct, mask=mask or None), out)


def _report_rows(rows: Sequence[dict], out: Path) -> None:
    """A line per study that did not come through; exit status 3 when one failed, an error when none was tried."""
    lost = [row for row in rows if row["status"] != "converted"]
    for row in lost:
        console.print(f"{row['status']}: {row['case']}: {row['reason']}", style="yellow", highlight=False, markup=False)
    console.print(f"{len(rows) - len(lost)} of {len(rows)} studies converted; see {out / 'prep.csv'}", highlight=False)
    if any(row["status"] == "failed" for row in rows):
        raise typer.Exit(SOME_FAILED)
    if len(lost) == len(rows):
        raise AutopetError(
            f"no study was converted; first reason: {lost[0]['reason'] if lost else 'no study was found'}"
        )


@app.command(epilog="Example: autopet split nifti split.csv --fractions 0.6,0.2,0.2 --folds 5 --seed 1")
def split(
    data: Annotated[Path, typer.Argument(help="Cohort folder of `autopet prep`, or HDF5 cohort.")],
    out: Annotated[Path, typer.Argument(help="CSV file to write: case, patient_id, part, fold.")],
    fractions: Annotated[
        str | None,
        typer.Option(
            help="Shares of patients in train,val,test or in train,test; they add up to 1.",
            show_default=DEFAULT_FRACTIONS,
        ),
    ] = None,
    test_fraction: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of part test, the rest is train; instead of --fractions.")
    ] = None,
    folds: Annotated[
        int, typer.Option(min=0, help="Folds for cross-validation of the cases outside test; 0 for none.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same split.")] = 0,
) -> None:
    """Divide a cohort by patient into parts and folds, in proportion of lesions, tracer and centre.

    Folds are taken as parts, too: `--part not-fold0` trains, `--part fold0` validates.
    """
    from autopet.cohort import read_cohort, write_table
    from autopet.splitting import split_cohort, table_rows

    shares = _shares(fractions, test_fraction)
    if out.is_dir():
        raise AutopetError(f"{out} is a folder; give the CSV file to write, such as {out / 'split.csv'}")
    if data.is_file():
        from data_prep.formats import cases_of

        cases = cases_of(data)
    else:
        cases = read_cohort(data)
    places = split_cohort(cases, fractions=shares, folds=folds, seed=seed)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_table(out, *table_rows(places))
    except OSError as error:
        raise AutopetError(f"{out}: cannot be written ({one_line(error)}); give another file") from error
    _report_split(places, out)


def _shares(fractions: str | None, test_fraction: float | None) -> list[float]:
    """Shares of the parts from one of the two options."""
    if fractions is not None and test_fraction is not None:
        raise AutopetError(
            f"--fractions {fractions} and --test-fraction {test_fraction:g} say the same thing; give one of them"
        )
    if test_fraction is not None:
        return [1 - test_fraction, test_fraction]
    text = DEFAULT_FRACTIONS if fractions is None else fractions
    try:
        return [float(share) for share in text.split(",")]
    except ValueError as error:
        raise AutopetError(f"--fractions: expected numbers like {DEFAULT_FRACTIONS}, found {text!r}") from error


def _report_split(places: Sequence[Place], out: Path) -> None:
    """Patients of each stratum and part as a table, and the number of cases."""
    from rich.table import Table

    from autopet.splitting import count_patients

    counts = count_patients(places)
    present = {name for row in counts.values() for name in row}
    parts = [part for part in ("train", "val", "test") if part in present]
    columns = parts + sorted(present - set(parts), key=lambda name: int(name.removeprefix("fold")))
    table = Table("lesions", "tracer", "centre", *columns, title="patients")
    for stratum, row in counts.items():
        table.add_row(stratum.lesions, stratum.tracer, stratum.centre, *(str(row.get(name, 0)) for name in columns))
    totals = (str(sum(row.get(name, 0) for row in counts.values())) for name in columns)
    table.add_section()
    table.add_row("all", "", "", *totals)
    console.print(table)
    cases = [f"{sum(place.part == part for place in places)} {part}" for part in parts]
    console.print(f"cases: {', '.join(cases)}, in {out}", highlight=False)


class CohortFormat(StrEnum):
    """Formats of a whole cohort."""

    nifti = "nifti"
    mha = "mha"
    hdf5 = "hdf5"
    nnunet = "nnunet"


@app.command(epilog="Example: autopet convert nifti nnUNet_raw --to nnunet --split split.csv --id 221")
def convert(
    source: Annotated[Path, typer.Argument(help="Cohort folder, HDF5 cohort, or nnU-Net raw dataset folder.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; for hdf5 a file; for nnunet the nnUNet_raw folder.")],
    to: Annotated[CohortFormat, typer.Option(help="Format to convert to.")],
    split_csv: Annotated[
        Path | None, typer.Option("--split", help="nnunet: part test goes to imagesTs, folds to splits_final.json.")
    ] = None,
    dataset_id: Annotated[int, typer.Option("--id", min=1, max=999, help="nnunet: number of the dataset.")] = 1,
    name: Annotated[str, typer.Option(help="nnunet: name of the dataset.")] = "AutoPET",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Cases converted side by side; default: by cores and memory.")
    ] = None,
    scheduler: Annotated[
        str, typer.Option(help="Address of a Dask scheduler (tcp://host:8786) that cases are sent to.")
    ] = "",
    resume: Annotated[bool, typer.Option(help="Keep cases that an earlier call converted whole.")] = True,
) -> None:
    """Convert a cohort between NIfTI, mha, HDF5 and nnU-Net's raw layout, in any direction.

    Run again after an interruption, it goes on where it was. Exit status 3 when a case failed; the others are there.
    """
    from autopet.parallel import default_workers
    from data_prep.formats import Options, convert_cohort

    done = convert_cohort(
        source, out, to=to.value, options=Options(split_csv, dataset_id, name),
        workers=workers or default_workers(), scheduler=scheduler, resume=resume,
    )  # fmt: skip
    if done.kept:
        console.print(f"{done.kept} converted before and kept", highlight=False)
    for row in done.failed:
        console.print(f"failed: {row['case']}: {row['reason']}", style="yellow", highlight=False, markup=False)
    console.print(f"{done.converted} cases in {done.path}", highlight=False)
    if done.failed:
        raise typer.Exit(SOME_FAILED)


@app.command(epilog="Example: autopet to-dicom mask.nii.gz --reference study/PT --out seg.dcm --algorithm nnunet")
def to_dicom(
    mask: Annotated[Path, typer.Argument(help="Lesion mask (.mha, .nii.gz); voxels above 0 are lesion.")],
    reference: Annotated[Path, typer.Option(help="Folder of the PET series that was segmented.")],
    out: Annotated[Path, typer.Option(help="DICOM Segmentation to write.")],
    algorithm: Annotated[
        str, typer.Option(help="Name of the algorithm that made the mask; default: autopet-bundle.")
    ] = "",
    version: Annotated[str, typer.Option(help="Its version.")] = "",
    family: Annotated[
        str, typer.Option(help="Its kind, as in DICOM's list CID 7162; for a threshold: Histogram Analysis.")
    ] = "Artificial Intelligence",
    label: Annotated[str, typer.Option(help="Label of the segment.")] = "Lesion",
) -> None:
    """Write a lesion mask as a DICOM Segmentation, for the archive and the viewers of a hospital."""
    from autopet.images import read_image
    from data_prep.dicom_export import write_dicom_seg

    write_dicom_seg(
        read_image(mask), reference, out, algorithm=algorithm, version=version, label=label, algorithm_family=family
    )
