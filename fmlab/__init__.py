"""The finite-memory lab: watch what a language model keeps and what it forgets under a memory budget.

Everything here is imported when it is first used, so `import fmlab` alone costs milliseconds and loads no torch.
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType

from .lazy import lazily

__version__ = "0.1.0"

_MODULES = frozenset(
    (
        "caches contract conversation core figures intervals live masked metrics models optimizations peers policies published replays "
        "ruler sparsity tables tasks texts trace widgets"
    ).split()
)
_HOMES = {
    "Allocation": "core",
    "BudgetError": "core",
    "ChatSession": "conversation",
    "LanguageModel": "models",
    "Policy": "core",
    "Trace": "trace",
    "View": "core",
    "explore": "widgets",
    "finite": "live",
    "load": "models",
    "oracle": "oracle",
    "prefill": "forks",
    "record": "record",
    "replay": "rerun",
    "sparse": "sparse",
    "sweep": "sweep",
    "tiny": "models",
    "why": "why",
}
_find, _names = lazily(__name__, _HOMES)


def datafile(name: str) -> Path:
    """The path of a file that the lab ships in data/: beside the package in a checkout, inside it in a wheel.

    Raises FileNotFoundError, naming the places looked in.
    """
    package = Path(__file__).resolve().parent
    places = [package.parent / "data" / name, package / "data" / name]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(f"the lab ships no data file {name!r}: looked for {' and '.join(map(str, places))}")


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    return _find(name)


def __dir__() -> list[str]:
    return sorted({*_MODULES, *_names(), "datafile", "__version__"})


class _Package(ModuleType):
    """Keeps `fm.sweep` the function when Python binds the submodule of the same name after importing it, and goes to
    another process by name, as other modules do, with a function of a notebook that uses it."""

    def __setattr__(self, name: str, value: object) -> None:
        if _HOMES.get(name) == name and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __reduce__(self) -> tuple:
        return importlib.import_module, (self.__name__,)


sys.modules[__name__].__class__ = _Package
