"""Released checkpoints: where they are, and how one becomes a model folder.

`TABLE` holds only addresses that a public source states; each entry says which (`seen`). An archive is loaded beside
the model folder (`.work-<name>`), so that a second call goes on where the first one stopped, and is removed at the end.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from autopet.checkpoint import CONFIG, SUMS, link_or_copy, publish_model, refuse_other_content, sha256
from autopet.download import Remote, download
from autopet.errors import AutopetError
from autopet.folders import sole_writer
from autopet.methods import Method, find_method
from autopet.progress import console
from autopet.unpacking import is_archive, unpack
from autopet.web import Patience, fetch_json

ZENODO = "https://zenodo.org"
MODEL, PRETRAINING, FILES = "model", "pretraining", "files"
USES = {MODEL: "runs as a model folder", PRETRAINING: "starts a training (--pretrained)", FILES: "kept as it came"}
LFS = "put together from repository, commit and path; the Git LFS pointer there states the SHA-256 and the size"
ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
ROKUSS = "Rokuss et al., arXiv 2409.09478"


@dataclass(frozen=True)
class Released:
    """One release. Of `url` and `record` (at Zenodo) exactly one is given."""

    name: str
    title: str
    use: str  # a key of USES
    seen: str  # the public source that states the address
    record: str = ""  # Zenodo's number; its interface says size and MD5
    file: str = ""  # in the record
    url: str = ""
    sha256: str = ""
    size_bytes: int = 0
    method: str = ""  # of this bundle, that runs it
    preset: str = ""  # the method's preset that it was trained with
    channels: tuple[str, ...] = ()  # in the order of the release, where its dataset.json does not say
    inside: str = ""  # part of the path in the archive
    licence: str = "see the address"

    @property
    def page(self) -> str:
        """What to open in a browser."""
        return f"{ZENODO}/records/{self.record}" if self.record else self.url


TABLE = (
    Released(
        name="lesiontracer",
        title=f"LesionTracer, winner of autoPET III, five folds ({ROKUSS})",
        use=MODEL,
        seen="public autoPET V repositories that build from this record and file; a copy of the authors' readme"
        " (github.com/MIC-DKFZ/autopet-3-submission) names record 13786235",
        record="14007247",
        file="autoPET-3-LesionTracer.zip",
        method="lesiontracer",
        preset="paper-final",
        channels=("CT", "PET"),  # the authors' readme: CT is _0000, PET is _0001
        licence="CC-BY-4.0",
    ),
    Released(
        name="multitalent",
        title=f"LesionTracer's pretraining: MultiTalent on many data sets ({ROKUSS})",
        use=PRETRAINING,
        seen="readme of github.com/MIC-DKFZ/autopet-3-submission (record, Dataset619_nativemultistem); the file's name"
        " in a public script that downloads it",
        record="13753413",
        file="MultiTalentV2_challengeversion.zip",
        inside="Dataset619_nativemultistem",
        licence="CC-BY-4.0",
    ),
    Released(
        name="autopet3-nnunet",
        title="nnU-Net baseline of autoPET III",
        use=MODEL,
        seen="github.com/ClinicalDataScience/autoPETIII, nnunet-baseline/download_model_weights.sh",
        url="https://github.com/ClinicalDataScience/autoPETIII/releases/download/final/AutoPETIII_nnunet_baseline.zip",
        method="nnunet",
        preset="paper",
        channels=("CT", "PET"),  # process.py there: CT is _0000, PET is _0001
    ),
    Released(
        name="autopet3-datacentric",
        title="data-centric baseline of autoPET III (MONAI DynUNet, a Lightning checkpoint)",
        use=FILES,
        seen="github.com/ClinicalDataScience/autoPETIII, datacentric-baseline/download_model_weights.sh",
        url="https://github.com/ClinicalDataScience/autoPETIII/releases/download/final/"
        "AutoPETIII_datacentric_baseline.zip",
    ),
    Released(
        name="autopet1-nnunet",
        title="nnU-Net baseline of autoPET I and II (nnU-Net v1; PET, CT)",
        use=FILES,
        seen=f"github.com/lab-midas/autoPET, nnUNet_baseline/weights.zip; {LFS}",
        url="https://github.com/lab-midas/autoPET/raw/f34b4303b2b8977d8c337aba1ea81b9420529bc0/nnUNet_baseline/weights.zip",
        sha256="03c37363614349f688f233963bd93dee392431f51408e7c844ad31a8aa0298f6",
        size_bytes=233288618,
    ),
    Released(
        name="autopet1-unet",
        title="MONAI U-Net baseline of autoPET I and II (a Lightning checkpoint)",
        use=FILES,
        seen=f"github.com/lab-midas/autoPET, uNet_baseline/epoch=777-step=64573.ckpt; {LFS}",
        url="https://github.com/lab-midas/autoPET/raw/f34b4303b2b8977d8c337aba1ea81b9420529bc0/uNet_baseline/"
        "epoch=777-step=64573.ckpt",
        sha256="d097700cb259d79a2294bec59d83a0fbe6bfef3ea9a917bc253a0ab3963f5232",
        size_bytes=57845717,
    ),
    Released(
        name="autopet4-nnunet",
        title="nnU-Net baseline of autoPET IV, task 1 (CT, PET and two channels of clicks)",
        use=FILES,
        seen=f"github.com/lab-midas/autoPETCTIV, Task1/nnunet-baseline/weights.zip; {LFS}",
        url="https://github.com/lab-midas/autoPETCTIV/raw/77e4d399219b1d227a93f6622203f11d6fd89f37/Task1/"
        "nnunet-baseline/weights.zip",
        sha256="1afd72a31a3dc8cf95dbc4ec5635bd29aab1b3b99bd708fd2e454c9a97461f68",
        size_bytes=460786700,
    ),
)


def find_release(name: str) -> Released:
    """The entry of the table."""
    for entry in TABLE:
        if entry.name == name:
            return entry
    raise AutopetError(f"no weights called {name!r}; there are {', '.join(entry.name for entry in TABLE)}")


def fetch(
    name: str, out: Path, *, source: str = "", ca_bundle: Path | None = None, patience: Patience | None = None
) -> Path:
    """Load released weights and publish them as a model folder.

    Parameters
    ----------
    name : str
        A name of `TABLE`.
    out : Path
        Model folder to write.
    source : str
        Another address, or a file or folder that was copied by hand; default: the address in the table.
    ca_bundle : Path, optional
        Certificates (PEM) to trust besides the system's.
    patience : Patience, optional
        How often and how long to try.

    Raises
    ------
    AutopetError
        No connection (the message says how to do it by hand), damage, or content that is not what was expected.
    """
    entry, out = find_release(name), Path(out).resolve()
    method = find_method(entry.method) if entry.use == MODEL else None
    if method is not None:
        method.module("model")  # a missing dependency is named before gigabytes are loaded
    refuse_other_content(out)
    work = out.parent / f".work-{out.name}"
    with sole_writer(work):
        found, origin = _gather(entry, work, source, ca_bundle, patience)
        make = {MODEL: _model, PRETRAINING: _pretraining, FILES: _files}[entry.use]
        made = publish_model(work / "model", make(entry, method, found, origin))
        if method is not None:
            console.print(f"trying to load it as {method.name}", highlight=False)
            method.module("predict").load(made, "cpu")
        publish_model(out, _moved(made))
        shutil.rmtree(work)
    return out


def _gather(
    entry: Released, work: Path, source: str, ca_bundle: Path | None, patience: Patience | None
) -> tuple[Path, dict[str, Any]]:
    """A folder (or a lone file) with the release's content, and where it came from."""
    origin: dict[str, Any] = {"name": entry.name, "licence": entry.licence, "page": entry.page}
    origin["date"] = datetime.now(tz=UTC).date().isoformat()
    if source and not source.startswith(("http://", "https://")):
        path = Path(source).expanduser().resolve()
        if not path.exists():
            raise AutopetError(f"--from {source}: no such file or folder; {_by_hand(entry)}")
        if entry.use == FILES and work.is_relative_to(path):  # it would be copied into itself without end
            raise AutopetError(f"--from {source}: holds --out, too; choose a model folder outside of it")
        origin["url"] = path.name  # the folders above it are the user's business
    else:
        path = _load(entry, work, source, ca_bundle, patience)
        origin["url"] = source or entry.url or f"{entry.page}/files/{entry.file}"
    if path.is_dir():
        return path, origin
    origin["sha256"] = sha256(path)
    if entry.sha256 and origin["sha256"] != entry.sha256:
        raise AutopetError(f"{path}: expected SHA-256 {entry.sha256}, found {origin['sha256']}; {_by_hand(entry)}")
    if not is_archive(path):
        if path.name.lower().endswith(ARCHIVES):
            raise AutopetError(f"{path}: no whole archive, its end may be missing; delete it and load it again")
        return path, origin
    shutil.rmtree(work / "unpacked", ignore_errors=True)
    return unpack(path, work / "unpacked"), origin


def _load(entry: Released, work: Path, source: str, ca_bundle: Path | None, patience: Patience | None) -> Path:
    try:
        remote = Remote(source or entry.url, entry.sha256, size_bytes=entry.size_bytes)
        if not remote.url:
            remote = _at_zenodo(entry, ca_bundle, patience)
        name = entry.file or PurePosixPath(unquote(urlsplit(remote.url).path)).name or entry.name
        return download(remote, work / name, ca_bundle=ca_bundle, patience=patience)
    except AutopetError as error:
        raise AutopetError(f"{error}. By hand: {_by_hand(entry)}") from error


def _by_hand(entry: Released) -> str:
    file = f" (the file {entry.file})" if entry.file else ""
    return f"load {entry.page}{file} with a browser, then run: autopet weights fetch {entry.name} --from FILE_OR_FOLDER"


def _at_zenodo(entry: Released, ca_bundle: Path | None, patience: Patience | None) -> Remote:
    """Address, size and MD5 of a file as Zenodo's interface states them (developers.zenodo.org, Records)."""
    url = f"{ZENODO}/api/records/{entry.record}"
    record = fetch_json(url, ca_bundle=ca_bundle, patience=patience)
    files = [file for file in record.get("files") or () if isinstance(file, dict)]
    file = next((file for file in files if file.get("key") == entry.file), None)
    if file is None:
        listed = ", ".join(str(file.get("key")) for file in files) or "none"
        raise AutopetError(f"{url}: expected the file {entry.file}, found {listed}")
    kind, _, checksum = str(file.get("checksum", "")).partition(":")
    if kind != "md5" or not checksum:
        raise AutopetError(f"{url}: expected an MD5 of {entry.file}, found {file.get('checksum')!r}")
    return Remote(f"{url}/files/{entry.file}/content", md5=checksum, size_bytes=int(file.get("size") or 0))


Filling = Callable[[Path], dict[str, Any]]


def _model(entry: Released, method: Method | None, found: Path, origin: dict[str, Any]) -> Filling:
    """nnU-Net's results as a model folder of `method`."""
    from autopet.nnunet.released import channels, find_results, read_results, settings_of, write_results

    assert method is not None
    folder = find_results(_folder_of(found), entry.inside)
    results = read_results(folder)
    presets = method.module("model").PRESETS

    def fill(partial: Path) -> dict[str, Any]:
        write_results(partial, results)
        return {
            "method": method.name,
            "settings": settings_of(results, presets[entry.preset]),
            "channels": channels(results, entry.channels),
            "training_cases": [],  # a release names only their number
            "source": {
                **origin,
                "folder": folder.name,
                "trainer": results.trainer,
                "checkpoints_sha256": results.sha256,
                "training_cases": results.dataset.get("numTraining"),
            },
        }

    return fill


def _pretraining(entry: Released, _: Method | None, found: Path, origin: dict[str, Any]) -> Filling:
    """Weights to start a training from: one safetensors file, with all its heads and stems."""
    from autopet.nnunet.released import find_results, read_pretraining, write_results

    results = read_pretraining(find_results(found, entry.inside) if found.is_dir() else found)

    def fill(partial: Path) -> dict[str, Any]:
        write_results(partial, results)
        return {"method": PRETRAINING, "source": {**origin, "checkpoints_sha256": results.sha256}}

    return fill


def _files(_entry: Released, _: Method | None, found: Path, origin: dict[str, Any]) -> Filling:
    """The release as it came, in `files/`, with checksums; no method of this bundle runs it."""

    def fill(partial: Path) -> dict[str, Any]:
        ours = found.is_relative_to(partial.parent)  # unpacked or loaded by us, not the user's own copy
        copy = link_or_copy if ours else shutil.copy2
        if found.is_dir():
            shutil.copytree(found, partial / FILES, copy_function=copy)
        else:
            (partial / FILES).mkdir()
            copy(found, partial / FILES / found.name)
        return {"method": FILES, "source": origin}

    return fill


def _folder_of(found: Path) -> Path:
    """The result folder of a checkpoint that was named itself."""
    if found.is_dir():
        return found
    if not found.parent.name.startswith("fold_"):  # what lies two folders above it is anybody's
        raise AutopetError(f"{found}: expected an archive, a folder, or a checkpoint in fold_<k> beside plans.json")
    return found.parent.parent


def _moved(made: Path) -> Filling:
    """A model folder that is moved to another place in one step."""

    def fill(partial: Path) -> dict[str, Any]:
        config = json.loads((made / CONFIG).read_text())
        for path in sorted(made.iterdir()):
            if path.name not in (CONFIG, SUMS):
                os.replace(path, partial / path.name)
        return config

    return fill
