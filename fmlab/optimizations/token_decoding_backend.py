"""The text of each token by the cache, against the tokenizer's own decoder without what transformers wraps around it.

Most of what `tokenizer.decode` takes for a single token is the wrapping: the cache skips that for every token it knows,
and so does who calls the decoder beneath.
"""

from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from . import token_decoding


def decode_each_beneath(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What the decoder of the tokenizers library makes of every token alone; a tokenizer of Python has none."""
    decode = tokenizer.backend_tokenizer.decode
    return [decode([id], skip_special_tokens=False) for id in ids]


PAIR = replace(
    token_decoding.PAIR,
    name="token decoding: LRU cache, against the decoder beneath",
    claim=None,
    source="what is left of the claimed gain where the straightforward way calls the tokenizers library itself",
    baseline=decode_each_beneath,
)
