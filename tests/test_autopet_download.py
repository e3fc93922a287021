"""Downloads from a server that breaks off, changes its file, cannot resume, or answers with something else."""

from __future__ import annotations

import hashlib
import resource
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from file_server import QUICK, Faults, FileServer, serving

from autopet.download import Remote, download
from autopet.errors import AutopetError
from autopet.web import Patience, fetch_json

CONTENT = bytes(range(256)) * 12_000  # 3 072 000 bytes
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving(CONTENT) as running:
        yield running


def remote(server: FileServer, **known) -> Remote:
    return Remote(f"{server.url}/w.zip", **known)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("w.zip*") if path.suffix != ".json")


def test_a_whole_download_asks_for_no_range(server: FileServer, tmp_path: Path):
    target = download(remote(server, sha256=SHA256), tmp_path / "new/w.zip", patience=QUICK)
    assert target.read_bytes() == CONTENT
    assert server.ranges == [""]
    assert names(tmp_path / "new") == ["w.zip"]


def test_broken_in_the_middle_it_goes_on_where_it_was(server: FileServer, tmp_path: Path):
    server.faults = Faults(breaks=[1_000_000, 500_000])
    download(remote(server, sha256=SHA256), tmp_path / "w.zip", patience=QUICK)
    assert (tmp_path / "w.zip").read_bytes() == CONTENT
    assert server.ranges == ["", "bytes=1000000-", "bytes=1500000-"]
    assert [request.get("if-range") for request in server.requests] == [None, '"one"', '"one"']
    assert server.sent_bytes == len(CONTENT)  # no byte twice


def test_a_later_call_goes_on_too(server: FileServer, tmp_path: Path):
    server.faults = Faults(breaks=[1_000_000], statuses=[])
    with pytest.raises(AutopetError, match="the connection broke after 1.0 of 3.1 MB, given up after 1 tries"):
        download(remote(server), tmp_path / "w.zip", patience=replace(QUICK, tries=1))
    assert names(tmp_path) == ["w.zip.part"]
    download(remote(server), tmp_path / "w.zip", patience=QUICK)
    assert server.ranges == ["", "bytes=1000000-"]
    assert (tmp_path / "w.zip").read_bytes() == CONTENT


def test_breaks_that_bring_something_are_not_counted_and_others_are(server: FileServer, tmp_path: Path):
    server.faults = Faults(breaks=[100_000] * 8)
    download(remote(server, sha256=SHA256), tmp_path / "w.zip", patience=replace(QUICK, tries=2))
    assert len(server.ranges) == 9
    server.faults = Faults(breaks=[0] * 8)
    with pytest.raises(AutopetError, match="given up after 3 tries"):
        download(remote(server), tmp_path / "v.zip", patience=QUICK)


def test_waits_grow_and_the_servers_wish_is_heard(server: FileServer, tmp_path: Path):
    waits: list[float] = []
    server.faults = Faults(statuses=[503, 500, 429])
    patience = Patience(tries=4, timeout_s=2, first_wait_s=1, sleep=waits.append)
    download(remote(server), tmp_path / "w.zip", patience=patience)
    assert waits == [1, 2, 4]
    server.faults = Faults(statuses=[503, 429], retry_after="17")
    download(remote(server), tmp_path / "v.zip", patience=patience)
    assert waits[3:] == [17, 17]


def test_a_server_without_ranges_is_started_again_and_it_says_so(server: FileServer, tmp_path: Path, capsys):
    server.faults = Faults(breaks=[1_000_000], no_ranges=True)
    download(remote(server, sha256=SHA256), tmp_path / "w.zip", patience=QUICK)
    assert (tmp_path / "w.zip").read_bytes() == CONTENT
    assert server.ranges == ["", "bytes=1000000-"]
    assert "the server cannot resume; starting again" in capsys.readouterr().err


@pytest.mark.parametrize("no_validator", [False, True])
def test_a_file_that_changed_between_the_tries_is_not_joined(server, tmp_path: Path, capsys, no_validator: bool):
    other = CONTENT[::-1] + b"longer"
    server.faults = Faults(breaks=[1_000_000], no_validator=no_validator)
    with pytest.raises(AutopetError):
        download(remote(server), tmp_path / "w.zip", patience=replace(QUICK, tries=1))
    server.content, server.etag = other, '"two"'
    known = {"md5": hashlib.md5(other).hexdigest()} if no_validator else {}
    download(remote(server, **known), tmp_path / "w.zip", patience=QUICK)
    assert (tmp_path / "w.zip").read_bytes() == other
    assert "the file on the server is another one now; starting again" in capsys.readouterr().err


def test_without_validator_and_checksum_nothing_is_joined(server: FileServer, tmp_path: Path):
    server.faults = Faults(breaks=[1_000_000], no_validator=True)
    download(remote(server), tmp_path / "w.zip", patience=QUICK)
    assert server.ranges == ["", ""]
    server.requests.clear()
    server.faults = Faults(breaks=[1_000_000], weak_etag=True)  # no If-Range with a weak one
    download(remote(server), tmp_path / "v.zip", patience=QUICK)
    assert server.ranges == ["", ""]


def test_a_part_that_is_complete_or_too_long(server: FileServer, tmp_path: Path):
    server.faults = Faults(breaks=[len(CONTENT)], no_length=True)  # ends without saying how long it was to be
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autopet.download._difference", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            download(remote(server), tmp_path / "w.zip", patience=QUICK)
    assert names(tmp_path) == ["w.zip.part"]
    server.faults = Faults()
    download(remote(server), tmp_path / "w.zip", patience=QUICK)  # 416: nothing is missing
    assert server.ranges == ["", f"bytes={len(CONTENT)}-"]
    assert (tmp_path / "w.zip").read_bytes() == CONTENT

    (tmp_path / "w.zip").rename(tmp_path / "w.zip.part")
    server.content, server.etag = CONTENT[:50], '"one"'  # shorter, and the server did not notice
    download(remote(server), tmp_path / "w.zip", patience=QUICK)
    assert (tmp_path / "w.zip").read_bytes() == CONTENT[:50]


@pytest.mark.parametrize("known", [{"sha256": "0" * 64}, {"md5": "0" * 32}, {"size_bytes": 7}])
def test_a_wrong_checksum_removes_the_file(server: FileServer, tmp_path: Path, known: dict):
    with pytest.raises(AutopetError, match=r"w\.zip: expected .*0|7.*found .*; the file was removed"):
        download(remote(server, **known), tmp_path / "w.zip", patience=QUICK)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_not_fetched_again(server: FileServer, tmp_path: Path):
    for known in ({"md5": hashlib.md5(CONTENT).hexdigest()}, {}):
        server.requests.clear()
        for _ in range(2):
            download(remote(server, **known), tmp_path / f"{len(known)}/w.zip", patience=QUICK)
        assert server.ranges == [""]
    (tmp_path / "1/w.zip").write_bytes(b"damaged")
    download(remote(server, sha256=SHA256), tmp_path / "1/w.zip", patience=QUICK)
    assert (tmp_path / "1/w.zip").read_bytes() == CONTENT


def test_a_web_page_keeps_what_was_loaded(server: FileServer, tmp_path: Path):
    server.faults = Faults(breaks=[1_000_000])
    with pytest.raises(AutopetError):
        download(remote(server), tmp_path / "w.zip", patience=replace(QUICK, tries=1))
    server.faults = Faults(page=True)
    with pytest.raises(AutopetError, match="a web page came instead of the file"):
        download(remote(server), tmp_path / "w.zip", patience=QUICK)
    assert (tmp_path / "w.zip.part").stat().st_size == 1_000_000
    server.faults, server.content = Faults(), b"\n<html>blocked</html>"  # a page that does not say that it is one
    with pytest.raises(AutopetError, match="a web page came instead of the file"):
        download(remote(server), tmp_path / "v.zip", patience=QUICK)
    assert not (tmp_path / "v.zip").exists()


@pytest.mark.parametrize(
    ("status", "words"), [(404, "no such file"), (403, "refused"), (407, "https_proxy"), (400, "400")]
)
def test_refusals_are_not_tried_again(server: FileServer, tmp_path: Path, status: int, words: str):
    server.faults = Faults(statuses=[status] * 3)
    with pytest.raises(AutopetError, match=words) as caught:
        download(remote(server), tmp_path / "w.zip", patience=QUICK)
    assert server.url in str(caught.value)
    assert len(server.requests) == 1


def test_no_server_no_name_no_address(tmp_path: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(AutopetError, match=r"no connection .*refused.*given up after 3 tries .is there a network"):
        download(Remote(f"http://127.0.0.1:{port}/w.zip"), tmp_path / "w.zip", patience=QUICK)
    with pytest.raises(AutopetError, match="no connection"):
        download(Remote("http://nowhere.invalid/w.zip"), tmp_path / "w.zip", patience=QUICK)
    with pytest.raises(AutopetError, match="not an address"):
        download(Remote("w.zip"), tmp_path / "w.zip", patience=QUICK)


def test_silence_and_crawling_end_a_try(server: FileServer, tmp_path: Path):
    started = time.monotonic()
    server.faults = Faults(silent_s=1.5)
    with pytest.raises(AutopetError, match="the connection broke .*timed out.* given up after 2"):
        download(remote(server), tmp_path / "w.zip", patience=replace(QUICK, timeout_s=0.2, tries=2))
    server.faults = Faults(drip_s=0.02)  # never silent for the timeout, 400 bytes a second
    crawl = replace(QUICK, timeout_s=5.0, stall_s=0.3, stall_bytes=10_000, tries=2)
    with pytest.raises(AutopetError, match=r"only \d+ bytes in 0 s"):
        download(remote(server), tmp_path / "v.zip", patience=replace(crawl, tries=1))
    assert time.monotonic() - started < 5
    assert (tmp_path / "v.zip.part").stat().st_size > 0


def test_redirects_are_followed_with_the_range(server: FileServer, tmp_path: Path):
    server.faults = Faults(breaks=[1_000_000], redirect="/cdn/w.zip")
    download(remote(server, sha256=SHA256), tmp_path / "w.zip", patience=QUICK)
    asked = [request.get("range", "") for request in server.requests if request["path"] == "/cdn/w.zip"]
    assert asked[-1].startswith("bytes=")
    assert (tmp_path / "w.zip").read_bytes() == CONTENT


def test_a_full_disk_is_seen_before_and_while_loading(server: FileServer, tmp_path: Path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage(10**7, 0, 2_000_000))
        with pytest.raises(AutopetError, match="3 MB are needed for w.zip, 2 MB are free"):
            download(remote(server), tmp_path / "w.zip", patience=QUICK)
    code = (
        "import resource, sys; from pathlib import Path; from autopet.download import *\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
        f"download(Remote({server.url + '/w.zip'!r}), Path({str(tmp_path / 'w.zip')!r}))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "AutopetError" in ended.stderr
    assert "cannot be written" in ended.stderr
    assert (tmp_path / "w.zip.part").stat().st_size == 1_000_000  # kept for the next call
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1_000_000
    download(remote(server, sha256=SHA256), tmp_path / "w.zip", patience=QUICK)
    assert server.ranges[-1] == "bytes=1000000-"


def test_the_proxy_of_the_environment_is_used(server: FileServer, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("no_proxy", "")
    download(Remote("http://weights.example/w.zip", sha256=SHA256), tmp_path / "w.zip", patience=QUICK)
    assert server.requests[0]["path"] == "http://weights.example/w.zip"  # a proxy is asked for the whole address


def test_certificates_of_the_hospital(tmp_path: Path):
    certificate, key = tmp_path / "hospital.pem", tmp_path / "key.pem"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)],
        capture_output=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip("openssl cannot make a certificate here")
    with serving(CONTENT) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        address = Remote(f"https://localhost:{server.server_port}/w.zip", sha256=SHA256)
        with pytest.raises(AutopetError, match="certificate cannot be verified.*--ca-bundle PEM"):
            download(address, tmp_path / "w.zip", patience=QUICK)
        download(address, tmp_path / "w.zip", ca_bundle=certificate, patience=QUICK)
        server.faults = Faults(redirect="http://localhost/w.zip")
        with pytest.raises(AutopetError, match="without encryption; not followed"):
            download(address, tmp_path / "v.zip", ca_bundle=certificate, patience=QUICK)
    with pytest.raises(AutopetError, match="no certificates at"):
        download(address, tmp_path / "w2.zip", ca_bundle=tmp_path / "none.pem")
    (tmp_path / "bad.pem").write_text("nothing")
    with pytest.raises(AutopetError, match="no certificates in PEM"):
        download(address, tmp_path / "w2.zip", ca_bundle=tmp_path / "bad.pem")


def test_json_of_a_server(server: FileServer):
    server.record = {"files": []}
    assert fetch_json(f"{server.url}/api/records/7", patience=QUICK) == {"files": []}
    server.faults = Faults(page=True)
    with pytest.raises(AutopetError, match="expected JSON, found something else"):
        fetch_json(f"{server.url}/other", patience=QUICK)
    server.record = []  # type: ignore[assignment]
    with pytest.raises(AutopetError, match="expected a JSON object, found list"):
        fetch_json(f"{server.url}/api/records/7", patience=QUICK)


def test_json_that_breaks_off_is_asked_for_again(server: FileServer):
    server.record = {"files": ["a" * 100]}
    server.faults = Faults(breaks=[0, 20])
    assert fetch_json(f"{server.url}/api/records/7", patience=QUICK) == server.record
    server.faults = Faults(breaks=[20] * 9)
    with pytest.raises(AutopetError, match="the connection broke after 20 bytes, given up after 3 tries"):
        fetch_json(f"{server.url}/api/records/7", patience=QUICK)
