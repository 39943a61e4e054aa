"""The `compare` command: checks what was asked for, runs it with a progress bar, prints and writes the results."""

import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

import torch
from tqdm import tqdm

import fmlab.policies  # noqa: F401  its classes are the library's

from . import parse, printed, report
from .compare import FULL, Cell, check_grid, compare
from .core import Policy, check_budget, living_policies
from .models import load
from .needs import LIVE
from .passage import Passage, default_budgets, passage, read_text

DTYPES = ("float32", "bfloat16", "float16")
WIDTH = 110


@dataclass(frozen=True)
class Request:
    """What is to be compared, checked as far as that goes without the model."""

    text: str | None
    title: str | None
    policies: tuple[Policy, ...]
    budgets: tuple[int, ...]
    """Empty: those that suit the context."""
    model: str
    tokens: int | None
    scored: int
    facts: int | None
    chunk: int | None
    seed: int
    dtype: str
    device: str
    rows: Path | None
    out: Path

    @classmethod
    def of(
        cls, text: str | None, policies: Sequence[str], budgets: Sequence[str], imported: Sequence[Path], **rest
    ) -> "Request":
        """From the words of a command line. Raises ValueError, FileNotFoundError or NotADirectoryError."""
        own = [kind for path in imported for kind in parse.policies_of(path)]
        known = [kind for kind in living_policies(LIVE) if kind.__module__.startswith("fmlab.policies.")] + own
        chosen = [parse.policy(words, known) for words in policies or [kind.__name__ for kind in known]]
        counts = [_budget(words) for words in budgets]
        check_grid(chosen, counts or [1])
        for name, least in {"tokens": 1, "scored": 1, "chunk": 1, "facts": 0}.items():
            if rest[name] is not None and rest[name] < least:
                raise ValueError(f"--{name} {rest[name]}; give at least {least}")
        if rest["dtype"] not in DTYPES:
            raise ValueError(f"--dtype {rest['dtype']!r}; give {', '.join(DTYPES)}")
        _check_device(rest["device"])
        _check_writable(rest["out"])
        title = None if text is None else Path(text).name
        content = None if text is None else read_text(text)
        return cls(content, title, tuple(chosen), tuple(counts), **rest)


def main(asked: Request, as_json: bool = False, command: str = "") -> int:
    """Run the comparison and return the exit code: 0; 1 where every cell was refused; 130 after an interrupt.

    Finished rows are printed and written also when a cell raises or Ctrl-C is pressed.
    """
    cells: list[Cell] = []
    planned, read = 0, None
    try:
        lm = load(asked.model, getattr(torch, asked.dtype), asked.device)
        read = passage(lm, asked.text, asked.title, asked.tokens, asked.scored, asked.facts, asked.seed)
        budgets = asked.budgets or default_budgets(read)
        planned = 1 + len(asked.policies) * len(budgets)
        results = compare(lm, read, asked.policies, budgets, asked.chunk, asked.rows)
        for cell in _watched(results, asked.policies, budgets):
            cells.append(cell)
    except KeyboardInterrupt:
        print(f"interrupted; {len(cells)} of {planned} rows are finished", file=sys.stderr)
        return 130
    finally:
        if cells:
            _deliver(read, cells, planned, asked.out, as_json, command)
    return int(all(cell.row["refused"] for cell in cells if cell.row["policy"] != FULL))


def _watched(cells: Iterator[Cell], policies: Sequence[Policy], budgets: Sequence[int]) -> Iterator[Cell]:
    """The cells, with a progress bar on stderr that names the one in work."""
    labels = [FULL, *(f"{policy!r} at {budget}" for policy in policies for budget in budgets)]
    with tqdm(total=len(labels), unit="row", file=sys.stderr, dynamic_ncols=True) as bar:
        for label in labels:
            bar.set_postfix_str(label)
            yield next(cells)
            bar.update()
        bar.set_postfix_str("")


def _deliver(read: Passage, cells: Sequence[Cell], planned: int, out: Path, as_json: bool, command: str) -> None:
    rows = [cell.row for cell in cells]
    if as_json:
        print(json.dumps(rows, indent=1, allow_nan=False))
    else:
        print(f"{printed.headline(read, rows)}\n\n{printed.as_text(rows)}\n")
        width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
        for note in printed.notes(read, rows):
            print("\n".join(wrap(note, width, initial_indent="- ", subsequent_indent="  ")))
    out.write_text(report.html(read, cells, planned, command), encoding="utf-8")
    print(f"\nreport: {out}", file=sys.stderr if as_json else sys.stdout)


def _budget(words: str) -> int:
    try:
        budget = int(words)
    except ValueError:
        raise ValueError(f"budget {words!r} is no whole number; give the entries that a KV head may hold") from None
    return check_budget(budget)


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device {name!r} is no device; give cpu, cuda, cuda:1 or mps") from None
    there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if device.type in there and not there[device.type]():
        raise ValueError(f"--device {name}: torch {torch.__version__} sees no such device here; give cpu")


def _check_writable(out: Path) -> None:
    """Before the work, not after it."""
    folder = out.expanduser().parent
    if not folder.is_dir():
        raise NotADirectoryError(f"--out {out}: {folder} is no folder; make it first")
    if out.is_dir():
        raise IsADirectoryError(f"--out {out} is a folder; give the name of a file in it")
    if not os.access(out if out.exists() else folder, os.W_OK):
        raise PermissionError(f"--out {out} cannot be written; give another place")
