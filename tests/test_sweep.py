"""Sweeps: the grid, durable rows under kill -9, what tells rows apart, errors, processes, provenance."""

import importlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections import Counter
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import fmlab as fm
from fmlab.fingerprint import code, key
from fmlab.provenance import Provenance, provenance

PACKAGE = Path(fm.__file__).parent
module = importlib.import_module("fmlab.sweep")


@dataclass(frozen=True)
class Keep:
    share: float = 0.5

    def score(self, n):
        return self.share * n


@pytest.fixture(autouse=True)
def quiet_state(monkeypatch):
    """A checkout that somebody edits while the tests run must not make rows new."""
    monkeypatch.setattr(module, "provenance", lambda: Provenance("abc", False, "", "none"))


def counting(calls):
    def run(**cell):
        calls.append(cell)
        return {"total": sum(cell.values())}

    return run


def stored(path):
    with sqlite3.connect(path) as store:
        return [cell for (cell,) in store.execute("SELECT cell FROM rows ORDER BY rowid")]


def test_rows_come_in_the_order_of_the_grid_with_real_values():
    def run(policy, budget, note, full, seed):
        found = {"found": np.bool_(True), "none": None, "n": np.int64(3)}
        return {"recall": policy.score(budget), "text": note * 2} | found

    table = fm.sweep(
        run, policy=[Keep(), Keep(0.25)], budget=np.array([32, 64]), note="x", full=None, seed=range(2), progress=False
    )
    grid = [(p, b, s) for p in ("Keep(share=0.5)", "Keep(share=0.25)") for b in (32, 64) for s in (0, 1)]
    assert list(zip(table["policy"], table["budget"], table["seed"], strict=True)) == grid
    assert table["budget"].dtype == np.int64 and table["n"].dtype == np.int64 and table["found"].dtype == bool
    assert table["recall"].tolist() == [16.0, 16.0, 32.0, 32.0, 8.0, 8.0, 16.0, 16.0]
    assert set(table["text"]) == {"xx"} and table["none"].isna().all() and table["full"].isna().all()
    columns = ["policy", "budget", "note", "full", "seed", "recall", "text", "found", "none", "n", *module.COLUMNS]
    assert list(table.columns) == columns


def test_figures_survive_exactly():
    values = {"tiny": 5e-324, "nan": float("nan"), "inf": float("inf"), "big": 2**70, "third": 1 / 3, "text": "héé\0\n"}
    table = fm.sweep(lambda: values, progress=False)
    assert len(table) == 1 and np.isnan(table["nan"][0])
    assert {name: table[name][0] for name in values if name != "nan"} == {k: v for k, v in values.items() if k != "nan"}


def test_a_finished_row_is_not_computed_again(tmp_path):
    calls, out = [], tmp_path / "new" / "folder" / "x.sqlite"
    run = counting(calls)
    first = fm.sweep(run, out=out, a=[1, 2], b=[10], progress=False)
    again = fm.sweep(run, out=str(out), b=10, a=(1, 2), progress=False)
    assert len(calls) == 2
    pd.testing.assert_frame_equal(first, again[first.columns])
    wider = fm.sweep(run, out=out, a=[3, 2, 1], b=[10], progress=False)
    assert calls[2:] == [{"a": 3, "b": 10}]
    assert wider["total"].tolist() == [13, 12, 11]
    assert wider["started"].is_monotonic_decreasing


def test_without_out_nothing_is_kept():
    calls = []
    for _ in range(2):
        fm.sweep(counting(calls), a=[1, 2], progress=False)
    assert len(calls) == 4


SCRIPT = """
    import sys, time
    from pathlib import Path
    import fmlab as fm

    here, jobs = Path(sys.argv[1]), int(sys.argv[2])

    def run(cell, here):
        with open(Path(here) / "calls", "a") as calls:
            calls.write(f"{cell}\\n")
        time.sleep(0.15)
        return {"square": cell**2}

    table = fm.sweep(run, out=here / "x.sqlite", cell=range(8), here=str(here), jobs=jobs, progress=False)
    print(table["square"].tolist())
"""


@pytest.mark.parametrize("jobs", [1, 2])
def test_kill_9_loses_no_finished_row_and_repeats_none(tmp_path, jobs):
    shutil.copytree(PACKAGE, tmp_path / "lib" / "fmlab", ignore=shutil.ignore_patterns("__pycache__"))
    script, store, calls = tmp_path / "script.py", tmp_path / "x.sqlite", tmp_path / "calls"
    script.write_text(textwrap.dedent(SCRIPT))
    command = [sys.executable, str(script), str(tmp_path), str(jobs)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "lib")}
    sweep = subprocess.Popen(command, env=environment, start_new_session=True)
    finished = []
    while len(finished) < 3:
        assert sweep.poll() is None, "the sweep ended before it could be killed"
        time.sleep(0.02)
        finished = stored(store) if store.exists() and store.stat().st_size else []
    os.killpg(sweep.pid, signal.SIGKILL)  # its own session: the worker processes go with it
    assert sweep.wait() == -signal.SIGKILL
    finished = stored(store)
    assert 3 <= len(finished) < 8

    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == str([n**2 for n in range(8)])
    assert stored(store)[: len(finished)] == finished
    times = Counter(map(int, calls.read_text().split()))
    assert set(times) == set(range(8))
    repeated = [cell for cell, n in times.items() if n > 1]
    if jobs == 1:  # of several processes' cells any number may be done and on their way to the driver
        assert len(repeated) <= 1, "at most the cell that was running is run again"
    assert not [cell for cell in repeated if any(f'"cell": {cell},' in row for row in finished)]


def test_rows_finished_before_an_error_are_kept_and_the_error_names_its_cell(tmp_path):
    broken = True

    def run(policy, budget):
        if budget == 3 and broken:
            raise KeyError("no such head")
        return {"score": policy.score(budget)}

    cells = dict(out=tmp_path / "x.sqlite", policy=Keep(), budget=[1, 2, 3, 4], progress=False)
    with pytest.raises(KeyError, match="no such head") as caught:
        fm.sweep(run, **cells)
    assert caught.value.__notes__ == ["in the cell policy=Keep(share=0.5), budget=3"]
    assert len(stored(tmp_path / "x.sqlite")) == 2
    broken = False
    assert fm.sweep(run, **cells)["score"].tolist() == [0.5, 1.0, 1.5, 2.0]


def test_rows_finished_before_an_interrupt_are_kept(tmp_path):
    def run(a):
        if a == 2:
            raise KeyboardInterrupt
        return {"b": a}

    with pytest.raises(KeyboardInterrupt) as caught:
        fm.sweep(run, out=tmp_path / "x.sqlite", a=[0, 1, 2], progress=False)
    assert caught.value.__notes__ == ["in the cell a=2"]
    assert len(stored(tmp_path / "x.sqlite")) == 2


def fails_at_two(a):
    if a == 2:
        raise ZeroDivisionError("two")
    return {"b": a, "process": os.getpid()}


def test_a_cell_of_a_notebook_that_names_the_package_goes_to_another_process():
    def versions(a):
        return {"version": fm.__version__}

    table = fm.sweep(versions, a=[1, 2], jobs=2, progress=False)
    assert set(table["version"]) == {fm.__version__}


def test_processes_give_the_same_table_and_their_errors_name_the_cell(tmp_path):
    table = fm.sweep(fails_at_two, a=[5, 4, 3, 1], jobs=2, progress=False)
    assert table["b"].tolist() == table["a"].tolist() == [5, 4, 3, 1]
    assert os.getpid() not in set(table["process"])
    with pytest.raises(ZeroDivisionError) as caught:
        fm.sweep(fails_at_two, out=tmp_path / "x.sqlite", a=[1, 2], jobs=2, progress=False)
    assert "in the cell a=2" in caught.value.__notes__


# What tells rows apart


def defined(source, name="run"):
    space = {"__name__": "cell", "dataclass": dataclass, "cache": cache}
    exec(textwrap.dedent(source), space)
    return space[name]


PLAIN = "def run(a):\n    return {'b': a + 1}"


@pytest.mark.parametrize(
    ("source", "same"),
    [
        (PLAIN, True),
        ("def run(a):\n    # a comment\n\n    return {'b':\n        a + 1}", True),
        ("def run(a):\n    return {'b': a + 2}", False),
        ("def run(a, c=0):\n    return {'b': a + 1}", False),
        ("def run(a):\n    return {'b': abs(a) + 1}", False),
    ],
)
def test_changed_code_is_run_again(tmp_path, source, same):
    fm.sweep(defined(PLAIN), out=tmp_path / "x.sqlite", a=[1], progress=False)
    fm.sweep(defined(source), out=tmp_path / "x.sqlite", a=[1], progress=False)
    assert len(stored(tmp_path / "x.sqlite")) == (1 if same else 2)


@pytest.mark.parametrize(
    "source",
    [
        "def helper(a):\n    return a + {}\ndef run(a):\n    return {{'b': helper(a)}}",
        "@cache\ndef helper(a):\n    return a + {}\ndef run(a):\n    return {{'b': helper(a)}}",
        "class Helper:\n    def add(self, a):\n        return a + {}\ndef run(a):\n    return {{'b': Helper().add(a)}}",
        "class Helper:\n    step = {}\n    @classmethod\n    def add(k, a):\n        return a + k.step\n"
        "def run(a):\n    return [Helper.add(x) for x in [a]]",
        "class Base:\n    @property\n    def step(self):\n        return {}\nclass Helper(Base):\n    pass\n"
        "def run(a):\n    return Helper().step",
        "def outer():\n    def inner(a):\n        return a + {}\n"
        "    def run(a):\n        return inner(a)\n    return run\nrun = outer()",
        "def run(a, step={}):\n    return a + step",
        "def run(a, *, step=({}, 2)):\n    return a + step[0]",
        "def run(a):\n    return a in {{'x', 'y', 'z{}'}}",
        "@dataclass\nclass Run:\n    step: int\n"
        "    def __call__(self, a):\n        return a + self.step\nrun = Run({})",
    ],
)
def test_the_code_that_run_uses_counts_as_its_own(source):
    one, again, other = (defined(source.format(n)) for n in (1, 1, 3))
    assert code(one) == code(again) != code(other)


def test_code_ends_on_recursion_and_unbound_names():
    recursive = "def run(a):\n    return run(a - 1) if a else 0"
    assert code(defined(recursive)) == code(defined(recursive)) != code(defined(recursive.replace("0", "1")))
    assert code(defined("def o():\n    def run(a):\n        return later(a)\n    return run\n    later = 1\nrun = o()"))


def test_bound_arguments_count():
    assert code(partial(fails_at_two, a=1)) == code(partial(fails_at_two, a=1)) != code(partial(fails_at_two, a=3))
    assert code(Keep(1.0).score) == code(Keep(1.0).score) != code(Keep(2.0).score)
    with pytest.raises(ValueError, match="memory address"):
        code(partial(fails_at_two, a=object()))


POLICY = """
    @dataclass(frozen=True)
    class Early:
        share: float = 0.5
        def score(self, n):
            return {}
"""


def test_a_class_defined_again_in_its_cell_is_another_value_only_if_its_code_changed(tmp_path):
    one, again, other = (defined(POLICY.format(body), "Early") for body in ("-n", "-n  # the same", "-2 * n"))
    assert key(one()) == key(again()) != key(other())
    assert key(one(0.5)) != key(one(0.25))
    calls = []

    def run(policy):
        calls.append(policy)
        return {"score": policy.score(1)}

    for kind in (one, again, other):
        fm.sweep(run, out=tmp_path / "x.sqlite", policy=kind(), progress=False)
    assert calls == [one(), other()]


def test_names_are_the_same_in_another_process(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "from dataclasses import dataclass\nfrom fmlab.fingerprint import code, key\n"
        + textwrap.dedent(POLICY.format("n in {'a', 'b', 'c', 'd'}"))
        + "def run(a):\n    return a in {'p', 'q', 'r', 's'} or Early().score(a)\n"
        + "print(key(Early()), key([1, {'x': (2.0, None)}]), code(run))\n"
    )
    path = f"{PACKAGE.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    printed = {
        subprocess.run(
            [sys.executable, str(program)],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(printed) == 1 and len(printed.pop()) > 100


@pytest.mark.parametrize(
    ("value", "mend"),
    [
        (lambda x: x, "memory address"),
        (stored, "memory address"),
        (object(), "memory address"),
        ({1, 2}, "sorted tuple"),
        (frozenset({1}), "sorted tuple"),
        (torch.zeros(3), "tolist"),
        (np.zeros(3), "tolist"),
        (pd.Series([1]), "tolist"),
        ((1, [object()]), "memory address"),
        ({"x": {1}}, "sorted tuple"),
        (Keep(share=torch.zeros(1)), "tolist"),
    ],
)
def test_values_without_a_stable_name_are_refused(value, mend):
    with pytest.raises(ValueError, match=f"(?s)axis 'policy': .*{mend}"):
        fm.sweep(counting([]), policy=[1, value], progress=False)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"a": [1, np.int64(1)]}, "axis 'a' holds 1 twice"),
        ({"a": [Keep(), Keep(0.5)]}, r"axis 'a' holds 'Keep\(share=0.5\)' twice"),
        ({"a": []}, "axis 'a' has no values"),
        ({"a": {1, 2}}, "axis 'a' is a set"),
        ({"a": np.zeros((2, 2))}, "axis 'a' is a ndarray of 2 dimensions"),
        ({"a": torch.tensor(3)}, "axis 'a': .*tolist"),
        ({"seconds": [1]}, "axis 'seconds' has the name of a provenance column"),
        ({"a": 1, "jobs": 0}, "jobs=0"),
    ],
)
def test_axes_that_make_no_grid_are_refused(axes, message):
    with pytest.raises(ValueError, match=message):
        fm.sweep(counting([]), progress=False, **axes)


def test_values_that_differ_only_in_type_are_apart():
    assert fm.sweep(lambda a: {"kind": type(a).__name__}, a=[1, 1.0, "1", True], progress=False)["kind"].tolist() == [
        "int",
        "float",
        "str",
        "bool",
    ]
    keys = [key(value) for value in (1, 1.0, "1", True, [1], (1,), {"a": 1}, torch.float16, Path("x"), Keep, Keep())]
    assert len(set(keys)) == len(keys)
    assert key(np.float64(0.1)) == key(0.1)


@pytest.mark.parametrize(
    ("figures", "error", "message"),
    [
        (3.0, TypeError, "run returned 3.0 .float.; return a dict"),
        ({"recall": torch.ones(1)}, TypeError, r"recall=tensor\(\[1.\]\) .Tensor.*\.item"),
        ({"kept": [1, 2]}, TypeError, r"kept=\[1, 2\] .list."),
        ({1: 2.0}, TypeError, "a figure named 1"),
        ({"seconds": 1.0}, ValueError, "figure 'seconds', which is a column already"),
        ({"a": 1.0}, ValueError, "figure 'a', which is a column already"),
    ],
)
def test_figures_of_another_kind_are_refused(figures, error, message):
    with pytest.raises(error, match=message) as caught:
        fm.sweep(lambda a: figures, a=7, progress=False)
    assert caught.value.__notes__ == ["in the cell a=7"]


def test_a_figure_may_repeat_what_its_axis_says():
    table = fm.sweep(
        lambda a, policy: {"a": a, "policy": repr(policy), "b": 1}, a=[1, 2], policy=Keep(), progress=False
    )
    assert table.a.tolist() == [1, 2] and table.policy.tolist() == [repr(Keep())] * 2 and table.columns.is_unique


# The store


def test_a_file_that_is_no_store_of_this_version_is_refused_and_left_alone(tmp_path):
    text, foreign, newer = (tmp_path / name for name in ("text", "foreign", "newer"))
    text.write_text("no database at all" * 100)
    with sqlite3.connect(foreign) as store:
        store.execute("CREATE TABLE rows (key)")
    fm.sweep(counting([]), out=newer, a=1, progress=False)
    with sqlite3.connect(newer) as store:
        store.execute("PRAGMA user_version = 99")
    for path, message in ((text, "not a database"), (foreign, "not the store of a sweep"), (newer, "version 99")):
        before = path.read_bytes()
        with pytest.raises(ValueError, match=message) as caught:
            fm.sweep(counting([]), out=path, a=1, progress=False)
        assert str(path) in str(caught.value)
        assert path.read_bytes() == before
    with pytest.raises(ValueError, match="give another file"):
        fm.sweep(counting([]), out=tmp_path, a=1, progress=False)


def test_an_error_of_run_is_not_taken_for_one_of_the_store(tmp_path):
    def run(a):
        raise sqlite3.OperationalError("mine")

    with pytest.raises(sqlite3.OperationalError, match="mine"):
        fm.sweep(run, out=tmp_path / "x.sqlite", a=1, progress=False)


def test_the_bar_counts_the_rows_at_hand(tmp_path, capsys):
    fm.sweep(counting([]), out=tmp_path / "x.sqlite", a=[1, 2], progress=False)
    assert capsys.readouterr().err == ""
    fm.sweep(counting([]), out=tmp_path / "x.sqlite", a=[1, 2, 3], progress=True)
    assert "3/3" in capsys.readouterr().err


def test_dask_is_asked_for_by_its_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match="pip install distributed"):
        fm.sweep(fails_at_two, a=1, scheduler="tcp://127.0.0.1:1", progress=False)


# Provenance


def test_rows_say_where_they_come_from(monkeypatch):
    monkeypatch.setattr(module, "provenance", provenance)
    row = fm.sweep(lambda a: {"b": torch.ones(1).item()}, a=1, progress=False).iloc[0]
    assert f"torch {torch.__version__}" in row["versions"] and f"fmlab {fm.__version__}" in row["versions"]
    assert row["device"].startswith("cpu") or torch.cuda.is_initialized()
    assert 0 <= row["seconds"] < 5
    assert abs(pd.Timestamp.now(tz="UTC") - row["started"]) < pd.Timedelta(minutes=1)
    assert fm.sweep(lambda device: {"b": 1}, device=["cpu"], progress=False)["device"].tolist() == ["cpu"]


def git(folder, *words):
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *words], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_the_state_of_the_checkout_is_part_of_a_row(tmp_path, monkeypatch):
    package = tmp_path / "fmlab"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (tmp_path / "00_tour.ipynb").write_text("{}")
    monkeypatch.setattr(fm, "__file__", str(package / "__init__.py"))
    assert provenance().columns.items() >= {"commit": "no checkout", "dirty": False}.items()

    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    assert (provenance().commit, provenance().dirty) == ("no commit", True)
    git(tmp_path, "commit", "-qm", "first")
    clean = provenance()
    assert (clean.commit, clean.dirty, clean.changes) == (git(tmp_path, "rev-parse", "HEAD"), False, "")

    (tmp_path / "00_tour.ipynb").write_text('{"outputs": 1}')
    assert provenance() == clean, "Jupyter saves a notebook while it runs"
    (package / "core.py").write_text("1")
    new_file = provenance()
    (package / "core.py").write_text("2")
    other_file = provenance()
    (package / "core.py").unlink()
    (package / "__init__.py").write_text("3")
    edited = provenance()
    states = [new_file, other_file, edited]
    assert all(state.dirty and state.commit == clean.commit for state in states)
    assert len({state.changes for state in states}) == 3

    calls = []
    monkeypatch.setattr(module, "provenance", provenance)
    fm.sweep(counting(calls), out=tmp_path / "x.sqlite", a=1, progress=False)
    fm.sweep(counting(calls), out=tmp_path / "x.sqlite", a=1, progress=False)
    assert len(calls) == 1
    git(tmp_path, "commit", "-qam", "second")
    assert fm.sweep(counting(calls), out=tmp_path / "x.sqlite", a=1, progress=False)["dirty"].tolist() == [False]
    assert len(calls) == 2
    git(tmp_path, "commit", "-qm", "third", "--allow-empty")
    fm.sweep(counting(calls), out=tmp_path / "x.sqlite", a=1, progress=False)
    assert len(calls) == 3
    monkeypatch.setattr(fm, "__version__", "99")
    fm.sweep(counting(calls), out=tmp_path / "x.sqlite", a=1, progress=False)
    assert len(calls) == 4


def test_a_checkout_that_git_cannot_read_is_an_error(tmp_path, monkeypatch):
    (tmp_path / ".git").write_text("gitdir: nowhere")
    monkeypatch.setattr(fm, "__file__", str(tmp_path / "fmlab" / "__init__.py"))
    with pytest.raises(OSError, match="no row can name its commit"):
        provenance()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="install git"):
        provenance()


def test_the_name_stays_the_function_however_it_is_imported():
    import fmlab.sweep as imported
    from fmlab import sweep as taken
    from fmlab.sweep import sweep as direct

    assert fm.sweep is imported is taken is direct
    assert callable(direct)
    assert importlib.import_module("fmlab.sweep") is module is not fm.sweep
