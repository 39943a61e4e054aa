"""Let a model read and speak under a policy, a call at a time: what every task here is made of."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache, DynamicCache

from .core import Allocation, Policy
from .language import LanguageModel
from .live import FiniteCache, finite


@contextmanager
def memory(
    lm: LanguageModel, policy: Policy | None, budget: int | Allocation | None, query_aware: bool
) -> Iterator[Callable[[], Cache]]:
    """Within it the model runs under the policy; calling what it yields gives an empty cache.

    No policy and no budget is the stock full cache. Raises ValueError where only one of the two is given.
    """
    if (policy is None) != (budget is None):
        raise ValueError(f"policy {policy!r} with budget {budget!r}; give both, or neither for the full cache")
    if policy is None:
        yield lambda: DynamicCache(config=lm.model.config)
        return
    with finite(lm.model, policy, budget, query_aware) as cache:
        yield cache.copy


def read_first(
    lm: LanguageModel, cache: Cache, ids: Int[Tensor, " tokens"], chunk: int | None
) -> tuple[Cache, Float[Tensor, " vocabulary"], float]:
    """Let the model read from the beginning: the cache, the logits after the last token, the seconds it took."""
    start = time.perf_counter()
    for part in ids.split(chunk or len(ids)):
        logits = read(lm, cache, part)
    return cache, logits, time.perf_counter() - start


def read(lm: LanguageModel, cache: Cache, ids: Int[Tensor, " tokens"]) -> Float[Tensor, " vocabulary"]:
    """Let the model read in one call; the logits after the last token."""
    return lm.model(input_ids=ids[None], past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]


def speak(lm: LanguageModel, cache: Cache, logits: Float[Tensor, " vocabulary"], max_new_tokens: int) -> str:
    """The most likely words, to the end of the turn. The model has read every word it says, but not the turn's end."""
    said: list[int] = []
    while len(said) < max_new_tokens and (token := int(logits.argmax())) not in lm.ends:
        said.append(token)
        logits = read(lm, cache, torch.tensor([token], device=logits.device))
    return lm.tokenizer.decode(said).strip()


def losses(
    lm: LanguageModel, cache: Cache, logits: Float[Tensor, " vocabulary"], ids: Int[Tensor, " tokens"]
) -> Float[Tensor, " tokens"]:
    """Nats of each of these tokens, were the model to say them one by one instead of its own, from `logits` on."""
    nats = []
    for at, token in enumerate(ids):
        nats.append(-logits.float().log_softmax(-1)[token])
        if at + 1 < len(ids):
            logits = read(lm, cache, token[None])
    return torch.stack(nats).cpu()


def expiry_of(cache: Cache) -> Int[Tensor, "layers kv_heads tokens"]:
    """As a finite cache tells it; a stock cache loses what its model's own sliding window has passed."""
    if isinstance(cache, FiniteCache):
        return cache.expiry.cpu()
    rows = []
    for layer in cache.layers:
        seen = layer.get_seq_length()
        passed = torch.arange(seen) + (getattr(layer, "sliding_window", None) or seen + 1)
        rows.append(passed.where(passed <= seen, seen + 1).expand(layer.keys.shape[1], seen))
    return torch.stack(rows)


def nbytes_of(cache: Cache) -> int:
    """Allocated bytes of keys and values."""
    if isinstance(cache, FiniteCache):
        return cache.nbytes
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def check_counts(**counts: int | None) -> None:
    """Raise ValueError for a count below 1, named as its argument is."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name}={count}; give at least 1")
