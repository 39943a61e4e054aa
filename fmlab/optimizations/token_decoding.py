"""The text of each token: a cache of the last 10,000 decoded against decoding every one.

The cache is made anew in each call, so all its misses count: it gains by what a text repeats, and loses where the text
is too short to repeat much.
"""

from transformers import PreTrainedTokenizerBase

from ..caches import TokenDecodeCache
from . import real
from .pair import Floor, Pair


def decode_each(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What the tokenizer decodes of every token alone, special tokens included and blanks left as they are."""
    return [
        tokenizer.decode([id], skip_special_tokens=False, clean_up_tokenization_spaces=False) for id in ids
    ]  # fmt: skip


def decode_through_cache(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The same through a cache that is empty at first."""
    return TokenDecodeCache(tokenizer).decode(ids)


def inputs(size: int, seed: int) -> tuple[list[int], PreTrainedTokenizerBase]:
    """Ids of a stretch of prose, and the tokenizer."""
    return real.text_ids(size, seed).tolist(), real.lm().tokenizer


def floor(size: int) -> Floor:
    return Floor(size, "operations", "one look into a hash table a token; decoding a token costs at least as much")


PAIR = Pair(
    name="token decoding: LRU cache",
    claim=(1.2, 1.4),
    source="the progress report that this lab began from, phase 2: cached token decoding (LRU, 10,000 entries), 20-40%",
    baseline=decode_each,
    optimised=decode_through_cache,
    inputs=inputs,
    sizes=(10, 100, 1_000, 10_000),
    unit="tokens",
    floor=floor,
    offered_as="fmlab.caches.TokenDecodeCache",
)
