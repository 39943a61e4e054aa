"""The second pass of KVzip: what a model looks at in a text while it repeats it."""

import torch
from jaxtyping import Float
from torch import Tensor

from .language import LanguageModel
from .view import View
from .watch import watch

REQUEST = "\n\nRepeat the text above, word by word:\n\n"
CHUNK = 2_048  # tokens repeated at a time, as in the paper


def repeated_attention(lm: LanguageModel, ids: Tensor, chunk: int = CHUNK) -> Float[Tensor, "layers kv_heads tokens"]:
    """The most attention that each token of a text receives from any query, in any query head of its KV head, while the
    model repeats the text (KVzip, arXiv:2505.23416, equation 2).

    The text is repeated in pieces of `chunk` tokens, each after the whole text and the request. The queries are those of
    the piece itself, not of the request.
    """
    tokens, request = len(ids), lm.ids(REQUEST)
    most: dict[int, Tensor] = {}

    def look(layer: int, view: View) -> None:
        best = torch.zeros(len(view.layer), tokens, device=view.positions.device)
        for start, stop in view.blocks(tokens + len(request)):
            best = torch.maximum(best, view.rows(start, stop)[..., :tokens].amax((1, 2)))
        most[layer] = torch.maximum(most[layer], best) if layer in most else best

    for piece in ids.split(chunk):
        watch(lm.model, torch.cat([ids, request, piece]), look)
    return torch.stack([most[layer].cpu() for layer in sorted(most)])
