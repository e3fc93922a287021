"""A cohort in nnU-Net's raw layout: `DatasetNNN_NAME/{imagesTr,labelsTr,imagesTs,labelsTs}` and dataset.json.

The layout is that of nnU-Net v2 (documentation/dataset_format.md): `<case>_0000.nii.gz` and `<case>_0001.nii.gz` are
the channels of an image, `<case>.nii.gz` its labels. prep.csv and the audits lie beside, where nnU-Net does not look.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autopet.cohort import TABLE, read_table, write_table
from autopet.errors import AutopetError, one_line
from autopet.images import is_image, read_image, write_image
from autopet.progress import console
from data_prep.case_store import CONVERTED, Entry, Row, check_entry, check_rows, columns_of
from data_prep.records import AUDIT

CHANNELS = {"CT": "CTres", "PET": "SUV"}  # nnU-Net's names (CT decides its normalisation), in autoPET III's order
ALIASES = {"SUV": "PET"}  # in datasets of others
LABELS = {"background": 0, "lesion": 1}
DESCRIPTION = "dataset.json"
SPLITS = "splits_final.json"
SUFFIX = ".nii.gz"
AUDITS = "audits"
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
        if not split_csv.is_file():
            raise AutopetError(f"{split_csv}: no such file; make one with `autopet split`")
        found = {row["case"]: row for row in read_table(split_csv)}
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


class NnunetTarget:
    """A dataset folder."""

    left_out = "CT on its own grid and PET before SUV conversion"

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self._trained: list[str] = []
        for name in ("imagesTr", "labelsTr"):
            (folder / name).mkdir(parents=True)

    def write(self, entry: Entry) -> Row:
        """Channels and labels of a case; all are on the PET grid."""
        _check_for_training(entry)
        part = self._part(entry)
        files = self._files(entry, part)
        try:
            for path, role in files.items():
                write_image(path, entry.images[role])
            if entry.audit:
                audit = self.folder / AUDITS / f"{entry.name}.json"
                files[audit] = AUDIT
                audit.parent.mkdir(exist_ok=True)
                audit.write_text(entry.audit)
        except BaseException:
            for path in files:
                path.unlink(missing_ok=True)
            raise
        if part == TRAIN:
            self._trained.append(entry.name)
        return {**entry.row, "folder": ""}

    def _files(self, entry: Entry, part: str) -> dict[Path, str]:
        """Path of each file, and the role of its image."""
        files = {
            self.folder / f"images{part}" / f"{entry.name}_{number:04d}{SUFFIX}": role
            for number, role in enumerate(CHANNELS.values())
        }
        if "SEG" in entry.images:
            files[self.folder / f"labels{part}" / f"{entry.name}{SUFFIX}"] = "SEG"
        return files

    def _part(self, entry: Entry) -> str:
        tested = self.plan.part.get(entry.name) == "test"
        if "SEG" not in entry.images and not tested:
            text = f"{entry.name} has no lesion mask and cannot be trained on: it goes to images{TEST}"
            console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)
        return TEST if tested or "SEG" not in entry.images else TRAIN

    def finish(self, rows: Sequence[Row]) -> None:
        """dataset.json, splits_final.json and prep.csv."""
        trained = sorted(self._trained)
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
        write_table(self.folder / TABLE, rows, columns_of(rows))


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
        self.folder = folder
        self.suffix, self.numbers = _read_description(folder / DESCRIPTION)
        table = folder / TABLE
        self.rows = check_rows(read_table(table) if table.is_file() else self._rows(), table)

    def _rows(self) -> list[Row]:
        first = f"_{min(self.numbers.values()):04d}{self.suffix}"
        paths = sorted(path for part in (TRAIN, TEST) for path in (self.folder / f"images{part}").glob(f"*{first}"))
        names = [path.name.removesuffix(first) for path in paths]
        return [{"case": name, "patient_id": name, "status": CONVERTED, "reason": ""} for name in names]

    def read(self, row: Row) -> Entry:
        """The channels and the labels of a case, wherever they lie."""
        name = row["case"]
        part = next(
            (part for part in (TRAIN, TEST) if self._image(name, part, min(self.numbers.values())).is_file()), None
        )
        if part is None:
            raise AutopetError(f"{self.folder}: no image of case {name} in imagesTr or imagesTs")
        images = {role: read_image(self._image(name, part, number)) for role, number in self.numbers.items()}
        label = self.folder / f"labels{part}" / f"{name}{self.suffix}"
        if label.is_file():
            images["SEG"] = read_image(label)
            if "lesion_voxels" not in row:  # a dataset of others
                row = {**row, "lesion_voxels": str(int(np.count_nonzero(images["SEG"].array)))}
        audit = self.folder / AUDITS / f"{name}.json"
        return check_entry(Entry(row, images, audit.read_text() if audit.is_file() else ""), self.folder)

    def _image(self, name: str, part: str, number: int) -> Path:
        return self.folder / f"images{part}" / f"{name}_{number:04d}{self.suffix}"


def _read_description(path: Path) -> tuple[str, dict[str, int]]:
    """The suffix of the images, and the channel number of CTres and SUV."""
    try:
        content = json.loads(path.read_text())
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
