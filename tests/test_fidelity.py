import pandas as pd
import pytest
import torch

import fmlab as fm
from fmlab.fidelity import fidelity
from fmlab.metrics import seen_mass
from fmlab.policies import H2O, KeyNorm, SinkWindow, SlidingWindow

IDS = torch.randperm(256, generator=torch.Generator().manual_seed(4))[:60]
CELLS = [(SinkWindow(), 8), (KeyNorm(), 8), (H2O(), 16), (SlidingWindow(), 12)]


@pytest.fixture(scope="module", params=[1, 7])
def rows(request):
    return request.param, fidelity(fm.tiny(), IDS, CELLS, first=30, chunk=request.param)


@torch.no_grad()
def test_the_live_side_is_the_live_run(rows):
    chunk, rows = rows
    lm = fm.tiny()
    trace, full = fm.record(lm, IDS, dtype=torch.float32), lm.model(IDS[None]).logits[0]
    assert not any(row["query_aware"] for row in rows)
    assert [(row["policy"], row["layer"]) for row in rows] == [(repr(p), n) for p, _ in CELLS for n in range(3)]
    for i, (policy, budget) in enumerate(CELLS):
        with fm.finite(lm.model, policy, budget) as cache:
            parts = [IDS[:30], *IDS[30:].split(chunk)]
            logits = torch.cat([lm.model(input_ids=part[None], past_key_values=cache).logits[0] for part in parts])
        mine = rows[3 * i : 3 * i + 3]
        expected = seen_mass(trace, cache.expiry)[..., 30:].mean((1, 2))
        torch.testing.assert_close(torch.tensor([row["live"] for row in mine]).double(), expected, atol=1e-3, rtol=0)
        nats = [-x.log_softmax(-1)[30:-1].gather(-1, IDS[31:, None]).mean() for x in (logits, full)]
        assert mine[0]["nll_delta"] == pytest.approx(float(nats[0] - nats[1]), abs=1e-3)
        assert {row["nll_delta"] for row in mine} == {mine[0]["nll_delta"]}


def test_what_does_not_look_is_foretold_exactly_and_layer_0_always(rows):
    _, rows = rows
    for row in rows:
        if row["layer"] == 0 or row["policy"].startswith(("Sink", "Sliding")):
            assert (row["live"], row["overlap"]) == (
                pytest.approx(row["replayed"], abs=1e-6),
                pytest.approx(1, abs=1e-6),
            )
        assert 0 < row["overlap"] <= 1
    assert any(row["overlap"] < 1 for row in rows)


def test_too_short_a_text():
    with pytest.raises(ValueError, match="60 tokens with a first call of 59; give at least 61"):
        fidelity(fm.tiny(), IDS, CELLS, first=59)


def table():
    """Three policies in two texts and two layers; the replay of the last is off by a tenth."""
    rows = []
    for seed in (0, 1):
        for at, policy in enumerate(("A()", "B()", "C()")):
            for layer in (0, 1):
                live = 0.5 + 0.1 * at + 0.01 * seed
                figures = {
                    "live": live,
                    "replayed": live - 0.3 * (at == 2),
                    "overlap": 1 - 0.1 * layer,
                    "nll_delta": -live,
                }
                label = {"policy": policy, "budget": 8, "query_aware": False, "seed": seed, "layer": layer}
                rows.append(label | figures)
    return pd.DataFrame(rows)


def test_how_far_replays_are_off():
    told = fm.tables.foretold(table()).set_index("policy")
    assert told.gap.round(6).tolist() == [0, 0, -0.3] and told.overlap.tolist() == [0.95] * 3
    assert (told.gap_low <= told.gap + 1e-9).all() and (told.texts == 2).all()


def test_how_replays_rank():
    (row,) = fm.tables.ranks_foretold(table()).to_dict("records")
    assert (row["recall"], row["nll"], row["policies"], row["texts"]) == (
        -0.5,
        -0.5,
        3,
        2,
    )  # C comes first, and not last
    right = table().assign(replayed=lambda rows: rows.live)
    assert fm.tables.ranks_foretold(right).recall.tolist() == [1] == fm.tables.ranks_foretold(right).nll.tolist()
    with pytest.raises(ValueError, match="2 policies have no ranking"):
        fm.tables.ranks_foretold(table().query("policy != 'A()'"))


def test_the_two_kinds_of_runs_are_never_mixed():
    asked = table().assign(query_aware=True)
    for made in (fm.tables.foretold, fm.tables.ranks_foretold):
        assert made(asked)["query_aware"].all() and not made(table())["query_aware"].any()
        with pytest.raises(ValueError, match="mixes query-aware and query-blind runs"):
            made(pd.concat([table(), asked]))


def test_figures():
    gaps, lines = fm.figures.replay_gap(table()), fm.figures.overlap_by_layer(table())
    (marks,) = gaps.data
    assert dict(zip(marks.y, marks.x, strict=True)) == pytest.approx({"A": 0, "B": 0, "C": -0.3})
    assert marks.y[-1] == "C" and marks.error_x.array[2] == pytest.approx(0, abs=1e-9)
    assert [list(trace.y) for trace in lines.data] == [[1, 0.9]] * 3 and list(lines.data[0].x) == [0, 1]
    many = pd.concat([table().assign(policy=f"P{i}(policy=Q(x=1), y={i})", overlap=1 - i / 10) for i in range(8)])
    drawn = fm.figures.overlap_by_layer(many).data
    assert [trace.name for trace in drawn if trace.showlegend] == [f"P{i}(Q)" for i in (3, 4, 5, 6, 7)]
    with pytest.raises(ValueError, match="no column 'overlap'"):
        fm.figures.overlap_by_layer(table().drop(columns="overlap"))
