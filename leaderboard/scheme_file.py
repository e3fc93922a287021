"""Ranking schemes as files: leaderboard.toml read and checked, and the editions of the challenge that ship as such."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from autopet.errors import AutopetError, one_line
from leaderboard.scheme import Column, Scheme

FOLDER = Path(__file__).parent / "schemes"
DIRECTIONS = ("higher", "lower")


def load_scheme(path: Path) -> Scheme:
    """Read a leaderboard.toml; the file's stem is the scheme's name unless it gives one.

    Raises
    ------
    AutopetError
        No such file, no TOML, an unknown or missing key, or a value that is none of the known ones.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AutopetError(f"{path}: cannot be read as a ranking scheme ({one_line(error)})") from error
    try:
        return parse_scheme(content, name=path.stem)
    except AutopetError as error:
        raise AutopetError(f"{path}: {one_line(error)}") from error


def parse_scheme(content: Mapping[str, Any], *, name: str = "") -> Scheme:
    """A scheme from the content of a TOML file; errors name the key and list the known ones."""
    known = ["metrics", *(field.name for field in fields(Scheme) if field.name != "columns")]
    _refuse_unknown(content, known, where="the scheme")
    rows = content.get("metrics")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise AutopetError("a scheme needs at least one [[metrics]] table with name, weight and direction")
    values = {key: value for key, value in content.items() if key != "metrics"}
    values["columns"] = tuple(_column(row) for row in rows)
    for key, kind in (("subsets", list), ("bootstraps", int), ("seed", int), ("interval", float), ("alpha", float)):
        if key in values:
            values[key] = _typed(key, values[key], kind)
    for key in set(values) - {"columns", "subsets", "bootstraps", "seed", "interval", "alpha"}:
        values[key] = _typed(key, values[key], str)
    values.setdefault("name", name)
    values.setdefault("title", values["name"])
    if "subsets" in values:
        values["subsets"] = tuple(_typed("subsets", item, str) for item in values["subsets"])
    return Scheme(**values)


def shipped_schemes() -> dict[str, Scheme]:
    """The editions' schemes by name, in the order of the editions."""
    return {path.stem: load_scheme(path) for path in sorted(FOLDER.glob("*.toml"), key=lambda path: path.stem)}


def _column(row: dict[str, Any]) -> Column:
    known = ("name", "title", "unit", "weight", "direction", "aggregate")
    _refuse_unknown(row, known, where="a [[metrics]] table")
    for key in ("name", "weight", "direction"):
        if key not in row:
            raise AutopetError(f"a [[metrics]] table lacks {key!r}; it needs name, weight and direction")
    metric = _typed("name", row["name"], str)
    direction = row["direction"]
    if direction not in DIRECTIONS:
        raise AutopetError(f"direction {direction!r} of metric {metric!r} is none of {', '.join(DIRECTIONS)}")
    return Column(
        metric=metric,
        title=_typed("title", row.get("title", metric), str),
        unit=_typed("unit", row.get("unit", ""), str),
        weight=_typed("weight", row["weight"], float),
        higher_is_better=direction == "higher",
        aggregate=_typed("aggregate", row.get("aggregate", ""), str),
    )


def _refuse_unknown(content: Mapping[str, Any], known: list[str] | tuple[str, ...], *, where: str) -> None:
    unknown = sorted(set(content) - set(known))
    if unknown:
        raise AutopetError(f"unknown key {unknown[0]!r} in {where}; the known keys are {', '.join(known)}")


def _typed(key: str, value: Any, kind: type) -> Any:
    """The value when it is of that kind (a whole number is a float, a truth value is no number)."""
    kinds = (int, float) if kind is float else (kind,)
    if isinstance(value, bool) or not isinstance(value, kinds):
        names = {str: "a text", int: "a whole number", float: "a number", list: "a list of texts"}
        raise AutopetError(f"key {key!r}: expected {names[kind]}, found {value!r}")
    return kind(value)


SCHEMES = shipped_schemes()


def scheme_named(name: str) -> Scheme:
    """The ranking scheme of an edition, or of a .toml file; an error that lists the known ones when there is none."""
    if name in SCHEMES:
        return SCHEMES[name]
    if name.endswith(".toml"):
        return load_scheme(Path(name))
    raise AutopetError(
        f"unknown ranking scheme {name!r}, expected one of {', '.join(SCHEMES)} or the path of a .toml file"
    )
