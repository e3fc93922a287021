"""Archives cannot write anywhere else, nor fill the disk."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from autopet.errors import AutopetError
from autopet.unpacking import is_archive, unpack

FILES = {"a/plans.json": b"{}", "a/fold_0/checkpoint_final.pth": b"weights" * 300_000, "a/empty": b""}


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def make_tar(path: Path, files: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["zip", "w:gz", "w:xz", "w"])
def test_what_went_in_comes_out(tmp_path: Path, kind: str):
    path = tmp_path / "release"
    archive = make_zip(path, FILES | {"a/b/": b""}) if kind == "zip" else make_tar(path, FILES, kind)
    assert is_archive(archive)
    assert content(unpack(archive, tmp_path / "out")) == FILES


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/tmp/evil-of-autopet", "..\\evil", "a/.."])
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_a_member_that_leaves_the_folder_stops_everything(tmp_path: Path, name: str, make):
    archive = make(tmp_path / "evil.zip", {"good": b"1", name: b"2"})
    with pytest.raises(AutopetError, match="a path that leaves the folder; nothing was unpacked"):
        unpack(archive, tmp_path / "in/out")
    assert content(tmp_path / "in") == {}
    assert not Path("/tmp/evil-of-autopet").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.zip", "in"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo("link")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(AutopetError, match="'link', a link or device"):
        unpack(tmp_path / "a.tar", tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        entry = zipfile.ZipInfo("link")
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(AutopetError, match="'link', a link or device"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert content(tmp_path / "out") == {}


def test_bombs_and_full_disks(tmp_path: Path, monkeypatch):
    archive = make_zip(tmp_path / "bomb.zip", {"zeros": b"\0" * 5_000_000})
    assert archive.stat().st_size < 10_000
    with pytest.raises(AutopetError, match="would unpack to 0.0 GB"):
        unpack(archive, tmp_path / "out", max_bytes=4_999_999)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 4_999_999))
    with pytest.raises(AutopetError, match="make room"):
        unpack(archive, tmp_path / "out")
    assert content(tmp_path / "out") == {}


def test_a_size_that_lies_is_noticed(tmp_path: Path):
    archive = make_zip(tmp_path / "lie.zip", {"zeros": b"\0" * 5_000_000})
    raw = archive.read_bytes()
    stated, smaller = (5_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little")
    assert raw.count(stated) == 2  # in the member's header and in the directory at the end
    archive.write_bytes(raw.replace(stated, smaller))
    with pytest.raises(AutopetError, match="damaged"):
        unpack(archive, tmp_path / "out")
    assert sum(map(len, content(tmp_path / "out").values())) <= 1000


def test_damage_is_an_error_of_ours(tmp_path: Path):
    for make in (make_zip, make_tar):
        archive = make(tmp_path / "a", {"a": os.urandom(100_000)})
        raw = bytearray(archive.read_bytes())
        raw[50_000:50_010] = b"0" * 10
        archive.write_bytes(raw)
        with pytest.raises(AutopetError, match="download it again"):
            unpack(archive, tmp_path / "out")
        archive.write_bytes(raw[:60_000])
        with pytest.raises(AutopetError, match="download it again"):
            unpack(archive, tmp_path / "out2")


def test_checkpoints_are_no_archives(tmp_path: Path):
    assert not is_archive(make_zip(tmp_path / "checkpoint_final.pth", FILES))  # torch writes zip files, too
    (tmp_path / "b.zip").write_text("text")
    assert not is_archive(tmp_path / "b.zip")


@pytest.mark.parametrize("names", [["a", "a/b"], ["a/b", "a"], ["."]])
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_a_file_in_the_place_of_a_folder_is_damage(tmp_path: Path, names: list[str], make):
    archive = make(tmp_path / "odd.zip", {name: b"1" for name in names})
    with pytest.raises(AutopetError, match="odd.zip: damaged"):
        unpack(archive, tmp_path / "out")
