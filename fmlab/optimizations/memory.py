"""The most memory that a call holds at once, in bytes."""

import tracemalloc
import weakref
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_nbytes(run: Callable[[], object]) -> int:
    """Bytes of Python's and NumPy's objects at their most, and of tensors at their most, that a call makes.

    A tensor counts from the operation that gave it to its end; what an operation holds inside itself does not. What a
    child process holds is not seen.
    """
    with _Storages():
        torch.empty(1).add_(1)  # what counting itself loads the first time: seven times faster while nothing is traced
    tracing = tracemalloc.is_tracing()
    if not tracing:
        tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    try:
        with _Storages() as storages:
            result = run()
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        if not tracing:
            tracemalloc.stop()
    del result
    return max(0, peak) + storages.peak


class _Storages(TorchDispatchMode):
    """Counts the bytes of the storages that operations give while they live.

    TorchDispatchMode lies in a module with an underscore; it is PyTorch's own way to see every operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if _counted(t)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if _counted(tensor):
                self._count(tensor.untyped_storage(), given)
        return result

    def _count(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        place = storage.data_ptr()
        nbytes = storage.nbytes()
        if not nbytes or place in given or place in self._seen:
            return
        self.now += nbytes
        self.peak = max(self.peak, self.now)
        self._seen[place] = weakref.ref(storage, lambda _: self._end(place, nbytes))

    def _end(self, place: int, nbytes: int) -> None:
        self.now -= nbytes
        del self._seen[place]


def _counted(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.layout is torch.strided
