"""Downloads of large files that go on where they broke off, and are known to be whole.

Resuming follows RFC 9110, sections 13.1.5 (If-Range), 14.2 (Range) and 15.5.17 (416).
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shutil
import time
import urllib.request
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from autopet.errors import AutopetError, one_line
from autopet.folders import whole_file
from autopet.progress import Meter, console
from autopet.web import Patience, TryAgainError, headers, open_url, opener, retry

CHUNK_BYTES = 1 << 20
MB = 1_000_000
CONTENT_RANGE = re.compile(r"bytes (?P<start>\d+)-\d+/(?P<total>\d+|\*)")
PAGE_STARTS = (b"<!doctype html", b"<html")
PAGE_TYPES = ("text/html", "application/xhtml+xml")


@dataclass(frozen=True)
class Remote:
    """A file on a server, and what is known about it beforehand (empty or 0: nothing)."""

    url: str
    sha256: str = ""
    md5: str = ""
    size_bytes: int = 0


@dataclass(frozen=True)
class _State:
    """What the bytes in the `.part` file belong to."""

    url: str
    etag: str = ""
    modified: str = ""
    total_bytes: int = 0

    @property
    def validator(self) -> str:
        """For If-Range, which takes no weak ETag (RFC 9110, 13.1.5)."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified


def download(remote: Remote, target: Path, *, ca_bundle: Path | None = None, patience: Patience | None = None) -> Path:
    """Fetch a file to `target`; a call after a broken one goes on from the `.part` file beside it.

    A target that an earlier call fetched from the same address, or that has the known checksum, is not fetched again.

    Raises
    ------
    AutopetError
        No connection, a refusal, a web page instead of the file, too little space, or another checksum; the message
        names the address. What was loaded is kept, except after a wrong checksum.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    loader = _Loader(remote, target, opener(ca_bundle), patience or Patience())
    if target.is_file() and loader.holds(target) and not _difference(remote, target):
        return target
    loader.run()
    if wrong := _difference(remote, loader.part):
        loader.forget()
        raise AutopetError(f"{remote.url}: {wrong}; the file was removed, run the command again")
    os.replace(loader.part, target)  # the state file stays: it says where the target came from
    return target


class _Loader:
    """One download: the `.part` file, what it belongs to, and the tries to complete it."""

    def __init__(
        self, remote: Remote, target: Path, http_opener: urllib.request.OpenerDirector, patience: Patience
    ) -> None:
        self.remote, self.opener, self.patience = remote, http_opener, patience
        self.part = target.with_name(f"{target.name}.part")
        self.state_file = target.with_name(f"{target.name}.part.json")
        self.name = target.name
        self.furthest_bytes = 0
        self.total_bytes = remote.size_bytes

    @property
    def have_bytes(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def holds(self, target: Path) -> bool:
        """Whether a file is what an earlier call completed, as far as that is known."""
        state = self._state()
        same = state is not None and state.total_bytes == target.stat().st_size
        return same or bool(self.remote.sha256 or self.remote.md5)

    def run(self) -> None:
        """Try until the file is whole."""
        if self.have_bytes and self._state() is None:
            self.forget()
        if self.have_bytes:
            console.print(f"{self.name}: going on after {self.have_bytes / MB:.1f} MB", highlight=False)
        retry(self._attempt, self.remote.url, self.patience, lambda: self.furthest_bytes)

    def forget(self) -> None:
        """Start from nothing."""
        self.part.unlink(missing_ok=True)
        self.state_file.unlink(missing_ok=True)

    def _state(self) -> _State | None:
        """Whose bytes the `.part` file holds; None when that is not known, or another file's."""
        try:
            state = _State(**json.loads(self.state_file.read_text()))
        except (OSError, ValueError, TypeError):
            return None
        return state if state.url == self.remote.url else None

    def _attempt(self) -> None:
        have, state = self.have_bytes, self._state()
        if have and state is not None and have == state.total_bytes:
            return
        asked = headers()
        # without a validator and without a checksum two files could be joined unnoticed
        if have and state is not None and (state.validator or self.remote.sha256 or self.remote.md5):
            asked["Range"] = f"bytes={have}-"
            if state.validator:
                asked["If-Range"] = state.validator
        with open_url(self.opener, self.remote.url, asked, patience=self.patience) as answer:
            if answer.status == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                self._past_the_end(answer)
                return
            if answer.headers.get_content_type() in PAGE_TYPES:
                self._refuse_page()
            start = self._start(answer, have, state)
            self._check_space(start)
            self._receive(answer, start)

    def _past_the_end(self, answer: http.client.HTTPResponse) -> None:
        """416: we have every byte, or the file on the server is now shorter."""
        total = (answer.headers.get("Content-Range") or "").rpartition("/")[2]
        if total.isdigit() and int(total) == self.have_bytes:
            self.total_bytes = int(total)
            return
        self.forget()
        raise TryAgainError(f"{self.name}: the file on the server is another one now; starting again")

    def _start(self, answer: http.client.HTTPResponse, have: int, state: _State | None) -> int:
        """Where the answer's bytes belong; from the beginning again when the server sends the whole file."""
        new = _State(self.remote.url, answer.headers.get("ETag") or "", answer.headers.get("Last-Modified") or "", 0)
        if answer.status == http.client.PARTIAL_CONTENT:
            match = CONTENT_RANGE.match(answer.headers.get("Content-Range") or "")
            total = int(match["total"]) if match and match["total"].isdigit() else 0
            same_file = state is not None and (not new.etag or not state.etag or new.etag == state.etag)
            same_size = state is not None and (not total or not state.total_bytes or total == state.total_bytes)
            if match and int(match["start"]) == have and same_file and same_size:
                self.total_bytes = total or self.total_bytes
                return have
            self.forget()
            raise TryAgainError(f"{self.name}: the file on the server is another one now; starting again")
        if have and state is not None:
            changed = state.validator and state.validator not in (new.etag, new.modified)
            why = "the file on the server is another one now" if changed else "the server cannot resume"
            console.print(f"{self.name}: {why}; starting again", highlight=False, markup=False)
        length = answer.headers.get("Content-Length") or ""
        self.total_bytes = int(length) if length.isdigit() else self.remote.size_bytes
        self.part.unlink(missing_ok=True)
        with whole_file(self.state_file) as file:
            file.write_text(json.dumps(asdict(replace(new, total_bytes=self.total_bytes))))
        return 0

    def _refuse_page(self) -> None:
        """A login or block page comes with status 200."""
        raise AutopetError(f"{self.remote.url}: a web page came instead of the file (a login, or a page of the proxy?)")

    def _check_space(self, start: int) -> None:
        needed, free = self.total_bytes - start, shutil.disk_usage(self.part.parent).free
        if needed > free:
            raise AutopetError(
                f"{self.part.parent}: {needed / MB:.0f} MB are needed for {self.name}, {free / MB:.0f} MB are free;"
                " make room, or choose another disk with --out"
            )

    def _receive(self, answer: http.client.HTTPResponse, start: int) -> None:
        """Append what comes, until the end, a break, or a crawl."""
        mb = max(1, -(-self.total_bytes // MB))
        crawl = _Crawl(self.patience)
        with self.part.open("ab", buffering=0) as file, Meter(f"{self.name} (MB)", mb) as meter:
            have = start
            meter.advance(have // MB)
            while True:
                try:
                    chunk = answer.read1(CHUNK_BYTES)
                except (OSError, http.client.HTTPException) as error:
                    raise TryAgainError(f"the connection broke after {have / MB:.1f} MB ({one_line(error)})") from error
                if not chunk:
                    break
                if not have and chunk.lstrip().lower().startswith(PAGE_STARTS):
                    self._refuse_page()
                self._write(file, chunk)
                meter.advance((have + len(chunk)) // MB - have // MB)
                have += len(chunk)
                self.furthest_bytes = max(self.furthest_bytes, have)
                crawl.check(len(chunk))
        if self.total_bytes and have < self.total_bytes:
            raise TryAgainError(f"the connection broke after {have / MB:.1f} of {self.total_bytes / MB:.1f} MB")
        if self.total_bytes and have > self.total_bytes:
            self.forget()
            raise TryAgainError(f"{self.name}: more bytes came than announced; starting again")

    def _write(self, file: Any, chunk: bytes) -> None:
        """Unbuffered, so that a killed process leaves all it had; a raw write may take only a part."""
        rest = memoryview(chunk)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError as error:
            raise AutopetError(
                f"{self.part}: cannot be written ({one_line(error)}); make room and run the command again, it goes on"
            ) from error


class _Crawl:
    """Notices a connection that lives but brings next to nothing."""

    def __init__(self, patience: Patience) -> None:
        self.patience, self.since, self.bytes = patience, time.monotonic(), 0

    def check(self, count: int) -> None:
        """Count bytes; raises TryAgainError when a whole span brought too few."""
        self.bytes += count
        span = time.monotonic() - self.since
        if span >= self.patience.stall_s:
            if self.bytes < self.patience.stall_bytes:
                raise TryAgainError(f"only {self.bytes} bytes in {span:.0f} s")
            self.since, self.bytes = time.monotonic(), 0


def _difference(remote: Remote, path: Path) -> str:
    """What is wrong with a file, in words; empty when nothing is known to be."""
    if remote.size_bytes and path.stat().st_size != remote.size_bytes:
        return f"expected {remote.size_bytes} bytes, found {path.stat().st_size}"
    for kind, expected in (("sha256", remote.sha256), ("md5", remote.md5)):
        if not expected:
            continue
        with path.open("rb") as file:
            found = hashlib.file_digest(file, kind).hexdigest()
        if found != expected.lower():
            return f"expected {kind} {expected}, found {found}"
    return ""
