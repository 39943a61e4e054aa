"""The `bench` command: measures pairs one after another, prints what they are worth, and what that says of the claims."""

import csv
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tqdm import tqdm

from . import optimizations
from .optimizations.chat import chat
from .optimizations.claims import CLAIMS, of_the_whole
from .optimizations.clock import FEWEST_ROUNDS
from .optimizations.comparison import Comparison
from .optimizations.machine import machine
from .optimizations.outcome import Refused, attempt, records
from .optimizations.pair import Pair
from .optimizations.whole import ablate, speedups
from .provenance import provenance

HEADINGS = ("pair", "size", "claim", "measured, 95% interval", "n", "verdict", "at least")
TURNS = 40  # of the chat that is measured as a whole
Outcome = Comparison | Refused


@dataclass(frozen=True)
class Request:
    """What is to be measured, checked as far as that goes without measuring."""

    pairs: tuple[Pair, ...]
    sizes: tuple[int, ...] | None
    """None: those of each pair."""
    rounds: int
    seconds: float
    turns: int
    """0: no whole chat."""
    csv: Path | None

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        sizes: Sequence[int],
        rounds: int,
        seconds: float,
        turns: int | None,
        csv: Path | None,
    ) -> "Request":
        """From the words of a command line; where pairs are named, there is a whole chat only if its turns are, too. Raises
        ValueError, NotADirectoryError, IsADirectoryError, PermissionError."""
        turns = (0 if names else TURNS) if turns is None else turns
        known = {pair.name: pair for pair in optimizations.ALL}
        for name in names:
            if name not in known:
                raise ValueError(f"--pair {name!r} is no pair; there are: {'; '.join(known)}")
        for name, value, least in (
            ("size", min(sizes, default=0), 0),
            ("rounds", rounds, FEWEST_ROUNDS),
            ("turns", turns, 0),
        ):
            if value < least:
                raise ValueError(f"--{name} {value}; give {least} or more")
        if turns == 1:
            raise ValueError("--turns 1; the first turn is the warm-up, so give 2 or more, or 0 for no chat")
        if not 0 < seconds < math.inf:
            raise ValueError(f"--seconds {seconds}; give a time above 0 that ends")
        if csv is not None:
            csv = _at_home(csv)
            _check_writable(csv)
        pairs = tuple(known[name] for name in dict.fromkeys(names)) or tuple(known.values())
        return cls(pairs, tuple(dict.fromkeys(sizes)) or None, rounds, seconds, turns, csv)


def main(asked: Request, as_json: bool = False) -> int:
    """Measure the pairs and return the exit code: 0; 1 where a pair was refused; 130 after an interrupt.

    What is finished is printed and written also when a pair raises what no refusal is, or Ctrl-C is pressed.
    """
    about, outcomes, whole, written = _about(asked), [], [], False
    if not as_json:
        print(
            f"machine: {about['machine']}\nversions: {about['versions']}\ncommit: {about['commit']}"
            f"{', and changes since' if about['dirty'] else ''}\n"
            f"n: {asked.rounds} rounds of both ways in turn a size, fewer where {asked.seconds:g} s are over\n"
        )
    try:
        for outcome in _measured(asked):
            outcomes.append(outcome)
            written = False
            written = _write(about, outcomes, asked)
            if not as_json:
                tqdm.write(f"{outcome!r}\n", file=sys.stdout)
        whole += _whole(asked.turns)
    except KeyboardInterrupt:
        done = f"{len(outcomes)} of {len(asked.pairs)} pairs are finished"
        print(f"interrupted; {done}{', the whole chat is not' if asked.turns else ''}", file=sys.stderr)
        return 130
    finally:
        _deliver(about, outcomes, whole, as_json)
        if written:
            print(f"\nrows: {asked.csv}", file=sys.stderr if as_json else sys.stdout)
    return int(any(isinstance(outcome, Refused) for outcome in outcomes))


def verdicts(rows: Sequence[dict], whole: Sequence[dict] = ()) -> str:
    """Claim, measured speed-up and verdict of every row, as a table of text; those of the whole chat below."""
    cells = [HEADINGS, *map(_cells, rows), *map(_of_the_chat, whole)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def _measured(asked: Request) -> Iterator[Outcome]:
    """The outcomes, with a progress bar on stderr that names the pair and size in work."""
    with tqdm(total=len(asked.pairs), unit="pair", file=sys.stderr, dynamic_ncols=True) as bar:
        for pair in asked.pairs:

            def told(size: int, done: int, pair: Pair = pair) -> bool:
                bar.set_postfix_str(f"{pair.name}, {size:,} {pair.unit}: round {done}")
                return True

            bar.set_postfix_str(f"{pair.name}: both give the same?")
            yield attempt(pair, asked.sizes, asked.rounds, asked.seconds, told)
            bar.update()
        bar.set_postfix_str("")


def _whole(turns: int) -> list[dict]:
    """Each claim of the report against what a whole chat of so many turns gains with its pairs on."""
    if not turns:
        return []
    under = list(dict.fromkeys([frozenset(), *(frozenset(claim.pairs) for claim in CLAIMS)]))
    with tqdm(total=turns, desc="a whole chat", unit="turn", file=sys.stderr, dynamic_ncols=True) as bar:
        steps = ablate(chat(turns), under, lambda done: bool(bar.update()) or True)
    return of_the_whole(speedups(steps)).to_dict("records")


def _about(asked: Request) -> dict:
    """Where the figures come from."""
    state = provenance()
    return {
        "machine": machine(),
        "versions": f"{state.versions} numpy {version('numpy')}",
        "commit": state.commit,
        "dirty": state.dirty,
        "n": asked.rounds,
        "seconds": asked.seconds,
        "turns": asked.turns,
    }


def _deliver(about: dict, outcomes: Sequence[Outcome], whole: Sequence[dict], as_json: bool) -> None:
    rows = records(outcomes)
    if as_json:
        tables = {"rows": rows, "whole": whole}
        plain = {at: [{name: _plain(value) for name, value in row.items()} for row in of] for at, of in tables.items()}
        print(json.dumps(about | plain, indent=1, allow_nan=False))
    elif rows:
        print(verdicts(rows, whole))


def _write(about: dict, outcomes: Sequence[Outcome], asked: Request) -> bool:
    """The file anew after every pair, so that a long run loses nothing when it is ended; whether there is one."""
    if asked.csv is None:
        return False
    ours = {name: about[name] for name in ("commit", "dirty", "versions", "machine")}
    rows = [{name: _plain(value) for name, value in row.items()} | ours for row in records(outcomes)]
    with asked.csv.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return True


def _of_the_chat(row: dict) -> tuple[str, ...]:
    measured = f"{row['speedup']:.3g} x [{row['low']:.3g}, {row['high']:.3g}]"
    return row["claim"], f"whole {row['workload']}", _claim(row), measured, str(row["n"]), row["verdict"], "–"


def _claim(row: dict) -> str:
    low, high = row["claim_low"], row["claim_high"]
    return "–" if low != low else f"{low:g} x" if low == high else f"{low:g}-{high:g} x"


def _cells(row: dict) -> tuple[str, ...]:
    found = "–" if row["error"] else f"{row['speedup']:.3g} x [{row['low']:.3g}, {row['high']:.3g}]"
    verdict = row["verdict"] + (f" (unstable machine: {row['unrest']})" if row["unrest"] else "")
    return (
        row["pair"],
        f"{row['size']:,} {row['unit']}",
        _claim(row),
        found,
        str(row["n"]),
        verdict,
        row["floor"] or "–",
    )


def _plain(value: object) -> object:
    """A value as JSON has it: no NaN, no types of NumPy's."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and math.isnan(value) else value


def _at_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:  # pathlib's word for a user that there is not
        raise NotADirectoryError(f"--csv {path}: there is no such home; write the folder out") from error


def _check_writable(path: Path) -> None:
    """Before the work, not after it."""
    folder = path.parent
    if not folder.is_dir():
        raise NotADirectoryError(f"--csv {path}: {folder} is no folder; make it first")
    if path.is_dir():
        raise IsADirectoryError(f"--csv {path} is a folder; give the name of a file in it")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise PermissionError(f"--csv {path} cannot be written; give another place")
