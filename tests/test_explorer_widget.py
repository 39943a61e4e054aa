"""The Explorer without a browser: what it shows and sends, its worker, its errors, what is taken away from it."""

import ast
import json
import threading
import time
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from test_widgets import CELL, NEWEST, OLDEST, decoded, defined

import fmlab as fm
from fmlab import metrics
from fmlab.replays import Replays
from fmlab.widgets import studio
from fmlab.widgets.about import ready
from fmlab.widgets.ask import answer
from fmlab.widgets.choice import Choice
from fmlab.widgets.controls import key_of
from fmlab.widgets.table import COLUMNS, UNKNOWN, recall_in_steps
from fmlab.widgets.worker import Cancelled, Ticket

TEXT = "The kettle, the keys and <script>alert(1)</script> a 🦭 in the pool."


@pytest.fixture(scope="module")
def tiny():
    return fm.tiny()


@pytest.fixture(scope="module")
def trace(tiny):
    return fm.record(tiny, TEXT, layers=[0, 2])


@pytest.fixture
def explore(trace):
    opened = []

    def open_one(*args, **options):
        opened.append(fm.explore(*(args or (trace,)), **options))
        return opened[-1].wait()

    yield open_one
    for each in opened:
        each.close()


# the Explorer


def test_it_opens_on_the_shipped_text_in_under_a_second():
    fm.explore(None).close()  # the imports are made once
    start = time.perf_counter()
    shown = fm.explore()
    seconds = time.perf_counter() - start
    try:
        assert shown.frame["runs"] and shown.status["state"] == "ready"
        assert seconds < 1
        assert shown.lm is None
        assert "".join(shown.tokens).startswith("The night shift at the tide station")
        assert shown.about["question"] == "What is the code of the cold store?"
    finally:
        shown.close()


def test_it_shows_what_a_replay_gives(explore, trace):
    shown = explore().show(fm.policies.TOVA(), against=fm.policies.SinkWindow(), budget=10, layer=2, prefill=4).wait()
    for policy, expiry, (label, rows) in zip(
        (fm.policies.TOVA(), fm.policies.SinkWindow()),
        shown.expiries,
        decoded(shown.frame["runs"], shown.data),
        strict=True,
    ):
        expected = fm.replay(trace, policy, 10, prefill=4)
        assert torch.equal(expiry, expected)
        assert label == f"{policy!r}, budget 10"
        assert np.array_equal(rows, expected[1])
    assert shown.choice == Choice(fm.policies.TOVA(), 10, fm.policies.SinkWindow(), layer=2, prefill=4)
    assert repr(shown) == f"Explorer(TOVA(), SinkWindow(sinks=4), budget=10, {len(trace)} tokens of tiny llama)"


def test_its_figures_are_those_of_metrics(explore, trace):
    shown = explore().show(fm.policies.H2O(), budget=16).wait()
    frame = shown.to_dataframe()
    expiry = fm.replay(trace, fm.policies.H2O(), 16)
    assert len(frame) == 4 and frame.policy.unique().tolist() == ["H2O(recent=0.5)"]
    assert frame.layer.tolist() == [0, 0, 2, 2] and frame["head"].tolist() == [0, 1, 0, 1]
    assert frame.mass_recall.to_numpy() == pytest.approx(metrics.mass_recall(trace, expiry).flatten().numpy(), abs=1e-5)
    early, _, late = metrics.thirds(expiry)
    assert frame.early_held.to_numpy() == pytest.approx(early.flatten().numpy())
    assert frame.late_held.to_numpy() == pytest.approx(late.flatten().numpy())
    assert frame.held_entries.tolist() == [16] * 4
    assert frame.held_nbytes.tolist() == [16 * 2 * trace.keys.shape[-1] * 2] * 4
    cells = {row["name"]: [cell["text"] for cell in row["cells"]] for row in shown.figures["rows"]}
    assert cells["Early third held"] == [f"{float(early.mean()):.1%}", "100.0%"]
    assert cells["Attention-mass recall"] == [f"{frame.mass_recall.mean():.3f}", "1.000"]
    assert cells["Entries held a head"] == ["16", str(len(trace))]
    nbytes = 16 * 4 * 2 * trace.keys.shape[-1] * 2
    assert cells["KV bytes held"] == [f"{nbytes / 1e3:.1f} kB", f"{trace.keys.nbytes * 2 / 1e3:.1f} kB"]
    assert list(frame.columns[-len(COLUMNS) :]) == list(COLUMNS)


def test_a_long_trace_shows_its_picture_before_its_recall(explore, trace, monkeypatch):
    monkeypatch.setattr(metrics.Received.__init__, "__defaults__", (0,))
    hold = threading.Event()
    real = studio.recall_in_steps
    monkeypatch.setattr(studio, "recall_in_steps", lambda *rest: hold.wait(20) and real(*rest))
    shown = fm.explore(trace)
    try:
        recall = {row["name"]: row["cells"] for row in shown.figures["rows"]}["Attention-mass recall"]
        assert (
            shown.status["state"] == "ready" and shown.frame["runs"] and [cell["text"] for cell in recall] == ["…", "…"]
        )
        hold.set()
        recall = {row["name"]: row["cells"] for row in shown.wait().figures["rows"]}["Attention-mass recall"]
        expected = metrics.mass_recall(trace, shown.expiries[0]).mean()
        assert recall[0]["text"] == f"{expected:.3f}"
    finally:
        shown.close()


def test_slow_recall_is_that_of_metrics_and_stops_when_asked(trace):
    expiry = fm.replay(trace, fm.policies.TOVA(), 9)
    slow = metrics.Received(trace, limit_nbytes=0)
    assert torch.equal(recall_in_steps(slow)(expiry), metrics.mass_recall(trace, expiry))
    ticket = Ticket()
    ticket.cancel()
    with pytest.raises(Cancelled):
        recall_in_steps(slow, ticket.check)(expiry)


@dataclass(frozen=True)
class Broken(fm.Policy):
    """Raises at its second eviction."""

    def score(self, view, stats):
        if int(view.positions.max()) > 20:
            raise RuntimeError("the seal has the belt; feed it first")
        return -view.age.float()


# the optimum, the heads, and why a token went


def test_the_optimum_is_a_third_row_computed_in_the_worker_and_remembered(explore, trace):
    shown = explore().show(fm.policies.TOVA(), against=fm.policies.KeyNorm(), budget=11)
    assert shown.wait().optimum is None and shown.frame["optimum"] is None and not shown.frame["solving"]
    shown.show(oracle=True).wait()
    assert torch.equal(shown.optimum, fm.oracle(trace, 11))
    ((label, rows),) = decoded([shown.frame["optimum"]], shown.data)
    assert label == "optimum, budget 11" and np.array_equal(rows, shown.optimum.flatten(0, 1))
    assert shown.status["text"].startswith("The optimum was found and proved in")
    assert shown.replays.has_oracle(11) and "best = fm.oracle(trace, 11, prefill=1)" in shown.code
    assert "oracle=True" in shown.code
    shown.show(oracle=False).wait()
    assert shown.frame["optimum"] is None and shown.optimum is not None  # known, but not drawn
    shown.show(oracle=True).wait()
    assert shown.frame["optimum"] and shown.status["text"] == ""


def test_regret_stands_in_every_table_once_it_is_known(explore, trace):
    shown = explore().show(fm.policies.TOVA(), budget=11).wait()
    cells = {row["name"]: [cell["text"] for cell in row["cells"]] for row in shown.figures["rows"]}
    assert cells["Regret (switch on “Optimum”)"] == [UNKNOWN, UNKNOWN]
    frame = shown.to_dataframe()
    assert frame.regret.isna().all() and "show(oracle=True)" in frame.attrs["regret"]
    assert shown.heads["runs"][0]["regret"] is None
    frame = shown.show(oracle=True).wait().to_dataframe()
    expected = metrics.regret(trace, fm.replay(trace, fm.policies.TOVA(), 11), 11)
    assert frame[frame.policy == "TOVA()"].regret.to_numpy() == pytest.approx(expected.flatten().numpy(), abs=1e-5)
    assert (frame[frame.policy == "optimum"].regret == 0).all() and "regret" not in frame.attrs
    cells = {row["name"]: [cell["text"] for cell in row["cells"]] for row in shown.figures["rows"]}
    assert cells["Regret"] == [f"{expected.mean():.3f}", "0.000", UNKNOWN]
    assert cells["Regret, worst head"] == [f"{expected.max():.3f}", "0.000", UNKNOWN]
    assert [run["side"] for run in shown.heads["runs"]] == ["a", "o"] and shown.heads["layers"] == [0, 2]
    assert np.array(shown.heads["runs"][0]["regret"]) == pytest.approx(expected.numpy(), abs=1e-4)
    shown.show(layer=2, head=1).wait()
    cells = {row["name"]: [cell["text"] for cell in row["cells"]] for row in shown.figures["rows"]}
    assert cells["Regret"][0] == f"{expected[1, 1]:.3f}" and "Regret, worst head" not in cells


SOLVED = threading.Event()


def test_an_optimum_that_takes_long_can_be_cancelled_and_never_holds_up_the_slider(explore, trace, monkeypatch):
    from fmlab import replays as module

    def waiting(trace, budget, prefill, progress):
        progress(1)
        SOLVED.wait(20)
        progress(2)
        return fm.oracle(trace, budget, prefill)

    monkeypatch.setattr(module, "oracle", waiting)
    shown = explore().show(fm.policies.TOVA(), budget=11).wait()

    def until(state):
        for _ in range(300):
            if shown.status["state"] == state:
                return
            time.sleep(0.02)
        pytest.fail(f"never {state}: {shown.status}")

    SOLVED.clear()
    shown.show(oracle=True)
    until("solving")
    assert shown.frame["solving"] and shown.status["text"].startswith("Computing the optimum at budget 11: ")
    shown.show(budget=12)  # the slider moves on while it is being computed
    shown._worker.join()
    assert shown.choice.budget == 12 and shown.frame["runs"][0]["label"] == "TOVA(), budget 12"
    SOLVED.set()
    shown.wait()
    assert torch.equal(shown.optimum, fm.oracle(trace, 12)) and not shown.replays.has_oracle(11)
    SOLVED.clear()
    shown.show(budget=13)
    until("solving")
    shown.cancel()
    assert shown.status == ready("Cancelled; the optimum at this budget is not known.")
    assert not shown.choice.oracle and not shown.asked["oracle"] and not shown.frame["solving"]
    SOLVED.set()
    shown.wait()
    assert shown.status["state"] == "ready" and not shown.replays.has_oracle(13)


def test_why_a_token_was_evicted(explore, trace):
    shown = explore().show(fm.policies.TOVA(), against=fm.policies.SinkWindow(), budget=11, oracle=True).wait()
    assert shown.reasons == {}
    shown.explain(6).wait()
    found = fm.why(trace, fm.policies.TOVA(), 11, 6)
    first, window, best = shown.reasons["rows"]
    assert shown.reasons["token"] == 6 and [row["side"] for row in shown.reasons["rows"]] == ["a", "b", "o"]
    assert len(first["rows"]) == int((found.step >= 0).sum())
    row = found.rows()[0]
    assert first["rows"][0][:3] == [f"{row['layer']}.{row['head']}", str(row["step"]), f"{row['score']:.4g}"]
    assert first["rows"][0][4] == f"{row['rank']} of {row['held']}"
    assert (
        window["summary"] == "Evicted in 4 of 4 heads, after step 13."
    )  # 4 sinks and the last 7: 6 goes when 13 comes
    assert "head" in best["summary"] and best["rows"] == []
    shown.show(layer=0, head=1).wait()
    first, window, _ = shown.reasons["rows"]
    assert "its score" in window["summary"] and "is below the cut" in window["summary"] and len(window["rows"]) == 1
    last = len(trace) - 1
    shown._heard(shown, {"kind": "explain", "token": last, "view": "v"}, [])
    assert [row["summary"] for row in shown.wait().reasons["rows"]] == ["Held to the end."] * 3
    shown.explain(None).wait()
    assert shown.reasons == {"token": None}
    with pytest.raises(ValueError, match="token 999 is outside the text"):
        shown.explain(999)


def test_what_a_policy_raises_when_asked_why_is_told(explore):
    shown = explore().show(fm.policies.TOVA(), budget=11).wait()
    shown._shown = replace(shown._shown, choice=shown.choice.change(policy=Broken()))
    shown.explain(30).wait()
    assert shown.reasons["error"] == "the seal has the belt; feed it first"


def test_a_policy_that_knows_the_future_is_replayed_but_never_run(explore, tiny):
    shown = explore(lm=tiny).show(fm.policies.Clairvoyant(), budget=11).wait()
    assert shown.status["state"] == "ready" and "Clairvoyant" in [kind["name"] for kind in shown.catalogue]
    shown.explain(6).wait()
    assert shown.reasons["rows"][0]["summary"]
    shown.ask("Who?")
    assert shown.wait().status["state"] == "error" and "needs future" in shown.status["text"]


def test_the_page_takes_the_optimum_along(explore, tmp_path):
    shown = explore().show(fm.policies.TOVA(), budget=12, oracle=True).wait()
    shown.replays.expiry(fm.policies.TOVA(), 24)
    written = shown.to_html(tmp_path / "view.html").read_text("utf-8")
    start = written.index("data-fmlab-payload>") + len("data-fmlab-payload>")
    payload = json.loads(written[start : written.index("</script>", start)])
    assert payload["start"]["oracle"] and [run["budget"] for run in payload["optimum"]] == [12]
    assert payload["optimum"][0]["figures"]["Regret"] == "0.000"
    assert float(payload["runs"][0]["figures"]["Regret"]) >= 0 and "Regret" not in payload["runs"][1]["figures"]


def test_python_is_told_what_cannot_be_shown(explore):
    shown = explore()
    with pytest.raises(ValueError, match="layer 7 is not recorded"):
        shown.show(layer=7)
    with pytest.raises(TypeError, match="colour"):
        shown.show(colour="red")
    with pytest.raises(ValueError, match="step 999 is outside the text"):
        shown.show(step=999)


def test_what_a_policy_raises_is_shown_and_raised(explore):
    shown = explore()
    before = shown.choice
    shown.show(Broken(), budget=12).wait()
    assert shown.status["state"] == "error"
    assert shown.status["text"] == "RuntimeError: the seal has the belt; feed it first"
    assert "in score" in shown.status["detail"] and "raise RuntimeError" in shown.status["detail"]
    assert "worker.py" not in shown.status["detail"]  # the widget's own frames are left out
    assert shown.choice == before and shown.asked["a"]["key"] == key_of(Broken)  # the controls keep what was asked
    with pytest.raises(RuntimeError, match="the seal has the belt"):
        shown.expiries  # noqa: B018
    assert shown.show(fm.policies.TOVA()).wait().status["state"] == "ready"
    assert len(shown.expiries) == 1


def test_a_budget_below_the_pins_is_shown_with_its_mend(explore):
    shown = explore().show(fm.policies.SinkWindow(sinks=9), budget=4).wait()
    assert shown.status["state"] == "error" and "BudgetError" in shown.status["text"]
    assert "raise the budget or pin fewer" in shown.status["text"]


def choose(shown, change, seq=1):
    """What the browser sends when a control is moved."""
    sent = json.loads(json.dumps({**shown.asked, **change}))
    shown._heard(shown, {"kind": "choose", "view": "view-1", "seq": seq, "choice": sent}, [])
    return shown.wait()


def test_messages_of_the_browser_are_answered(explore, trace):
    shown = explore()
    choose(shown, {"budget": 11, "b": {"key": key_of(fm.policies.Random), "values": {"seed": 3}}}, seq=7)
    assert shown.acknowledged == {"view": "view-1", "seq": 7}
    assert shown.choice.against == fm.policies.Random(seed=3) and shown.choice.budget == 11
    shown._heard(shown, {"kind": "step", "step": 5, "view": "view-1"}, [])
    assert shown.step == 5 and "step=5" in shown.code
    choose(shown, {"a": {"key": key_of(fm.policies.SinkWindow), "values": {"sinks": -1}}}, seq=8)
    assert shown.status["text"] == "ValueError: sinks=-1; give 0 or more"
    assert shown.acknowledged["seq"] == 8 and shown.asked["a"]["values"] == {"sinks": -1}


def test_the_code_runs_and_gives_the_same_expiry(explore, trace):
    shown = explore().show(fm.policies.H2O(0.25), against=fm.policies.KeyNorm(), budget=14, layer=0, prefill=5, step=20)
    shown.wait()
    names = {"trace": trace}
    body = ast.parse(shown.code)
    last = ast.Expression(body.body.pop().value)
    exec(compile(body, "cell", "exec"), names)
    again = eval(compile(last, "cell", "eval"), names).wait()
    try:
        assert torch.equal(names["expiry"], shown.expiries[0]) and torch.equal(
            names["expiry_against"], shown.expiries[1]
        )
        assert again.choice == shown.choice and again.step == 20
        assert again.data == shown.data
    finally:
        again.close()


def test_a_class_run_again_is_replayed_again(explore, trace):
    shown = explore().show(defined(NEWEST, "cell_again")(), budget=9).wait()
    newest = shown.expiries[0]
    defined(OLDEST, "cell_again")
    shown.refresh()
    shown.wait()
    assert not torch.equal(shown.expiries[0], newest)
    assert [p["summary"] for p in shown.catalogue if p["key"] == "cell_again.Mine"] == ["Keeps the oldest."]


def test_a_mended_class_clears_the_error(explore):
    broken = defined(CELL.format(what="x", score="view.nothing"), "cell_mended")
    shown = explore().show(broken(), budget=9).wait()
    assert shown.status["state"] == "error" and "nothing" in shown.status["text"]
    defined(NEWEST, "cell_mended")
    shown.refresh()
    assert shown.wait().status["state"] == "ready" and shown.choice.policy.strength == 0.5


@dataclass(frozen=True)
class Slow(fm.Policy):
    """Waits at every step until the test lets it go."""

    def score(self, view, stats):
        GATE.wait(20)
        return -view.age.float()


GATE = threading.Event()


def test_a_slow_replay_is_busy_and_can_be_cancelled(explore):
    shown = explore()
    before = shown.choice
    GATE.clear()
    shown.show(Slow(), budget=9)
    assert shown.status["state"] == "busy"
    shown.cancel()
    assert shown.status["text"] == "Stopping …"
    GATE.set()
    shown.wait()
    assert shown.status == ready("Cancelled; the picture is the last one that was finished.")
    assert shown.choice == before and shown.asked == before.sendable()


def test_a_newer_choice_overtakes_a_slow_one(explore):
    shown = explore()
    GATE.clear()
    shown.show(Slow(), budget=9)
    opener = threading.Timer(0.3, GATE.set)
    opener.start()
    shown.show(fm.policies.SlidingWindow(), budget=9).wait()
    opener.join()
    assert shown.choice.policy == fm.policies.SlidingWindow() and shown.status["state"] == "ready"


def test_changes_add_up_before_the_first_is_drawn(explore):
    shown = explore()
    GATE.clear()
    shown.show(Slow(), budget=9).show(against=fm.policies.TOVA()).show(layer=2)
    GATE.set()
    assert shown.wait().choice == Choice(Slow(), 9, fm.policies.TOVA(), layer=2)


def test_two_explorers_do_not_share(explore):
    first, second = explore(), explore()
    first.show(fm.policies.KeyNorm(), budget=8, step=3).wait()
    assert second.choice.policy == fm.policies.H2O() and second.step == len(second.tokens) - 1
    assert first.replays is not second.replays


def test_replays_must_be_of_the_trace(explore, trace):
    replays = Replays(trace)
    assert explore(None, replays=replays).trace is trace
    other = replace(trace)
    with pytest.raises(ValueError, match="these replays are of another trace"):
        fm.explore(other, replays=replays)


def test_token_text_is_never_markup(explore, tmp_path):
    shown = explore()
    assert "".join(shown.tokens) == TEXT
    written = shown.to_html(tmp_path / "view.html").read_text("utf-8")
    assert "<script>alert(1)" not in written and "alert(1)</script>" not in written
    start = written.index("data-fmlab-payload>") + len("data-fmlab-payload>")
    payload = json.loads(written[start : written.index("</script>", start)])
    assert "".join(payload["tokens"]) == TEXT


def test_the_page_needs_no_network(explore, tmp_path):
    shown = explore().show(fm.policies.TOVA(), against=fm.policies.KeyNorm(), budget=12, step=9).wait()
    shown.replays.expiry(fm.policies.TOVA(), 24)
    written = shown.to_html(tmp_path / "view.html").read_text("utf-8")
    assert "http://" not in written and "https://" not in written and "import " not in written.split("<script")[-1]
    start = written.index("data-fmlab-payload>") + len("data-fmlab-payload>")
    payload = json.loads(written[start : written.index("</script>", start)])
    assert payload["start"] == {
        "a": "TOVA()", "b": "KeyNorm()", "budget": 12, "step": 9, "mode": "pair", "oracle": False,
    }  # fmt: skip
    assert [(run["policy"], run["budget"]) for run in payload["runs"]][:2] == [("TOVA()", 12), ("TOVA()", 24)]
    assert payload["runs"][0]["figures"]["Entries held a head"] == "12"


def test_where_widgets_do_not_run_there_is_a_still(explore):
    shown = explore().show(against=fm.policies.SlidingWindow()).wait()
    data, _ = shown._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert data["image/png"].startswith(b"\x89PNG")
    assert "Attention-mass recall" in data["text/plain"] and "B: SlidingWindow()" in data["text/plain"]


# the live model


def test_the_full_cache_answers_as_generate_does(tiny):
    words = list(answer(tiny, TEXT, "Who?", None, 1, lambda: None, max_new_tokens=6))
    ids = torch.cat(tiny.prompt(TEXT, "Who?"))
    stock = tiny.model.generate(ids[None], max_new_tokens=6, do_sample=False)[0, len(ids) :]
    assert words[-1] == tiny.tokenizer.decode(stock) and len(words) == 6
    with_room = list(answer(tiny, TEXT, "Who?", fm.policies.TOVA(), 999, lambda: None, max_new_tokens=6))
    assert with_room == words


def test_an_answer_can_be_stopped(tiny):
    ticket = Ticket()
    growing = answer(tiny, TEXT, "Who?", fm.policies.TOVA(), 8, ticket.check)
    next(growing)
    ticket.cancel()
    with pytest.raises(Cancelled):
        next(growing)


def test_the_model_is_asked_under_every_policy_shown(explore, tiny):
    shown = explore(lm=tiny).show(fm.policies.SinkWindow(), against=fm.policies.TOVA(), budget=10).wait()
    shown._heard(shown, {"kind": "ask", "question": "Who?", "view": "v"}, [])
    assert shown.wait().status["state"] == "ready"
    rows = shown.answers["rows"]
    assert [row["side"] for row in rows] == ["a", "b", None] and all(row["text"] for row in rows)
    assert rows[0]["label"] == f"SinkWindow(sinks=4), budget 10 of {len(shown.trace)} tokens"
    assert rows[2]["text"] == list(answer(tiny, "".join(shown.tokens), "Who?", None, 1, lambda: None))[-1]


def test_a_model_that_cannot_be_had_is_an_error_in_the_widget(explore, monkeypatch):
    def missing(name):
        raise OSError(f"no {name} anywhere; put it somewhere")

    monkeypatch.setattr(fm, "load", missing, raising=False)
    shown = explore()
    shown.ask("Who?")
    shown.wait()
    assert (
        shown.status["state"] == "error" and shown.status["text"] == "OSError: no tiny llama anywhere; put it somewhere"
    )
    assert len(shown.expiries) == 1  # the picture is none the worse


def test_closing_stops_everything(trace):
    shown = fm.explore(trace)
    GATE.clear()
    shown.show(Slow(), budget=9)
    shown.close()
    GATE.set()
    shown.wait()
    assert shown.comm is None
