"""Answers of a local model that carries its KV cache from turn to turn: the prompt's prefix that it holds is not computed."""

from collections.abc import Generator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ..core import BudgetError
from ..language import LanguageModel, Spelling
from .reading import context_of
from .span import Span
from .state import Cost


class Carried:
    """Greedy answers from one KV cache, of which each prompt keeps the longest prefix that it shares with the one before.

    `ids` are the tokens whose keys and values `cache` holds: the last prompt and the answer, but for the last token said,
    which the model never read. The first `len(ids)` entries of every layer are theirs whatever interrupts a call, in the
    middle of a layer too; what lies behind them is cut off before the next. Layers with a sliding window are kept whole
    here (their mask still slides), since a window that has passed its beginning could not go back to it.

    Raises ValueError for a model whose state is not keys and values of single tokens, such as a recurrent one.
    """

    def __init__(self, lm: LanguageModel):
        layers = {type(layer) for layer in DynamicCache(config=lm.model.config).layers}
        if unknown := layers - {DynamicLayer, DynamicSlidingWindowLayer}:
            names = ", ".join(sorted(layer.__name__ for layer in unknown))
            raise ValueError(
                f"{lm.name} has layers of state that cannot be cut at a token ({names}); give another model"
            )
        self.lm = lm
        self.ids: list[int] = []
        self.cache = DynamicCache()
        self._computed = 0

    def answer(self, selected: Sequence[Span], ids: list[int], max_new_tokens: int) -> Generator[str, None, Cost]:
        """The pieces of the answer to a prompt with these ids, whole characters each, and at the end what it cost.

        At least the prompt's last token is computed, for its logits. Raises BudgetError, before anything is computed,
        where prompt and answer are longer than the context that the model was made for.
        """
        context = context_of(self.lm)
        if context is not None and len(ids) + max_new_tokens > context:
            raise BudgetError(
                f"{len(ids)} tokens of prompt and {max_new_tokens} of answer exceed the context of {context} tokens of "
                f"{self.lm.name}; give a memory of a smaller budget, or lower max_new_tokens"
            )
        return self._answer(ids, max_new_tokens)

    def logits(self, ids: list[int]) -> Float[Tensor, " vocabulary"]:
        """The logits after a prompt of at least one token, of which only what follows the shared prefix is computed."""
        shared = min(common(ids, self.ids), len(ids) - 1)
        self._cut(shared)
        return self._read(ids[shared:])

    def _answer(self, ids: list[int], max_new_tokens: int) -> Generator[str, None, Cost]:
        before = self._computed
        logits = self.logits(ids)
        prefilled = self._computed - before
        spelling, said = Spelling(self.lm.tokenizer), 0
        # Without a template the blank after "assistant:" is part of how a line is written, not of what is said.
        blank = "" if self.lm.tokenizer.chat_template else " "
        while said < max_new_tokens and (token := int(logits.argmax())) not in self.lm.ends:
            said += 1
            if piece := spelling.add(token):
                yield piece.removeprefix(blank)
                blank = ""
            if said < max_new_tokens:
                logits = self._read([token])
        if piece := spelling.rest():
            yield piece.removeprefix(blank)
        return Cost(prompt=len(ids), prefilled=prefilled, reused=len(ids) - prefilled, said=said)

    def _cut(self, length: int) -> None:
        """Hold the first `length` tokens only. Layer by layer to an absolute length, since an interrupt in a forward call
        leaves some layers, or the keys of one, longer than the others."""
        del self.ids[length:]
        for layer in self.cache.layers:
            if layer.is_initialized:
                layer.keys, layer.values = layer.keys[..., :length, :], layer.values[..., :length, :]

    @torch.no_grad()
    def _read(self, ids: list[int]) -> Float[Tensor, " vocabulary"]:
        """The logits after the last of these tokens; they are held from now on."""
        row = torch.tensor([ids], device=self.lm.model.device)
        out = self.lm.model(input_ids=row, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self._computed += row.numel()
        self.ids += ids  # after the call: what it left undone is then no part of what is held
        return out.logits[0, -1]


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """The length of the longest common prefix."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
