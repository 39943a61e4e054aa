"""Put our attention function into a transformers model, patching no class, and take it out again whatever happens."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor
from torch.nn import Module
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface


class Host(NamedTuple):
    """Who takes a model's attention over."""

    name: str
    """Under which transformers knows it."""
    call: str
    runs: str


FINITE = Host("fmlab", "finite", "a memory policy")
SPARSE = Host("fmlab_sparse", "sparse", "a sparsity pattern")
TAG = "fmlab_layer"  # the cache layer hangs itself on the key tensor it returns; the attention gets that very tensor
REFUSED = ("s_aux", "position_bias", "block_mask")  # arguments that change the attention and that we do not compute


@runtime_checkable
class AttendingLayer(Protocol):
    """A cache layer that computes the attention over what it holds."""

    def attend(self, query: Tensor, scaling: float, window: int | None, softcap: float | None) -> Tensor:
        """query (batch, query heads, new, d) -> (batch, new, query heads, d)."""
        ...


def tag(key: Tensor, layer: AttendingLayer) -> Tensor:
    """Mark the key tensor with the layer that will attend."""
    setattr(key, TAG, layer)
    return key


@contextmanager
def attached(model: PreTrainedModel, host: Host = FINITE) -> Iterator[None]:
    """Within it, every attention of the model goes to the host: for `finite`, to the cache layer that returned its keys.

    The attention that the model had is restored on exit, after an error or an interrupt too. Raises RuntimeError inside
    itself and for `finite` inside `sparse`, ValueError for a model whose attention cannot be reached.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"{type(model).__name__} is no transformers model; pass lm.model")
    configs = {id(part.config): part.config for part in model.modules() if isinstance(part, PreTrainedModel)}.values()
    before = [(config, config._attn_implementation) for config in configs]
    names = {name for _, name in before}
    if host.name in names:
        raise RuntimeError(
            f"this {type(model).__name__} already runs under `{host.call}`; leave that `with` first, or load a second model"
        )
    if SPARSE.name in names:
        raise RuntimeError(
            f"this {type(model).__name__} runs under `sparse`; leave that `with` first, or, for a policy that evicts "
            "after a sparse prefill, enter `finite` first: `with fm.finite(...) as cache, fm.sparse(...):`"
        )
    check_layer_types(model, host)
    try:
        model.set_attn_implementation(host.name)
        if model.config._attn_implementation != host.name:
            raise unreachable(model)
        yield
    finally:
        for config, name in before:
            config._attn_implementation = name


def unreachable(model: PreTrainedModel) -> ValueError:
    """What to raise where the model computes its attention by itself."""
    return ValueError(
        f"the attention of {type(model).__name__} cannot be reached: it does not call transformers' AttentionInterface; "
        "use a model class that does"
    )


def check_layer_types(model: PreTrainedModel, host: Host = FINITE) -> None:
    """Raise ValueError where a layer attends in another way than fully or in a sliding window."""
    types = getattr(model.config.get_text_config(decoder=True), "layer_types", None) or []
    if other := sorted(set(types) - {"full_attention", "sliding_attention"}):
        raise ValueError(
            f"{type(model).__name__} has layers of type {', '.join(other)}; {host.runs} needs full or sliding attention"
        )


def refuse(module: Module, host: Host, attention_mask: Tensor | None, dropout: float, given: dict) -> None:
    """Raise ValueError where an attention is called with what changes it in a way that the host does not compute."""
    if attention_mask is not None:
        raise ValueError(
            f"a ready-made attention mask of shape {tuple(attention_mask.shape)} cannot be combined with {host.runs}"
        )
    if names := [name for name in REFUSED if given.get(name) is not None]:
        raise ValueError(
            f"{type(module).__name__} attends with {', '.join(names)}, which `{host.call}` does not compute"
        )
    if dropout:
        raise ValueError(f"attention dropout is {dropout}; call model.eval() first")


def refuse_padding(attention_mask: Tensor | None) -> None:
    """Raise ValueError for a batch of unequal lengths."""
    if attention_mask is not None and not bool(attention_mask.all()):
        raise ValueError(
            f"the attention mask hides {int((~attention_mask.bool()).sum())} tokens: a batch of unequal lengths; "
            "run sequences of one length together, or one by one"
        )


def _attention(
    module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,  # the sixth, as in transformers' own: whoever wraps every attention hands it on by place
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    layer = getattr(key, TAG, None)
    if layer is None:
        raise RuntimeError(
            f"{type(module).__name__} was called inside `finite` without its cache; pass past_key_values=cache"
        )
    refuse(module, FINITE, attention_mask, dropout, kwargs)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return layer.attend(query, scaling, sliding_window, softcap), None


def _mask(*args, attention_mask: Tensor | None = None, **kwargs) -> None:
    """No mask is built beforehand; this is where the padding of a batch comes by."""
    refuse_padding(attention_mask)


AttentionInterface.register(FINITE.name, _attention)
AttentionMaskInterface.register(FINITE.name, _mask)
