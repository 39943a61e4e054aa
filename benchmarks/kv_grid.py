"""Every policy at every budget on the real model: what is still answered and how well, for how many bytes, filled how.

Writes data/kv_grid.csv.gz, a row a text, mode and cell. Modes: `forks`, one prefill and all cells evicted from it;
`post-fill`, the context as one call under `finite`; `in-fill`, the context in chunks with an eviction after each, so
that the peak is bounded too. All query-blind. An interrupted run goes on where it stopped.

Each question is read together with the beginning of its answer and the answer itself, as one call from a copy of what
was kept: `answer_nll` are the nats a token of the answer, `answered` the share of facts of which every token was the
most likely one, so that greedy decoding would have said it. `tail_nll` is of the text's next tokens, the same for all.
"""

import json
import re
from pathlib import Path

import pandas as pd
import torch
from paired import arguments, machine

import fmlab as fm
from fmlab.core import living_policies
from fmlab.figures import FULL
from fmlab.intervals import bootstrap
from fmlab.metrics import footprint
from fmlab.needs import LIVE
from fmlab.passage import passage
from fmlab.policies import H2O, TOVA, Ada, KeyNorm, KVZip, Pyramid, SinkWindow, SlidingWindow, SnapKV

ROOT = Path(__file__).resolve().parents[1]
FACTS, SCORED, CHUNK = 6, 32, 64
BUDGETS = (32, 64, 128, 256)
FILLED = [(policy, budget) for policy in (SinkWindow(), H2O(), TOVA(), SnapKV(), KeyNorm()) for budget in (64, 128)]
SHARED = [(SnapKV(), Ada(128)), (SnapKV(), Pyramid(128)), (SnapKV(), Pyramid(128, beta=3)), (TOVA(), Pyramid(128))]


def policies() -> list[fm.Policy]:
    """Those of the library that a prefill can serve, with their defaults."""
    kinds = living_policies(LIVE | {"second_pass"})
    return [kind() for kind in kinds if kind.__module__.startswith("fmlab.policies.")]


class Exam:
    """What is asked of every memory of one text: its facts, and its next tokens."""

    def __init__(self, lm: fm.LanguageModel, seed: int, tokens: int):
        self.read = passage(lm, tokens=tokens, scored=SCORED, facts=FACTS, seed=seed)
        self.parts = [(self.read.tail_ids[:1], self.read.tail_ids[1:])]
        for planted in self.read.planted:
            fact = planted.fact
            opening, asked = (
                fact.sentence.split(f" {fact.answer}")[0],
                lm.prompt(self.read.sample.context, fact.question)[1],
            )
            self.parts.append((torch.cat([asked, lm.ids(opening)]), lm.ids(f" {fact.answer}")))

    def take(self, logits) -> list[dict]:
        """A dict of figures for each memory; `logits(ids)` (memories, n, vocabulary) lets all of them read."""
        losses, right = [], []
        for before, said in self.parts:
            after = logits(torch.cat([before, said])[:-1])[:, len(before) - 1 :].float().log_softmax(-1)
            losses.append(-after.gather(-1, said.expand(len(after), -1)[..., None])[..., 0].mean(-1))
            right.append((after.argmax(-1) == said).all(-1).double())
        figures = {
            "tail_nll": losses[0],
            "answer_nll": torch.stack(losses[1:]).mean(0),
            "answered": torch.stack(right[1:]).mean(0),
        }
        return [{name: float(column[i]) for name, column in figures.items()} for i in range(len(losses[0]))]


def held(cache, **label) -> dict:
    """What a memory takes after the context."""
    sizes = {"nbytes": cache.nbytes, "nominal_nbytes": cache.nominal_nbytes}
    return label | sizes | {"footprint": float(footprint(cache.expiry).mean())}


def allowed(pre, cells: list, bits: int | None) -> tuple[list, list]:
    """The cells that can be forked, and those that cannot with the reason; each is tried where one is refused."""
    try:
        pre.fork(cells, bits)
        return cells, []
    except fm.BudgetError as error:
        if len(cells) == 1:
            return [], [(cells[0], str(error))]
    each = [allowed(pre, [cell], bits) for cell in cells]
    return [cell for able, _ in each for cell in able], [reason for _, why in each for reason in why]


def forked(lm: fm.LanguageModel, seed: int, tokens: int) -> list[dict]:
    """One prefill, all cells; those that are refused have the reason in `refused` and no figures."""
    exam = Exam(lm, seed, tokens)
    pre = fm.prefill(lm, exam.read.context_ids)
    plain, small = policies(), [(SnapKV(), 128), (KVZip(), 128), (SlidingWindow(), tokens)]
    grids = [
        (None, [(SlidingWindow(), tokens)]),
        *[(None, [(policy, budget) for policy in plain]) for budget in BUDGETS],
    ]
    rows = []
    for bits, cells in [*grids, (None, SHARED), (8, small), (4, small)]:
        able, why = allowed(pre, cells, bits)
        rows += [label(*each, tokens, bits) | {"refused": reason} for each, reason in why]
        forks = pre.fork(able, bits)
        for i, figures in enumerate(exam.take(forks.logits)):
            rows.append(held(forks[i], **label(*able[i], tokens, bits)) | figures)
    return rows


def filled(lm: fm.LanguageModel, seed: int, tokens: int, chunk: int | None) -> list[dict]:
    """The context read under a policy from its first token on, in one call or in chunks; peak bytes are of that."""
    exam, rows = Exam(lm, seed, tokens), []
    ids = exam.read.context_ids
    for policy, budget in [(SlidingWindow(), tokens), *FILLED]:
        with torch.no_grad(), fm.finite(lm.model, policy, budget) as memory:
            for part in ids.split(chunk or len(ids)):
                lm.model(input_ids=part[None], past_key_values=memory, logits_to_keep=1)
            row = held(memory, **label(policy, budget, tokens, None), peak_nbytes=memory.peak_nbytes)
            (figures,) = exam.take(lambda ids: lm.model(input_ids=ids[None], past_key_values=memory.copy()).logits)  # noqa: B023
        rows.append(row | figures)
    return rows


def label(policy: fm.Policy, budget, tokens: int, bits: int | None) -> dict:
    """What tells a cell from the others; the full cache has no budget."""
    if budget == tokens:
        return {"policy": FULL, "budget": None, "allocation": None, "bits": bits}
    shared = isinstance(budget, fm.Allocation)
    return {
        "policy": repr(policy),
        "budget": budget.budget if shared else budget,
        "allocation": repr(budget) if shared else None,
        "bits": bits,
    }


def cell(mode, seed, tokens, tiny):
    """One text in one mode: its rows, as JSON."""
    lm = fm.tiny() if tiny else fm.load()
    chunk = CHUNK if mode == "in-fill" else None
    rows = forked(lm, seed, tokens) if mode == "forks" else filled(lm, seed, tokens, chunk)
    return {"query_aware": False, "chunk": chunk, "rows": json.dumps(rows)}


def long(wide: pd.DataFrame) -> pd.DataFrame:
    """One row a cell, with what the tail costs more than with the full cache of the same text and mode."""
    tables = []
    for _, about in wide.iterrows():
        rows = pd.DataFrame(json.loads(about["rows"]))
        full = rows[(rows.policy == FULL) & rows.bits.isna()].iloc[0]
        rows["nll_delta"] = rows.tail_nll - full.tail_nll
        named = about.drop(["rows", "tiny", "seconds", "started"]).to_dict()
        tables.append(rows.assign(**{name: [value] * len(rows) for name, value in named.items()}))
    return pd.concat(tables, ignore_index=True)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """One row a mode and cell: means over the texts, with their 95% intervals."""
    keys = ["mode", "policy", "budget", "allocation", "bits", "query_aware"]
    lines = []
    for names, rows in table.dropna(subset=["answered"]).groupby(keys, dropna=False, sort=False):
        means = {name: bootstrap(rows[name], rows.seed) for name in ("answered", "answer_nll", "nll_delta")}
        sizes = {
            "MB": rows.nbytes.mean() / 1e6,
            "peak_MB": rows.peak_nbytes.mean() / 1e6,
            "footprint": rows.footprint.mean(),
        }
        spoken = {name: f"{mean.mean:.2f} [{mean.low:.2f}, {mean.high:.2f}]" for name, mean in means.items()}
        lines.append(dict(zip(keys, names, strict=True)) | {"n": len(rows)} | spoken | sizes)
    return pd.DataFrame(lines).round(3)


def main() -> None:
    toy = arguments(__doc__).toy
    tokens, seeds = (900, range(1)) if toy else (512, range(6))
    out = None if toy else ROOT / "runs" / "kv_grid.sqlite"
    modes = ["forks", "post-fill", "in-fill"]
    table = long(fm.sweep(cell, out, jobs=1 if toy else 2, seed=seeds, mode=modes, tokens=tokens, tiny=toy))
    if not toy:
        table.to_csv(ROOT / "data" / "kv_grid.csv.gz", index=False, float_format="%.6g")
    print(f"# {len(seeds)} texts of {tokens} tokens, {FACTS} facts each, query-blind\n# {machine()}")
    print(summary(table).to_string(index=False))
    for reason in sorted({re.sub(r"\s+", " ", why) for why in table.get("refused", pd.Series()).dropna()}):
        print(f"refused: {reason}")


if __name__ == "__main__":
    main()
