"""Replays of one trace in processes of their own, a thread each: small tensors gain more by that than by more threads."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from .core import Policy
from .rerun import replay
from .trace import Trace


def apart(
    trace: Trace, cells: Sequence[tuple[Policy, int]], prefill: int, jobs: int
) -> Iterator[tuple[tuple[Policy, int], Tensor]]:
    """Each cell with its expiry, as soon as it is finished, from `jobs` processes (-1: one a core)."""
    from joblib import Parallel, delayed, parallel_config

    with TemporaryDirectory() as folder, parallel_config("loky", inner_max_num_threads=1):
        path = str(trace.save(Path(folder) / "trace.safetensors"))
        tasks = (delayed(_one)(path, number, *cell, prefill) for number, cell in enumerate(cells))
        for number, expiry in Parallel(n_jobs=jobs, batch_size=1, return_as="generator_unordered")(tasks):
            yield cells[number], expiry


def _one(path: str, number: int, policy: Policy, budget: int, prefill: int) -> tuple[int, Tensor]:
    return number, replay(_opened(path), policy, budget, prefill)


@lru_cache(maxsize=1)
def _opened(path: str) -> Trace:
    """The trace of this process, read once; the path is of one folder made for one grid, so no other trace has it."""
    return Trace.load(path)
