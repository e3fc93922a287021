"""Finding a method by its folder's name: no registry to edit."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from dataclasses import dataclass
from types import ModuleType

from autopet.errors import AutopetError

ROOMS = ("baselines", "algorithms")


@dataclass(frozen=True)
class Method:
    """A method's name and its package, e.g. `nnunet` in `baselines.nnunet`."""

    name: str
    package: str

    def module(self, part: str) -> ModuleType:
        """Import `predict`, `train` or `model`; a missing dependency is named with the extra that brings it."""
        try:
            return importlib.import_module(f"{self.package}.{part}")
        except ModuleNotFoundError as error:
            if error.name and error.name.startswith(self.package):
                raise AutopetError(f"method {self.name} has no {part}.py") from error
            raise AutopetError(
                f"method {self.name} needs the package {error.name}: pip install -c constraints.txt '.[{self.name}]'"
            ) from error


def find_method(name: str) -> Method:
    """The method called `name`, or given as a dotted package path."""
    for package in [name] if "." in name else [f"{room}.{name}" for room in ROOMS]:
        try:
            if _predicts(package):
                return Method(package.rpartition(".")[2], package)
        except ModuleNotFoundError:
            continue
    raise AutopetError(f"no method called {name!r}; there are {', '.join(list_methods())}")


def list_methods() -> list[str]:
    """Names of all methods that are installed, baselines first: packages with a predict.py in one of the rooms."""
    names = []
    for room in ROOMS:
        if importlib.util.find_spec(room) is None:
            continue
        found = pkgutil.iter_modules(importlib.import_module(room).__path__)
        names += sorted(module.name for module in found if module.ispkg and _predicts(f"{room}.{module.name}"))
    return names


def _predicts(package: str) -> bool:
    return importlib.util.find_spec(f"{package}.predict") is not None
