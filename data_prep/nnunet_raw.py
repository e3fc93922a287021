"""A cohort in nnU-Net's raw layout: `DatasetNNN_NAME/{imagesTr,labelsTr,imagesTs,labelsTs}` and dataset.json.

The layout is that of nnU-Net v2 (documentation/dataset_format.md): `<case>_0000.nii.gz` and `<case>_0001.nii.gz` are
the channels of an image, `<case>.nii.gz` its labels. prep.csv and the audits lie beside, where nnU-Net does not look.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autopet.cohort import TABLE, read_table, write_table
from autopet.errors import AutopetError, one_line
from autopet.images import is_image, read_image, write_image
from autopet.progress import console
from data_prep.case_store import (
    CONVERTED,
    Entry,
    Row,
    check_entry,
    check_rows,
    columns_of,
    optional_bytes,
    optional_text,
)
from data_prep.staging import MARKER, Receipt, described, is_whole, link_files, read_receipts

CHANNELS = {"CT": "CTres", "PET": "SUV"}  # nnU-Net's names (CT decides its normalisation), in autoPET III's order
ALIASES = {"SUV": "PET"}  # in datasets of others
LABELS = {"background": 0, "lesion": 1}
DESCRIPTION = "dataset.json"
SPLITS = "splits_final.json"
SUFFIX = ".nii.gz"
AUDITS = "audits"  # audit.json and mip.png, named by the case
TRAIN, TEST = "Tr", "Ts"


@dataclass(frozen=True)
class Plan:
    """Which cases go where; made from split.csv."""

    part: Mapping[str, str]  # case -> train, val or test; empty without a split
    fold: Mapping[str, str]  # case -> fold, "" for none

    @classmethod
    def read(cls, split_csv: Path | None, rows: Sequence[Row]) -> Plan:
        """The plan for the converted cases; a case that split.csv does not name is an error."""
        if split_csv is None:
            return cls({}, {})
        found = _read_split(split_csv)
        missing = [row["case"] for row in rows if row["status"] == CONVERTED and row["case"] not in found]
        if missing:
            raise AutopetError(f"{split_csv} does not name {missing[0]} and {len(missing) - 1} more; make it anew")
        return cls(
            {name: row["part"] for name, row in found.items()},
            {name: row.get("fold") or "" for name, row in found.items()},
        )

    def splits(self, trained: Sequence[str]) -> list[dict[str, list[str]]]:
        """splits_final.json of the cases in imagesTr: the folds, or else the one division into train and val."""
        folds = sorted({self.fold.get(name, "") for name in trained} - {""}, key=int)
        if folds:
            held = [{name for name in trained if self.fold.get(name) == fold} for fold in folds]
        else:
            held = [{name for name in trained if self.part.get(name) == "val"}]
        return [
            {"train": [name for name in trained if name not in val], "val": sorted(val)}
            for val in held
            if 0 < len(val) < len(trained)
        ]


def _read_split(path: Path) -> dict[str, Row]:
    """The rows of split.csv by case."""
    if not path.is_file():
        raise AutopetError(f"{path}: no such file; make one with `autopet split`")
    try:
        rows = read_table(path)
    except (OSError, ValueError, csv.Error) as error:
        raise AutopetError(f"{path}: cannot be read as a table in UTF-8 ({one_line(error)}); make it anew") from error
    for column in ("case", "part"):
        if not rows or column not in rows[0]:
            found = ", ".join(str(name) for name in list(rows[0])[:5]) if rows else "no row"
            raise AutopetError(f"{path}: expected a column {column!r}, found {found}; make it with `autopet split`")
    for row in rows:
        fold = row.get("fold") or ""
        if fold and not fold.isdecimal():
            raise AutopetError(f"{path}: column 'fold': expected a number or nothing, found {fold!r}; make it anew")
    return {row["case"]: row for row in rows}


@dataclass(frozen=True)
class NnunetWriter:
    """Where one case of a dataset goes."""

    folder: Path
    tested: bool  # the split puts it into part test

    @property
    def key(self) -> str:
        """Where the case goes depends on its part."""
        return f"nnunet {'test' if self.tested else 'train'}"

    def write(self, entry: Entry) -> tuple[Row, list[str]]:
        """Channels and labels of a case; all are on the PET grid."""
        _check_for_training(entry)
        files = self._image_files(entry)
        extras = {f"{AUDITS}/{entry.name}.json": entry.audit.encode(), f"{AUDITS}/{entry.name}.png": entry.picture}
        written = [*files, *(name for name, data in extras.items() if data)]
        try:
            for name, role in files.items():
                write_image(self.folder / name, entry.images[role])
            (self.folder / AUDITS).mkdir(exist_ok=True)
            for name, data in extras.items():
                if data:
                    (self.folder / name).write_bytes(data)
        except BaseException:
            for name in written:
                (self.folder / name).unlink(missing_ok=True)
            raise
        return {**entry.row, "folder": ""}, written

    def take(self, earlier: Path, receipt: Receipt) -> bool:
        """Link the files of an earlier result."""
        whole = is_whole(earlier, receipt)
        if whole:
            link_files(earlier, self.folder, receipt)
        return whole

    def _image_files(self, entry: Entry) -> dict[str, str]:
        """Path of each image in the dataset, and its role."""
        part = TEST if self.tested or "SEG" not in entry.images else TRAIN
        channels = {
            f"images{part}/{entry.name}_{number:04d}{SUFFIX}": role for number, role in enumerate(CHANNELS.values())
        }
        return channels | ({f"labels{part}/{entry.name}{SUFFIX}": "SEG"} if "SEG" in entry.images else {})


class NnunetTarget:
    """A dataset folder."""

    left_out = "CT on its own grid and PET before SUV conversion; organ labels"

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan

    def writer(self, row: Row) -> NnunetWriter:
        """By the case's part."""
        return NnunetWriter(self.folder, self.plan.part.get(row["case"]) == "test")

    def earlier(self, result: Path) -> dict[str, Receipt]:
        """The cases of an earlier result."""
        return read_receipts(result)

    def finish(self, rows: Sequence[Row], receipts: Mapping[str, Receipt]) -> Path:
        """dataset.json, splits_final.json, convert.json and prep.csv."""
        trained = sorted(
            name for name, receipt in receipts.items() if f"labels{TRAIN}/{name}{SUFFIX}" in receipt.file_bytes
        )
        for name in sorted(set(receipts) - set(trained)):
            if self.plan.part.get(name) != "test":
                text = f"{name} has no lesion mask and cannot be trained on: it goes to images{TEST}"
                console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)
        for folder in (f"images{TRAIN}", f"labels{TRAIN}"):
            (self.folder / folder).mkdir(exist_ok=True)
        description = {
            "channel_names": {str(number): name for number, name in enumerate(CHANNELS)},
            "labels": LABELS,
            "numTraining": len(trained),
            "file_ending": SUFFIX,
        }
        (self.folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")
        splits = self.plan.splits(trained)
        if splits:
            (self.folder / SPLITS).write_text(json.dumps(splits, indent=2) + "\n")
        (self.folder / MARKER).write_text(described("nnunet", receipts), encoding="utf-8")
        write_table(self.folder / TABLE, rows, columns_of(rows))
        return self.folder


def _check_for_training(entry: Entry) -> None:
    """nnU-Net wants channels and labels on one grid, and no label that dataset.json does not name."""
    suv, mask = entry.images["SUV"], entry.images.get("SEG")
    for role in ("CTres", "SEG"):
        difference = entry.images[role].grid_difference(suv) if role in entry.images else ""
        if difference:
            raise AutopetError(f"{entry.name}: {role} is not on the grid of SUV: {difference}; convert the study again")
    if mask is not None and (highest := int(mask.array.max(initial=0))) not in LABELS.values():
        raise AutopetError(f"{entry.name}: expected a mask of 0 and 1, found label {highest}; make it binary")


class NnunetSource:
    """A raw dataset of this bundle or of others (then the rows are made from the names of its files)."""

    kind = "nnU-Net raw dataset"

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.suffix, self.numbers = _read_description(folder / DESCRIPTION)
        table = folder / TABLE
        self.rows = check_rows(read_table(table) if table.is_file() else self._rows(), table)

    def _rows(self) -> list[Row]:
        first = f"_{min(self.numbers.values()):04d}{self.suffix}"
        paths = sorted(path for part in (TRAIN, TEST) for path in (self.folder / f"images{part}").glob(f"*{first}"))
        names = [path.name.removesuffix(first) for path in paths]
        return [{"case": name, "patient_id": name, "status": CONVERTED, "reason": ""} for name in names]

    def case(self, row: Row) -> NnunetCase:
        """The case of a row."""
        return NnunetCase(row, self.folder, self.suffix, self.numbers)

    def read(self, row: Row) -> Entry:
        """The channels and the labels of a case, wherever they lie."""
        return self.case(row).read()


@dataclass(frozen=True)
class NnunetCase:
    """One case of a dataset."""

    row: Row
    folder: Path
    suffix: str
    numbers: Mapping[str, int]  # channel of each role

    def files(self) -> list[Path]:
        """Images, labels, audit and picture, as far as they are there."""
        name = self.row["case"]
        images = [self._image(part, number) for part in (TRAIN, TEST) for number in self.numbers.values()]
        labels = [self._label(part) for part in (TRAIN, TEST)]
        extras = [self.folder / AUDITS / f"{name}{suffix}" for suffix in (".json", ".png")]
        return [path for path in (*images, *labels, *extras) if path.is_file()]

    def read(self) -> Entry:
        """The channels and the labels, wherever they lie."""
        name, row, first = self.row["case"], self.row, min(self.numbers.values())
        part = next((part for part in (TRAIN, TEST) if self._image(part, first).is_file()), None)
        if part is None:
            raise AutopetError(f"{self.folder}: no image of case {name} in imagesTr or imagesTs")
        images = {role: read_image(self._image(part, number)) for role, number in self.numbers.items()}
        if self._label(part).is_file():
            images["SEG"] = read_image(self._label(part))
            if "lesion_voxels" not in row:  # a dataset of others
                row = {**row, "lesion_voxels": str(int(np.count_nonzero(images["SEG"].array)))}
        audits = self.folder / AUDITS
        texts = optional_text(audits / f"{name}.json"), optional_bytes(audits / f"{name}.png")
        return check_entry(Entry(row, images, *texts), self.folder)

    def _image(self, part: str, number: int) -> Path:
        return self.folder / f"images{part}" / f"{self.row['case']}_{number:04d}{self.suffix}"

    def _label(self, part: str) -> Path:
        return self.folder / f"labels{part}" / f"{self.row['case']}{self.suffix}"


def _read_description(path: Path) -> tuple[str, dict[str, int]]:
    """The suffix of the images, and the channel number of CTres and SUV."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        suffix = str(content["file_ending"])
        names = {str(name).upper(): int(number) for number, name in content["channel_names"].items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise AutopetError(f"{path}: expected nnU-Net's channel_names and file_ending ({one_line(error)})") from error
    known = {ALIASES.get(name, name): number for name, number in names.items()}
    missing = [name for name in CHANNELS if name not in known]
    if missing or not is_image(Path(f"a{suffix}")):
        raise AutopetError(
            f"{path}: expected channels {', '.join(CHANNELS)} in NIfTI or mha, found {', '.join(names)} in {suffix}"
        )
    return suffix, {role: known[name] for name, role in CHANNELS.items()}
