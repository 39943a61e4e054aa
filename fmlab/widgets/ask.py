"""The live model's words under a policy and a budget, beside those of the full cache."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import fmlab as fm


def answer(
    lm: "fm.LanguageModel",
    context: str,
    question: str,
    policy: fm.Policy | None,
    budget: int,
    check: Callable[[], None],
    max_new_tokens: int = 48,
) -> Iterator[str]:
    """Greedy decoding, yielding the answer as it grows. `policy` None is the full cache, whatever the budget.

    The context is read as one call before the question is known, then the question, then one token at a time; the
    policy evicts after each call. `check` is called between calls and may raise to stop.
    """
    from ..live import finite  # transformers takes seconds to import: not before the first question

    ends = _ends(lm)
    manager = nullcontext(None) if policy is None else finite(lm.model, policy, budget)
    said: list[int] = []

    def read(ids, cache):
        check()
        return lm.model(ids[None].to(lm.model.device), past_key_values=cache, use_cache=True)

    with manager as cache:
        for ids in lm.prompt(context, question):
            output = read(ids, cache)
            cache = output.past_key_values
        while len(said) < max_new_tokens and (token := int(output.logits[0, -1].argmax())) not in ends:
            said.append(token)
            yield lm.tokenizer.decode(said)
            output = read(ids.new_tensor([token]), cache)
    if not said:
        yield "(it ended without a word)"


def _ends(lm: "fm.LanguageModel") -> set[int]:
    """Every token id at which this model stops."""
    ends = lm.model.generation_config.eos_token_id
    return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)
