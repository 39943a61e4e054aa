"""Caches of real work against doing it again: time to the first token with and without the prefix cache, and the texts of
tokens and the embeddings of a chat with and without theirs, each beside its hit ratio and its floor.

The chat: a system prompt of 400 tokens, and a question after it in each prompt.
"""

from collections.abc import Callable
from functools import partial
from itertools import cycle

import torch
from paired import arguments, ratio, show
from transformers import DynamicCache

import fmlab as fm
from fmlab.caches import EmbeddingCache, PrefixCache, TokenDecodeCache
from fmlab.texts import paragraphs

PROSE = "\n\n".join(paragraphs())
QUESTIONS = (
    "What does the assert statement do?",
    "How do I open a file and read it line by line?",
    "Which exceptions can an assignment raise?",
    "Can I delete an attribute of an object while I look at it?",
    "What is the difference between a list and a tuple, in one sentence?",
    "My loop never ends; which statement leaves it early?",
)


def prompts(lm: fm.LanguageModel, tokens: int) -> list[torch.Tensor]:
    """Token ids of the chat: the same `tokens` tokens first, then a question."""
    system = lm.ids(PROSE[: 8 * tokens])[:tokens]
    return [torch.cat([system, lm.ids(f"\n\nQuestion: {question}\nAnswer:")]) for question in QUESTIONS]


def first_token(lm: fm.LanguageModel, ids: torch.Tensor, cache: DynamicCache) -> int:
    """Read what the cache does not hold yet, and say the next token."""
    rest = ids[None, cache.get_seq_length() :]
    return lm.model(input_ids=rest, past_key_values=cache, logits_to_keep=1).logits[0, -1].argmax().item()


def prefix(lm: fm.LanguageModel, tokens: int, rounds: int) -> list[dict]:
    chat, store, about = prompts(lm, tokens), PrefixCache(), {"prompt_tokens": tokens}
    whole = DynamicCache()
    first_token(lm, chat[0], whole)
    store.insert(chat[0][:tokens], whole)  # the system prompt alone: rounds repeat the questions, a chat does not
    for ids in chat:  # the same answers, or no figures
        assert first_token(lm, ids, store.lookup(ids)) == first_token(lm, ids, DynamicCache())
    hit_ratio = store.hit_ratio  # of each prompt once
    turn = cycle(chat)
    now = [next(turn)]

    def without():
        first_token(lm, now[0], DynamicCache())

    def reused():
        first_token(lm, now[0], store.lookup(now[0]))

    def go_on():
        now[0] = next(turn)

    row = ratio(without, reused, rounds, warm_up=2, between=go_on)
    copied = store.lookup(chat[0]).copied_nbytes
    block = torch.zeros(copied, dtype=torch.uint8)
    floor = ratio(block.clone, lambda: store.lookup(chat[0]), max(rounds, 10))
    insert = ratio(without, lambda: PrefixCache().insert(chat[0], whole), max(rounds // 4, 2), warm_up=1)
    control = ratio(without, without, max(rounds // 3, 2), warm_up=1, between=go_on)

    def served(cache: Callable[[torch.Tensor], DynamicCache], keep: Callable[[torch.Tensor, DynamicCache], object]):
        for ids in chat:
            held = cache(ids)
            first_token(lm, ids, held)
            keep(ids, held)

    cold = PrefixCache()

    def all_with():
        cold.clear()
        served(cold.lookup, cold.insert)

    every = ratio(lambda: served(lambda _: DynamicCache(), lambda *_: None), all_with, max(rounds // 6, 2), warm_up=1)
    megabytes = {"copied_MB": round(copied / 1e6, 2)}
    return [
        {"what": "first token, system prompt cached", "hit_ratio": round(hit_ratio, 3), **megabytes, **about, **row},
        {
            "what": f"{len(chat)} prompts from an empty cache, inserts too",
            "hit_ratio": round(cold.hit_ratio, 3),
            **every,
        },
        {"what": "control: first token without, twice", **about, **control},
        {"what": "lookup alone / copying its bytes once", **megabytes, **floor},
        {"what": "insert alone / first token without", **insert},
    ]


def decode(lm: fm.LanguageModel, tokens: int, rounds: int) -> list[dict]:
    ids = lm.ids(PROSE[: 8 * tokens])[:tokens]
    warm = TokenDecodeCache(lm.tokenizer)

    def one_by_one():
        return [lm.tokenizer.decode([id], clean_up_tokenization_spaces=False) for id in ids.tolist()]

    def cold():
        cache = TokenDecodeCache(lm.tokenizer)
        return cache.decode(ids), cache.hit_ratio

    assert warm.decode(ids) == one_by_one() == cold()[0]
    rows = []
    for name, baseline in (("tokenizer.decode of each token", one_by_one), ("lm.pieces", lambda: lm.pieces(ids))):
        for state, candidate, hits in (("cold", cold, cold()[1]), ("warm", lambda: warm.decode(ids), 1.0)):
            row = ratio(baseline, candidate, rounds)
            rows.append({"baseline": name, "cache": state, "tokens": tokens, "hit_ratio": round(hits, 3), **row})
    return rows


class Hidden:
    """Embeds a text by the mean of the model's last hidden states."""

    def __init__(self, lm: fm.LanguageModel) -> None:
        self.lm = lm

    def encode(self, texts: list[str]) -> torch.Tensor:
        read = self.lm.model.get_decoder()
        return torch.stack([read(input_ids=self.lm.ids(text)[None]).last_hidden_state[0].mean(0) for text in texts])


class Table:
    """Embeds a text by the mean of its tokens' rows in the model's embedding table."""

    def __init__(self, lm: fm.LanguageModel) -> None:
        self.lm = lm

    def encode(self, texts: list[str]) -> torch.Tensor:
        rows = self.lm.model.get_input_embeddings()
        return torch.stack([rows(self.lm.ids(text)).mean(0) for text in texts])


def embedding(lm: fm.LanguageModel, turns: int, rounds: int) -> list[dict]:
    """A chat in which all turns so far are embedded at every turn, as a memory that selects by meaning does."""
    said = [f"{question} This is turn {turn}." for turn, question in zip(range(turns), cycle(QUESTIONS), strict=False)]

    def talk(encode: Callable[[list[str]], object]):
        for turn in range(turns):
            encode(said[: turn + 1])

    rows = []
    for encoder in (Hidden(lm), Table(lm)):

        def cold(encoder=encoder):
            cache = EmbeddingCache(encoder)
            talk(cache.encode)
            return cache

        row = ratio(partial(talk, encoder.encode), cold, rounds, warm_up=1)
        about = {"encoder": type(encoder).__name__, "turns": turns, "hit_ratio": round(cold().hit_ratio, 3)}
        rows.append({**about, **row})
    return rows


@torch.no_grad()
def main() -> None:
    toy = arguments(__doc__).toy
    lm = fm.tiny() if toy else fm.load()
    show(
        prefix(lm, *((64, 2) if toy else (400, 18))), "prefix cache, candidate / baseline (below 1 the cache is faster)"
    )
    show(decode(lm, *((64, 2) if toy else (4_000, 20))), "texts of single tokens, cache / baseline")
    show(embedding(lm, *((4, 2) if toy else (6, 5))), "embedding the turns of a chat, cache / encoder")


if __name__ == "__main__":
    main()
