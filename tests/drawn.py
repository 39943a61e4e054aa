"""A trace that every machine draws alike."""

import numpy as np
import torch

from fmlab.rope import Rope
from fmlab.trace import Trace


def drawn(layers=2, kv_heads=2, groups=3, tokens=24):
    """A trace of random numbers that every machine draws alike."""
    numbers = np.random.default_rng(20).standard_normal((layers, kv_heads * (groups + 2), tokens, 4)).astype(np.float32)
    queries, keys, values = torch.from_numpy(numbers).split([kv_heads * groups, kv_heads, kv_heads], 1)
    ids, pieces = torch.arange(tokens), tuple("x" * tokens)
    rope = Rope(0.1 ** torch.arange(2))
    norms, repeated = values.abs().sum(-1), keys[..., 0].sigmoid()
    columns = {"output_norms": norms, "repeated": repeated, "rope": rope}
    vectors = (2 * queries, keys.contiguous(), values.contiguous())
    return Trace(ids, pieces, tuple(range(layers)), "drawn", *vectors, 0.5, **columns)
