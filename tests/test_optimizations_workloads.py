"""The catalogue of pairs, the claims, and the whole pieces of work: every setting of their switches does the same."""

import ast
import functools
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
import torch

import fmlab as fm
from fmlab.optimizations import chat, claims, grid, real
from fmlab.optimizations.portions import amdahl, portions
from fmlab.optimizations.whole import ablate, label, settings
from fmlab.policies import H2O, SnapKV
from fmlab.view import View

ALL = fm.optimizations.ALL


@pytest.fixture
def tiny(monkeypatch):
    lm = fm.tiny()
    monkeypatch.setattr(real, "lm", lambda: lm)
    monkeypatch.setattr(real, "_prose", functools.cache(real._prose.__wrapped__))
    monkeypatch.setattr(real, "encoder", lambda: fm.conversation.TokenEmbeddings(lm))
    monkeypatch.setattr(chat, "BUDGET", 900)  # bytes are this model's tokens
    return lm


def test_every_pair_has_a_name_a_source_a_floor_and_three_sizes():
    assert len({pair.name for pair in ALL}) == len(ALL) >= 20
    for pair in ALL:
        assert pair.source and len(set(pair.sizes)) >= 3, pair.name
        assert pair.floor is not None and pair.floor(pair.sizes[0]).unit in ("bytes", "operations"), pair.name


@pytest.mark.parametrize("pair", [pair for pair in ALL if pair.used_in], ids=lambda pair: pair.name)
def test_what_is_said_to_be_used_exists(pair):
    parts = pair.used_in.split(".")
    at = fm
    for place, name in enumerate(parts[1:], 2):
        at = getattr(at, name, None) or import_module(".".join(parts[:place]))
    assert callable(at)
    package = Path(fm.__file__).parent
    used = {
        getattr(node, "attr", getattr(node, "id", None))
        for path in package.rglob("*.py")
        if "optimizations" not in path.parts
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Name | ast.Attribute)
    }
    assert parts[-1] in used, f"nothing outside the pairs uses {pair.used_in}; say offered_as"


def test_the_claims_are_the_reports():
    of = {claim.what: claim for claim in claims.CLAIMS}
    assert len(of) == len(claims.CLAIMS) == 10 and sum(len(claim.pairs) == 1 for claim in claims.CLAIMS) == 8
    assert of["KV carry-over, elsewhere"].speedup == (51, 51) and of["KV carry-over, later"].speedup == (3, 10)
    assert of["phase 1 together"].speedup == (1.15, 1.35) and len(of["phase 1 together"].pairs) == 3
    assert of["both phases together"].speedup == (1.45, 1.95) and len(of["both phases together"].pairs) == 6
    known = {pair.name for pair in ALL}
    assert all(set(claim.pairs) <= known & set(chat.chat(1).switches) for claim in claims.CLAIMS)


def test_a_claim_is_judged_by_the_whole_with_just_its_pairs_on():
    three = claims.CLAIMS[6]
    one = claims.CLAIMS[0]
    table = pd.DataFrame(
        [
            {"workload": "chat", "on": label(frozenset(three.pairs)), "speedup": 1.2, "low": 1.18, "high": 1.22, "n": 40},
            {"workload": "chat", "on": label(frozenset(one.pairs)), "speedup": 1.001, "low": 0.99, "high": 1.01, "n": 40},
            {"workload": "chat", "on": "", "speedup": 1.0, "low": 1.0, "high": 1.0, "n": 40},
        ]
    )  # fmt: skip
    said = claims.of_the_whole(table).set_index("claim")
    assert said["verdict"].to_dict() == {one.what: "no difference", "phase 1 together": "confirmed"}


def test_a_chat_says_the_same_whatever_is_on(tiny):
    work = chat.chat(3)
    table = ablate(work, [frozenset(), *map(frozenset, ([name] for name in work.switches)), frozenset(work.switches)])
    assert table["step"].max() == 2 and table["on"].nunique() == len(work.switches) + 2


@pytest.mark.parametrize("work", [lambda: chat.chat(3), lambda: grid.grid(2, 160)])
def test_every_piece_of_a_whole_is_clocked(tiny, work):
    table = portions(work())
    pieces = table[table["step"] == 1].set_index("optimisation")["piece_seconds"]
    assert (pieces > 0).all() and pieces.sum() <= table[table["step"] == 1]["seconds"].iloc[0]
    assert amdahl(table)["portion"].sum() <= 1


def test_the_switches_of_a_chat_do_what_they_say(tiny, monkeypatch):
    read = []
    forward = tiny.model.forward
    monkeypatch.setattr(
        tiny.model, "forward", lambda *a, **k: (read.append(k["input_ids"].shape[1]), forward(*a, **k))[1]
    )
    counts = {}
    for name in ("KV carry-over", "token decoding: LRU cache"):
        read.clear()
        list(chat._turns(chat.messages(3), frozenset([name])))
        counts[name] = sum(read)
    assert counts["KV carry-over"] < 0.8 * counts["token decoding: LRU cache"]


def test_more_turns_than_the_dialogues_have_are_refused():
    with pytest.raises(ValueError, match="turns=10000; the dialogues have"):
        chat.chat(10_000)


def test_a_grid_gives_the_same_whatever_is_on(tiny, monkeypatch):
    monkeypatch.setattr(grid, "CELLS", grid.CELLS[:4])
    work = grid.grid(1, 160)
    table = ablate(work, settings(work.switches))
    assert table["on"].nunique() == 3 + 2 * len(work.switches)


def test_each_switch_of_a_grid_is_alone_in_what_it_computes(tiny, monkeypatch):
    """Weights of all queries by one, keys and values that nobody asks for by the other."""
    attention, score, weighed, seen = View.attention, SnapKV.score, [], []
    monkeypatch.setattr(View, "attention", lambda view, last: (weighed.append(last), attention(view, last))[1])
    monkeypatch.setattr(
        SnapKV, "score", lambda self, view, stats: (seen.append(view.asked), score(self, view, stats))[1]
    )
    lazy, windowed = "lazy evaluation: only what a policy asks", "windowed attention"
    found = {}
    for on in ([], [lazy], [windowed], [lazy, windowed]):
        weighed.clear(), seen.clear()
        fm.prefill(tiny, real.text_ids(80, 0)).fork([(grid._shown(SnapKV(window=8), frozenset(on)), 40)])
        found[tuple(on)] = max(weighed), "values" in seen[0]
    assert found == {(): (80, True), (lazy,): (80, False), (windowed,): (8, True), (lazy, windowed): (8, False)}
    assert grid._shown(H2O(), frozenset([lazy])) == H2O()


def test_the_switches_of_a_grid_do_what_they_say(tiny, monkeypatch):
    calls, rows = [], []
    base = tiny.model.base_model
    forward = base.forward
    monkeypatch.setattr(
        base, "forward", lambda *a, **k: (calls.append(tuple(k["input_ids"].shape)), forward(*a, **k))[1]
    )
    counts = {}
    for on in (frozenset(), frozenset(["shared prefill"]), frozenset(["batched forks"])):
        calls.clear()
        rows.append(next(grid._texts(1, 160, on))["log_probability"])
        counts[on] = sum(shape == (1, 160) for shape in calls), max(shape[0] for shape in calls)
    cells = len(grid.CELLS)
    assert counts[frozenset()] == (cells, 1)
    assert counts[frozenset(["shared prefill"])] == (1, 1)
    assert counts[frozenset(["batched forks"])] == (cells, cells)
    assert torch.allclose(rows[0], rows[1], atol=1e-3) and torch.allclose(rows[0], rows[2], atol=1e-3)
