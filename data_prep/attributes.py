"""Read attributes of DICOM headers: text, numbers, where a plane lies; errors name the tag.

Section numbers are those of DICOM PS3.3.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from autopet.errors import AutopetError, one_line

COSINE_TOLERANCE = 1e-3  # direction cosines are rounded to as few as four digits


def read_dicom(path: Path, *, pixels: bool = True, keywords: Sequence[str] | None = None) -> Dataset:
    """A DICOM file, also one without the preamble and file meta information of PS3.10 7.1."""
    tags = None if keywords is None else list(keywords)
    data = pydicom.dcmread(path, force=True, stop_before_pixels=not pixels, specific_tags=tags)
    if "TransferSyntaxUID" not in data.file_meta:
        implicit, little = data.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return data


def tag_name(keyword: str) -> str:
    """Keyword and number of an attribute: `PatientWeight (0010,1030)`."""
    tag = pydicom.tag.Tag(tag_for_keyword(keyword) or 0)
    return f"{keyword} ({tag.group:04X},{tag.element:04X})"


def values(header: Dataset, keyword: str) -> tuple[str, ...]:
    """Values of an attribute as text, none when it is absent or empty."""
    value = header.get(keyword)
    if value is None or value == "":
        return ()
    return (
        tuple(str(item) for item in value) if isinstance(value, (list, pydicom.multival.MultiValue)) else (str(value),)
    )


def alike(headers: Sequence[Dataset], keywords: Sequence[str]) -> list[list[int]]:
    """Indices of the headers in groups in which the attributes are written alike, in the order of the first of each.

    Attributes are compared as they are in the file, without the conversion that takes most of the time of reading
    thousands of headers. Two groups may therefore have one value in two spellings, but no group has two values.
    """
    tags = [BaseTag(tag_for_keyword(keyword) or 0) for keyword in keywords]
    groups: dict[tuple, list[int]] = {}
    for index, header in enumerate(headers):
        groups.setdefault(tuple(_written(header, tag) for tag in tags), []).append(index)
    return list(groups.values())


def _written(data: Dataset, tag: BaseTag) -> object:
    element = data.get_item(tag)
    if element is None:
        return None
    if isinstance(element, RawDataElement):
        return element.value or None
    if element.VR == "SQ":
        items = element.value or ()
        return tuple(tuple((inner, _written(item, inner)) for inner in sorted(item.keys())) for item in items)
    return str(element.value)


def whole_number(header: Dataset, keyword: str, *, default: int | None = None, least: int = 0) -> int:
    """An attribute of one whole number, not below `least`; `default` when it is absent or empty.

    Raises
    ------
    AutopetError
        It is something else, or absent without a default; names the tag.
    """
    tag = tag_name(keyword)
    try:
        found = values(header, keyword)
    except Exception as error:  # pydicom converts a value when it is first asked for, and raises what it likes
        raise AutopetError(f"{tag} cannot be read ({one_line(error)}); export the file anew") from error
    if not found and default is not None:
        return default
    if len(found) != 1 or not re.fullmatch(r"[+-]?[0-9]{1,12}", found[0].strip()) or int(found[0]) < least:
        text = "\\".join(found) or "missing"
        raise AutopetError(f"{tag} is {text}, expected a whole number from {least} up; export the file anew")
    return int(found[0])


@dataclass
class Reader:
    """Reads attributes of one header and keeps a record of what was used."""

    header: Dataset
    inputs: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def injection(self) -> Dataset:
        """The first item of RadiopharmaceuticalInformationSequence (C.8.9.2)."""
        tag = tag_name("RadiopharmaceuticalInformationSequence")
        try:
            items = self.header.get("RadiopharmaceuticalInformationSequence")
        except Exception as error:  # pydicom reads the items when it is first asked for them
            raise AutopetError(f"{tag} cannot be read ({one_line(error)}); export the PET anew") from error
        if not items:
            raise AutopetError(f"{tag} is missing: dose and injection time are unknown; add it to the PET headers")
        several = f"{tag} has {len(items)} items, expected 1: dose and injection time are those of the first"
        if len(items) > 1 and several not in self.warnings:
            self.warnings.append(several)
        return items[0]

    def text(self, keyword: str, source: Dataset | None = None) -> str:
        """An attribute as text, empty when it is absent."""
        found = values(self.header if source is None else source, keyword)
        if found:
            self.inputs[keyword] = "\\".join(found).strip()
        return found[0].strip() if found else ""

    def number(self, keyword: str, source: Dataset | None = None) -> float | None:
        """An attribute as a finite number, None when it is absent."""
        text = self.text(keyword, source)
        if not text:
            return None
        count = len(values(self.header if source is None else source, keyword))
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if not np.isfinite(number) or count > 1:
            found = self.inputs[keyword]
            raise AutopetError(f"{tag_name(keyword)} is {found!r}, expected a number; correct the PET headers")
        return number

    def positive(self, keyword: str, unit: str, source: Dataset | None = None) -> float:
        """A number that must be there and above zero."""
        number = self.number(keyword, source)
        if number is None or number <= 0:
            found = "missing" if number is None else f"{number:g}"
            raise AutopetError(f"{tag_name(keyword)} is {found}, expected {unit} above 0; correct the PET headers")
        return number

    def private(self, group: int, creator: str, element: int) -> str:
        """A private attribute of a vendor's block (PS3.5 7.8.1), empty when it is absent."""
        try:
            value = self.header.private_block(group, creator)[element].value
        except KeyError:
            return ""
        if value is None:
            return ""
        text = (value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)).strip(" \0")
        self.inputs[f"({group:04X},10{element:02X}) {creator}"] = text
        return text


# --- geometry (C.7.6.2.1.1) ------------------------------------------------------------------------------------------


def position(header: Dataset) -> np.ndarray:
    """(3,) ImagePositionPatient: centre of the first voxel in LPS mm."""
    return np.array(_numbers(header, "ImagePositionPatient", 3))


def orientation(header: Dataset) -> np.ndarray:
    """(3, 3) unit vectors: along a row (x), along a column (y), and their cross product (z)."""
    cosines = np.reshape(_numbers(header, "ImageOrientationPatient", 6), (2, 3))
    lengths = np.linalg.norm(cosines, axis=1)
    if np.abs(lengths - 1).max() > COSINE_TOLERANCE or abs(cosines[0] @ cosines[1]) > COSINE_TOLERANCE:
        raise AutopetError(
            f"{tag_name('ImageOrientationPatient')} is {cosines.ravel()}: not two orthogonal unit vectors"
        )
    x = cosines[0] / lengths[0]
    z = np.cross(x, cosines[1])
    z /= np.linalg.norm(z)
    return np.stack([x, np.cross(z, x), z])


def _numbers(header: Dataset, keyword: str, count: int) -> list[float]:
    try:
        found = [float(value) for value in values(header, keyword)]
    except ValueError as error:  # of pydicom too, which converts a value when it is first asked for
        raise AutopetError(f"{tag_name(keyword)} cannot be read ({error}); export the series anew") from error
    if len(found) != count or not np.isfinite(found).all():
        raise AutopetError(
            f"{tag_name(keyword)} needs {count} numbers, found {found or 'none'}; export the series anew"
        )
    return found


def pixel_spacing(header: Dataset) -> tuple[float, float]:
    """PixelSpacing as (x, y) in mm; DICOM stores the distance of the rows, y, first (10.7.1.3)."""
    y, x = _numbers(header, "PixelSpacing", 2)
    if min(x, y) <= 0:
        raise AutopetError(f"{tag_name('PixelSpacing')} is {y:g}\\{x:g}, expected mm above 0; export the series anew")
    return x, y
