"""A grid of experiments to a tidy table: resumable, durable row by row, with its provenance."""

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import is_dataclass
from datetime import UTC, datetime
from hashlib import sha256
from itertools import product
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

import fmlab

from .fingerprint import code, key, label
from .provenance import Provenance, device, provenance

Cell = dict[str, Any]  # one value of every axis
Row = dict[str, Any]  # what stands in the store: a column of the table, or `cell` and `figures` with several

COLUMNS = ("commit", "dirty", "versions", "device", "seconds", "started")
_STORE = 0x666D6C62  # in the header of every store
_VERSION = 1


def sweep(
    run: Callable[..., Mapping[str, Any]],
    out: str | os.PathLike[str] | None = None,
    *,
    jobs: int = 1,
    scheduler: str | None = None,
    progress: bool = True,
    **axes: Any,
) -> pd.DataFrame:
    """Call `run` with every combination of the axes and return one row a cell, in the order of the grid.

    An axis is an iterable of values, such as a list, a range or a Series; a number, a string, a mapping or a dataclass,
    such as a policy, is one value.
    `run(**cell)` returns a dict of figures: numbers, strings, bools or None. It must be a pure function of its
    arguments: whatever else it reads does not tell rows apart, so pass it as an axis of one value.

    With `out` every finished row is at once durable in that SQLite file, and a later call computes only what is
    missing. A row is found again by its arguments, fmlab's version and commit, the hash of the checkout's changes
    (notebooks apart), and the code of `run`, of the functions and classes of its module that it uses, and of the user's
    own classes among the arguments. Where any of these changes, it is computed anew.

    jobs > 1 runs the cells in as many processes (-1: one a core), scheduler="tcp://…" on a Dask cluster. The columns:
    the axes (a policy by its repr), the figures, then commit, dirty, versions, device (unless it is an axis), seconds
    and started (UTC).

    Raises ValueError for a value that no other process could name again (functions, sets, arrays, objects whose repr
    holds an address), for a value twice on an axis, a name taken twice, and a file that is no sweep or a newer one;
    TypeError for a figure of another kind; and whatever `run` raises, with the cell in a note. Rows finished before an
    error or an interrupt are kept.
    """
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs == 0:
        raise ValueError(f"jobs={jobs!r}; give the number of processes, or -1 for one a core")
    grid = _grid(axes)
    state = provenance()
    doing = _named("run", code, run)
    keys = [_row_key(cell, state, doing) for cell in grid]
    with _open(out) as store:
        waiting = {name: cell for name, cell in zip(keys, grid, strict=True) if _read(store, name) is None}
        bar = tqdm(total=len(grid), initial=len(grid) - len(waiting), disable=not progress, unit="cell")
        with bar, closing(_outcomes(run, waiting, jobs, scheduler)) as outcomes:
            for name, row in outcomes:
                _write(store, name, state.columns | row)
                bar.update()
        return _table(grid, [_read(store, name) for name in keys])


def _grid(axes: dict[str, Any]) -> list[Cell]:
    """Every combination of the axes' values, the last axis running fastest."""
    for name in axes:
        if name in COLUMNS and name != "device":
            raise ValueError(f"axis {name!r} has the name of a provenance column; call it something else")
    columns = {name: _values(name, given) for name, given in axes.items()}
    return [dict(zip(columns, values, strict=True)) for values in product(*columns.values())]


def _values(axis: str, given: Any) -> list[Any]:
    if isinstance(given, set | frozenset):
        raise ValueError(f"axis {axis!r} is a set, which has no order; give sorted(...)")
    if getattr(given, "ndim", 1) > 1:
        raise ValueError(f"axis {axis!r} is a {type(given).__name__} of {given.ndim} dimensions; give one")
    one = isinstance(given, str | bytes | Mapping | type) or is_dataclass(given) or getattr(given, "ndim", 1) == 0
    one = one or not isinstance(given, Iterable)
    values = [given] if one else list(given)
    if not values:
        raise ValueError(f"axis {axis!r} has no values; give at least one")
    seen: set[str] = set()
    for value in values:
        _named(f"axis {axis!r}", key, value)
        if (shown := repr(label(value))) in seen:
            raise ValueError(f"axis {axis!r} holds {shown} twice; give every value once")
        seen.add(shown)
    return values


def _named(what: str, name: Callable[[Any], str], thing: Any) -> str:
    try:
        return name(thing)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


def _row_key(cell: Cell, state: Provenance, doing: str) -> str:
    names = {axis: key(value) for axis, value in cell.items()}
    parts = [names, fmlab.__version__, state.commit, state.changes, doing]
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _table(grid: list[Cell], rows: list[Row]) -> pd.DataFrame:
    table = pd.DataFrame.from_records(
        [
            {axis: label(value) for axis, value in cell.items()} | row["figures"]
            for cell, row in zip(grid, rows, strict=True)
        ],
        index=range(len(grid)),
    )
    for name in COLUMNS:
        if name not in grid[0]:
            table[name] = [row[name] for row in rows]
    table["started"] = pd.to_datetime(table["started"], format="ISO8601", utc=True)
    return table


# Running the cells


def _outcomes(
    run: Callable[..., Mapping[str, Any]], cells: dict[str, Cell], jobs: int, scheduler: str | None
) -> Iterator[tuple[str, Row]]:
    """The row of every cell with its key, as soon as it is finished."""
    if jobs == 1 and scheduler is None:
        for name, cell in cells.items():
            yield _measure(run, name, cell)
        return
    from joblib import Parallel, delayed

    tasks = (delayed(_measure)(run, name, cell) for name, cell in cells.items())
    with _backend(scheduler):
        # One cell a task and in no order, so that no finished row waits for another cell before it is durable.
        workers = -1 if scheduler and jobs == 1 else jobs
        yield from Parallel(n_jobs=workers, batch_size=1, return_as="generator_unordered")(tasks)


@contextmanager
def _backend(scheduler: str | None) -> Iterator[None]:
    from joblib import parallel_config

    if scheduler is None:
        with parallel_config(backend="loky"):
            yield
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError(f"scheduler={scheduler!r} needs Dask; install it with: pip install distributed") from error
    with Client(scheduler), parallel_config(backend="dask"):
        yield


def _measure(run: Callable[..., Mapping[str, Any]], name: str, cell: Cell) -> tuple[str, Row]:
    with _Noting(cell):
        started, clock = datetime.now(UTC), time.perf_counter()
        figures = run(**cell)
        seconds = time.perf_counter() - clock
        if not isinstance(figures, Mapping):
            raise TypeError(f"run returned {figures!r} ({type(figures).__name__}); return a dict of figures")
        return name, {
            "cell": {axis: label(value) for axis, value in cell.items()},
            "figures": {figure: _figure(figure, value, cell) for figure, value in figures.items()},
            "device": device(),
            "seconds": seconds,
            "started": started.isoformat(),
        }


class _Noting:
    """Notes the cell on whatever error leaves the block, an interrupt included."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is not None:
            named = (f"{axis}={shorten(str(label(value)), 100)}" for axis, value in self.cell.items())
            error.add_note(f"in the cell {', '.join(named)}")


def _figure(name: Any, value: Any, cell: Cell) -> bool | int | float | str | None:
    if not isinstance(name, str):
        raise TypeError(f"run returned a figure named {name!r}; name figures by strings")
    if isinstance(value, np.generic):
        value = value.item()
    if value is not None and not isinstance(value, bool | int | float | str):
        raise TypeError(
            f"run returned {name}={value!r} ({type(value).__name__}); a figure is a number, a string, a bool or None: "
            "make it one, a tensor of one element with .item()"
        )
    if name in COLUMNS or (name in cell and value != label(cell[name])):  # a figure may repeat what its axis says
        raise ValueError(f"run returned a figure {name!r}, which is a column already; call it something else")
    return value


# The store: one SQLite file, written by this process alone, one transaction a row


@contextmanager
def _open(out: str | os.PathLike[str] | None) -> Iterator[sqlite3.Connection]:
    place = ":memory:" if out is None else Path(out).expanduser()
    if isinstance(place, Path):
        place.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            store = stack.enter_context(closing(sqlite3.connect(place, timeout=60, isolation_level=None)))
            _prepare(store, place)
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{place} cannot serve as the store of a sweep ({error}); give another file") from error
        yield store


def _prepare(store: sqlite3.Connection, place: str | Path) -> None:
    store.execute("PRAGMA synchronous = FULL")  # a row is on the disk before the next cell starts
    store.execute("BEGIN IMMEDIATE")
    kind, version = (store.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
    if store.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
        columns = ", ".join(f'"{name}"' for name in COLUMNS)
        store.execute(f"CREATE TABLE rows (key TEXT PRIMARY KEY, cell, figures, {columns})")
        store.execute(f"PRAGMA application_id = {_STORE}")
        store.execute(f"PRAGMA user_version = {_VERSION}")
    elif kind != _STORE:
        raise ValueError(f"{place} is a database, but not the store of a sweep; give another file")
    elif version != _VERSION:
        raise ValueError(
            f"{place} is of version {version}, this fmlab reads {_VERSION}; update fmlab or give another file"
        )
    store.execute("COMMIT")


def _read(store: sqlite3.Connection, name: str) -> Row | None:
    columns = ("figures", *COLUMNS)
    quoted = ", ".join(f'"{column}"' for column in columns)
    found = store.execute(f"SELECT {quoted} FROM rows WHERE key = ?", (name,)).fetchone()
    if found is None:
        return None
    row = dict(zip(columns, found, strict=True))
    return row | {"figures": json.loads(row["figures"]), "dirty": bool(row["dirty"])}


def _write(store: sqlite3.Connection, name: str, row: Row) -> None:
    written = {"key": name} | row | {part: json.dumps(row[part], ensure_ascii=False) for part in ("cell", "figures")}
    quoted = ", ".join(f'"{column}"' for column in written)
    marks = ", ".join("?" * len(written))
    store.execute(f"INSERT OR REPLACE INTO rows ({quoted}) VALUES ({marks})", tuple(written.values()))
