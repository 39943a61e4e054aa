"""Run a sparsity pattern inside a Hugging Face model: every attention reads the blocks that the pattern chooses."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import Module
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function

from .attach import FINITE, SPARSE, TAG, attached, refuse, refuse_padding, unreachable
from .live import FiniteLayer
from .paged import PAGES, PagedCache, PagedLayer
from .sparsity.dispatch import KERNELS, Plan, attention, plan
from .sparsity.dynamic import QuestTopK
from .sparsity.pages import over_pages, pages_of
from .sparsity.pattern import Pattern, rescaled


class Run:
    """One `with fm.sparse(...)`: what its model attends by."""

    def __init__(
        self, model: PreTrainedModel, pattern: Pattern, block: int, kernel: str, inside_finite: bool, plans: dict
    ):
        self.pattern, self.block, self.kernel, self.inside_finite = pattern, block, kernel, inside_finite
        self.plans: dict[tuple, Plan] = plans  # what "auto" found, by the shapes of queries and keys
        self.modules = frozenset(model.modules())
        self.configs = [part.config for part in model.modules() if isinstance(part, PreTrainedModel)]
        self.reached = False  # an attention of the model came to us since its last call

    def attend(
        self, module: Module, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None
    ) -> Tensor:
        """query (batch, query heads, n, d) over key and value (batch, KV heads, m, d) -> (batch, n, query heads, d)."""
        self.reached = True
        layer, m = getattr(key, TAG, None), key.shape[2]
        if not self.inside_finite:
            if layer is not None:
                raise RuntimeError("this cache is of a `finite` that has ended; start a new one for a new run")
            _refuse_window(module, window, m)
            return self.over(query, key, value, scaling, getattr(key, PAGES, None)).transpose(1, 2)
        if not isinstance(layer, FiniteLayer):
            raise RuntimeError(
                f"{type(module).__name__} was called inside `finite` without its cache; pass the cache that `finite` "
                "yields as past_key_values"
            )

        def first(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            _refuse_window(module, window, m)
            query, keys, values = query.view(shape), keys.view(key.shape), values.view(value.shape)
            return self.over(query, keys, values, scaling).transpose(1, 2)

        shape = query.shape
        return layer.attend(query, scaling, window, None, first)

    def over(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float, pages: PagedLayer | None = None
    ) -> Tensor:
        """Attention over what the pattern chooses; `pages` is the cache layer that knows the bounds of the keys' pages."""
        one = query.shape[2] == 1
        if pages is not None and one and type(self.pattern) is QuestTopK:  # a subclass may choose otherwise
            if pages.cache.block != self.block:
                raise ValueError(
                    f"a cache with pages of {pages.cache.block} tokens in a run with blocks of {self.block}"
                )
            return pages.attend(query, scaling, self.pattern.top, self.pattern.together)
        choice = self.pattern.blocks(rescaled(query.detach(), scaling), key.detach(), self.block)
        if one and torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value)):
            return attention(query, key, value, choice, "dense", scaling)  # one row of a mask, with its gradient
        if one:
            numbers, shown = pages_of(choice)
            return over_pages(query, key, value, numbers, self.block, scaling, shown)
        kernel = self.kernel
        if kernel == "auto":
            kind = tuple(query.shape), tuple(key.shape)
            if kind not in self.plans:
                self.plans[kind] = plan(query, key, value, choice, scaling)
            kernel = self.plans[kind].kernel
        return attention(query, key, value, choice, kernel, scaling)

    def check_reached(self, model: PreTrainedModel, args: tuple, output: object) -> None:
        """After a call of the model: raise ValueError where it attended by itself."""
        if not self.reached:
            raise unreachable(model)
        self.reached = False


@contextmanager
def sparse(model: PreTrainedModel, pattern: Pattern, block: int = 64, kernel: str = "auto") -> Iterator[PagedCache]:
    """Within it every attention of the model reads only the blocks of keys that `pattern` chooses.

    It holds for a plain call, chunks of a prefill over any cache that keeps all it was given, and `generate`. What a
    query sees is `pattern.blocks(q, k, block)` of its call, whose blocks of queries are counted from its first. So the
    choice depends on how the text is cut into calls where the pattern looks at queries, and also where a call does not
    begin on a whole block: there a pattern of positions rounds outwards over other rows, never below its own rule, and
    BigBird draws anew. Patterns that look at queries and keys see the model's own scale of q·k.

    `kernel` is as for `fm.sparsity.attention`; "auto" measures at the first layer of every new shape (seconds, where flex
    is compiled), so name one for short runs; what it found is in the `plans` of the cache that is yielded. A decode step
    is no matter of kernels: with any of them a single query reads its pages where they lie, or, where a gradient is asked
    for, runs dense under its mask.

    Yields a `PagedCache` to be passed as `past_key_values`. Over it a decode step under QuestTopK chooses from bounds that
    are kept page by page and reads no other keys and values. Over a stock DynamicCache the outcome is the same, but the
    bounds are worked out from all keys at every step, and all are copied to add one. Other patterns decode over either as
    they are. Beams and a batch of equal lengths are right over both.

    After a policy's prefill, `with fm.finite(model, policy, budget) as cache, fm.sparse(model, pattern):` and the cache of
    `finite`: the first call attends by the pattern, then the policy evicts, and all later calls attend fully to what it
    kept. The policy sees queries, keys and values as the sparse layers below made them; the attention weights that it asks
    for are those of full attention by them, blocks that the pattern left out included.

    Keys and values must have the same head dimension: models like DeepSeek-V3, whose values are narrower, are refused.

    Raises RuntimeError inside another `sparse` of the same model, and in `finite` inside `sparse`; ValueError for a model
    whose attention cannot be reached, a text longer than a layer's own sliding window, a cap on logits, sinks of the
    model's own (s_aux), ready-made masks, a batch of unequal lengths, several texts packed as one, dropout, a cache that
    shows more or less than it was given (StaticCache) and a block that is no whole number from 1 on; TypeError for what
    is no pattern. No gradient goes through a decode step over the `PagedCache`: asking for one is torch's error.
    """
    if not isinstance(pattern, Pattern):
        raise TypeError(f"{pattern!r} is no sparsity pattern; give one of fm.sparsity, such as Streaming()")
    if isinstance(block, bool) or not isinstance(block, int) or block < 1:
        raise ValueError(f"block={block!r}; give a whole number of tokens, 1 or more")
    if kernel != "auto" and kernel not in KERNELS:
        raise ValueError(f"kernel={kernel!r}; give 'auto', {', '.join(map(repr, KERNELS))}")
    inside_finite = isinstance(model, PreTrainedModel) and model.config._attn_implementation == FINITE.name
    with attached(model, SPARSE):
        cache = PagedCache(model.config.get_text_config(decoder=True).num_hidden_layers, block)
        run = Run(model, pattern, block, kernel, inside_finite, cache.plans)
        watch = model.register_forward_hook(run.check_reached)
        _runs.append(run)
        try:
            yield cache
        finally:
            _runs.remove(run)
            watch.remove()


_runs: list[Run] = []  # those whose `with` is open; an attention finds its own by its module


def _refuse_window(module: Module, window: int | None, tokens: int) -> None:
    if window is not None and window < tokens:
        raise ValueError(
            f"{type(module).__name__} has a sliding window of its own of {window} tokens, and these are {tokens}: a pattern "
            "takes the place of full attention; give a shorter text or a model without a window"
        )


def _attention(
    module: Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    run = next((run for run in _runs if module in run.modules), None)
    if run is None:
        raise RuntimeError(
            f"this {type(module).__name__} is of no model under `sparse`, but shares its config with one; give the second "
            "model a config of its own (copy.deepcopy)"
        )
    refuse(module, SPARSE, attention_mask, dropout, kwargs)
    if softcap is not None:
        raise ValueError(f"{type(module).__name__} caps its logits at {softcap}, which `sparse` does not compute")
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise ValueError(f"{type(module).__name__} attends in both directions; a pattern is causal")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return run.attend(module, query, key, value, scaling, sliding_window), None


def _mask(*args, attention_mask: Tensor | None = None, config: object = None, **kwargs) -> None:
    """No mask is built; but what the model wants to mask comes by here, and what we do not compute is refused."""
    refuse_padding(attention_mask)
    run = next((run for run in _runs if any(config is own for own in run.configs)), None)
    if run is None or not run.inside_finite:
        _refuse_other_than_causal(**kwargs)


def _refuse_other_than_causal(
    kv_length: int, kv_offset: int, mask_function: Callable, batch_size: int, **kwargs
) -> None:
    """Raise ValueError where the last query is not at the last key, or does not see the first one."""
    if "cache_position" in kwargs:  # transformers below 5.3
        last = int(kwargs["cache_position"][-1])
    else:
        last = int(kwargs["q_offset"]) + int(kwargs["q_length"]) - 1
    if kv_offset or last != kv_length - 1:
        raise ValueError(
            f"the cache shows keys {kv_offset} to {kv_offset + kv_length - 1} to queries that end at {last}; use a cache that "
            "holds what it was given and no more: a DynamicCache, or the one that `sparse` yields"
        )
    if mask_function is causal_mask_function:
        return
    for sequence in range(batch_size):
        if not mask_function(*map(torch.tensor, (sequence, 0, last, 0))):
            raise ValueError(
                f"the model hides the first token from the last, number {last}: a sliding window of its own, or several "
                "texts packed as one; a pattern takes the place of full attention over one text"
            )


AttentionInterface.register(SPARSE.name, _attention)
AttentionMaskInterface.register(SPARSE.name, _mask)
