"""The command line: `fmlab …`, which says an expected error in one line."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

import fmlab

app = typer.Typer(
    name="fmlab",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="--traceback anywhere on the line, or FMLAB_TRACEBACK=1, shows where an error came from.",
)

bench = typer.Typer(no_args_is_help=True, help="Measure what the lab's speed-ups are worth on this machine.")
app.add_typer(bench, name="bench")


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line on `words` (those of the process by default) and exit with its code.

    What a user can mend (a wrong value; a file, a package or a host that is not there) is one line on stderr and exit
    code 2; everything else keeps its traceback.
    """
    words = list(sys.argv[1:] if words is None else words)
    traceback = "--traceback" in words or os.environ.get("FMLAB_TRACEBACK") == "1"
    try:
        app(args=[word for word in words if word != "--traceback"], prog_name="fmlab")
    except (ValueError, OSError, ImportError) as error:  # a ModelError is an OSError
        if traceback:
            raise
        print(f"fmlab: {str(error) or type(error).__name__}", file=sys.stderr)
        print("(--traceback shows where this came from)", file=sys.stderr)
        raise SystemExit(2) from error


def _version(wanted: bool) -> bool:
    if wanted:
        print(f"fmlab {fmlab.__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def lab(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """The finite-memory lab: watch what a language model keeps and forgets under a memory budget."""


@app.command()
def fetch(
    model: Annotated[str, typer.Argument(help="A name the lab knows, a hub id or a local folder.")] = "smollm2-135m",
) -> None:
    """Fetch a model, check its weights, and print the folder in which it lies."""
    from fmlab.weights import fetch as bring

    print(bring(model))


@app.command()
def compare(
    text: Annotated[str | None, typer.Argument(help="A UTF-8 text file; without it, prose that Python ships.")] = None,
    policy: Annotated[list[str] | None, typer.Option(help="Name or Name(field=literal); all of the library.")] = None,
    budget: Annotated[list[str] | None, typer.Option(help="Entries a KV head; 1/8, 1/4, 1/2 of the context.")] = None,
    model: Annotated[str, typer.Option(help="A name the lab knows, a hub id or a local folder.")] = "smollm2-135m",
    tokens: Annotated[int | None, typer.Option(help="Of context; 1,024 or what a shorter file leaves.")] = None,
    scored: Annotated[int, typer.Option(help="Tokens after the context to score, one a call.")] = 96,
    facts: Annotated[int | None, typer.Option(help="To plant: 3, 6, 9, 12; 0 in a file of yours, else 3.")] = None,
    chunk: Annotated[int | None, typer.Option(help="Read the context in calls of so many tokens.")] = None,
    seed: Annotated[int, typer.Option(help="Chooses the prose and the facts.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")] = "cpu",
    imported: Annotated[list[Path] | None, typer.Option("--import", help="A Python file with your policy.")] = None,
    rows: Annotated[Path | None, typer.Option(help="SQLite file: finished rows are kept and not run again.")] = None,
    out: Annotated[Path, typer.Option(help="The HTML report.")] = Path("fmlab-compare.html"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON instead of the table.")] = False,
) -> None:
    """Run a model over a text under every policy and budget: a table, and a report that opens offline.

    --policy, --budget and --import may be given several times. Ctrl-C prints and writes the rows that are finished.
    """
    from fmlab import comparison

    asked = comparison.Request.of(
        text, policy or [], budget or [], imported or [], model=model, tokens=tokens, scored=scored, facts=facts,
        chunk=chunk, seed=seed, dtype=dtype, device=device, rows=rows, out=out,
    )  # fmt: skip
    raise typer.Exit(comparison.main(asked, as_json, shlex.join(["fmlab", *sys.argv[1:]])))


@bench.callback()
def benches() -> None:
    """Measure what the lab's speed-ups are worth on this machine."""


@bench.command()
def optimizations(
    pair: Annotated[list[str] | None, typer.Option(help="The name of a pair; all of them.")] = None,
    size: Annotated[list[int] | None, typer.Option(help="In the pair's own unit; the sizes of each pair.")] = None,
    rounds: Annotated[int, typer.Option(help="Of both ways in turn, at each size.")] = 40,
    seconds: Annotated[float, typer.Option(help="After which a size gets no further round; 6 rounds at least.")] = 20.0,
    turns: Annotated[
        int | None, typer.Option(help="Of a chat, measured as a whole; 40, none where pairs are named.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of the tables.")] = False,
    csv: Annotated[Path | None, typer.Option(help="Write the rows to this file, too.")] = None,
) -> None:
    """Prove that both ways of every pair give the same, time them in turn, and judge what is claimed of them.

    --pair and --size may be given several times. Ctrl-C prints and writes what is finished. The exit code is 1 where a
    pair was refused, since one of its ways fails or both do not give the same.
    """
    from fmlab import bench as work

    raise typer.Exit(work.main(work.Request.of(pair or [], size or [], rounds, seconds, turns, csv), as_json))
