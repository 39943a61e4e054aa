"""Request traces of our own making: many chats of several turns at once, that share a few system prompts."""

from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Any

import numpy as np

from .requests import BLOCK


@dataclass(frozen=True)
class ChatTraffic:
    """How made-up chats behave; `requests` draws them.

    A chat begins with one of `system_prompts` system prompts, chosen with probability 1 / rank, of about
    `system_tokens` each. Each turn adds a question (a log-normal length of median `question_tokens`; one in
    `pasted_every` instead brings a document of about `document_tokens`) and resends all that was said, the answers (of
    median `answer_tokens`) with it. After an answer the chat goes on with probability 1 - 1 / `turns`, after a pause of
    `pause_seconds` on average; new chats come every `arrival_seconds` on average, both exponential. A chat whose prompt
    would exceed `context_tokens` ends. The numbers are chosen, not fitted to anybody's traffic.
    """

    chats: int = 1_000
    turns: float = 4.0
    system_prompts: int = 8
    system_tokens: int = 1_500
    question_tokens: int = 60
    pasted_every: int = 8
    document_tokens: int = 6_000
    answer_tokens: int = 300
    arrival_seconds: float = 0.5
    pause_seconds: float = 60.0
    context_tokens: int = 128_000

    def __post_init__(self):
        for name, value in vars(self).items():
            if value < 1 and not (name.endswith("_seconds") and value > 0):
                raise ValueError(f"{name}={value}; give {'more than 0' if name.endswith('_seconds') else '1 or more'}")

    def requests(self, seed: int = 0, block: int = BLOCK) -> tuple[dict[str, Any], ...]:
        """The requests in order of their time, as `simulate` takes them and in the fields of Mooncake's traces.

        `timestamp` in ms, `input_length` and `output_length` in tokens, `hash_ids` of prefix blocks of `block` tokens;
        the same seed gives the same chats whatever the block size. A last block that is filled partly has an id of its
        own, since it is another block once it is full.
        """
        if block < 1:
            raise ValueError(f"block={block}; give 1 token or more")
        chance = np.random.default_rng(seed)

        def length(median: int) -> int:
            return max(1, round(median * chance.lognormal(0, 0.8)))

        prompts = [length(self.system_tokens) for _ in range(self.system_prompts)]
        popularity = 1 / np.arange(1, self.system_prompts + 1)
        drawn = chance.choice(self.system_prompts, self.chats, p=popularity / popularity.sum())
        arrivals = np.cumsum(chance.exponential(self.arrival_seconds, self.chats))
        waiting = [(float(at), chat, 0, prompts[drawn[chat]]) for chat, at in enumerate(arrivals)]
        heapify(waiting)
        number: dict[tuple, int] = {}
        made = []
        while waiting:
            at, chat, turn, said = heappop(waiting)
            tokens = said + length(
                self.document_tokens if chance.random() < 1 / self.pasted_every else self.question_tokens
            )
            answer, goes_on = length(self.answer_tokens), chance.random() < 1 - 1 / self.turns
            pause = float(chance.exponential(self.pause_seconds))
            if tokens > self.context_tokens:
                continue
            system = int(drawn[chat])
            shared, full = prompts[system] // block, tokens // block
            names = [("system", system, k) if k < shared else ("chat", chat, k) for k in range(full)]
            names += [("part", chat, turn)] if tokens % block else []
            made.append(
                {
                    "timestamp": round(at * 1000),
                    "input_length": tokens,
                    "output_length": answer,
                    "hash_ids": [number.setdefault(name, len(number)) for name in names],
                }
            )
            if goes_on:
                heappush(waiting, (at + pause, chat, turn + 1, tokens + answer))
        return tuple(made)
