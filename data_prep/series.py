"""The series of a study: finding them (`scanning`), choosing among them (`choosing`), and their types (`inventory`)."""

from __future__ import annotations

from data_prep.choosing import UNITS, choose, unknown_series
from data_prep.inventory import ROLES, Choice, MissingSeriesError, Scan, Series, Study
from data_prep.scanning import scan

__all__ = [
    "ROLES",
    "UNITS",
    "Choice",
    "MissingSeriesError",
    "Scan",
    "Series",
    "Study",
    "choose",
    "scan",
    "unknown_series",
]
