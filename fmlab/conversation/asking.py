"""What a model answers to many prompts, as one batch: what they begin with in common is read once."""

from collections.abc import Sequence

import torch
from transformers import DynamicCache

from ..language import LanguageModel
from .carry import common


@torch.no_grad()
def replies(lm: LanguageModel, prompts: Sequence[Sequence[int]], max_new_tokens: int = 32) -> list[str]:
    """The greedy answer to each prompt of token ids, of at most so many tokens, up to the end of the turn.

    The batch is padded to its longest prompt between what all have in common and the rest; padding is masked out. Memory
    grows with the number of prompts times the longest. Raises ValueError for no prompts and an empty one.
    """
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise ValueError(
            f"{len(prompts)} prompts, of {[len(prompt) for prompt in prompts][:5]} tokens; give at least one token each"
        )
    device = lm.model.device
    first = prompts[0]
    # Each needs a token of its own to answer from.
    shared = list(first[: min(common(first, prompt[:-1]) for prompt in prompts)])
    cache = DynamicCache(config=lm.model.config)
    if shared:
        lm.model(input_ids=torch.tensor([shared], device=device), past_key_values=cache, logits_to_keep=1)
        cache.batch_repeat_interleave(len(prompts))
    longest = max(len(prompt) for prompt in prompts)
    pads = [longest - len(prompt) for prompt in prompts]
    filler = lm.model.generation_config.pad_token_id or 0
    ids = [[*shared, *[filler] * pad, *prompt[len(shared) :]] for prompt, pad in zip(prompts, pads, strict=True)]
    seen = torch.ones(len(prompts), longest, dtype=torch.int64)
    for row, pad in enumerate(pads):
        seen[row, len(shared) : len(shared) + pad] = 0
    said = lm.model.generate(
        input_ids=torch.tensor(ids, device=device), attention_mask=seen.to(device), past_key_values=cache,
        max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=filler,
    )  # fmt: skip
    return [
        lm.tokenizer.decode(_turn(row, lm.ends), skip_special_tokens=True).strip() for row in said[:, longest:].tolist()
    ]


def _turn(ids: list[int], ends: tuple[int, ...]) -> list[int]:
    stops = [place for place, token in enumerate(ids) if token in ends]
    return ids[: stops[0]] if stops else ids
