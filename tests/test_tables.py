"""Data frames of replays: regret where the optimum is known, empty where it is not, and what a policy loses by token."""

import numpy as np
import pandas as pd
import pytest
import torch

import fmlab as fm
from fmlab import metrics, tables
from fmlab.policies import TOVA, SinkWindow
from fmlab.replays import Replays


@pytest.fixture(scope="module")
def replays():
    replays = Replays(fm.record(fm.tiny(), "A text to be forgotten, word by word by word.", layers=[0, 2]))
    replays.oracle(8)
    return replays


def test_a_row_a_head(replays):
    table = tables.by_head(replays, [TOVA(), SinkWindow()], [8])
    assert len(table) == 3 * 4 and table.policy.unique().tolist() == ["TOVA()", "SinkWindow(sinks=4)", "optimum"]
    mine = table[table.policy == "TOVA()"]
    assert mine.layer.tolist() == [0, 0, 2, 2] and mine["head"].tolist() == [0, 1, 0, 1]
    expiry = fm.replay(replays.trace, TOVA(), 8)
    assert np.array_equal(mine.regret, metrics.regret(replays.trace, expiry, 8).flatten().numpy())
    assert np.array_equal(mine.mass_recall, metrics.mass_recall(replays.trace, expiry).flatten().numpy())
    assert (table[table.policy == "optimum"].regret == 0).all() and "regret" not in table.attrs


def test_an_optimum_that_is_not_known_leaves_the_column_empty_and_says_so(replays):
    table = tables.by_head(replays, [TOVA()], [8, 11])
    assert table[table.budget == 11].regret.isna().all() and table[table.budget == 8].regret.notna().all()
    assert table[table.budget == 11].policy.unique().tolist() == ["TOVA()"]
    assert "call replays.oracle(budget, prefill)" in table.attrs["regret"]
    summary = tables.by_budget(table)
    assert summary[summary.budget == 11][["regret", "regret_p90", "regret_worst"]].isna().all(axis=None)
    assert "replays.oracle" in summary.attrs["regret"]
    assert not replays.has_oracle(11)  # no table computes one


def test_a_row_a_budget(replays):
    heads = tables.by_head(replays, [TOVA()], [8])
    row = tables.by_budget(heads).iloc[0]
    mine = heads[heads.policy == "TOVA()"]
    assert row.regret == pytest.approx(mine.regret.mean()) and row.heads == 4
    assert row.regret_low <= row.regret <= row.regret_high
    assert row.regret_p90 == pytest.approx(np.quantile(mine.regret, 0.9))
    worst = mine.loc[mine.regret.idxmax()]
    assert row.regret_worst == worst.regret and row.worst_head == f"{worst.layer}.{worst['head']}"


def test_what_is_lost_and_gained_makes_the_regret(replays):
    table = tables.lost(replays, SinkWindow(), 8)
    tokens = len(replays.trace)
    assert len(table) == 4 * tokens and (table.lost >= 0).all() and (table.gained >= 0).all()
    assert table.token.tolist()[:tokens] == list(replays.trace.tokens)
    sums = table.groupby(["layer", "head"])[["lost", "gained"]].sum()
    assert (sums.lost - sums.gained).to_numpy() == pytest.approx(
        replays.regret(SinkWindow(), 8).flatten().numpy(), abs=1e-6
    )
    mine, best = replays.expiry(SinkWindow(), 8)[1, 0], replays.oracle(8)[1, 0]
    head = table[(table.layer == 2) & (table["head"] == 0)]
    assert (head.lost.to_numpy() > 0).tolist() == (best.clamp(max=tokens) > mine.clamp(max=tokens)).tolist()
    with pytest.raises(ValueError, match=r"the optimum at budget 11 is not known; call replays.oracle\(11, 1\) first"):
        tables.lost(replays, TOVA(), 11)


def test_whether_the_question_was_known_is_in_every_table_and_never_mixed(tmp_path, replays):
    class Asking(TOVA):
        listed = False

        def score(self, view, stats):
            seen.append(view.query_aware)
            return super().score(view, stats)

    seen = []
    trace = fm.record(fm.tiny(), "A text, and a question?", layers=[0], query_aware=True)
    asked = Replays(fm.Trace.load(trace.save(tmp_path / "asked.safetensors")))
    asked.oracle(8)
    heads, blind = tables.by_head(asked, [Asking()], [8]), tables.by_head(replays, [TOVA()], [8])
    assert seen and all(seen) and heads["query_aware"].all() and not blind["query_aware"].any()
    assert tables.by_budget(heads)["query_aware"].all() and tables.lost(asked, TOVA(), 8)["query_aware"].all()
    with pytest.raises(ValueError, match="mixes query-aware and query-blind runs"):
        tables.by_budget(pd.concat([heads, blind]))


def test_an_empty_grid_is_refused(replays):
    with pytest.raises(ValueError, match="give at least one of each"):
        tables.by_head(replays, [], [8])


def test_attention_between_two_expiries(replays):
    trace = replays.trace
    start = torch.randint(0, len(trace), (2, 2, len(trace)), generator=torch.Generator().manual_seed(0))
    stop = start + 5
    weights = trace.view().rows(0, len(trace)).mean(1)
    at = torch.arange(len(trace))[None, :, None]
    there = (at >= start.flatten(0, 1)[:, None]) & (at < stop.flatten(0, 1)[:, None])
    expected = (weights * there).sum(1).view(start.shape) / len(trace)
    assert torch.allclose(metrics.paid_between(trace, start, stop), expected.double(), atol=1e-6)
