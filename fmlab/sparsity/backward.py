"""The gradient of attention over chosen blocks, for kernels that have none: row by row, and only the chosen blocks."""

from collections.abc import Callable

import torch
from torch import Tensor

from .choice import BlockChoice

Kernel = Callable[[Tensor, Tensor, Tensor, BlockChoice, float], Tensor]


def with_gradient(kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, choice: BlockChoice, scale: float) -> Tensor:
    """What the kernel gives, and, where one is asked for, its gradient with respect to `q`, `k` and `v`."""
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return _Sparse.apply(q, k, v, kernel, choice, scale)
    return kernel(q, k, v, choice, scale)


class _Sparse(torch.autograd.Function):
    """Keeps queries, keys and values; the weights of a row of blocks are worked out again on the way back."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, kernel: Kernel, choice: BlockChoice, scale: float) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.choice, ctx.scale = choice, scale
        return kernel(q.detach(), k.detach(), v.detach(), choice, scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, up: Tensor) -> tuple:
        (q, k, v), choice, scale = ctx.saved_tensors, ctx.choice, ctx.scale
        (samples, heads), group, grid = q.shape[:2], q.shape[1] // k.shape[1], choice.grid
        grads = [torch.zeros_like(x) for x in (q, k, v)]
        for sample in range(samples):
            for head in range(heads):
                at = sample, head // group
                parts = q[sample, head], k[at], v[at], up[sample, head]
                whole = grads[0][sample, head], grads[1][at], grads[2][at]
                for row, columns in enumerate(choice.blocks[sample, head]):
                    queries = slice(row * grid.block, min((row + 1) * grid.block, grid.n))
                    keys = (columns.nonzero() * grid.block + torch.arange(grid.block, device=q.device)).flatten()
                    keys = keys[keys < grid.m]
                    _row(*parts, *whole, queries, keys, grid.past, scale)
        return *grads, None, None, None


def _row(
    q: Tensor, k: Tensor, v: Tensor, up: Tensor, dq: Tensor, dk: Tensor, dv: Tensor,
    queries: slice, keys: Tensor, past: int, scale: float,
) -> None:  # fmt: skip
    """Add the gradients of one row of query blocks over the keys it sees."""
    some, values, above = k[keys], v[keys], up[queries]
    position = past + torch.arange(queries.start, queries.stop, device=q.device)[:, None]
    weights = (q[queries] @ some.T * scale).masked_fill_(keys > position, -torch.inf).softmax(-1)
    flow = above @ values.T
    scores = weights * (flow - (weights * flow).sum(-1, keepdim=True)) * scale  # the gradient of the scores
    dq[queries] += scores @ some
    dk.index_add_(0, keys, scores.T @ q[queries])
    dv.index_add_(0, keys, weights.T @ above)
