"""A hosted model in a chat: any server that speaks OpenAI's chat completions, with bounds on every wait."""

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from json import JSONDecodeError
from threading import Timer
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from transformers import PreTrainedTokenizerBase

from .span import Span, said
from .state import Cost
from .template import half_character


class HostedError(OSError):
    """A server did not answer, or not to the end. Says which, why, and how much had come."""


@dataclass(frozen=True)
class Hosted:
    """A model behind an OpenAI-compatible endpoint, as the `lm` of a ChatSession; greedy unless `extra` says otherwise.

    `tokenizer` is the model's own: with it budgets are counted, and a prompt costs what it says as far as the server
    uses the same chat template. Of what the server reports, `stats` tell the prompt's tokens (`kept`), the cached ones
    (`reused`) and the answer's (`said`); `reused` and `prefilled` are None where it does not report cached tokens.

    A request is repeated `retries` times where no answer has begun (no connection, 408, 409, 429, 5xx), after growing
    pauses of seconds, or as long as the server asks up to a minute. `timeout` bounds each silence and `limit` an answer
    as a whole, in seconds. An answer that breaks off is never taken up again: it raises HostedError. `extra` are further
    fields of the request body; None leaves one of ours out, as {"temperature": None} for models that refuse it.
    """

    model: str
    base_url: str
    api_key: str = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    timeout: float | int = field(default=60.0, kw_only=True)
    limit: float | int = field(default=600.0, kw_only=True)
    retries: int = field(default=2, kw_only=True)
    extra: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        _openai()
        for name in ("timeout", "limit"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)!r:.40}; give seconds, more than 0 and not endless")
        if isinstance(self.retries, bool) or not isinstance(self.retries, int) or self.retries < 0:
            raise ValueError(f"retries={self.retries!r:.40}; give a number of repetitions, 0 or more")
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"base_url={self.base_url!r:.80}; give an address such as https://host/v1")
        if "@" in parts.netloc or parts.query:  # not shown: it may be secret, and the address is in figures and files
            raise ValueError(f"base_url= of {parts.hostname} holds a name or a query; give what is secret as api_key")

    @property
    def name(self) -> str:
        """The name of the model."""
        return self.model

    @property
    def source(self) -> str:
        """Where it is hosted."""
        return self.base_url

    def answer(self, selected: Sequence[Span], ids: list[int], max_new_tokens: int) -> Generator[str, None, Cost]:
        """The pieces of the answer to a prompt as the server sends them, and at the end what it reports of the cost.

        Raises HostedError where the server refuses, cannot be reached, is silent too long, breaks off, or ends its answer
        without a text.
        """
        openai = _openai()
        body = {
            "model": self.model,
            "messages": said(selected, self.tokenizer),
            "max_tokens": max_new_tokens,
            "temperature": 0.0,
            "stream_options": {"include_usage": True},
            **self.extra,
        }
        body = {name: value for name, value in body.items() if value is not None}
        answer, start = _Answer(), time.monotonic()
        try:
            yield from self._read(openai, body, answer)
        except openai.OpenAIError as reason:
            raise self._failed(answer, start, reason) from reason
        except JSONDecodeError as reason:
            raise self._failed(answer, start, f"what it sent is no JSON ({reason})") from reason
        except (UnicodeDecodeError, _Malformed) as reason:
            raise self._failed(answer, start, f"what it sent cannot be read ({reason})") from reason
        if answer.finish is None:
            raise self._failed(answer, start, "the connection ended before the answer")
        if not answer.characters:
            raise self._failed(answer, start, f"its answer has no text (finish_reason {answer.finish!r:.40})")
        return answer.cost(len(ids))

    def _read(self, openai: ModuleType, body: dict[str, Any], answer: "_Answer") -> Iterator[str]:
        settings = {"base_url": self.base_url, "timeout": self.timeout, "max_retries": self.retries}
        with (
            openai.OpenAI(api_key=self.api_key, **settings) as client,
            client.chat.completions.create(stream=True, **body) as stream,
        ):
            # A server that sends nothing but signs of life is not silent, nor seen by a loop over pieces: it is cut off.
            timer = Timer(self.limit, stream.response.close)
            timer.daemon = True
            timer.start()
            try:
                yield from answer.read(stream)
            finally:
                timer.cancel()

    def _failed(self, answer: "_Answer", start: float, why: object) -> HostedError:
        if time.monotonic() - start >= self.limit:
            why = f"not done within {self.limit:g} s"
        elif isinstance(why, _openai().APITimeoutError):
            why = f"silent for {self.timeout:g} s"
        elif body := getattr(why, "body", None):
            why = f"{why} ({body})" if str(body) not in str(why) else why
        came = f"{answer.characters} characters in {answer.chunks} pieces" if answer.chunks else "nothing"
        return HostedError(
            f"{self.model} at {self.source}: {why}; {came} of the answer had come, and nothing is kept of it: "
            "send the message again"
        )


class _Malformed(ValueError):
    """JSON of a shape that no answer has."""


class _Answer:
    """What has come of an answer."""

    def __init__(self) -> None:
        self.chunks = self.characters = 0
        self.finish: Any = None
        self.usage: Any = None

    def read(self, stream: Any) -> Iterator[str]:
        for chunk in stream:  # openai checks no types: what a server leaves out is None or not there
            self.usage = getattr(chunk, "usage", None) or self.usage
            choices = getattr(chunk, "choices", None) or []
            if not isinstance(choices, list):
                raise _Malformed(f"choices: {choices!r:.40}")
            for choice in choices:
                if text := getattr(getattr(choice, "delta", None), "content", None):
                    if not isinstance(text, str) or half_character(text) is not None:
                        raise _Malformed(f"content: {text!r:.40}")
                    self.chunks += 1
                    self.characters += len(text)
                    yield text
                if (reason := getattr(choice, "finish_reason", None)) is not None:
                    self.finish = reason

    def cost(self, counted: int) -> Cost:
        """What the server says it took; what it leaves out, or what cannot be, is not known."""
        reported = _count(self.usage, "prompt_tokens")
        prompt = counted if reported is None else reported
        reused = _count(getattr(self.usage, "prompt_tokens_details", None), "cached_tokens")
        if reused is not None and reused > prompt:
            reused = None
        prefilled = None if reused is None else prompt - reused
        return Cost(prompt, prefilled, reused, said=_count(self.usage, "completion_tokens"))


def _count(usage: Any, name: str) -> int | None:
    value = getattr(usage, name, None)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _openai() -> ModuleType:
    try:
        import openai
    except ImportError as error:
        raise ImportError('a hosted model needs openai; install it with: pip install "fmlab[hosted]"') from error
    return openai
