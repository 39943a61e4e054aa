"""A comparison: its rows agree with the parts of the lab that measure the same in another way, and it resumes."""

import json

import pytest
import torch

import fmlab as fm
from fmlab import compare as module
from fmlab.compare import FIGURES, FULL, compare, nll_delta
from fmlab.passage import default_budgets, passage, read_text

P = fm.policies
BUDGETS = [24, 64]


@pytest.fixture(scope="module")
def tiny():
    return fm.tiny()


@pytest.fixture(scope="module")
def read(tiny):
    return passage(tiny, tokens=420, scored=56)


@pytest.fixture(scope="module")
def cells(tiny, read):
    return list(compare(tiny, read, [P.H2O(), P.SnapKV(), P.Random()], BUDGETS))


def of(cells, policy, budget):
    return next(cell for cell in cells if cell.row["policy"] == policy and cell.row["budget"] == budget)


def all_ids(read):
    return torch.cat([read.context_ids, read.tail_ids])


# the rows


def test_the_rows_stand_in_the_order_given(cells):
    labels = ["H2O(recent=0.5)", "SnapKV(window=32, kernel=5)", "Random(seed=0)"]
    wanted = [(FULL, None), *((label, budget) for label in labels for budget in BUDGETS)]
    assert [(cell.row["policy"], cell.row["budget"]) for cell in cells] == wanted
    assert all(list(cell.row) == list(cells[0].row) for cell in cells)


def test_the_full_cache_is_the_measure(cells, read, tiny):
    row = cells[0].row
    assert (row["early"], row["middle"], row["late"], row["facts_present"]) == (1, 1, 1, 1)
    assert row["mass_recall"] == row["mass_recall_p10"] == 1
    assert (row["nll_delta"], row["nll_delta_low"], row["nll_delta_high"], row["n"]) == (0, 0, 0, 56)
    assert row["nbytes"] == 3 * 2 * len(read.read) * 8 * 2 * 4
    stock = fm.tasks.nll(tiny, all_ids(read), prefill=len(read.context_ids))
    assert row["nll"] == pytest.approx(float(stock.losses.mean()), abs=1e-5)


@pytest.mark.parametrize("policy", [P.H2O(), P.Random()], ids=repr)
@pytest.mark.parametrize("budget", BUDGETS)
def test_nll_and_expiry_are_those_of_the_task(tiny, read, cells, policy, budget):
    row, expiry, layers = of(cells, repr(policy), budget)
    ids, prefill = all_ids(read), len(read.context_ids)
    run = fm.tasks.nll(tiny, ids, policy, budget, prefill=prefill)
    assert layers == (0, 1, 2) and torch.equal(expiry, run.expiry)
    delta = run.delta(fm.tasks.nll(tiny, ids, prefill=prefill))
    assert row["n"] == len(delta) == read.scored
    assert row["nll_delta"] == pytest.approx(float(delta.mean()), abs=1e-5)
    assert row["nll_delta_low"] < row["nll_delta"] < row["nll_delta_high"] and row["clusters"] == 7


def test_mass_recall_is_that_of_the_tail(tiny, read, cells):
    trace = fm.record(tiny, all_ids(read)[:-1])
    for cell in cells:
        if cell.expiry is not None:
            seen = fm.metrics.seen_mass(trace, cell.expiry)[..., len(read.context_ids) :]
            assert cell.row["mass_recall"] == pytest.approx(float(seen.mean()), abs=1e-6)
            assert cell.row["mass_recall_p10"] == pytest.approx(float(seen.flatten().quantile(0.1)), abs=1e-6)


def test_answers_and_presence_are_those_of_the_task(tiny, read, cells):
    row = of(cells, "H2O(recent=0.5)", 64).row
    answers = fm.tasks.answer(tiny, read.sample, P.H2O(), 64, max_new_tokens=module.ANSWER_TOKENS)
    assert [fact["said"] for fact in row["fact_results"]] == [answer.reply.text for answer in answers]
    held = [float(answer.present.mean()) for answer in answers]
    assert [fact["present"] for fact in row["fact_results"]] == pytest.approx(held)
    assert row["facts_present"] == pytest.approx(sum(held) / 3)
    assert (row["questions"], row["query_aware"]) == (3, False)
    assert row["answered"] == sum(answer.answered for answer in answers)
    thirds = [float(third.mean()) for third in fm.metrics.thirds(answers[0].reply.expiry)]
    assert [row["early"], row["middle"], row["late"]] == pytest.approx(thirds)


def test_bytes_are_those_of_the_slots(cells):
    row = of(cells, "Random(seed=0)", 24).row
    assert row["nbytes"] == (24 + 1) * 3 * 2 * 8 * 2 * 4
    assert row["peak_nbytes"] > row["nbytes"] + row["overhead_nbytes"] > row["nbytes"]
    assert row["decode_milliseconds"] > 0 and row["prefill_seconds"] > 0


def test_a_refused_cell_says_why_and_has_no_figures(cells):
    row, expiry, _ = of(cells, "SnapKV(window=32, kernel=5)", 24)
    assert "budget 24 < 32 pinned entries" in row["refused"] and expiry is None
    assert [row[name] for name in FIGURES] == [None] * len(FIGURES)


def test_every_row_says_where_it_comes_from(cells, read):
    for cell in cells:
        row = cell.row
        assert row["model_source"] == "random weights, seed 0" and row["dtype"] == "float32" and row["seed"] == 0
        assert row["text_sha256"] == read.sha256 and row["context_tokens"] == len(read.context_ids)
        assert {"commit", "dirty", "versions", "device", "seconds", "started"} <= row.keys()
        assert json.loads(json.dumps(row, allow_nan=False)) == row


def test_a_context_in_chunks_is_evicted_from_after_each(tiny, read):
    _, chunked = compare(tiny, read, [P.SinkWindow()], [40], chunk=100)
    _, whole = compare(tiny, read, [P.SinkWindow()], [40])
    assert chunked.row["chunk"] == 100 and chunked.row["peak_nbytes"] < whole.row["peak_nbytes"]
    assert int(chunked.expiry[..., 10].max()) == 100 and int(whole.expiry[..., 10].max()) == len(read.context_ids)


def test_budgets_beyond_the_context_count_only_what_was_forgotten(tiny, read):
    context, read_tokens = len(read.context_ids), len(read.read)
    _, late, never = compare(tiny, read, [P.SlidingWindow()], [context + 20, read_tokens + 1])
    assert late.row["n"] == read.scored - 21 and late.row["nll_delta"] is not None
    assert (never.row["n"], never.row["nll_delta"], never.row["mass_recall"]) == (0, None, 1)
    assert never.row["nll"] == pytest.approx(of([late, never], "SlidingWindow()", read_tokens + 1).row["nll"])


def test_no_interval_from_a_few_runs():
    differences = [0.1, 0.2, 0.3] * 13
    few = nll_delta(differences, [0.0] * 39, 100, 10)
    assert few["clusters"] == 5 and few["nll_delta"] == pytest.approx(0.2) and few["nll_delta_low"] is None
    enough = nll_delta([*differences, 0.4, 0.4], [0.0] * 41, 100, 10)
    assert enough["clusters"] == 6 and enough["nll_delta_low"] < 0.2 < enough["nll_delta_high"]


def test_a_long_recording_keeps_every_other_layer(tiny, read, cells, monkeypatch):
    monkeypatch.setattr(module, "TRACE_NBYTES", 2 * len(read.read) * (6 + 2 * 2) * 8 * 2)
    _, cell = compare(tiny, read, [P.H2O()], [64])
    trace = fm.record(tiny, all_ids(read)[:-1], layers=[0, 2])
    seen = fm.metrics.seen_mass(trace, cell.expiry[[0, 2]])[..., len(read.context_ids) :]
    assert cell.row["recall_layers"] == 2
    assert cell.row["mass_recall"] == pytest.approx(float(seen.mean()), abs=1e-6)
    assert cell.row["mass_recall"] != of(cells, "H2O(recent=0.5)", 64).row["mass_recall"]


def test_finished_rows_are_not_run_again(tiny, read, tmp_path):
    calls = []
    watch = tiny.model.register_forward_hook(lambda *_: calls.append(1))
    store = tmp_path / "rows.sqlite"
    run = compare(tiny, read, [P.TOVA(), P.KeyNorm()], [24], rows=store)
    first = [next(run), next(run)]
    run.close()
    assert calls
    calls.clear()
    again = compare(tiny, read, [P.TOVA(), P.KeyNorm()], [24], rows=store)
    assert [next(again).row for _ in first] == [cell.row for cell in first] and not calls
    assert next(again).row["policy"] == "KeyNorm()" and calls
    watch.remove()


def test_another_text_is_another_row(tiny, tmp_path):
    store = tmp_path / "rows.sqlite"
    texts = [passage(tiny, letter * 300, tokens=100, scored=50) for letter in "ab"]
    a, b = (list(compare(tiny, text, [P.TOVA()], [24], rows=store))[1].row for text in texts)
    assert a["text_sha256"] != b["text_sha256"] and a["nll"] != b["nll"]


@pytest.mark.parametrize(
    ("policies", "budgets", "chunk", "said"),
    [
        ([P.TOVA()], [0], None, "budget 0 < 1"),
        ([P.TOVA()], [24, 24], None, "budget 24 is given twice"),
        ([P.SinkWindow(), P.SinkWindow(sinks=4)], [24], None, r"policy SinkWindow\(sinks=4\) is given twice"),
        ([], [24], None, "no policy"),
        ([P.TOVA()], [], None, "no budget"),
        ([P.TOVA()], [24], 0, "chunk=0"),
    ],
)
def test_what_cannot_be_compared(tiny, read, policies, budgets, chunk, said):
    with pytest.raises(ValueError, match=said):
        next(compare(tiny, read, policies, budgets, chunk))


# the passage


def test_a_text_of_ones_own_is_left_as_it_is(tiny):
    text = "Line one.\n\n  <script>alert('🦊')</script>\tNaïve & so on.\n" * 20
    read = passage(tiny, text, "mine", tokens=300, scored=40)
    assert text.startswith("".join(read.pieces)) and not read.planted
    assert (len(read.context_ids), len(read.tail_ids), len(read.read), read.scored) == (300, 41, 340, 40)


def test_facts_in_a_text_of_ones_own(tiny):
    words = " ".join(f"Word{i} goes on." for i in range(300))
    read = passage(tiny, words, "mine", tokens=900, scored=30, facts=6)
    context = read.sample.context
    for planted in read.planted:
        assert planted.fact.sentence in "".join(read.pieces[planted.start : planted.stop])
        context = context.replace(planted.fact.sentence, "")
    used = len(context.split())
    assert "".join(read.pieces).startswith(read.sample.context) and 100 < used < 300
    assert " ".join(words.split()[used:]).startswith("".join(read.pieces[len(read.context_ids) :]).lstrip())
    assert [planted.third for planted in read.planted] == ["early"] * 2 + ["middle"] * 2 + ["late"] * 2


def test_the_built_in_text_is_the_same_each_time(tiny):
    first, second = (passage(tiny, tokens=300, scored=20) for _ in range(2))
    assert first.sha256 == second.sha256 != passage(tiny, tokens=300, scored=20, seed=1).sha256
    assert len(first.planted) == 3 and first.pieces == second.pieces


def test_a_short_text_is_used_whole(tiny):
    read = passage(tiny, "x" * 200, scored=50)
    assert len(read.context_ids) == 149 and default_budgets(read) == [18, 37, 74]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"text": "short"}, "a text has 5 tokens, too few for 16 of context and 96"),
        ({"text": "x" * 200, "tokens": 150}, "has 200 tokens, too few for a context of 150 and 96 .* at most 103"),
        ({"text": "x" * 200, "scored": 0}, "scored=0"),
        ({"tokens": -1}, "tokens=-1"),
        ({"facts": 5}, "5 facts; give 3, 6, 9 or 12"),
        ({"tokens": 20}, "20 tokens cannot hold 3 facts"),
        ({"text": "", "scored": 1}, "empty"),
    ],
)
def test_texts_that_do_not_fit(tiny, asked, said):
    with pytest.raises(ValueError, match=said):
        passage(tiny, **asked)


def test_ten_thousand_tokens(tiny):
    text = "It is a long way from here to there, and nobody knows who went first. " * 160
    read = passage(tiny, text, tokens=10_000, scored=56)
    full, cell = compare(tiny, read, [P.SnapKV()], [128])
    assert len(read.read) == 10_056 and cell.row["n"] == 56
    assert cell.row["nbytes"] * 70 < full.row["nbytes"]


# files


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n\t", "is empty"),
        (b"caf\xe9", "byte 0xe9 at offset 3 .*UTF-8"),
        (b"\xff\xfeh\x00", "byte 0xff at offset 0"),
    ],
)
def test_files_that_are_no_text(tmp_path, content, said):
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_text(tmp_path / "x.txt")


def test_files_that_are_not_there(tmp_path):
    for place in (tmp_path / "no.txt", tmp_path):
        with pytest.raises(FileNotFoundError, match="is no file"):
            read_text(place)


def test_line_ends_and_byte_order_marks(tmp_path):
    (tmp_path / "x.txt").write_bytes("\ufeffa\r\nb 🦊".encode())
    assert read_text(tmp_path / "x.txt") == "a\nb 🦊"


# the real model


@pytest.mark.real
def test_the_real_model(lm):
    read = passage(lm, tokens=256, scored=48)
    full, small, large = compare(lm, read, [P.SinkWindow()], [32, 128])
    assert full.row["answered"] >= 2, full.row["fact_results"]
    assert small.row["nll_delta"] > 0 and small.row["answered"] < full.row["answered"]
    assert small.row["mass_recall"] < large.row["mass_recall"] < 1
    assert small.row["nbytes"] == (32 + 1) * 30 * 3 * 64 * 2 * 4
    assert small.layers == (0, 10, 19, 29)
