"""Archives of other people, unpacked without letting them write anywhere else."""

from __future__ import annotations

import gzip
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from autopet.errors import AutopetError, one_line
from autopet.progress import track

MAX_BYTES = 100_000_000_000  # unpacked; the largest release known has 4 GB
COPY_BYTES = 1 << 20
DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    NotImplementedError,  # a compression that this Python lacks
    RuntimeError,  # a password
)
IMPOSSIBLE = (FileExistsError, IsADirectoryError, NotADirectoryError)  # a file and a folder of the same name


@dataclass(frozen=True)
class _Member:
    """A file of an archive, or something else that it holds."""

    name: str
    size_bytes: int
    kind: str  # file, folder, other


def is_archive(path: Path) -> bool:
    """Whether a file can be unpacked: zip, or tar with gzip, bzip2, xz or no compression."""
    # a PyTorch checkpoint is a zip, too
    return path.suffix not in (".pth", ".pt", ".ckpt") and (zipfile.is_zipfile(path) or tarfile.is_tarfile(path))


def unpack(archive: Path, folder: Path, *, max_bytes: int = MAX_BYTES) -> Path:
    """Unpack plain files and folders below `folder`, which is made.

    Raises
    ------
    AutopetError
        A member that leaves the folder, a link or a device, more than `max_bytes` or than fits on the disk, a damaged
        or encrypted archive. Members are checked before the first one is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(archive) if zipfile.is_zipfile(archive) else tarfile.open(archive) as opened:
            members = list(_members(opened))
            files = [member for member in members if _checked(member, archive)]
            _check_space(sum(member.size_bytes for member in files), archive, folder, max_bytes)
            for member in track(files, f"unpacking {archive.name}"):
                with _open(opened, member) as source:
                    _copy(source, folder / PurePosixPath(member.name), member.size_bytes)
            _read_to_the_end(opened)
    except (*DAMAGE, *IMPOSSIBLE) as error:
        raise AutopetError(
            f"{archive}: damaged, encrypted or no archive ({one_line(error)}); delete it and download it again"
        ) from error
    return folder


def _members(archive: zipfile.ZipFile | tarfile.TarFile) -> Iterator[_Member]:
    if isinstance(archive, zipfile.ZipFile):
        for entry in archive.infolist():
            mode = entry.external_attr >> 16  # 0 from systems without modes
            plain = stat.S_IFMT(mode) in (0, stat.S_IFREG)
            kind = "folder" if entry.is_dir() else "file" if plain else "other"
            yield _Member(entry.filename, entry.file_size, kind)
    else:
        for item in archive:
            yield _Member(item.name, item.size, "folder" if item.isdir() else "file" if item.isreg() else "other")


def _checked(member: _Member, archive: Path) -> bool:
    """True for a file, False for a folder; anything else ends the unpacking."""
    path = PurePosixPath(member.name)
    outside = path.is_absolute() or ".." in path.parts or "\\" in member.name
    if outside or member.kind == "other" or "\0" in member.name:
        what = "a link or device" if member.kind == "other" else "a path that leaves the folder"
        raise AutopetError(f"{archive}: holds {member.name!r}, {what}; nothing was unpacked, do not trust it")
    return member.kind == "file"


def _read_to_the_end(archive: zipfile.ZipFile | tarfile.TarFile) -> None:
    """The checksum of a compressed tar stands at its very end, after what the members need (a zip's at each)."""
    if isinstance(archive, tarfile.TarFile) and archive.fileobj is not None:
        while archive.fileobj.read(COPY_BYTES):
            pass


def _check_space(needed_bytes: int, archive: Path, folder: Path, max_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes > max_bytes:
        raise AutopetError(
            f"{archive}: would unpack to {needed_bytes / 1e9:.1f} GB, at most {max_bytes / 1e9:.1f} GB are expected"
        )
    if needed_bytes > free_bytes:
        raise AutopetError(
            f"{archive}: unpacked it takes {needed_bytes / 1e9:.1f} GB, {free_bytes / 1e9:.1f} GB are free at {folder};"
            " make room, or choose another disk with --out"
        )


def _open(archive: zipfile.ZipFile | tarfile.TarFile, member: _Member) -> IO[bytes]:
    source = archive.open(member.name) if isinstance(archive, zipfile.ZipFile) else archive.extractfile(member.name)
    if source is None:
        raise tarfile.TarError(f"{member.name} cannot be read")
    return source


def _copy(source: IO[bytes], target: Path, size_bytes: int) -> None:
    """Copy a member; never more than the size that was counted."""
    target.parent.mkdir(parents=True, exist_ok=True)
    left = size_bytes
    with target.open("wb") as file:
        while chunk := source.read(COPY_BYTES):
            left -= len(chunk)
            if left < 0:
                raise zipfile.BadZipFile(f"{target.name} is larger than stated")
            file.write(chunk)
    if left:
        raise zipfile.BadZipFile(f"{target.name} is shorter than stated")
