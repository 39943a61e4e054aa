"""Imports point one way: the rooms of the house, who may use whom, and that each stays small and every test asserts."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fmlab as fm

TESTS = Path(__file__).resolve().parent
PACKAGE = TESTS.parent / "fmlab"
ANY = "anything"

HUB = "huggingface_hub filelock platformdirs tqdm safetensors transformers tokenizers"

# room: its own modules (a package counts as one), which of ours it may import, which packages of others
ROOMS = {
    "core": ("core view bag rope", "", ""),
    "slots": ("slots ragged quantise", "core view bag", ""),
    "policies": ("policies", "core view", ""),
    "traces": ("trace rerun", "core view bag rope slots ragged", "safetensors"),
    "live": (
        "live forks cast together record watch repeat needs renumber attach attention masked sparse paged",
        "core view bag rope slots ragged quantise trace language sparsity",
        "transformers",
    ),
    "models": ("models weights wheels language dequantise", "", f"{HUB} gguf"),
    "oracle": ("oracle", "core slots trace", "scipy"),
    "fidelity": ("fidelity", "core slots trace rerun live forks record metrics language", ""),
    "metrics": ("metrics intervals", "core slots trace oracle", ""),
    "replays": ("replays why apart", "core view trace rerun oracle metrics", "safetensors joblib"),
    "tables": ("tables", "core metrics intervals replays", "pandas"),
    "tasks": ("tasks texts reading scoring ruler", "core live metrics intervals language", "transformers"),
    "caches": ("caches", "core language lazy lines", "cachetools transformers"),
    "conversation": (
        "conversation",
        "core caches language lazy lines intervals texts view watch weights wheels",
        "transformers tokenizers jinja2 sklearn bm25s openai platformdirs",
    ),
    "sparsity": ("sparsity", "core lazy", ""),
    "contract": ("contract", "core view bag rope slots trace rerun live needs record masked models", ""),
    "published": ("published", "intervals", "pandas"),
    "optimizations": (
        "optimizations",
        "core bag view slots policies caches conversation language lazy models texts live forks record rerun trace attention "
        "sparsity provenance intervals",
        "pandas transformers scipy",
    ),
    "sweep": ("sweep fingerprint provenance", "", "pandas joblib distributed tqdm"),
    "figures": ("figures", "intervals", "pandas plotly numpy"),
    "parse": ("parse", "core", ""),
    "peers": ("peers", "core", "kvpress"),
    "compare": (
        "compare passage printed report",
        "core metrics intervals live record tasks texts language trace sweep provenance policies figures widgets",
        "transformers pandas plotly tqdm",
    ),
    # The Explorer is a program on top of everything below it; tensors it hands on, figures it leaves to metrics.
    "widgets": (
        "widgets",
        "figures trace replays why metrics live core models policies parse conversation language optimizations sparsity",
        "ipywidgets anywidget traitlets IPython pandas torch numpy jaxtyping",
    ),
    "command line": ("cli __main__ comparison bench", ANY, f"typer pandas plotly torch numpy jaxtyping {HUB}"),
    "lines": ("lines", "", ""),
    "the front": ("__init__ lazy", "", ""),
}
FREE = "torch numpy jaxtyping"  # for every room that makes neither pictures nor programs
NOT_FREE = {"figures", "widgets", "command line", "the front"}
HOSTS = {
    "trace",
    "rerun",
    "replays",
    "apart",
    "live",
    "forks",
    "cast",
    "record",
    "watch",
    "repeat",
    "needs",
    "renumber",
    "attach",
    "attention",
    "masked",
    "slots",
    "ragged",
    "sparse",
    "paged",
}


def modules() -> dict[str, list[Path]]:
    """Every module of the package with its files; a subpackage is one module."""
    found: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        found.setdefault(path.relative_to(PACKAGE).parts[0].removesuffix(".py"), []).append(path)
    return found


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports or takes from the front: in functions and for type checkers too."""
    package = ("fmlab", *path.relative_to(PACKAGE).parts[:-1])
    tree = ast.parse(path.read_text("utf-8"))
    front = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
            front |= {alias.asname or "fmlab" for alias in node.names if alias.name.partition(".")[0] == "fmlab"}
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            base += node.module.split(".") if node.module else []
            yield from (".".join([*base, alias.name]) for alias in node.names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in front:
            yield f"fmlab.{node.attr}"


def violations(module: str) -> list[str]:
    """What a module imports that the table does not let it."""
    room = next((name for name, (inside, _, _) in ROOMS.items() if module in inside.split()), None)
    if room is None:
        return [f"fmlab/{module} stands in no room of this table"]
    inside, ours, others = ROOMS[room]
    theirs = {*others.split(), *sys.stdlib_module_names, *(() if room in NOT_FREE else FREE.split())}
    wrong = set()
    for path in modules()[module]:
        for name in imports(path):
            first, *rest = name.split(".")
            if first != "fmlab":
                allowed = first in theirs
            else:
                part = rest[0] if rest else "__init__"
                target = part if part in modules() else fm._HOMES.get(part, "__init__")
                allowed = ours == ANY or target in {"__init__", *inside.split(), *ours.split()}
            if not allowed:
                wrong.add(f"{path.relative_to(PACKAGE).as_posix()} may not import {name}")
    return sorted(wrong)


@pytest.mark.parametrize("module", modules())
def test_imports_point_one_way(module):
    assert violations(module) == []


def test_hosts_and_policies_do_not_know_each_other():
    rooms = {module: ours.split() for inside, ours, _ in ROOMS.values() for module in inside.split()}
    assert len(rooms) == sum(len(inside.split()) for inside, _, _ in ROOMS.values()), "a module stands in one room"
    assert all("policies" not in rooms[host] for host in HOSTS)
    assert HOSTS.isdisjoint(rooms["policies"])


@pytest.mark.parametrize(
    ("name", "line", "wrong"),
    [
        ("policies/recency.py", "from ..core import Policy", False),
        ("policies/recency.py", "from .attention import H2O", False),
        ("policies/recency.py", "from ..trace import Trace", True),
        ("policies/recency.py", "from .. import live", True),
        ("policies/recency.py", "import fmlab.live as x", True),
        ("policies/recency.py", "from fmlab import finite", True),
        ("policies/recency.py", "import fmlab as fm\nfm.finite", True),
        ("policies/recency.py", "import fmlab\nfmlab.__version__", False),
        ("policies/recency.py", "def f():\n    from fmlab.live import finite", True),
        ("trace.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .policies import H2O", True),
        ("trace.py", "from .policies.attention import H2O", True),
        ("trace.py", "import torch.nn.functional, json", False),
        ("trace.py", "import pandas", True),
        ("figures.py", "import torch", True),
        ("cli.py", "from . import policies, live", False),
        ("new.py", "import json", True),
    ],
)
def test_the_check_sees_what_it_should(tmp_path, monkeypatch, name, line, wrong):
    for each in ("core.py", "trace.py", "live.py", "policies/__init__.py", "policies/attention.py", name):
        (tmp_path / each).parent.mkdir(exist_ok=True)
        (tmp_path / each).touch()
    (tmp_path / name).write_text(line)
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    assert bool(violations(name.partition("/")[0].removesuffix(".py"))) == wrong


@pytest.mark.parametrize("path", sorted(p for p in PACKAGE.rglob("*") if p.suffix in (".py", ".js", ".css")), ids=str)
def test_files_stay_small(path):
    lines = len(path.read_text("utf-8").splitlines())
    assert lines < 400, f"{path.name} has {lines} lines: it has more than one subject"


# Every test asserts


def asserts(function: ast.AST, helpers: set[str]) -> bool:
    """Whether a function asserts, expects an error, or calls a helper that does."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in helpers:
                return True
    return False


def silent_tests(sources: dict[str, str]) -> list[str]:
    functions = {
        (name, node.name, node.lineno): node
        for name, source in sources.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    helpers = {"raises", "fail", "assert_frame_equal", "assert_close", "assert_array_equal", "assert_allclose"}
    while True:  # until no further function is found to assert through the ones that are known to
        more = {key[1] for key, node in functions.items() if not key[1].startswith("test_") and asserts(node, helpers)}
        if more <= helpers:
            break
        helpers |= more
    return [
        f"{k[0]}:{k[2]} {k[1]}"
        for k, node in functions.items()
        if k[1].startswith("test_") and not asserts(node, helpers)
    ]


def test_every_test_asserts():
    sources = {str(path.relative_to(TESTS)): path.read_text("utf-8") for path in TESTS.rglob("*.py")}
    assert "test_layers.py" in sources
    assert silent_tests(sources) == []
    tests = {name: source for name, source in sources.items() if Path(name).name.startswith("test_")}
    assert [name for name, source in tests.items() if "def test_" not in source] == []


def test_a_test_that_asserts_nothing_is_found():
    source = """
def helper(x):
    assert x
def test_direct():
    assert 1
def test_by_a_helper():
    helper(1)
def test_nothing():
    1 == 2
"""
    assert silent_tests({"x.py": source}) == ["x.py:8 test_nothing"]
