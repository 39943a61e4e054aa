"""Token ids as the caches take them: one sequence, in a list, an array or a tensor."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Int64
from torch import Tensor


def token_ids(ids: Iterable | Tensor) -> Int64[np.ndarray, " tokens"]:
    """Token ids, int64. Raises ValueError for what is not one sequence of integers, 0 or more."""
    row = (
        ids.detach().cpu().numpy()
        if isinstance(ids, Tensor)
        else np.asarray(ids if hasattr(ids, "__len__") else list(ids))
    )
    if row.ndim != 1:
        raise ValueError(f"ids have shape {row.shape}, not (tokens,); give one sequence, such as ids[0]")
    if row.size == 0:
        return np.empty(0, np.int64)
    if row.dtype.kind not in "iu":
        raise ValueError(f"ids are {row.dtype}, not integers; give token ids, such as {[1, 2, 3]}")
    if row.min() < 0:
        raise ValueError(f"id {row.min()} is negative; give ids of the vocabulary")
    return row.astype(np.int64)
