"""Block-sparse attention by torch's FlexAttention, compiled: any choice of blocks, CPU and CUDA, with its gradient.

The tests run it on the CPU; on CUDA it is FlexAttention as torch has it, and no test of the lab's has run it there.
"""

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from .backward import with_gradient
from .choice import BlockChoice
from .forms import block_mask, causal

_ON_CPU = (torch.float32, torch.float16, torch.bfloat16)  # what FlexAttention's kernel for the CPU takes
_SHAPES = 1_000  # compiled apart before torch refuses; its own limit of 8 is meant for shapes that change by mistake


class NoCompiler(RuntimeError):
    """FlexAttention cannot be compiled here: there is no C++ compiler, or it fails."""


def flex(
    q: Float[Tensor, "batch heads n d"],
    k: Float[Tensor, "batch kv_heads m d"],
    v: Float[Tensor, "batch kv_heads m d"],
    choice: BlockChoice,
    scale: float,
) -> Float[Tensor, "batch heads n d"]:
    """Attention of `q` over the chosen blocks of `k` and `v`; the first call of a shape compiles, which takes seconds.

    On the CPU FlexAttention has no gradient of its own (torch 2.13); there this lab's does it, also block by block.

    Raises ValueError for a data type that the CPU kernel does not take, and NoCompiler where none can be compiled.
    """
    if q.device.type != "cpu":
        return _run(q, k, v, choice, scale)
    if why := refused_dtype(q):
        raise ValueError(why)
    compiler()
    return with_gradient(_run, q, k, v, choice, scale)


def refused_dtype(q: Tensor) -> str | None:
    """Why the CPU kernel does not take tensors like these; None where it does."""
    if q.dtype in _ON_CPU:
        return None
    known = ", ".join(map(str, _ON_CPU))
    return f"the kernel 'flex' takes {known} on the CPU, and these tensors are {q.dtype}; use the kernel 'gather'"


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
    from torch._inductor.exc import InductorError

    mask = block_mask(choice, causal(choice.m - choice.n))
    with torch._dynamo.config.patch(recompile_limit=_SHAPES, accumulated_recompile_limit=_SHAPES):
        try:
            return _compiled()(q, k, v, block_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
        except InductorError as error:  # of compiling alone: what is compiled raises no such thing
            cause = str(error).strip().split("\n")[0]
            other = "'gather'" if q.device.type == "cpu" else "'dense'"
            raise NoCompiler(
                f"torch could not compile the kernel 'flex' ({cause}); mend the compiler, name another in the environment "
                f"variable CXX, or use the kernel {other}, which needs none"
            ) from error


@cache
def _compiled():
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)
