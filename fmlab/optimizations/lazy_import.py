"""`import fmlab` and some of its rooms: each imported when it is used, or all of them up front."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

from .. import _MODULES
from .pair import Floor, Pair

ROOMS = tuple(sorted(_MODULES))

# A package's names stand in modules of their own, so using a room means to use its names.
SCRIPT = """
import json, sys
import fmlab
first, used = json.loads(sys.argv[1])
def names(room):
    module = getattr(fmlab, room)
    return {name: type(getattr(module, name)).__name__ for name in dir(module) if not name.startswith("__")}
for room in first:
    names(room)
print(json.dumps({room: names(room) for room in used}))
"""


def all_up_front(used: list[str]) -> dict[str, dict[str, str]]:
    """A fresh process imports every room, then uses some: the type of each name of each."""
    return _fresh(list(ROOMS), used)


def lazily(used: list[str]) -> dict[str, dict[str, str]]:
    """The same where a room is imported when it is used."""
    return _fresh([], used)


def inputs(size: int, seed: int) -> tuple[list[str]]:
    """`size` rooms in an order that the seed draws; when all have been used they come round again."""
    order = random.Random(seed).sample(ROOMS, len(ROOMS))
    return ([order[place % len(order)] for place in range(size)],)


def floor(size: int) -> Floor:
    """One start of the interpreter, and each room once."""
    return Floor(min(size, len(ROOMS)), "operations", "imports of rooms, besides the start of the interpreter")


def _fresh(first: list[str], used: list[str]) -> dict[str, dict[str, str]]:
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps([first, used])],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    return json.loads(run.stdout)


PAIR = Pair(
    name="lazy import",
    claim=None,
    source="this lab: every name of the package is imported when it is first used",
    baseline=all_up_front,
    optimised=lazily,
    inputs=inputs,
    sizes=(0, 1, len(ROOMS)),
    unit="rooms used",
    floor=floor,
    used_in="fmlab.lazy.lazily",
)
