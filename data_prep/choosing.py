"""Choose the CT, the attenuation-corrected PET and the segmentations of a study.

A choice is by criteria in a fixed order; the reasons name the first one in which a series that was left differs.
Section numbers are those of DICOM PS3.3.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from autopet.errors import AutopetError
from data_prep.attributes import orientation, position, tag_name, values, whole_number
from data_prep.coverage import cover, is_parallel, length_mm, shares_frame
from data_prep.finding import looks_like_dicom
from data_prep.inventory import Choice, Found, MissingSeriesError, Series, Study
from data_prep.stacking import stack_problem

UNITS = ("BQML", "CNTS", "GML", "CM2ML")  # of Units (0054,1001), that can become SUV
STILL = ("STATIC", "WHOLE BODY")  # value 1 of Series Type (0054,1000), C.8.9.1.1.4
REFORMATTED = ("REFORMATTED", "MPR", "CSA MPR", "PROJECTION IMAGE", "MIP", "CPR")  # values of Image Type (0008,0008)
PLACE_MM = 0.1  # planes that lie closer are at the same place
LENGTH_STEP_MM = 20.0  # PETs are as long as each other below this
COVERAGE_STEP = 0.1  # of what the best CT covers of the PET: CTs cover as much as each other below this
REFERRED = "being referred to by a segmentation"
STACKED = "slices that make one volume"
NAMED = "named by --series-uid"
Rank = dict[str, object]  # criterion -> what to sort by, the best is the smallest


def choose(study: Study, *, series_uids: Sequence[str] = ()) -> Choice:
    """Choose CT and attenuation-corrected PET.

    Parameters
    ----------
    series_uids : sequence of str
        SeriesInstanceUIDs that take the place of the choice for their role (CT, PET, segmentations). UIDs that the
        study does not have are passed over, see `unknown_series`.

    Raises
    ------
    MissingSeriesError
        The study has no CT or no PET.
    AutopetError
        Its PET cannot become SUV: not corrected for attenuation, dynamic, or in other units; or two series of one role
        are named.
    """
    missing = [role for role in ("CT", "PET") if not study.of_role(role)]
    if missing:
        found = Counter(str(series.headers[0].get("Modality", "?")) for series in study.series)
        listed = ", ".join(f"{count} {modality}" for modality, count in sorted(found.items()))
        raise MissingSeriesError(
            f"no {' and no '.join(missing)} series in the study (series found: {listed or 'none'})"
            + "".join(f"; {text}" for text in study.warnings)
        )
    named = [series for series in study.series if series.uid in series_uids]
    _refuse_useless(named)
    masks = [series for role in ("SEG", "RTSTRUCT") for series in study.of_role(role)]
    named_masks = [series for series in masks if series in named]
    pet, pet_reason, warnings = _choose_pet(study.of_role("PET"), named_masks or masks, _named(named, "PET"))
    ct, ct_reason = _choose_ct(study.of_role("CT"), pet, _named(named, "CT"))
    _refuse_damage(study, (pet, ct, *masks))
    reasons = [pet_reason, ct_reason]
    if named_masks:
        masks = named_masks
        reasons.append(f"segmentation: {', '.join(series.title for series in masks)}, {NAMED}")
    warnings += [note for series in (pet, ct, *masks) for note in series.notes]
    return Choice(ct, pet, tuple(masks), tuple(reasons), (*warnings, *_fit_warnings(ct, pet)))


def _fit_warnings(ct: Series, pet: Series) -> list[str]:
    """What the headers of CT and PET say against their fit."""
    warnings = []
    found = cover(ct, pet)
    if found.volume and not found.is_wide:
        warnings.append(
            f"the CT's field of view is small, it covers {100 * found.width:.0f} % of the PET's width and "
            f"{100 * found.height:.0f} % of its height ({tag_name('PixelSpacing')}, {tag_name('Rows')}, "
            f"{tag_name('Columns')}), -1024 HU beyond; add a CT of the whole body to the study"
        )
    if not shares_frame(ct, pet):
        warnings.append(
            f"CT and PET differ in {tag_name('FrameOfReferenceUID')}; positions are taken as they are, check the fit"
        )
    return warnings


def _refuse_damage(study: Study, chosen: Sequence[Series]) -> None:
    """A damaged file among those of a series that is used may be one of its images: at its ends no gap would tell."""
    beside = {path.parent: (path.suffix, series.title) for series in chosen for path in series.paths}
    for path in study.unreadable:
        suffix, title = beside.get(path.parent, ("", ""))
        if title and (path.suffix == suffix or looks_like_dicom(path)):
            raise AutopetError(
                f"{path} lies among the files of {title}, but is not readable as DICOM; copy or download it anew, or "
                "remove it when it is no image"
            )


def unknown_series(found: Found, uids: Sequence[str]) -> list[str]:
    """SeriesInstanceUIDs that no study has, in the order given."""
    known = {uid for study in found.studies for uid in study.series_uids}
    return [uid for uid in uids if uid not in known]


def _refuse_useless(named: Sequence[Series]) -> None:
    for series in named:
        if not series.role:
            sop_class = series.headers[0].SOPClassUID
            raise AutopetError(
                f"{series.title} is {NAMED}, but is no CT, PET, SEG or RTSTRUCT: {tag_name('SOPClassUID')} is "
                f"{getattr(sop_class, 'name', sop_class)}"
            )


def _named(named: Sequence[Series], role: str) -> Series | None:
    """The one series of a role that the user named."""
    found = [series for series in named if series.role == role]
    if len(found) > 1:
        titles = " and ".join(series.title for series in found)
        raise AutopetError(f"--series-uid names {len(found)} {role} series of one study, expected one: {titles}")
    return found[0] if found else None


# --- PET -------------------------------------------------------------------------------------------------------------


def _choose_pet(
    candidates: Sequence[Series], masks: Sequence[Series], named: Series | None
) -> tuple[Series, str, list[str]]:
    """Attenuation-corrected PET in units that can become SUV (C.8.9.1), why, and warnings.

    Of several, the one that the study's segmentations (`masks`) were made on.
    """
    if named:
        return _take_named_pet(named)
    refusals = {series.uid: _pet_refusal(series) or _uncorrected(series) for series in candidates}
    usable = [series for series in candidates if not refusals[series.uid]]
    refused = "; ".join(f"{series.title}: {refusals[series.uid]}" for series in candidates if refusals[series.uid])
    if not usable:
        raise AutopetError(f"no attenuation-corrected still PET in the study, add such a series. {refused}")
    sources = [series.uid for series in candidates if any(series.is_source_of(mask) for mask in masks)]
    best, preferred, close = _best(usable, lambda series: _pet_rank(series, sources))
    reason = f"PET: {best.title}, with ATTN in {tag_name('CorrectedImage')} and {tag_name('Units')} {best.first.Units}"
    warnings = []
    if best.uid in sources:
        reason += ", referred to by a segmentation"
    elif sources:
        warnings.append(
            f"the segmentation refers to another PET, {', '.join(sources)}, that cannot be converted (see the reasons "
            "in audit.json); check that the mask fits the one that is"
        )
    if close:
        warnings.append(
            f"another attenuation-corrected PET may be meant: {', '.join(close)}; the choice is {best.title} "
            f"({preferred}). Name the SeriesInstanceUID with --series-uid to choose"
        )
    kind = values(best.first, "SeriesType")[:1]
    if kind and kind[0] not in STILL:
        warnings.append(f"{tag_name('SeriesType')} of {best.title} is {kind[0]}, with one image per position")
    return best, _reason(reason, preferred) + (f"; refused {refused}" if refused else ""), warnings


def _take_named_pet(series: Series) -> tuple[Series, str, list[str]]:
    """The PET that the user wants: also one without attenuation correction, never one that cannot become SUV."""
    if refusal := _pet_refusal(series):
        raise AutopetError(f"{series.title} is {NAMED}, but cannot be converted: {refusal}")
    uncorrected = _uncorrected(series)
    warnings = [f"{series.title} is {NAMED} and taken, but {uncorrected}: its SUVs are too low"] if uncorrected else []
    return series, f"PET: {series.title}, {NAMED}", warnings


def _pet_refusal(series: Series) -> str:
    """Why a PET cannot be converted at all."""
    units = " ".join(values(series.first, "Units")) or "missing"
    frames = time_frames(series)
    if series.problem:
        return series.problem
    if values(series.first, "SeriesType")[1:] == ("REPROJECTION",):
        return f"{tag_name('SeriesType')} says REPROJECTION: views from around the patient, no slices"
    if units not in UNITS:
        return f"{tag_name('Units')} is {units}, expected one of {', '.join(UNITS)}"
    if frames > 1:
        kind = "\\".join(values(series.first, "SeriesType")) or "missing"
        return (
            f"{tag_name('SeriesType')} is {kind}, with {frames} time frames (or gates) at the same positions: dynamic "
            "and gated PET cannot become one volume; export one time frame, or their sum, as a series of its own"
        )
    return ""


def _uncorrected(series: Series) -> str:
    corrections = values(series.first, "CorrectedImage")
    if "ATTN" in corrections:
        return ""
    listed = "\\".join(corrections) or "missing"
    return f"{tag_name('CorrectedImage')} is {listed}, without ATTN: not corrected for attenuation"


def time_frames(series: Series) -> int:
    """Most moments that a position was imaged at: 1 in a still series, 0 without positions.

    A copy of a slice, with the same AcquisitionTime and FrameReferenceTime, is no moment of its own.
    """
    moments: dict[int, set[tuple]] = {}
    try:
        normal = orientation(series.first)[2]
        for header in series.frames:
            keywords = ("AcquisitionDate", "AcquisitionTime", "FrameReferenceTime", "TriggerTime")
            moment = tuple(values(header, keyword) for keyword in keywords)
            moments.setdefault(round(float(position(header) @ normal) / PLACE_MM), set()).add(moment)
    except AutopetError:
        return 0
    return max(len(found) for found in moments.values())


def _pet_rank(series: Series, sources: Sequence[str]) -> Rank:
    kinds = values(series.first, "SeriesType")
    return {
        REFERRED: series.uid not in sources,
        STACKED: bool(stack_problem(series)),
        tag_name("SeriesType"): bool(kinds) and kinds[0] not in STILL,
        tag_name("ImageType"): _image_type_rank(series),
        "length": -round(length_mm(series) / LENGTH_STEP_MM),
        "number of slices": -series.images,
        tag_name("Rows"): -_rows(series),
        "the smaller UID": series.uid,
    }


# --- CT --------------------------------------------------------------------------------------------------------------


def _choose_ct(candidates: Sequence[Series], pet: Series, named: Series | None) -> tuple[Series, str]:
    if named:
        return named, f"CT: {named.title}, {NAMED}"
    most = max(cover(series, pet).volume for series in candidates)
    best, preferred, _ = _best(candidates, lambda series: _ct_rank(series, pet, most))
    if best.images < 2 or _is_localizer(best):
        raise MissingSeriesError(f"the only CT is a localizer or a single slice: {best.title}")
    frame = "in the PET's frame of reference" if shares_frame(best, pet) else "in another frame of reference"
    found = cover(best, pet)
    covers = (
        f"covers about {10 * round(10 * found.length)} % of the PET's length, {100 * found.volume:.0f} % of its volume"
    )
    return best, _reason(f"CT: {best.title}, {frame}, {covers}", preferred)


def _ct_rank(series: Series, pet: Series, most: float) -> Rank:
    """`most` is the largest share of the PET's volume that a CT of the study covers.

    That slices make a volume counts only among CTs that show the body: a few slices of the neck are no way out when
    the CT of the whole body lacks one; its error is.
    """
    kinds = values(series.first, "ImageType")
    covered = cover(series, pet)
    return {
        "being more than a localizer": series.images < 2 or _is_localizer(series),
        tag_name("FrameOfReferenceUID"): not shares_frame(series, pet),
        "slices parallel to the PET's": not is_parallel(series, pet),
        tag_name("RescaleType"): (*values(series.first, "RescaleType"), "HU")[0] not in ("HU", "US"),
        "coverage of the PET": not covered.is_whole,
        STACKED: bool(stack_problem(series)),
        tag_name("ImageType"): (*_image_type_rank(series), "AXIAL" not in kinds),
        "more coverage of the PET": round((1 - covered.volume / max(most, 1e-6)) / COVERAGE_STEP),
        "number of slices": -series.images,
        "the smaller UID": series.uid,
    }


def _is_localizer(series: Series) -> bool:
    return any(kind in ("LOCALIZER", "SCOUT") for kind in values(series.first, "ImageType"))


# --- comparing -------------------------------------------------------------------------------------------------------


def _best(candidates: Sequence[Series], rank: Callable[[Series], Rank]) -> tuple[Series, str, list[str]]:
    """The best series, what it was preferred to and by which criterion, and those left that come close.

    Close is what no segmentation and no kind of series or of image tells apart: only being whole, size or UID.
    """
    ranks = {series.uid: rank(series) for series in candidates}
    best = min(candidates, key=lambda series: tuple(ranks[series.uid].values()))
    preferred, close = [], []
    for series in candidates:
        if series is best:
            continue
        pairs = ranks[series.uid].items()
        criterion = next(name for name, value in pairs if value != ranks[best.uid][name])
        detail = f" (of the other: {stack_problem(series)})" if criterion == STACKED else ""
        preferred.append(f"{series.title} by {criterion}{detail}")
        if criterion not in (REFERRED, tag_name("SeriesType"), tag_name("ImageType")):
            close.append(series.title)
    return best, f"preferred to {', '.join(preferred)}" if preferred else "", close


def _reason(text: str, preferred: str) -> str:
    return f"{text}; {preferred}" if preferred else text


def _image_type_rank(series: Series) -> tuple[bool, ...]:
    kinds = values(series.first, "ImageType")
    return any(kind in REFORMATTED for kind in kinds), *(kind not in kinds for kind in ("ORIGINAL", "PRIMARY"))


def _rows(series: Series) -> int:
    try:
        return whole_number(series.first, "Rows")
    except AutopetError:  # the loader says what is wrong
        return 0
