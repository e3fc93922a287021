"""Masks from the contours of an RT Structure Set: polygons in patient millimetres, filled on the PET grid.

Sections are those of DICOM PS3.3: A.19 (RT Structure Set), C.8.8.5 (Structure Set), C.8.8.6 (ROI Contour).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from autopet.errors import AutopetError, one_line
from autopet.volume import Volume
from data_prep.attributes import read_dicom, tag_name, values, whole_number
from data_prep.contour_drawing import Region, draw_regions
from data_prep.mask_objects import Drawn
from data_prep.polygons import same_path

CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")  # of ContourGeometricType (3006,0042) that enclose an area
XOR = CLOSED[1]  # its contours are meant to be combined by exclusive or, whatever they cross


@dataclass(frozen=True, eq=False)
class StructureSet:
    """One RT Structure Set instance, as far as it could be read; regions of interest (ROI) by number.

    `contours` are the closed ones, (points, 3) LPS mm each; `problems` say why a region cannot be used, `notes` what
    was left out of it.
    """

    path: Path
    header: Dataset
    labels: dict[int, str]
    belongs: bool  # refers to the PET series
    problem: str  # why nothing of it can be used, empty when it can
    contours: dict[int, list[np.ndarray]] = field(default_factory=dict)
    problems: dict[int, str] = field(default_factory=dict)
    notes: dict[int, list[str]] = field(default_factory=dict)
    exclusive: set[int] = field(default_factory=set)  # regions with contours of the type CLOSEDPLANAR_XOR
    kind = "RTSTRUCT"

    @property
    def title(self) -> str:
        """What it is called in messages."""
        if self.problem:
            return str(self.path)
        name = self.header.get("SeriesDescription") or self.header.get("StructureSetLabel") or "RTSTRUCT"
        return f"{name} ({self.header.SOPInstanceUID}: {', '.join(self.labels.values())})"

    @property
    def frame_uids(self) -> tuple[str, ...]:
        """Frames of reference of its regions."""
        items = self.header.get("StructureSetROISequence") or []
        found = [uid for item in items for uid in values(item, "ReferencedFrameOfReferenceUID")]
        return tuple(dict.fromkeys(found)) or values(self.header, "FrameOfReferenceUID")

    def draw(self, numbers: set[int], pet: Volume, warnings: list[str]) -> Drawn:
        """The mask of some regions on the PET grid, with the number of contours used and the planes they lay on.

        Contours of one region on one plane are combined by exclusive or (C.8.8.6.3), regions are united;
        `data_prep.contour_drawing` says which PET slices show them.
        """
        for number in sorted(numbers):
            if number in self.problems:
                raise AutopetError(self.problems[number])
            warnings.extend(f"{self.title}: {note}" for note in self.notes.get(number, []))
        regions = [
            Region(self.labels[number], self.contours[number], number in self.exclusive)
            for number in sorted(numbers)
            if self.contours.get(number)
        ]
        if not regions:
            warnings.append(f"{self.title}: no closed contour of the regions {sorted(numbers)}; the mask is empty")
            return Drawn(np.zeros(pet.shape, dtype=bool), 0, "no contours")
        try:
            return draw_regions(regions, pet, warnings, title=self.title, on_pet=self.belongs)
        except AutopetError as error:
            raise AutopetError(f"{self.path}: {error}") from error


# --- reading ---------------------------------------------------------------------------------------------------------


def read_structure_set(path: Path, *, pet: Volume, pet_uid: str, pet_headers: Mapping[str, Dataset]) -> StructureSet:
    """A structure set; a broken one with its problem. It belongs to the PET when it refers to its series or slices.

    That its planes are planes of the PET says nothing: the CT of the same examination often has the same planes.
    """
    header, labels, referenced = Dataset(), dict[int, str](), set[str]()
    problem, regions = "", _Regions(path)
    try:
        header = read_dicom(path, pixels=False)
        referenced = _referenced_series(header)
        labels = _labels(path, header)
        regions.read(header, labels)
    except AutopetError as error:
        problem = one_line(error) if str(path) in str(error) else f"{path}: {one_line(error)}"
    except Exception as error:  # pydicom raises what it likes about damaged values
        problem = f"{path}: cannot be read, {type(error).__name__}: {one_line(error)}; export the structure set anew"
    belongs = pet_uid in referenced or bool(regions.images & set(pet_headers))
    return StructureSet(
        path, header, labels, belongs, problem, regions.contours, regions.problems, regions.notes, regions.exclusive
    )


def _referenced_series(header: Dataset) -> set[str]:
    """Series in ReferencedFrameOfReferenceSequence (C.8.8.5)."""
    return {
        str(series.get("SeriesInstanceUID", ""))
        for frame in header.get("ReferencedFrameOfReferenceSequence") or []
        for study in frame.get("RTReferencedStudySequence") or []
        for series in study.get("RTReferencedSeriesSequence") or []
    }


def _labels(path: Path, header: Dataset) -> dict[int, str]:
    items = header.get("StructureSetROISequence") or []
    if not items:
        tag = tag_name("StructureSetROISequence")
        raise AutopetError(f"{path}: {tag} is missing or empty; export the structure set anew")
    numbers = [whole_number(item, "ROINumber") for item in items]
    return {number: str(item.get("ROIName") or f"region {number}") for number, item in zip(numbers, items, strict=True)}


@dataclass
class _Regions:
    """Collects the contours of a file by region; what is wrong with one region leaves the others usable."""

    path: Path
    contours: dict[int, list[np.ndarray]] = field(default_factory=dict)
    problems: dict[int, str] = field(default_factory=dict)
    notes: dict[int, list[str]] = field(default_factory=dict)
    exclusive: set[int] = field(default_factory=set)
    images: set[str] = field(default_factory=set)

    def read(self, header: Dataset, labels: Mapping[int, str]) -> None:
        """Read ROIContourSequence (C.8.8.6); a region without an item has no contours."""
        items = header.get("ROIContourSequence")
        if not items:
            tag = tag_name("ROIContourSequence")
            raise AutopetError(f"{self.path}: {tag} is missing or empty; export the structure set anew")
        for item in items:
            number = whole_number(item, "ReferencedROINumber")
            if number in labels:
                self._read_region(number, item.get("ContourSequence") or [], labels[number])

    def _read_region(self, number: int, items: Sequence[Dataset], label: str) -> None:
        found, ignored, paths, twice = self.contours.setdefault(number, []), [], set[bytes](), 0
        for index, item in enumerate(items, start=1):
            self.images |= {
                str(image.get("ReferencedSOPInstanceUID", "")) for image in item.get("ContourImageSequence") or []
            }
            kind = str(item.get("ContourGeometricType") or "missing")
            try:
                points = _points(item) if kind in CLOSED else np.empty((0, 3))
            except AutopetError as error:
                self.problems[number] = f"{self.path}: contour {index} of {label!r}: {error}"
                return
            if len(points) < 3:
                ignored.append(f"{kind} of {len(points)} points" if kind in CLOSED else kind)
                continue
            if kind == XOR:
                self.exclusive.add(number)
            path = same_path(points)
            if path in paths:
                twice += 1  # by exclusive or the two would leave nothing
            else:
                found.append(points)
                paths.add(path)
        self._note(number, label, ignored, twice)

    def _note(self, number: int, label: str, ignored: Sequence[str], twice: int) -> None:
        notes = self.notes.setdefault(number, [])
        if ignored:
            kinds = ", ".join(sorted(set(ignored)))
            tag = tag_name("ContourGeometricType")
            notes.append(f"{len(ignored)} contours of {label!r} without an area are ignored ({tag}: {kinds})")
        if twice:
            notes.append(
                f"{twice} contours of {label!r} are stored more than once ({tag_name('ContourData')}), used once"
            )


def _points(item: Dataset) -> np.ndarray:
    """(points, 3) ContourData in LPS mm, taken from the file's text: pydicom's own numbers are slow by the million."""
    tag = tag_name("ContourData")
    raw = item.get_item("ContourData").value if "ContourData" in item else None
    text = raw.strip(b" \0").split(b"\\") if isinstance(raw, bytes) else np.atleast_1d(raw or [])
    if len(text) == 0 or text[0] == b"":
        raise AutopetError(f"{tag} is missing or empty; export the structure set anew")
    try:
        numbers = np.array(text).astype(np.float64)
    except ValueError as error:
        begin = "\\".join(part.decode("ascii", "replace") for part in text[:3] if isinstance(part, bytes))
        raise AutopetError(f"{tag} is no list of numbers (it begins with {begin!r}); export it anew") from error
    if len(numbers) % 3 or not np.isfinite(numbers).all():
        raise AutopetError(f"{tag} has {len(numbers)} numbers, expected finite x, y, z of each point; export it anew")
    count = whole_number(item, "NumberOfContourPoints", default=len(numbers) // 3)
    if count != len(numbers) // 3:
        raise AutopetError(
            f"{tag} has {len(numbers) // 3} points, {tag_name('NumberOfContourPoints')} is {count}; export it anew"
        )
    return numbers.reshape(-1, 3)
