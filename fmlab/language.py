"""A language model with its tokenizer: from text to token ids and back, and a prompt cut where its context ends."""

import codecs
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Int
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

CUT = "\ue000cut here\ue001"  # private-use characters, which no chat template writes by itself


@dataclass(frozen=True, eq=False, repr=False)
class LanguageModel:
    """A model with its tokenizer, ready to be read: in eval mode, no gradients.

    `source` says which weights these are: the original and a dequantised copy give different figures.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    source: str

    def ids(self, text: str | Iterable | Tensor) -> Int[Tensor, " tokens"]:
        """Token ids of a text, int64, on the model's device, without special tokens; ids are checked and passed on.

        Raises ValueError for an empty text, for ids that are not one row, and for ids beyond the vocabulary.
        """
        if isinstance(text, str):
            text = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        row = text if isinstance(text, Tensor) else list(text)
        try:
            ids = torch.as_tensor(row)
        except (TypeError, ValueError, RuntimeError) as reason:
            raise ValueError(f"{row!r:.60} is no row of token ids ({reason}); give a text or integers") from reason
        if ids.numel() == 0:
            raise ValueError("the text is empty; give at least one token")
        if ids.ndim != 1:
            raise ValueError(f"ids have shape {tuple(ids.shape)}, not (tokens,); give one sequence, such as ids[0]")
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise ValueError(f"ids are {ids.dtype}, not integers; give a text or token ids")
        vocabulary = self.model.get_input_embeddings().num_embeddings
        low, high = ids.min().item(), ids.max().item()
        if low < 0 or high >= vocabulary:
            raise ValueError(f"ids run from {low} to {high}, the vocabulary of {self.name} from 0 to {vocabulary - 1}")
        return ids.to(self.model.device, torch.int64)

    @property
    def ends(self) -> tuple[int, ...]:
        """The ids that end a text, by the model's generation settings; empty where it has none."""
        ends = self.model.generation_config.eos_token_id
        return () if ends is None else tuple(ends) if isinstance(ends, list) else (ends,)

    def pieces(self, ids: Iterable | Tensor) -> list[str]:
        """The text of every token, special tokens included; joined they are exactly the decoded text.

        A character whose bytes are spread over several tokens belongs to the last of them; the others have "". Bytes
        that are no character show as U+FFFD. Raises ValueError for a tokenizer whose tokens cannot be told apart.
        """
        ids = self.ids(ids).tolist()
        if "ByteLevel" in repr(getattr(self.tokenizer.backend_tokenizer, "decoder", None)):
            return _byte_pieces(self.tokenizer.convert_ids_to_tokens(ids))
        return list(_decoded_pieces(self.tokenizer, ids))

    def chat_ids(self, messages: Sequence[dict[str, str]]) -> Int[Tensor, " tokens"]:
        """Token ids of messages in the model's own chat template, up to where the assistant's answer begins.

        A message is a dict with `role` and `content`. Raises ValueError where there is no message or no template.
        """
        if not messages:
            raise ValueError("no messages; give at least one, such as {'role': 'user', 'content': 'Hello'}")
        if not self.tokenizer.chat_template:
            raise ValueError(f"{self.name} has no chat template; use a chat model, or ids(text)")
        return self.ids(self._rendered(messages))

    def prompt(self, context: str, question: str) -> tuple[Int[Tensor, " context"], Int[Tensor, " question"]]:
        """Token ids of a context and of the question after it, cut between the two.

        The user says the context, a blank line and the question, in the chat template if the tokenizer has one. The
        parts are tokenised apart, so that the context can be read before the question is known; together they decode
        to the whole. Raises ValueError where either is empty, and for a template that does not show the user's words.
        """
        if not context.strip() or not question.strip():
            raise ValueError(f"context and question must say something, got {context[:40]!r} and {question[:40]!r}")
        if not self.tokenizer.chat_template:
            return self.ids(context), self.ids(f"\n\n{question}\n")
        parts = self._rendered([{"role": "user", "content": f"{CUT}\n\n{question}"}]).split(CUT)
        if len(parts) != 2:
            raise ValueError(f"the chat template of {self.name} shows the user's words {len(parts) - 1} times")
        return self.ids(parts[0] + context), self.ids(parts[1])

    def next_turn(self, question: str) -> Int[Tensor, " question"]:
        """Token ids of the user's next question, from the end of the assistant's answer to where the next one begins.

        Raises ValueError for an empty question, and for a template that does not show the answer as it was given.
        """
        if not question.strip():
            raise ValueError(f"the question must say something, got {question[:40]!r}")
        if not self.tokenizer.chat_template:
            return self.ids(f"\n\n{question}\n")
        roles = ("user", "assistant", "user")
        turns = zip(roles, ("Hello.", CUT, question), strict=True)
        parts = self._rendered([{"role": role, "content": said} for role, said in turns]).split(CUT)
        if len(parts) != 2:
            raise ValueError(f"the chat template of {self.name} shows the answer {len(parts) - 1} times")
        return self.ids(parts[1])

    def _rendered(self, messages: Sequence[dict[str, str]]) -> str:
        return self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)

    def __repr__(self) -> str:
        millions = self.model.num_parameters() / 1e6
        dtype = str(self.model.dtype).removeprefix("torch.")
        return f"LanguageModel({self.name!r}, {self.source}, {millions:.3g}M parameters, {dtype}, {self.model.device})"


def ready(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, source: str) -> LanguageModel:
    """Make a LanguageModel of a transformers model of your own and its tokenizer."""
    if model.generation_config.pad_token_id is None and model.generation_config.eos_token_id is not None:
        ends = model.generation_config.eos_token_id  # one id or several; `generate` would warn and take the first
        model.generation_config.pad_token_id = ends[0] if isinstance(ends, list) else ends
    return LanguageModel(model.eval().requires_grad_(False), tokenizer, name, source)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bar that transformers draws over every load, however short."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@cache
def byte_of() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for (GPT-2's table).

    Printable Latin-1 characters stand for themselves; the other bytes, in order, have the characters from U+0100 on.
    """
    characters = sorted(ByteLevel.alphabet())
    own = {character: ord(character) for character in characters if ord(character) < 256}
    others = [byte for byte in range(256) if byte not in own.values()]
    return own | dict(zip(characters[len(own) :], others, strict=True))


def _byte_pieces(tokens: list[str]) -> list[str]:
    table = byte_of()
    utf8 = codecs.getincrementaldecoder("utf-8")("replace")
    pieces = []
    for token in tokens:
        known = all(character in table for character in token)  # an added token may hold others; it is its own text
        pieces.append(utf8.decode(bytes(table[c] for c in token) if known else token.encode()))
    pieces[-1] += utf8.decode(b"", final=True)
    return pieces


def _decoded_pieces(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> Iterator[str]:
    spelling = Spelling(tokenizer)
    said = [spelling.add(token) for token in ids]
    said[-1] += spelling.rest()
    if "".join(said) != spelling.decode(ids):
        raise ValueError(f"{type(tokenizer).__name__} does not decode token by token; its pieces cannot be shown")
    yield from said


class Spelling:
    """The text of tokens that come one by one, in whole characters, special tokens included: what each adds to the text
    of a short run of tokens before it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self._run: list[int] = []
        self._shown = 0  # of the run's tokens, those whose text has been given out

    def add(self, token: int) -> str:
        """What can be said with this token; "" while it ends in the middle of a character."""
        self._run.append(token)
        return "" if self.decode(self._run).endswith("\ufffd") else self.rest()

    def rest(self) -> str:
        """What has not been said yet, with U+FFFD for bytes that are no character."""
        said = self.decode(self._run)[len(self.decode(self._run[: self._shown])) :]
        self._run = self._run[self._shown :]
        self._shown = len(self._run)
        return said

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
