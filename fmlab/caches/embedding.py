"""Embeddings of texts, each encoded once: the texts of a call that are new are encoded as one batch."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import cachetools
import numpy as np
from jaxtyping import Float32
from torch import Tensor

from .memo import Memo, Remembering


@runtime_checkable
class Encoder(Protocol):
    """What makes a row of numbers of each text; sentence-transformers models do, and an EmbeddingCache does."""

    def encode(self, texts: list[str]) -> Any: ...


class EmbeddingCache(Remembering):
    """An encoder's embeddings through a `Memo` over `store` (LRU, 10,000 texts, if None).

    A store in bytes has the rows' own: `cachetools.LRUCache(64 << 20, getsizeof=lambda row: row.nbytes)`. An encoder
    that pads its batches may give a text slightly other numbers beside other texts; the cache gives the first again.
    """

    def __init__(self, encoder: Encoder, store: cachetools.Cache | None = None) -> None:
        self.encoder = encoder
        self.memo = Memo(cachetools.LRUCache(10_000) if store is None else store)
        self._width: int | None = None

    def encode(self, texts: Sequence[str]) -> Float32[np.ndarray, "texts d"]:
        """Embeddings of the texts, in an array of their own. No texts give (0, d), and (0, 0) before d is known.

        Raises TypeError for what is no sequence of texts, ValueError where the encoder gives anything but a row a text,
        all of one width.
        """
        if isinstance(texts, str):
            raise TypeError(f"{texts!r:.40} is one text; give a list of texts")
        wrong = next((text for text in texts if not isinstance(text, str)), None)
        if wrong is not None:
            raise TypeError(f"{wrong!r:.40} is no text; give a list of texts")
        rows = self.memo.get_many(texts, self._encode)
        return np.stack(rows) if rows else np.empty((0, self._width or 0), np.float32)

    def _encode(self, texts: list[str]) -> list[Float32[np.ndarray, " d"]]:
        given = self.encoder.encode(texts)
        given = given.detach().float().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
        if given.ndim != 2 or len(given) != len(texts):
            raise ValueError(
                f"{type(self.encoder).__name__}.encode gave shape {given.shape} for {len(texts)} texts; it must give one "
                "row for each"
            )
        if self._width not in (None, given.shape[1]):
            raise ValueError(
                f"{type(self.encoder).__name__}.encode gave rows of {given.shape[1]}, before of {self._width}; use one "
                "cache for each encoder"
            )
        self._width = given.shape[1]
        return [row.astype(np.float32) for row in given]  # copies: a row that is kept does not keep its batch

    def __repr__(self) -> str:
        """Without counts: it stands in the label of a memory, which stays the same from turn to turn."""
        return f"EmbeddingCache({self.encoder!r})"
