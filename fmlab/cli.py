"""The command line: `fmlab …`, which says an expected error in one line."""

import os
import sys
from collections.abc import Sequence
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


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line on `words` (those of the process by default) and exit with its code.

    What a user can mend (a wrong value, a file, a package or a host that is not there) is one line on stderr and exit code 2;
    everything else keeps its traceback.
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


def _version(wanted: bool) -> None:
    if wanted:
        print(f"fmlab {fmlab.__version__}")
        raise typer.Exit


@app.callback()
def fmlab_(
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
