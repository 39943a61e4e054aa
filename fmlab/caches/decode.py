"""The text of each token by itself, decoded once."""

from collections.abc import Iterable

import cachetools
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .memo import Memo, Remembering
from .tokens import token_ids

LARGEST = 2**32 - 1  # of the ids that the tokenizers library can be asked for; above, it fails by an overflow


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
        tokens = self.tokenizer.convert_ids_to_tokens([min(id, LARGEST) for id in ids])
        for id, token in zip(ids, tokens, strict=True):
            if token is None:  # decode would give ""
                raise ValueError(
                    f"id {id} is no token of {type(self.tokenizer).__name__} ({len(self.tokenizer)} tokens)"
                )
        as_it_is = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return [self.tokenizer.decode([id], **as_it_is) for id in ids]
