"""Images of methods: the build context, the wheelhouse for air-gapped builds, the build itself."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autopet import __version__
from autopet.checkpoint import CONFIG, link_or_copy, open_to_all, sha256, verify_sums
from autopet.errors import AutopetError
from autopet.folders import whole_file
from autopet.methods import find_method, list_methods
from autopet.progress import console

REPOSITORY = Path(__file__).resolve().parent.parent
REGISTRY_BASE = "python:3.11-slim"
DEBIAN_BASE = "autopet-base:bookworm"
IMAGE_PYTHON = (3, 11)
EVALUATION = "evaluation"
OWN_EXTRAS = re.compile(r"(?P<name>[\w.-]+)\[(?P<extras>[^]]+)\]")


@dataclass(frozen=True)
class Recipe:
    """What goes into an image.

    Parameters
    ----------
    method : str
        Name of a method, or `evaluation`.
    model : Path, optional
        Model folder to bake in.
    base_image : str
    wheelhouse : Path, optional
        Folder of wheels; nothing is fetched then.
    ca_bundle : Path, optional
        Certificates that pip trusts during the build (hospital proxies).
    api : str
        `exec` or `invoke`.
    """

    method: str
    model: Path | None = None
    base_image: str = REGISTRY_BASE
    wheelhouse: Path | None = None
    ca_bundle: Path | None = None
    api: str = "exec"

    @property
    def default_tag(self) -> str:
        """Tag of the image when none is given."""
        return f"autopet-{self.method}:{__version__}"


def requirements(method: str) -> list[str]:
    """The distribution's own dependencies, those of the method's extra, and what builds a wheel; sorted, each once.

    Methods that need the same packages have the same list, and so share the layer of their images that holds them.
    """
    project = _project()
    extras = project["project"]["optional-dependencies"]
    own = [line for name in extras_of(method) for line in extras[name] if not _named_extras(line, project)]
    return sorted({*project["project"]["dependencies"], *own, *project["build-system"]["requires"]})


def constraints() -> str:
    """constraints.txt: the versions that are installed."""
    return _source("constraints.txt").read_text()


def extras_of(method: str) -> list[str]:
    """The method's extra, and every extra of this distribution that it names, in turn; the method's own first."""
    project = _project()
    extras = project["project"]["optional-dependencies"]
    found, waiting = [], [method]
    while waiting:
        name = waiting.pop(0)
        if name not in extras:
            named = "" if name == method else f", which that of {method!r} names"
            raise AutopetError(
                f"pyproject.toml has no extra {name!r}{named}: add one, even an empty one, for every method"
            )
        if name not in found:
            found.append(name)
            waiting += [extra for line in extras[name] for extra in _named_extras(line, project)]
    return found


def _project() -> dict[str, Any]:
    return tomllib.loads(_source("pyproject.toml").read_text())


def _named_extras(requirement: str, project: dict[str, Any]) -> list[str]:
    """The extras of this distribution that a requirement such as `autopet-bundle[nnunet,unet3d]` names."""
    match = OWN_EXTRAS.fullmatch(requirement.strip())
    if not match or match["name"] != project["project"]["name"]:
        return []
    return [extra.strip() for extra in match["extras"].split(",")]


def make_wheelhouse(method: str, folder: Path, *, pool: Path | None = None) -> Path:
    """Collect the wheels of a method's dependencies, with this machine's pip and its index.

    The wheels are those of this Python, which must be the image's (3.11), on amd64.

    Parameters
    ----------
    pool : Path, optional
        Folder of wheels that several wheelhouses share: what is there is not fetched again, and a wheel is one file
        under several names, where the file system has hard links.
    """
    if sys.version_info[:2] != IMAGE_PYTHON:
        raise AutopetError(f"wheels must be made with Python 3.11, the image's; this is {sys.version.split()[0]}")
    if platform.machine() not in ("x86_64", "AMD64"):
        raise AutopetError(f"wheels must be made on amd64, the image's architecture; this is {platform.machine()}")
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(folder), "--constraint"]
    command += [str(_source("constraints.txt")), "--find-links", str(folder)]
    command += ["--find-links", str(pool)] if pool and pool.is_dir() else []
    command += requirements(method)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise AutopetError(
            f"wheelhouse for {method}: pip failed ({reason}); check the package index, or copy wheels to {folder}"
        )
    if pool:
        _share(folder, pool)
    return folder


def _share(folder: Path, pool: Path) -> None:
    """Let the wheels of a folder be those of the pool, and put into the pool what it lacks."""
    pool.mkdir(parents=True, exist_ok=True)
    for wheel in sorted(folder.glob("*.whl")):
        shared = pool / wheel.name
        source, target = (shared, wheel) if shared.is_file() else (wheel, shared)
        if target.exists() and (source.samefile(target) or sha256(source) != sha256(target)):
            continue
        with whole_file(target) as part:
            link_or_copy(source, part)


def make_debian_base() -> str:
    """Make the base image from Debian's packages with docker/debian-base.sh; AutopetError when it cannot."""
    command = ["bash", str(_source("docker/debian-base.sh")), DEBIAN_BASE]
    with console.status(f"making {DEBIAN_BASE} from Debian's packages"):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise AutopetError(f"{REGISTRY_BASE} cannot be pulled and docker/debian-base.sh failed: {reason}")
    return DEBIAN_BASE


def build_image(recipe: Recipe, *, tag: str = "") -> str:
    """Build the image with the local Docker engine; returns its tag.

    Raises
    ------
    AutopetError
        No engine, a missing base image or file, or a build step that failed (its last lines are in the message).
    """
    import docker
    from docker.errors import BuildError, DockerException

    from autopet.engine import connect

    client = connect()
    tag = tag or recipe.default_tag
    with _context(recipe) as context:
        arguments = {"BASE_IMAGE": recipe.base_image, "API": recipe.api, "VERSION": __version__}
        if recipe.method != EVALUATION:
            arguments["PACKAGE"] = find_method(recipe.method).package
        dockerfile = "evaluation.Dockerfile" if recipe.method == EVALUATION else "algorithm.Dockerfile"
        try:
            with console.status(f"building {tag}"):
                client.images.build(
                    path=str(context), dockerfile=f"docker/{dockerfile}", tag=tag, buildargs=arguments, rm=True,
                    forcerm=True, platform="linux/amd64",
                )  # fmt: skip
        except BuildError as error:
            lines = [entry.get("stream", "").strip() for entry in error.build_log if isinstance(entry, dict)]
            tail = " | ".join([line for line in lines if line][-3:])
            raise AutopetError(f"building {tag} failed: {error.msg}; last lines: {tail}") from error
        except (docker.errors.APIError, DockerException) as error:
            raise AutopetError(_explain(error, recipe)) from error
    return tag


def _explain(error: Exception, recipe: Recipe) -> str:
    text = str(error)
    if re.search(r"pull|manifest|registry|lookup", text):
        return (
            f"base image {recipe.base_image} is not here and cannot be pulled; without a registry make one with "
            f"docker/debian-base.sh and pass --base-image {DEBIAN_BASE} ({text[-200:]})"
        )
    return f"the Docker engine refused the build: {text[-300:]}"


@contextmanager
def _context(recipe: Recipe) -> Iterator[Path]:
    """A temporary build context that holds exactly what the image needs."""
    with tempfile.TemporaryDirectory(prefix="autopet-build-") as name:
        root = Path(name)
        (root / "requirements.txt").write_text("\n".join(requirements(recipe.method)) + "\n")
        for file in ("constraints.txt", "pyproject.toml"):
            shutil.copy(_source(file), root)
        shutil.copytree(_source("docker"), root / "docker")
        for package in _packages(recipe.method):
            _copy_code(package, root / "code")
        _copy_option(recipe.wheelhouse, root / "wheelhouse", "*.whl", "wheelhouse")
        (root / "ca").mkdir()
        if recipe.ca_bundle:
            shutil.copy(_existing(recipe.ca_bundle, "CA bundle"), root / "ca" / "bundle.crt")
        (root / "ca" / ".keep").touch()
        _copy_model(recipe.model, root / "model")
        yield root


def _packages(method: str) -> list[str]:
    """The code that an image needs: the library, the method, and the methods whose extras its own names."""
    if method == EVALUATION:
        return ["autopet", EVALUATION]
    others = [name for name in extras_of(method)[1:] if name in list_methods()]
    return ["autopet", *(find_method(name).package for name in [method, *others])]


def _copy_code(package: str, code: Path) -> None:
    """A package's folder, with the __init__.py of the room above it."""
    folder = Path(*package.split("."))
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(_source(folder), code / folder, ignore=ignore)
    for parent in folder.parents:
        if parent != Path(".") and not (code / parent / "__init__.py").exists():
            shutil.copy(_source(parent / "__init__.py"), code / parent)


def _copy_option(source: Path | None, target: Path, pattern: str, what: str) -> None:
    target.mkdir()
    (target / ".keep").touch()
    if source is None:
        return
    files = sorted(_existing(source, what).glob(pattern))
    if not files:
        raise AutopetError(f"{what} {source} holds no {pattern}; fill it with `autopet wheelhouse METHOD {source}`")
    for file in files:
        link_or_copy(file, target / file.name)


def _copy_model(model: Path | None, target: Path) -> None:
    if model is None:
        target.mkdir()
        (target / ".keep").touch()
        return
    if not (_existing(model, "model folder") / CONFIG).is_file():
        raise AutopetError(f"{model} is no model folder: {CONFIG} is missing; train with `autopet train` first")
    verify_sums(model)
    shutil.copytree(model, target)
    open_to_all(target)


def _existing(path: Path, what: str) -> Path:
    if not path.exists():
        raise AutopetError(f"{what} {path} does not exist")
    return path


def _source(relative: Path | str) -> Path:
    path = REPOSITORY / relative
    if not path.exists():
        raise AutopetError(f"{path} is missing: images are built from a checkout of the repository (pip install -e .)")
    return path
