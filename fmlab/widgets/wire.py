"""How runs travel to the browser: the rows of expiry that differ, 2 bytes a token, and which head has which row."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Run:
    """A run as it is drawn: its label and its expiry, one row a head."""

    label: str
    expiry: Int[Tensor, "heads tokens"]

    @classmethod
    def of(cls, label: str, expiry: Int[Tensor, "*heads tokens"]) -> "Run":
        """Take an expiry (..., tokens), all leading axes being heads; a single row is one head."""
        if expiry.ndim == 0 or expiry.numel() == 0:
            raise ValueError(
                f"{label}: nothing to draw in an expiry of shape {tuple(expiry.shape)}; give (..., tokens)"
            )
        return cls(label, expiry.reshape(-1, expiry.shape[-1]))


def encode(runs: Sequence[Run]) -> tuple[list[dict], bytes]:
    """Headers and one block of bytes for `runs` over the same tokens and heads.

    A row is stored once, however many heads share it: of a window policy there is one. Little-endian int16 where the
    text is short enough, int32 beyond. Raises ValueError for runs of different shapes.
    """
    if len({run.expiry.shape for run in runs}) != 1:
        shapes = [tuple(run.expiry.shape) for run in runs]
        raise ValueError(f"runs of shapes {shapes}; give runs over the same heads and tokens")
    headers, blocks, offset = [], [], 0
    for run in runs:
        tokens = run.expiry.shape[1]
        narrow = run.expiry.cpu().short() if tokens + 1 < 1 << 15 else run.expiry.cpu().int()
        rows: dict[bytes, int] = {}
        index = [rows.setdefault(row.numpy().tobytes(), len(rows)) for row in narrow]
        block = b"".join(rows)
        header = {"label": run.label, "n": tokens, "rows": len(rows), "width": narrow.element_size(), "offset": offset}
        headers.append(header | {"index": index})
        blocks.append(block)
        offset += len(block)
    return headers, b"".join(blocks)
