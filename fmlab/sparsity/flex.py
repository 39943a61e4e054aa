"""Block-sparse attention by torch's FlexAttention, compiled: any choice of blocks, CPU and CUDA, with its gradient."""

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from .backward import with_gradient
from .choice import BlockChoice
from .forms import block_mask, causal

_SHAPES = 1_000  # compiled apart before torch refuses; its own limit of 8 is meant for shapes that change by mistake


class NoCompiler(RuntimeError):
    """FlexAttention cannot be compiled here: no C++ compiler."""


def flex(
    q: Float[Tensor, "batch heads n d"],
    k: Float[Tensor, "batch kv_heads m d"],
    v: Float[Tensor, "batch kv_heads m d"],
    choice: BlockChoice,
    scale: float,
) -> Float[Tensor, "batch heads n d"]:
    """Attention of `q` over the chosen blocks of `k` and `v`; the first call of a shape compiles, which takes seconds.

    On the CPU FlexAttention has no gradient of its own (torch 2.13); there this lab's does it, also block by block.

    Raises NoCompiler where the CPU kernel cannot be compiled.
    """
    if q.device.type != "cpu":
        return _run(q, k, v, choice, scale)
    compiler()
    return with_gradient(_run, q, k, v, choice, scale)


def compiler() -> str:
    """The C++ compiler that torch compiles with. Raises NoCompiler, naming what was looked for."""
    from torch._inductor import config
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        return get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise NoCompiler(
            f"the kernel 'flex' is compiled by a C++ compiler, and none is here (looked for {config.cpp.cxx}); install "
            "g++ or clang++, name it in the environment variable CXX, or use the kernel 'gather', which needs none"
        ) from error


def _run(q: Tensor, k: Tensor, v: Tensor, choice: BlockChoice, scale: float) -> Tensor:
    mask = block_mask(choice, causal(choice.m - choice.n))
    with torch._dynamo.config.patch(recompile_limit=_SHAPES, accumulated_recompile_limit=_SHAPES):
        return _compiled()(q, k, v, block_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])


@cache
def _compiled():
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)
