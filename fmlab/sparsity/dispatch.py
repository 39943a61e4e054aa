"""One call for every kernel; and which of them is fastest here, found by measuring and said with its reasons."""

import logging
import math
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter

import torch
from jaxtyping import Float
from torch import Tensor

from .choice import BlockChoice
from .dense import dense
from .flex import NoCompiler, compiler, flex, refused_dtype
from .gather import gather
from .pattern import grid_of

KERNELS = {"dense": dense, "gather": gather, "flex": flex}
_ROUNDS = 3
_MASK = 1 << 31  # bytes: where the mask of `dense` would take more, it is no candidate
_plans: dict[tuple, "Plan"] = {}


@dataclass(frozen=True)
class Plan:
    """Which kernel `auto` takes for a shape, and what that rests on. `str` says it in a line."""

    kernel: str
    seconds: dict[str, float]
    """The median of three interleaved forward calls of each kernel that can run here, its compilation left out."""
    left_out: dict[str, str] = field(default_factory=dict)
    """The kernels that were not measured, and why."""

    def __str__(self) -> str:
        ordered = sorted(self.seconds, key=self.seconds.__getitem__)
        measured = ", ".join(f"{name} {self.seconds[name] * 1e3:.3g} ms" for name in ordered)
        return "; ".join(
            [f"{self.kernel}: measured {measured}", *(f"no {n}: {why}" for n, why in self.left_out.items())]
        )


def attention(
    q: Float[Tensor, "batch heads n d"],
    k: Float[Tensor, "batch kv_heads m d"],
    v: Float[Tensor, "batch kv_heads m d"],
    choice: BlockChoice,
    kernel: str = "auto",
    scale: float | None = None,
) -> Float[Tensor, "batch heads n d"]:
    """Causal attention of `q` over the chosen blocks of `k` and `v`, the last query at the last key.

    `kernel` is "flex" (compiled, CPU and CUDA), "gather" (plain torch, CPU), "dense" (all keys under a mask: the
    reference) or "auto": the fastest by `plan`, which is measured at the first call of its kind, so that call takes
    longer (seconds, where flex is compiled). `scale` is 1 / sqrt(d) unless given. All have gradients. Where there is no
    query, an empty tensor comes back and no kernel runs.

    Raises ValueError for tensors that do not fit the choice, or a kernel that is unknown or not for their device or data
    type, and NoCompiler where flex cannot be compiled: no kernel is quietly replaced by another.
    """
    scale = _checked(q, k, v, choice, scale)
    if kernel != "auto" and kernel not in KERNELS:
        raise ValueError(f"kernel={kernel!r}; give 'auto', {', '.join(map(repr, KERNELS))}")
    if q.numel() == 0:
        return q.clone()
    if kernel == "auto":
        kernel = plan(q, k, v, choice, scale).kernel
    return KERNELS[kernel](q, k, v, choice, scale)


def plan(
    q: Float[Tensor, "batch heads n d"],
    k: Float[Tensor, "batch kv_heads m d"],
    v: Float[Tensor, "batch kv_heads m d"],
    choice: BlockChoice,
    scale: float | None = None,
) -> Plan:
    """What `auto` takes for these, measured once for each kind and then remembered by this process.

    A kind is device, data type, shapes, block, number of threads, whether the heads differ, and the density within a
    factor of 1.4. A kernel that a broken compiler cannot make is left out, with a warning in the log. Raises as
    `attention`, and ValueError where there is no query to measure with.
    """
    scale = _checked(q, k, v, choice, scale)
    if q.numel() == 0:
        raise ValueError(f"queries {tuple(q.shape)} hold nothing to measure; `attention` needs no plan for them")
    alike = choice.distinct.shape[1] == 1
    size = round(2 * math.log2(choice.density)) if choice.pairs else 0
    kind = (q.device, q.dtype, q.shape, k.shape, choice.block, torch.get_num_threads(), alike, size)
    if kind not in _plans:
        _plans[kind] = _measured(q.detach(), k.detach(), v.detach(), choice, scale)
        logging.getLogger(__name__).info("%r: %s", choice, _plans[kind])
    return _plans[kind]


@torch.no_grad()
def _measured(q: Tensor, k: Tensor, v: Tensor, choice: BlockChoice, scale: float) -> Plan:
    left_out = _left_out(q, choice)
    times = {name: [] for name in KERNELS if name not in left_out}
    for attempt in range(_ROUNDS + 1):
        for name, seconds in list(times.items()):
            start = perf_counter()
            try:
                KERNELS[name](q, k, v, choice, scale)
            except NoCompiler as error:  # there is a compiler, but it fails
                left_out[name] = str(error)
                del times[name]
                logging.getLogger(__name__).warning("measured without the kernel %r: %s", name, error)
                continue
            if q.device.type == "cuda":
                torch.cuda.synchronize(q.device)
            if attempt:  # the first compiles and warms up
                seconds.append(perf_counter() - start)
    medians = {name: median(seconds) for name, seconds in times.items()}
    return Plan(min(medians, key=medians.__getitem__), medians, left_out)


def _left_out(q: Tensor, choice: BlockChoice) -> dict[str, str]:
    """Kernels that cannot run here."""
    left_out = {}
    mask = choice.n * choice.m * choice.distinct.shape[1] * q.shape[0] * (1 + q.element_size())
    if mask > _MASK:
        left_out["dense"] = f"its mask would take {mask / 1e9:.1f} GB"
    if q.device.type != "cpu":
        left_out["gather"] = f"it is for the CPU, and these tensors are on {q.device}"
        return left_out
    if why := refused_dtype(q):
        left_out["flex"] = why
        return left_out
    try:
        compiler()
    except NoCompiler as error:
        left_out["flex"] = str(error)
    return left_out


def _checked(q: Tensor, k: Tensor, v: Tensor, choice: BlockChoice, scale: float | None) -> float:
    """The scale, where everything fits together."""
    grid = grid_of(q, k, choice.block)
    if v.shape != k.shape:
        raise ValueError(f"values {tuple(v.shape)} are not of the shape of the keys {tuple(k.shape)}")
    if v.dtype != k.dtype:
        raise ValueError(f"values are {v.dtype} and keys {k.dtype}; give all in one data type")
    wanted, given = (*q.shape[:2], grid.n, grid.m), (*choice.blocks.shape[:2], choice.n, choice.m)
    if wanted != given:
        raise ValueError(f"the choice is for (batch, heads, queries, keys) {given}, and these tensors are {wanted}")
    return 1 / math.sqrt(q.shape[-1]) if scale is None else scale
