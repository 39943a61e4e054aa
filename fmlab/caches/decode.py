"""The text of each token by itself, decoded once."""

from collections.abc import Iterable

import cachetools
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .memo import Memo, Remembering
from .tokens import token_ids

LARGEST = 1 << 32  # tokenizers count ids in 32 bits


class TokenDecodeCache(Remembering):
    """Token ids to the texts of the single tokens, through a `Memo` over `store` (LRU, 10,000 tokens, if None).

    The text of a token is what its tokenizer decodes of it alone, special tokens included and spaces left as they are:
    bytes that are no character by themselves show as U+FFFD. So the texts need not join to the text of the sequence,
    where a character is spread over tokens or a tokenizer drops a leading space; `LanguageModel.pieces` do join.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, store: cachetools.Cache | None = None) -> None:
        self.tokenizer = tokenizer
        self.memo = Memo(cachetools.LRUCache(10_000) if store is None else store)

    def decode(self, ids: Iterable | Tensor) -> list[str]:
        """The text of every token, in order. Raises ValueError for ids that are not one row or not in the vocabulary."""
        return self.memo.get_many(token_ids(ids).tolist(), self._decode)

    def _decode(self, ids: list[int]) -> list[str]:
        known = self.tokenizer.convert_ids_to_tokens([id for id in ids if id < LARGEST])
        if len(known) < len(ids) or None in known:  # decode would give "", or count such an id as too large for an int
            refused = next(id for id in ids if id >= LARGEST or self.tokenizer.convert_ids_to_tokens(id) is None)
            raise ValueError(
                f"id {refused} is no token of {type(self.tokenizer).__name__} ({len(self.tokenizer)} tokens)"
            )
        if _decodes_as_its_backend(self.tokenizer):
            decode = self.tokenizer.backend_tokenizer.decode
            return [decode([id], skip_special_tokens=False) for id in ids]
        as_it_is = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return [self.tokenizer.decode([id], **as_it_is) for id in ids]


def _decodes_as_its_backend(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether nothing but wrapping lies between the tokenizer's `decode` and that of its backend."""
    kind = type(tokenizer)
    return (
        isinstance(tokenizer, PreTrainedTokenizerFast)
        and kind.decode is PreTrainedTokenizerFast.decode
        and kind._decode is PreTrainedTokenizerFast._decode
        and vars(tokenizer).keys().isdisjoint({"decode", "_decode"})
    )
