"""HTTP with patience: proxies and certificates as a hospital has them, tries again where that helps.

Python's own `urllib`: the proxies come from the environment (`https_proxy`, `no_proxy`), the certificates from the
system, and from the bundle that the hospital's IT gave out.
"""

from __future__ import annotations

import http.client
import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autopet import __version__
from autopet.errors import AutopetError, one_line
from autopet.progress import console

MAX_WAIT_S = 60.0
MAX_JSON_BYTES = 16_000_000
REFUSED = {401: "a login is needed", 403: "access is refused", 404: "there is no such file", 410: "the file is gone"}
PASSING = (408, 425, 429)  # the only errors of the 400 kind that another try may mend
PROXY_LOGIN = 407


@dataclass(frozen=True)
class Patience:
    """How long to put up with a bad connection."""

    tries: int = 5  # in a row that bring nothing new
    timeout_s: float = 30.0  # without any byte
    stall_s: float = 120.0  # span in which at least `stall_bytes` must arrive
    stall_bytes: int = 64 * 1024
    first_wait_s: float = 1.0  # before the second try; twice as long before each further one
    sleep: Callable[[float], None] = time.sleep


class TryAgainError(Exception):
    """This try failed, the next one may not; `wait_s` is what the server asked for."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to something that anybody on the way can change."""

    def redirect_request(self, req: urllib.request.Request, *args: Any) -> urllib.request.Request | None:
        new = super().redirect_request(req, *args)
        if new is not None and req.full_url.startswith("https:") and not new.full_url.startswith("https:"):
            raise AutopetError(f"{req.full_url} redirects to {new.full_url}, without encryption; not followed")
        return new


def fetch_json(url: str, *, ca_bundle: Path | None = None, patience: Patience | None = None) -> dict[str, Any]:
    """A small JSON document of a server, after as many tries as for a file."""
    patience = patience or Patience()

    def attempt() -> dict[str, Any]:
        with open_url(opener(ca_bundle), url, headers(), patience=patience) as answer:
            try:
                content = answer.read(MAX_JSON_BYTES)
            except (OSError, http.client.HTTPException) as error:
                raise TryAgainError(f"the connection broke ({one_line(error)})") from error
            if answer.length and len(content) < MAX_JSON_BYTES:  # announced, but it never came
                raise TryAgainError(f"the connection broke after {len(content)} bytes")
            try:
                found = json.loads(content)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise AutopetError(f"{url}: expected JSON, found something else (a login page?); {error}") from error
        if not isinstance(found, dict):
            raise AutopetError(f"{url}: expected a JSON object, found {type(found).__name__}")
        return found

    return retry(attempt, url, patience)


def opener(ca_bundle: Path | None) -> urllib.request.OpenerDirector:
    """HTTP with the system's certificates, and those of a bundle in PEM besides."""
    if ca_bundle is not None and not ca_bundle.is_file():
        raise AutopetError(f"no certificates at {ca_bundle}; --ca-bundle expects a PEM file")
    context = ssl.create_default_context()
    try:
        if ca_bundle is not None:
            context.load_verify_locations(cafile=str(ca_bundle))
    except ssl.SSLError as error:
        raise AutopetError(f"{ca_bundle}: no certificates in PEM ({one_line(error)})") from error
    return urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), _SafeRedirects())


def headers() -> dict[str, str]:
    return {"User-Agent": f"autopet-bundle/{__version__}", "Accept-Encoding": "identity"}


def retry(attempt: Callable[[], Any], url: str, patience: Patience, progress: Callable[[], int] = lambda: 0) -> Any:
    """Call `attempt` until it returns; give up after `tries` failures without progress in between."""
    failures, furthest = 0, progress()
    while True:
        try:
            return attempt()
        except TryAgainError as error:
            failures = 1 if progress() > furthest else failures + 1
            furthest = max(furthest, progress())
            if failures >= patience.tries:
                raise AutopetError(f"{url}: {error}, given up after {failures} tries (is there a network?)") from error
            wait_s = error.wait_s or patience.first_wait_s * 2 ** (failures - 1)
            console.print(f"{error}; next try in {min(wait_s, MAX_WAIT_S):.0f} s", highlight=False, markup=False)
            patience.sleep(min(wait_s, MAX_WAIT_S))


def open_url(
    http_opener: urllib.request.OpenerDirector, url: str, fields: dict[str, str], *, patience: Patience
) -> http.client.HTTPResponse:
    """The server's answer; what may pass is a TryAgainError, what will not is an AutopetError. 416 is an answer."""
    try:
        return http_opener.open(urllib.request.Request(url, headers=fields), timeout=patience.timeout_s)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return error  # type: ignore[return-value]
        if error.code == PROXY_LOGIN:
            raise AutopetError(
                f"{url}: the proxy wants a login; set https_proxy=http://user:password@host:port"
            ) from error
        if error.code in REFUSED or (400 <= error.code < 500 and error.code not in PASSING):
            reason = REFUSED.get(error.code, error.reason)
            raise AutopetError(f"{url}: the server says {error.code}, {reason}") from error
        after = error.headers.get("Retry-After", "") if error.headers else ""
        raise TryAgainError(f"the server says {error.code}", float(after) if after.isdigit() else 0.0) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise AutopetError(
                f"{url}: the certificate cannot be verified ({one_line(error.reason)}); behind a hospital"
                " proxy give its certificates with --ca-bundle PEM"
            ) from error
        raise TryAgainError(f"no connection ({' '.join(str(error.reason).split())})") from error
    except (OSError, http.client.HTTPException) as error:
        raise TryAgainError(f"the connection broke ({one_line(error)})") from error
    except ValueError as error:
        raise AutopetError(f"{url}: not an address ({error})") from error
