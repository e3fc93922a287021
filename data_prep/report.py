"""prep.html: one page that shows what became of every study of a cohort, with nothing but itself."""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from autopet.errors import AutopetError, one_line
from autopet.folders import whole_file
from data_prep.thumbnails import LESION_RED, SUV_BLACK

PAGE = "prep.html"
PICTURE = "mip.png"
LARGEST_PICTURE_BYTES = 200_000  # a thumbnail has 5 to 20 kB; what is larger is something else
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
STATUSES = ("converted", "skipped", "failed")
BETWEEN_WARNINGS = " | "
NONE = "\N{EN DASH}"


@dataclass(frozen=True)
class Fact:
    """A line of a card; `sort` is its number, None where there is none."""

    key: str
    name: str
    text: str
    sort: float | None = None


@dataclass(frozen=True)
class Card:
    """One study, ready for the page."""

    case: str
    patient: str
    study: str
    status: str
    reason: str
    picture: str
    facts: tuple[Fact, ...]
    warnings: tuple[str, ...]
    search: str

    @property
    def numbers(self) -> dict[str, float]:
        """What the page can sort by."""
        return {fact.key: fact.sort for fact in self.facts if fact.sort is not None}


def write_report(out: Path, rows: Sequence[dict]) -> Path:
    """Write `<out>/prep.html`, whole or not at all.

    Parameters
    ----------
    out : Path
        The cohort's folder; a study's picture is `<out>/<folder>/mip.png`, embedded when it is a PNG of at most
        200 kB.
    rows : sequence of dict
        Rows of prep.csv, as text or numbers; what is missing or empty is shown as a dash.

    Raises
    ------
    AutopetError
        The page cannot be written.
    """
    out = Path(out)
    content = report_html(out, rows).encode("utf-8", "replace")
    try:
        with whole_file(out / PAGE) as part:
            part.write_bytes(content)
    except OSError as error:
        raise AutopetError(
            f"{out / PAGE}: cannot be written (disk full or no permission?): {one_line(error)}"
        ) from error
    return out / PAGE


def report_html(out: Path, rows: Sequence[dict]) -> str:
    """The page as text. Every value is escaped: names and reasons come from headers that others wrote."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    cards = [card_of(row, out) for row in rows]
    counted = Counter(card.status for card in cards)
    return environment.get_template("prep.html.j2").render(
        cards=cards,
        statuses=[(status, counted[status]) for status in sorted(counted, key=_status_order)],
        patients=len({card.patient for card in cards}),
        warned=sum(bool(card.warnings) for card in cards),
        warnings=sum(len(card.warnings) for card in cards),
        sorts=[(fact.key, fact.name) for fact in (_measures({}) if cards else ())],
        suv_black=SUV_BLACK,
        lesion_colour="rgb({},{},{})".format(*LESION_RED),
    )


def _status_order(status: str) -> tuple[int, str]:
    return (STATUSES.index(status) if status in STATUSES else len(STATUSES), status)


# --- one study -------------------------------------------------------------------------------------------------------


def card_of(row: dict, out: Path) -> Card:
    """A row as it is shown."""
    case, patient, study = (_text(row, key) for key in ("case", "patient_id", "study_uid"))
    facts = (*_descriptions(row), *_measures(row))
    warnings = tuple(text for text in (part.strip() for part in _text(row, "warnings").split(BETWEEN_WARNINGS)) if text)
    status, reason = _text(row, "status") or "unknown", _text(row, "reason")
    words = [case, patient, study, status, reason, *(fact.text for fact in facts[:4]), *warnings]
    return Card(
        case=case or NONE,
        patient=patient or NONE,
        study=study,
        status=status,
        reason=reason,
        picture=_picture(out, _text(row, "folder")),
        facts=facts,
        warnings=warnings,
        search=" ".join(words).casefold(),
    )


def _descriptions(row: dict) -> tuple[Fact, ...]:
    named = (
        ("tracer", "Tracer"),
        ("centre", "Centre"),
        ("diagnosis", "Diagnosis"),
        ("study_date", "Study date"),
        ("pet_shape", "PET voxels (z, y, x)"),
        ("pet_spacing_mm", "PET spacing (x, y, z; mm)"),
        ("ct_shape", "CT voxels (z, y, x)"),
        ("ct_spacing_mm", "CT spacing (x, y, z; mm)"),
        ("suv_kind", "SUV by (bw: body weight)"),
    )
    return tuple(Fact(key, name, _text(row, key) or NONE) for key, name in named)


def _measures(row: dict) -> tuple[Fact, ...]:
    """What has a number to sort by."""
    qiba, challenge = _number(row, "suv_factor_qiba"), _number(row, "suv_factor_challenge")
    apart = abs(challenge / qiba - 1) * 100 if qiba and challenge is not None else None
    return (
        _fact(row, "lesions", "Lesions", "{:.0f}"),
        _fact(row, "lesion_ml", "MTV (ml)", "{:.1f}"),
        _fact(row, "suv_max", "SUVmax", "{:.1f}"),
        _fact(row, "suv_factor", "SUV factor used (g/ml per unit)", "{:.6g}"),
        _fact(row, "suv_factor_qiba", "SUV factor, QIBA", "{:.6g}"),
        _fact(row, "suv_factor_challenge", "SUV factor, challenge", "{:.6g}"),
        Fact("apart", "Factors apart", NONE if apart is None else f"{apart:.3g} %", apart),
    )


def _fact(row: dict, key: str, name: str, layout: str) -> Fact:
    value = _number(row, key)
    return Fact(key, name, NONE if value is None else layout.format(value), value)


def _text(row: dict, key: str) -> str:
    value = row.get(key)
    return "" if value is None else str(value).strip()


def _number(row: dict, key: str) -> float | None:
    try:
        value = float(_text(row, key))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _picture(out: Path, folder: str) -> str:
    """The thumbnail as a data URI; empty when there is none, or the name leads out of the cohort."""
    if folder in ("", "..") or Path(folder).name != folder:
        return ""
    path = out / folder / PICTURE
    try:
        if path.stat().st_size > LARGEST_PICTURE_BYTES:
            return ""
        data = path.read_bytes()
    except OSError:
        return ""
    if not data.startswith(PNG_SIGNATURE):
        return ""
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")
