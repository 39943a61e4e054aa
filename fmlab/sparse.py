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
from .sparsity.dispatch import KERNELS, attention, plan
from .sparsity.pattern import Pattern


class Run:
    """One `with fm.sparse(...)`: what its model attends by."""

    def __init__(self, model: PreTrainedModel, pattern: Pattern, block: int, kernel: str, inside_finite: bool):
        self.pattern, self.block, self.kernel, self.inside_finite = pattern, block, kernel, inside_finite
        self.modules = frozenset(model.modules())
        self.configs = [part.config for part in model.modules() if isinstance(part, PreTrainedModel)]
        self.reached = False  # an attention of the model came to us since its last call
        self._measured: dict[tuple, str] = {}  # the kernel that "auto" found for a shape

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
            return self.over(query, key, value, scaling).transpose(1, 2)
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

    def over(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attention over what the pattern chooses."""
        choice = self.pattern.blocks(query.detach(), key.detach(), self.block)
        kernel = self.kernel
        if kernel == "auto":
            kind = (query.shape, key.shape)
            if kind not in self._measured:
                self._measured[kind] = plan(query, key, value, choice, scaling).kernel
            kernel = self._measured[kind]
        return attention(query, key, value, choice, kernel, scaling)

    def check_reached(self, model: PreTrainedModel, args: tuple, output: object) -> None:
        """After a call of the model: raise ValueError where it attended by itself."""
        if not self.reached:
            raise unreachable(model)
        self.reached = False


@contextmanager
def sparse(model: PreTrainedModel, pattern: Pattern, block: int = 64, kernel: str = "auto") -> Iterator[None]:
    """Within it every attention of the model reads only the blocks of keys that `pattern` chooses."""
    if not isinstance(pattern, Pattern):
        raise TypeError(f"{pattern!r} is no sparsity pattern; give one of fm.sparsity, such as Streaming()")
    if isinstance(block, bool) or not isinstance(block, int) or block < 1:
        raise ValueError(f"block={block!r}; give a whole number of tokens, 1 or more")
    if kernel != "auto" and kernel not in KERNELS:
        raise ValueError(f"kernel={kernel!r}; give 'auto', {', '.join(map(repr, KERNELS))}")
    inside_finite = isinstance(model, PreTrainedModel) and model.config._attn_implementation == FINITE.name
    with attached(model, SPARSE):
        run = Run(model, pattern, block, kernel, inside_finite)
        watch = model.register_forward_hook(run.check_reached)
        _runs.append(run)
        try:
            yield
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
