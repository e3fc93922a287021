"""Names of the numbers in a label map: the table that a NIfTI file carries, or one that lies beside it."""

from __future__ import annotations

import gzip
import json
import re
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from autopet.errors import AutopetError
from autopet.images import image_stem

BESIDE = "labels.json"  # for all label maps of a folder
HEADER, EXTENDED = 348, 352  # bytes of a NIfTI-1 header, and with the four that announce extensions
MOST_BYTES = 1 << 20  # of the extensions; a table of a thousand names has a tenth


def label_names(path: Path) -> dict[int, str]:
    """Name by number of a label map; empty when there is no table.

    Looked for in the file itself (Connectome Workbench's label table in a NIfTI extension, as TotalSegmentator writes
    it), in `<stem>.json` and in `labels.json` beside it; `{"1": "spleen"}` and `{"spleen": 1}` are both read.

    Raises
    ------
    AutopetError
        The JSON file is not such a table.
    """
    embedded = _embedded_names(path)
    if embedded:
        return embedded
    for table in (path.with_name(f"{image_stem(path)}.json"), path.with_name(BESIDE)):
        if table.is_file():
            return _read_json(table)
    return {}


def _read_json(path: Path) -> dict[int, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return _numbered(content)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise AutopetError(
            f'{path}: expected a table of labels such as {{"1": "spleen"}}, found none ({error}); mend it'
        ) from error


def _numbered(content: Mapping) -> dict[int, str]:
    """The table by number, whichever way round it is written."""
    turned = {str(key): value for key, value in content.items()}
    if not all(key.isdecimal() for key in turned):
        turned = {str(value): key for key, value in turned.items()}
    if len(turned) != len(content):
        raise ValueError("a number has two names")
    return {int(key): str(value) for key, value in turned.items()}


def _embedded_names(path: Path) -> dict[int, str]:
    for text in _extensions(path):
        if "<LabelTable>" not in text:
            continue
        try:  # the table alone: writers leave the rest of the document unfinished
            found = re.search(r"<LabelTable>.*?</LabelTable>", text, re.DOTALL)
            table = ElementTree.fromstring(found[0]) if found else ()
            return {int(label.attrib["Key"]): (label.text or "").strip() for label in table}
        except (ElementTree.ParseError, KeyError, ValueError):
            return {}
    return {}


def _extensions(path: Path) -> list[str]:
    """Texts of a NIfTI-1 file's extensions (nifti1.h: `extender`, then size, code and data each); none of others."""
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        return []
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
            start = file.read(EXTENDED)
            order = next((sign for sign in "<>" if start[:4] == struct.pack(f"{sign}i", HEADER)), "")
            if len(start) < EXTENDED or not order or start[HEADER] == 0:
                return []
            end = int(struct.unpack_from(f"{order}f", start, 108)[0])  # vox_offset: where the voxels begin
            data = file.read(max(0, min(end - EXTENDED, MOST_BYTES)))
    except (OSError, EOFError, ValueError, OverflowError, zlib.error):  # reading its voxels will say what is wrong
        return []
    texts, position = [], 0
    while position + 8 <= len(data):
        size = struct.unpack_from(f"{order}i", data, position)[0]
        if size < 8:
            break
        texts.append(data[position + 8 : position + size].decode("utf-8", errors="replace"))
        position += size
    return texts
