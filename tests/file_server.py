"""A file server on this machine that misbehaves in the way a test asks for."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from autopet.web import Patience

QUICK = Patience(tries=3, timeout_s=2.0, first_wait_s=0.0, sleep=lambda seconds: None)


@dataclass
class Faults:
    """What goes wrong, one entry per answer; after the last one nothing does."""

    breaks: list[int] = field(default_factory=list)  # bytes sent before the connection is cut; -1: none is cut
    statuses: list[int] = field(default_factory=list)
    retry_after: str = ""
    no_ranges: bool = False
    no_validator: bool = False
    weak_etag: bool = False
    drip_s: float = 0.0  # pause after every 8 bytes
    silent_s: float = 0.0  # pause before the body
    page: bool = False
    no_length: bool = False
    redirect: str = ""


class FileServer(ThreadingHTTPServer):
    """Serves `content` at any path, and Zenodo's record at /api/records/<number>."""

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.etag, self.faults = content, '"one"', Faults()
        self.record: dict = {}
        self.requests: list[dict[str, str]] = []  # headers, and the path as `path`
        self.sent_bytes = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def ranges(self) -> list[str]:
        """The Range of every request for the file."""
        return [request.get("range", "") for request in self.requests if not request["path"].endswith("/records/7")]


class Handler(BaseHTTPRequestHandler):
    """GET with ranges (RFC 9110), and the faults."""

    server: FileServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        server, faults = self.server, self.server.faults
        server.requests.append({"path": self.path} | {key.lower(): value for key, value in self.headers.items()})
        self.close_connection = True
        if self.path.startswith("/api/records/") and self.path.count("/") == 3:
            return self._answer(200, json.dumps(server.record).encode(), {"Content-Type": "application/json"})
        if faults.redirect and self.path != faults.redirect:
            return self._answer(302, b"", {"Location": faults.redirect})
        if faults.statuses:
            return self._answer(faults.statuses.pop(0), b"no", {"Retry-After": faults.retry_after})
        if faults.page:
            return self._answer(200, b"<!DOCTYPE html><title>Sign in</title>", {"Content-Type": "text/html"})
        self._file()
        return None

    def _file(self) -> None:
        server, faults, total = self.server, self.server.faults, len(self.server.content)
        etag = f"W/{server.etag}" if faults.weak_etag else server.etag
        headers = {} if faults.no_validator else {"ETag": etag}
        asked, condition = self.headers.get("Range"), self.headers.get("If-Range")
        if not asked or faults.no_ranges or (condition and condition != etag):
            return self._answer(200, server.content, headers)
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= total:
            return self._answer(416, b"", {"Content-Range": f"bytes */{total}"})
        return self._answer(
            206, server.content[start:], headers | {"Content-Range": f"bytes {start}-{total - 1}/{total}"}
        )

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        faults = self.server.faults
        cut = faults.breaks.pop(0) if faults.breaks and status in (200, 206) else -1
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if not faults.no_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        time.sleep(faults.silent_s)
        body = body[:cut] if cut >= 0 else body
        step = 8 if faults.drip_s else max(1, len(body))
        try:
            for place in range(0, len(body), step):
                self.wfile.write(body[place : place + step])
                self.wfile.flush()
                time.sleep(faults.drip_s)
        except OSError:
            return  # the client has gone
        self.server.sent_bytes += len(body)


@contextmanager
def serving(content: bytes) -> Iterator[FileServer]:
    """A server with that file, in a thread."""
    with FileServer(content) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
