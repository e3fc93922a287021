"""Read the headers of a study's files, and group them into series.

Section numbers are those of DICOM PS3.3.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag

from data_prep import multiframe
from data_prep.attributes import read_dicom, tag_name, values
from data_prep.finding import IDENTITY, find_studies
from data_prep.inventory import Scan, Series, Study, StudyFiles, role_of

SCAN_KEYWORDS = (
    *IDENTITY, "Modality", "ImageType", "StudyDate", "SeriesDescription", "PatientID", "FrameOfReferenceUID",
    "ImagePositionPatient", "ImageOrientationPatient", "CorrectedImage", "Units", "SeriesType", "NumberOfFrames",
    "NumberOfSlices",
)  # fmt: skip
HELPFUL_KEYWORDS = (  # tell series apart; a value that cannot be read is as good as none
    "Rows", "Columns", "PixelSpacing", "RescaleType", "AcquisitionNumber", "AcquisitionDate", "AcquisitionTime",
    "FrameReferenceTime", "TriggerTime",
)  # fmt: skip
REFERENCES = (  # of a SEG (C.12.3, C.7.6.1.4) and an RTSTRUCT (C.8.8.5) to what they were made on
    Tag("ReferencedSeriesSequence"), Tag("SourceImageSequence"), Tag("ReferencedFrameOfReferenceSequence"),
)  # fmt: skip
LOCALIZERS = ("LOCALIZER", "SCOUT")  # value 3 of Image Type (0008,0008), C.8.2.1.1.1
LOCALIZER_COSINE = 0.1  # an image whose direction cosines differ by more is of another stack
LOCALIZER_IMAGES = 2  # of one orientation; an axial stack has more


def scan(folder: Path) -> Scan:
    """Every study below a folder with the headers of its files; for a few studies, see `find_studies` for more.

    Raises
    ------
    AutopetError
        The folder is missing, or no DICOM file lies below it.
    """
    found = find_studies(folder)
    studies = tuple(read_study(files) for files in found.studies)
    known = set(found.unreadable)
    late = [path for study in studies for path in study.unreadable if path not in known]
    return Scan(studies, found.other_files + len(late), (*found.unreadable, *late))


def read_study(files: StudyFiles) -> Study:
    """The headers of a study's files, grouped by series; files that cannot be read join the unreadable ones."""
    grouped: dict[str, list[tuple[Path, Dataset]]] = {}
    unreadable = list(files.unreadable)
    for path in files.paths:
        header = _header(path)
        if header is None:
            unreadable.append(path)
        else:
            grouped.setdefault(str(header.SeriesInstanceUID), []).append((path, header))
    series = [item for uid, members in sorted(grouped.items()) for item in _by_role(uid, members)]
    return Study(files.uid, files.patient_id, files.date, tuple(series), tuple(unreadable))


def _by_role(uid: str, members: list[tuple[Path, Dataset]]) -> Iterator[Series]:
    """The files of one SeriesInstanceUID as one series for each role; files without a role only if they are all of it.

    Scanners store screenshots and reports with the UID of the images that they are about.
    """
    roles: dict[str, list[tuple[Path, Dataset]]] = {}
    for path, header in members:
        roles.setdefault(role_of(header), []).append((path, header))
    others = roles.pop("", []) if len(roles) > 1 else []
    for role, kept in sorted(roles.items()):
        paths, headers = zip(*kept, strict=True)
        found = frozenset[str]().union(*map(_referred, paths)) if role in ("SEG", "RTSTRUCT") else frozenset()
        series = Series(uid, headers, paths, refers_to=found)
        if others:
            kinds = ", ".join(sorted({_class_name(header) for _, header in others}))
            text = f"{len(others)} files with the UID of {series.title} are left out: {tag_name('SOPClassUID')} is"
            series = series.only(range(len(paths)), f"{text} {kinds} (first: {others[0][0]})")
        yield _without_localizers(series)


def _class_name(header: Dataset) -> str:
    return str(getattr(header.SOPClassUID, "name", header.SOPClassUID))


def _referred(path: Path) -> frozenset[str]:
    """UIDs of the series and images that a SEG or an RTSTRUCT refers to; none when they cannot be read.

    What comes behind them, a segmentation's frames among it, stays in the file.
    """
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")
            data = read_partial(file, stop_when=_is_behind_references, force=True, specific_tags=list(REFERENCES))
            frames = data.get("ReferencedFrameOfReferenceSequence") or []
            studies = [study for frame in frames for study in frame.get("RTReferencedStudySequence") or []]
            series = [item for study in studies for item in study.get("RTReferencedSeriesSequence") or []]
            series += data.get("ReferencedSeriesSequence") or []
            found = [uid for item in series for uid in values(item, "SeriesInstanceUID")]
            for item in data.get("SourceImageSequence") or []:
                found += values(item, "ReferencedSOPInstanceUID")
            return frozenset(found)
    except Exception:  # a damaged file raises what it likes; reading its mask will say what is wrong
        return frozenset()


def _is_behind_references(tag: BaseTag, vr: str | None, length: int) -> bool:
    return tag > max(REFERENCES)


def _header(path: Path) -> Dataset | None:
    """`SCAN_KEYWORDS` of a file, None when they cannot be read or do not say to which study it belongs."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about values in files that are no DICOM
            header = read_dicom(path, pixels=False, keywords=(*SCAN_KEYWORDS, *HELPFUL_KEYWORDS))
            if multiframe.is_multiframe(header):  # functional groups of other classes, as Segmentations, are not kept
                keywords = (*SCAN_KEYWORDS, *HELPFUL_KEYWORDS, *multiframe.SCAN_KEYWORDS)
                header = read_dicom(path, pixels=False, keywords=keywords)
            for keyword in SCAN_KEYWORDS:  # pydicom converts a value when it is first asked for
                header.get(keyword)
            _drop_unreadable(header)
        return header if all(len(values(header, keyword)) == 1 for keyword in IDENTITY) else None
    except Exception:  # a damaged file raises what it likes: struct.error, BytesLengthException, ...
        return None


def _drop_unreadable(header: Dataset) -> None:
    for keyword in HELPFUL_KEYWORDS:
        try:
            header.get(keyword)
        except Exception:  # pydicom raises what it likes
            delattr(header, keyword)


def _without_localizers(series: Series) -> Series:
    """A series without the localizers that scanners store in it, and with a note when there were any.

    They say so in ImageType, or are one or two CT images of another orientation than many others.
    """
    named = {index for index, header in enumerate(series.headers) if set(LOCALIZERS) & set(values(header, "ImageType"))}
    series = _without(series, named, f"{tag_name('ImageType')} says LOCALIZER")
    if series.role != "CT" or any(multiframe.is_multiframe(header) for header in series.headers):
        return series
    orientations = [_cosines(header) for header in series.headers]
    usual = Counter(orientations).most_common(1)[0][0]
    others = {index: cosines for index, cosines in enumerate(orientations) if _is_turned(cosines, usual)}
    few = max(Counter(others.values()).values(), default=0) <= LOCALIZER_IMAGES
    if not few or 3 * len(others) > len(orientations) - len(others):
        return series
    return _without(series, set(others), f"another {tag_name('ImageOrientationPatient')} than the other images")


def _cosines(header: Dataset) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in values(header, "ImageOrientationPatient"))
    except ValueError:
        return ()


def _is_turned(cosines: tuple[float, ...], usual: tuple[float, ...]) -> bool:
    complete = len(cosines) == len(usual) == 6
    return complete and max(abs(one - other) for one, other in zip(cosines, usual, strict=True)) > LOCALIZER_COSINE


def _without(series: Series, dropped: set[int], reason: str) -> Series:
    """The series without some of its files, unless they are all of it."""
    kept = [index for index in range(len(series.paths)) if index not in dropped]
    if not dropped or not kept:
        return series
    first = series.paths[min(dropped)]
    note = f"{len(dropped)} images are left out of {series.title} as localizers: {reason} (first: {first})"
    return series.only(kept, note)
