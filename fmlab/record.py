"""Record what every attention head was given while the full model reads a text."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .language import LanguageModel
from .needs import output_norms, output_projections
from .repeat import repeated_attention
from .rope import rope_of
from .trace import Trace
from .view import View
from .watch import watch


@torch.inference_mode(False)
@torch.no_grad()
def record(
    lm: LanguageModel,
    text: str | Sequence[int] | Tensor,
    layers: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float16,
    second_pass: bool = False,
    query_aware: bool = False,
) -> Trace:
    """Run the model once over a text or its ids and keep what every attention head was given.

    `layers` chooses which layers are kept (all), `dtype` in which precision. All layers of SmolLM2-135M in half
    precision take 58 kB a token. `second_pass` lets the model repeat the text as well, for policies that ask what it
    looks at meanwhile (KVzip); it takes some three times as long. `query_aware` says that
    the question is part of the text, as for `finite`; every replay and every table of replays then says so. Raises
    ValueError for an empty text or a layer that the model does not have.
    """
    ids = lm.ids(text)
    count = lm.model.config.get_text_config(decoder=True).num_hidden_layers
    chosen = list(range(count)) if layers is None else list(layers)
    if not chosen or len(set(chosen)) != len(chosen) or not set(chosen) <= set(range(count)):
        raise ValueError(f"layers={layers!r}; choose different layers from 0 to {count - 1}")
    projections = output_projections(lm.model)
    kept: dict[int, dict] = {}

    def look(layer: int, view: View) -> None:
        if layer not in chosen:
            return
        vectors = {name: getattr(view, name) for name in ("queries", "keys", "values")}
        kept[layer] = {name: tensor.to("cpu", dtype, copy=True) for name, tensor in vectors.items()} | {
            "output_norms": output_norms(view.values, projections[layer]).cpu() if layer in projections else None,
            "scaling": view.scaling,
            "softcap": view.softcap,
            "window": None if view.window is None else int(view.window[0]),
        }

    watch(lm.model, ids, look)
    rows = [kept[layer] for layer in chosen]
    if len({(row["scaling"], row["softcap"]) for row in rows}) > 1:
        raise ValueError("the chosen layers scale their attention differently; record them one by one")
    names = ("queries", "keys", "values", *(["output_norms"] if projections else []))
    rope = rope_of(lm.model)
    return Trace(
        ids=ids.cpu(),
        tokens=tuple(lm.pieces(ids)),
        layers=tuple(chosen),
        model=lm.name,
        scaling=rows[0]["scaling"],
        softcap=rows[0]["softcap"],
        windows=tuple(row["window"] for row in rows),
        depth=count,
        query_aware=query_aware,
        rope=None if rope is None else rope.to(torch.device("cpu")),
        repeated=repeated_attention(lm, ids)[chosen] if second_pass else None,
        **{name: torch.stack([row[name] for row in rows]) for name in names},
    )
