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

from autopet import __version__
from autopet.checkpoint import CONFIG, open_to_all, verify_sums
from autopet.errors import AutopetError
from autopet.methods import find_method
from autopet.progress import console

REPOSITORY = Path(__file__).resolve().parent.parent
REGISTRY_BASE = "python:3.11-slim"
DEBIAN_BASE = "autopet-base:bookworm"
IMAGE_PYTHON = (3, 11)
EVALUATION = "evaluation"


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
    """The distribution's own dependencies, those of the method's extra, and what builds a wheel."""
    project = tomllib.loads(_source("pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    if method not in extras:
        raise AutopetError(f"pyproject.toml has no extra {method!r}: add one, even an empty one, for every method")
    return [*project["project"]["dependencies"], *extras[method], *project["build-system"]["requires"]]


def make_wheelhouse(method: str, folder: Path) -> Path:
    """Collect the wheels of a method's dependencies, with this machine's pip and its index.

    The wheels are those of this Python, which must be the image's (3.11), on amd64.
    """
    if sys.version_info[:2] != IMAGE_PYTHON:
        raise AutopetError(f"wheels must be made with Python 3.11, the image's; this is {sys.version.split()[0]}")
    if platform.machine() not in ("x86_64", "AMD64"):
        raise AutopetError(f"wheels must be made on amd64, the image's architecture; this is {platform.machine()}")
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(folder), "--constraint"]
    command += [str(_source("constraints.txt")), "--find-links", str(folder), *requirements(method)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise AutopetError(
            f"wheelhouse for {method}: pip failed ({reason}); check the package index, or copy wheels to {folder}"
        )
    return folder


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
    return ["autopet", EVALUATION if method == EVALUATION else find_method(method).package]


def _copy_code(package: str, code: Path) -> None:
    """A package's folder, with the __init__.py of the room above it."""
    folder = Path(*package.split("."))
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(_source(folder), code / folder, ignore=ignore)
    for parent in folder.parents:
        if parent != Path("."):
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
        shutil.copy(file, target)


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
