"""A conversation as a language model reads it: in windows, each read once and kept as a KV cache to ask questions of."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from .. import texts
from ..core import BudgetError
from ..language import LanguageModel
from ..view import View
from ..watch import watch
from .span import Span


@dataclass(frozen=True, eq=False)
class Window:
    """Spans in a row that were read as one text, "role: text" a line, and what the model remembers of them."""

    context: str
    ids: Int[Tensor, " context"]
    places: tuple[tuple[int, int], ...]
    """The first token of each span's own text, and the one after its last."""
    cache: DynamicCache = field(repr=False)


@torch.inference_mode(False)
@torch.no_grad()
def read(lm: LanguageModel, spans: Sequence[Span]) -> Window:
    """Let the model read the spans as one text: 46 kB of cache a token with SmolLM2-135M in float32.

    Raises BudgetError where they and a question are longer than the model's context."""
    context, characters = written(spans)
    ids, asked = lm.prompt(context, "?")
    check_context(lm, len(ids) + len(asked), "messages and question")
    places = texts.spans(lm, ids, context, characters)
    cache = DynamicCache()  # without the config, so that a sliding window drops nothing
    lm.model(input_ids=ids[None], past_key_values=cache, logits_to_keep=1)
    return Window(context, ids, tuple((start, max(start, stop)) for start, stop in places), cache)


@torch.inference_mode(False)
@torch.no_grad()
def attention(lm: LanguageModel, window: Window, question: str) -> Float[Tensor, "layers context"]:
    """What the tokens of a question after the window, and of the marks around it, pay to each of its tokens: the mean
    over them and over the heads of each layer. Raises ValueError for a question that says nothing, and BudgetError where
    window and question are longer than the model's context."""
    asked = lm.prompt(window.context, question)[1]
    check_context(lm, len(window.ids) + len(asked), "messages and question")
    paid: dict[int, Tensor] = {}

    def look(layer: int, view: View) -> None:
        paid[layer] = view.attention(last=len(asked))[..., : len(window.ids)].mean((0, 1))

    watch(lm.model, asked, look, past=window.cache)
    return torch.stack([paid[layer] for layer in sorted(paid)])


def runs(spans: Sequence[Span], tokens: int) -> Iterator[list[Span]]:
    """The spans in runs of at most so many tokens, or of one span that has more."""
    run: list[Span] = []
    for span in spans:
        if run and sum(each.tokens for each in (*run, span)) > tokens:
            yield run
            run = []
        run.append(span)
    if run:
        yield run


def written(spans: Sequence[Span]) -> tuple[str, list[tuple[int, int]]]:
    """The spans as one text, and where the characters of each span's own text stand in it."""
    text, places = "", []
    for span in spans:
        text += f"{span.role}: "
        places.append((len(text), len(text) + len(span.text)))
        text += f"{span.text}\n"
    return text[:-1], places


def check_model(lm: object) -> None:
    """Raise TypeError for what is no model."""
    if not isinstance(lm, LanguageModel):
        raise TypeError(f"lm={lm!r:.60} is no LanguageModel; give a model that is loaded, such as fm.load()")


def context_of(lm: LanguageModel) -> int | None:
    """How many tokens the model was made to read at once; None where it does not say."""
    return getattr(lm.model.config.get_text_config(decoder=True), "max_position_embeddings", None)


def check_context(lm: LanguageModel, tokens: int, what: str) -> None:
    """Raise BudgetError where the model cannot read so many tokens at once."""
    context = context_of(lm)
    if context is not None and tokens > context:
        raise BudgetError(f"{what} are {tokens} tokens > the context of {context} tokens of {lm.name}")


@contextmanager
def mended(name: str, value: int, mend: str) -> Iterator[None]:
    """Where a context is too short, the error names what fills it, and the mend."""
    try:
        yield
    except BudgetError as reason:
        raise BudgetError(f"{name}={value}: {reason}; {mend}, or a model of a longer context") from reason
