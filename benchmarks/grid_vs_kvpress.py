"""A grid of 8 policies, 6 budgets and 5 needles: fmlab, kvpress, and the least that stock parts could take.

Each system in its natural use. fmlab reads a text once (`fm.prefill`), forks 48 memories from it and lets them answer as
one batch. kvpress's pipeline reads the text anew for every cell and answers it alone. The floor is stock transformers: the
text is read once, its full cache repeated 48 times, and all rows answer as one batch, for as many steps as fmlab took.
Texts are read in turn by all three, in random order, on one machine and in one call; a ratio is a mean over texts with its
interval. `agree` is the share of cells in which fmlab and kvpress say the same: they keep the same of the text
(benchmarks/peers.py), but fmlab holds its budget while it answers and kvpress lets the memory grow. `lent`, with --check,
is the share in which kvpress's own decoder says the same from the memory that fmlab forked, for the first text.

`python benchmarks/grid_vs_kvpress.py [--needles 1] [--policies KeyNorm,TOVA] [--check]
[--no-kvpress]` goes on in runs/peers-venv,
which it makes where kvpress is not installed. With --toy nothing is installed, and kvpress is left out where it is missing.
"""

import random
import sys
from dataclasses import dataclass
from time import perf_counter

import beside
import pandas as pd
import torch
from paired import machine, options, seconds
from peers import make
from transformers import DynamicCache

import fmlab as fm
from fmlab.intervals import bootstrap
from fmlab.policies import CUR, TOVA, KeyDiff, KeyNorm, LagKV, ObservedAttention, SinkWindow, SnapKV

PAIRS = [
    (KeyNorm(), "KnormPress", {}),
    (KeyDiff(), "KeyDiffPress", {}),
    (SnapKV(window=32), "SnapKVPress", {"window_size": 32}),
    (TOVA(), "TOVAPress", {}),
    (ObservedAttention(), "ObservedAttentionPress", {}),
    (LagKV(lag=16), "LagKVPress", {"lag_size": 16}),
    (CUR(), "CURPress", {}),
    (SinkWindow(), "StreamingLLMPress", {}),
]
BUDGETS = (64, 96, 128, 192, 256, 512)


@dataclass
class Needle:
    """A text with a fact in it, and what each system said of it in each cell."""

    sample: fm.tasks.Sample
    question: torch.Tensor
    said: dict[str, list[str]]
    forks: object = None  # of fmlab's last run

    @property
    def asked(self) -> str:
        return self.sample.planted[0].fact.question

    @property
    def answer(self) -> str:
        return self.sample.planted[0].fact.answer


@torch.no_grad()
def ours(lm: fm.LanguageModel, needle: Needle, cells: list, new: int) -> dict[str, float]:
    """Seconds of each part; what is said goes to the needle."""
    start = perf_counter()
    pre = fm.prefill(lm, needle.sample.context_ids)
    read = perf_counter()
    forks = pre.fork([(policy, budget) for policy, _, _, budget in cells])
    forked, needle.forks = perf_counter(), forks
    said = forks.generate(needle.question, new)
    answered = perf_counter()
    needle.said["fmlab"] = [lm.tokenizer.decode(row, skip_special_tokens=True).strip() for row in said]
    whole = {"seconds": answered - start, "read": read - start, "fork": forked - read, "answer": answered - forked}
    return whole | {"steps": steps(lm, said)}


@torch.no_grad()
def floor(lm: fm.LanguageModel, needle: Needle, cells: list, new: int) -> dict:
    """Stock transformers, and nothing evicted: `new` tokens for each of the cells, with the seconds after each."""
    start = perf_counter()
    cache = DynamicCache()
    lm.model(needle.sample.context_ids[None], past_key_values=cache, logits_to_keep=1)
    read = perf_counter()
    cache.batch_repeat_interleave(len(cells))
    forked = perf_counter()
    ids, marks = needle.question.expand(len(cells), -1), []
    for _ in range(new):
        ids = lm.model(ids, past_key_values=cache, logits_to_keep=1).logits[:, -1].argmax(-1)[:, None]
        marks.append(perf_counter() - forked)
    return {"read": read - start, "fork": forked - read, "marks": marks}


def theirs(lm: fm.LanguageModel, needle: Needle, cells: list, new: int) -> dict[str, float]:
    """kvpress's pipeline, cell by cell; ObservedAttentionPress needs eager attention."""
    import kvpress  # noqa: F401  (it registers the pipeline)
    from transformers import pipeline

    pipe = pipeline("kv-press-text-generation", model=lm.model, tokenizer=lm.tokenizer)
    question, said, tokens = f"\n\n{needle.asked}", [], len(needle.sample.context_ids)
    given = pipe.preprocess(needle.sample.context, [question], "", tokens + 1)
    assert torch.equal(given["context_ids"][0], needle.sample.context_ids), "the two read different texts"
    assert torch.equal(given["questions_ids"][0][0], needle.question), "the two are asked differently"
    took, before = 0.0, lm.model.config._attn_implementation
    for _, name, settings, budget in cells:
        press = make(
            name, max(0.0, 1 - (budget + 0.5) / tokens), **settings
        )  # half an entry, so that it rounds down to it
        lm.model.set_attn_implementation("eager" if name == "ObservedAttentionPress" else before)

        def answer(press=press):
            reply = pipe(needle.sample.context, question=question, press=press, max_new_tokens=new)
            said.append(reply["answer"].strip())

        took += seconds(answer)
    lm.model.set_attn_implementation(before)
    needle.said["kvpress"] = said
    return {"seconds": took}


@torch.no_grad()
def lent(lm: fm.LanguageModel, needle: Needle, new: int) -> list[str]:
    """What kvpress's decoder says from each memory that fmlab forked, letting it grow as kvpress does."""
    import kvpress  # noqa: F401
    from transformers import pipeline

    pipe, said = pipeline("kv-press-text-generation", model=lm.model, tokenizer=lm.tokenizer), []
    for cell in range(len(needle.forks)):
        cache = DynamicCache()
        for number, layer in enumerate(needle.forks[cell].layers):
            slots = layer.slots
            cache.update(slots.data["keys"][None, :, : slots.held], slots.data["values"][None, :, : slots.held], number)
        said.append(pipe.generate_answer(needle.question[None], cache, len(needle.sample.context_ids), new).strip())
    return said


def steps(lm: fm.LanguageModel, said: torch.Tensor) -> int:
    """How many tokens the longest answer has, its end included."""
    ends = torch.isin(said, torch.tensor(lm.ends, dtype=said.dtype))
    return int(torch.where(ends.any(1), ends.int().argmax(1) + 1, said.shape[1]).max())


def agreement(needles: list[Needle], cells: list) -> pd.DataFrame:
    """A row a policy: how often each system's answer is right, and how often they say the same."""
    rows = []
    for needle in needles:
        kvpress = needle.said.get("kvpress")
        for n, cell in enumerate(cells):
            row = {f"{system}_right": needle.answer in said[n] for system, said in needle.said.items()}
            for name, system in {"agree": "fmlab", "lent": "lent"}.items() if kvpress else ():
                row |= {name: needle.said[system][n] == kvpress[n]} if system in needle.said else {}
            rows.append({name: float(value) for name, value in row.items()} | {"policy": repr(cell[0])})
    return pd.DataFrame(rows).groupby("policy", sort=False).mean().round(3)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--needles", type=int, default=5, help="texts (5)")
    parser.add_argument("--policies", default="", help="names, with commas between them (all 8)")
    parser.add_argument("--check", action="store_true", help="fmlab's memories answered by kvpress's decoder, one text")
    parser.add_argument("--no-kvpress", action="store_true", help="fmlab and the floor alone")
    given = parser.parse_args()
    if not given.toy and not given.no_kvpress:
        beside.go_on_inside()
    lm = fm.tiny() if given.toy else fm.load()
    tokens, new, count = (1400, 4, 1) if given.toy else (1024, 24, given.needles)
    names = given.policies.split(",") if given.policies else []
    chosen = [pair for pair in PAIRS if not names or type(pair[0]).__name__ in names]
    if len(chosen) < len(set(names)):
        parser.error(f"--policies {given.policies}: there are {', '.join(type(pair[0]).__name__ for pair in PAIRS)}")
    cells = [(*pair, budget) for pair in chosen for budget in BUDGETS]
    systems = {"fmlab": ours, "floor": floor}
    if beside.there() and not (given.no_kvpress or given.toy):
        systems["kvpress"] = theirs
    else:
        print("# without kvpress, which is not installed here or not wanted: its rows are left out")

    needles, rows, order = [], [], random.Random(0)
    for seed in range(count):
        sample = fm.tasks.needle(lm, tokens, depth=(seed + 0.5) / count, seed=seed)
        needle = Needle(sample, lm.prompt(sample.context, sample.planted[0].fact.question)[1], {})
        if seed == 0:
            ours(lm, needle, cells[:: len(BUDGETS)], new)  # warm up
        took = {}
        for name in order.sample(list(systems), len(systems)):
            took[name] = systems[name](lm, needle, cells, new)
            print(f"# text {seed}, {name}: done", file=sys.stderr, flush=True)
        stock = took["floor"]
        stock["answer"] = stock.pop("marks")[took["fmlab"]["steps"] - 1]  # as many steps as fmlab's longest answer
        stock["seconds"] = stock["read"] + stock["fork"] + stock["answer"]
        about = {"text": seed, "tokens": len(sample.context_ids), "cells": len(cells)}
        rows += [{**about, "system": name, **took[name]} for name in systems]
        if given.check and seed == 0 and "kvpress" in systems:
            needle.said["lent"] = lent(lm, needle, new)
        needle.forks = None
        needles.append(needle)
    table = pd.DataFrame(rows)
    print(f"# {lm!r}, at most {new} new tokens\n# {machine()}")
    print(table.round(2).to_string(index=False, na_rep=""))
    wide = table.pivot(index="text", columns="system", values="seconds")
    for over, under in [("fmlab", "floor"), ("kvpress", "fmlab"), ("kvpress", "floor")]:
        if over in wide and under in wide:
            mean = bootstrap((wide[over] / wide[under]).tolist())
            print(f"{over} / {under}: {mean.mean:.2f} [{mean.low:.2f}, {mean.high:.2f}] over {len(wide)} texts")
    print(agreement(needles, cells).to_string())


if __name__ == "__main__":
    main()
