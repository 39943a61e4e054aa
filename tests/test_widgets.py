"""The widgets without a browser: what travels, controls, the worker, the Explorer, its exports."""

import json
import struct
import threading
import time
import zlib
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pytest
import torch

import fmlab as fm
from fmlab.replays import Replays
from fmlab.widgets import Drawn, RetentionMap, map_fragment, page
from fmlab.widgets.about import budget_grid, trace_code
from fmlab.widgets.choice import Choice, as_code
from fmlab.widgets.controls import PolicyChoice, catalogue, key_of
from fmlab.widgets.export import in_script
from fmlab.widgets.picture import still
from fmlab.widgets.wire import Run, encode
from fmlab.widgets.worker import Cancelled, Ticket, Worker

TEXT = "The kettle, the keys and <script>alert(1)</script> a 🦭 in the pool."


@pytest.fixture(scope="module")
def tiny():
    return fm.tiny()


@pytest.fixture(scope="module")
def trace(tiny):
    return fm.record(tiny, TEXT, layers=[0, 2])


def decoded(headers, data):
    """What the browser reads: labels and the rows of every head."""
    for header in headers:
        kind = {2: "<i2", 4: "<i4"}[header["width"]]
        flat = np.frombuffer(data, kind, header["rows"] * header["n"], header["offset"])
        yield header["label"], flat.reshape(header["rows"], header["n"])[header["index"]]


# what travels


@pytest.mark.parametrize(("tokens", "width"), [(40, 2), (32_766, 2), (32_767, 4)])
def test_runs_arrive_as_they_were_sent(tokens, width):
    rows = torch.randint(0, tokens + 2, (3, 2, tokens))
    first, second = Run.of("a", rows), Run.of("b", rows.flip(0))
    headers, data = encode([first, second])
    assert [header["width"] for header in headers] == [width, width]
    arrived = dict(decoded(headers, data))
    assert np.array_equal(arrived["a"], rows.reshape(6, tokens))
    assert np.array_equal(arrived["b"], rows.flip(0).reshape(6, tokens))


def test_heads_that_forget_alike_travel_once():
    row = torch.arange(1, 31)
    headers, data = encode([Run.of("window", row.expand(5, 30))])
    assert headers[0]["rows"] == 1 and headers[0]["index"] == [0] * 5 and len(data) == 60


def test_runs_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="same heads and tokens"):
        encode([Run.of("a", torch.ones(2, 8).int()), Run.of("b", torch.ones(3, 8).int())])
    with pytest.raises(ValueError, match=r"a: nothing to draw in an expiry of shape \(2, 0\)"):
        Run.of("a", torch.ones(2, 0).int())


def test_the_map_takes_any_run_and_refuses_what_does_not_fit():
    expiry = torch.full((2, 3, 6), 7)
    shown = RetentionMap(list("abcdef"), {"full": expiry, "none": torch.arange(1, 7).expand(2, 3, 6)})
    assert [header["label"] for header in shown.frame["runs"]] == ["full", "none"]
    assert repr(shown) == "RetentionMap(full, none; 6 tokens)" and shown.step == 5
    shown.step = 2
    assert shown.go["step"] == 2 and shown.step == 2
    with pytest.raises(ValueError, match="step 6 is outside the text; give 0 to 5"):
        shown.step = 6
    with pytest.raises(ValueError, match="6 tokens for 5 texts"):
        RetentionMap(list("abcde"), {"full": expiry})
    with pytest.raises(ValueError, match="3 runs; give one, or two to compare"):
        RetentionMap(list("abcdef"), {"a": expiry, "b": expiry, "c": expiry})


# a policy as controls


@dataclass(frozen=True)
class Settings(fm.Policy):
    """Has every kind of setting. Its second sentence is long."""

    needed: int
    count: int = 3
    below: int = -2
    share: float = 0.25
    fine: float = 0.33
    scale: float = 2.0
    whole: float = 1
    on: bool = True
    word: str = "sink"
    way: Literal["old", "new"] = "new"
    pair: tuple = (1, 2)
    bounded: int = field(default=5, metadata={"min": 1, "max": 9, "step": 2})

    def score(self, view, stats):
        return -view.age.float()


def described(kind):
    return next(policy for policy in catalogue() if policy["key"] == key_of(kind))


def test_a_dataclass_becomes_controls():
    about = described(Settings)
    assert about["name"] == "Settings" and about["summary"] == "Has every kind of setting. Its second sentence is long."
    fields = {each["name"]: each for each in about["fields"]}
    kinds = {name: each["kind"] for name, each in fields.items()}
    assert kinds == {
        "needed": "literal", "count": "int", "below": "int", "share": "float", "fine": "float", "scale": "float",
        "whole": "float", "on": "bool", "word": "str", "way": "options", "pair": "literal", "bounded": "int",
    }  # fmt: skip
    limits = {name: (each["min"], each["max"], each["step"]) for name, each in fields.items()}
    assert limits["count"] == (0, None, 1) and limits["below"] == (None, None, 1)
    assert limits["share"] == (0, 1, 0.05) and limits["fine"] == (0, 1, 0.01) and limits["scale"] == (None,) * 3
    assert limits["bounded"] == (1, 9, 2)
    assert fields["pair"]["value"] == "(1, 2)" and fields["way"]["options"] == ["old", "new"]
    assert fields["needed"]["value"] == ""


def test_controls_become_the_policy():
    made = Settings(7, count=1, share=0.5, on=False, word="x", way="old", pair=(3, "y"))
    choice = PolicyChoice.of(made)
    assert choice.values["pair"] == "(3, 'y')"
    again = PolicyChoice(**json.loads(json.dumps({"key": choice.key, "values": dict(choice.values)}))).build()
    assert again == made


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"needed": ""}, ValueError, "Settings.needed: '' is no Python literal"),
        ({"needed": "os.system('x')"}, ValueError, "is no Python literal; write one such as"),
        ({"needed": "1", "count": "many"}, TypeError, "Settings.count: 'many' is no int"),
        ({"needed": "1", "count": True}, TypeError, "Settings.count: True is no int"),
        ({"needed": "1", "sink": 1}, ValueError, "Settings has no setting sink; its settings: needed, count"),
    ],
)
def test_a_wrong_setting_is_named(values, error, words):
    with pytest.raises(error) as raised:
        PolicyChoice(key_of(Settings), values).build()
    assert words in str(raised.value)


def test_a_policy_within_a_policy_is_a_text_that_is_read_again():
    made = fm.policies.ChunkKV(fm.policies.Pinned(Settings(7, pair=(3, "y")), sinks=2), chunk=4)
    choice = PolicyChoice.of(made)
    setting = next(each for each in catalogue() if each["key"] == choice.key)["fields"][0]
    assert (setting["name"], setting["kind"], setting["value"]) == ("policy", "policy", repr(fm.policies.SnapKV()))
    assert choice.values["policy"] == repr(made.policy) and choice.values["chunk"] == 4
    sent = json.loads(json.dumps(Choice(made, 8, against=fm.policies.Pinned()).sendable()))
    assert Choice.read(sent) == Choice(made, 8, against=fm.policies.Pinned())
    with pytest.raises(ValueError, match="ChunkKV.policy: no policy is called 'SnapKv' .do you mean SnapKV"):
        PolicyChoice(choice.key, {"policy": "SnapKv(window=3)"}).build()


def test_the_code_of_a_policy_within_a_policy_runs():
    made = fm.policies.ChunkKV(fm.policies.Pinned(Settings(7, word="SnapKV()")), chunk=4)
    lines = as_code(Choice(made, 8), 0, "").splitlines()
    names = {}
    exec("\n".join(line for line in lines if line.startswith(("import", "from", "policy ="))), names)
    assert names["policy"] == made and "from test_widgets import Settings" in lines


def test_a_key_that_is_gone_is_named():
    with pytest.raises(LookupError, match="no policy nowhere.Gone is alive"):
        PolicyChoice("nowhere.Gone", {}).build()


def test_every_policy_of_the_library_can_be_chosen():
    known = {policy["key"]: policy for policy in catalogue()}
    for name in fm.policies.__all__:
        kind = getattr(fm.policies, name)
        assert known[key_of(kind)]["summary"]
        assert PolicyChoice.of(kind()).build() == kind()


def defined(body, module):
    """A policy class as a notebook cell defines it, again at each call."""
    names = {"__name__": module, "fm": fm, "dataclass": dataclass, "torch": torch}
    exec(body, names)
    return names["Mine"]


CELL = """
@dataclass(frozen=True)
class Mine(fm.Policy):
    'Keeps the {what}.'
    strength: float = 0.5
    def score(self, view, stats):
        return {score}
"""
NEWEST, OLDEST = (
    CELL.format(what="newest", score="-view.age.float()"),
    CELL.format(what="oldest", score="view.age.float()"),
)


def test_a_class_defined_again_appears_once():
    first = defined(NEWEST, "cell_once")
    second = defined(OLDEST, "cell_once")
    found = [policy for policy in catalogue() if policy["key"] == "cell_once.Mine"]
    assert len(found) == 1 and found[0]["summary"] == "Keeps the oldest."
    assert type(PolicyChoice("cell_once.Mine", {}).build()) is second is not first


def test_names_that_two_modules_share_are_told_apart():
    kinds = [defined(NEWEST, "cell_left"), defined(NEWEST, "cell_right")]
    names = [described(kind)["name"] for kind in kinds]
    assert names == ["Mine (cell_left)", "Mine (cell_right)"]


# a choice


def test_a_choice_survives_the_way_to_the_browser():
    choice = Choice(fm.policies.H2O(0.25), 12, fm.policies.TOVA(), layer=2, head=1, prefill=4, mode="difference")
    assert Choice.read(json.loads(json.dumps(choice.sendable()))) == choice
    alone = Choice(fm.policies.KeyNorm(), 3)
    assert Choice.read(alone.sendable()) == alone


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"budget": 0}, "budget 0 < 1"),
        ({"layer": 1}, "layer 1 is not recorded; give one of 0, 2, or None"),
        ({"head": 2}, "head 2 is none of 2 KV heads"),
        ({"prefill": 0}, "a prefill of 0 tokens"),
        ({"mode": "upside down"}, "mode 'upside down' is unknown; give one of pair, difference"),
    ],
)
def test_what_a_trace_cannot_show_is_refused(trace, change, words):
    with pytest.raises(ValueError) as raised:
        Choice(fm.policies.TOVA(), 8).change(**change).check(trace)
    assert words in str(raised.value)


def test_the_code_names_its_imports_and_its_trace(trace):
    own = Choice(Settings(1), 8)
    assert "from test_widgets import Settings" in as_code(own, 0, "")
    cell = defined(NEWEST, "__main__")
    assert "policy = Mine(strength=0.5)\n" in as_code(Choice(cell(), 8), 0, "")
    assert trace_code(trace, True, {}) == 'trace = fm.Trace.load(fm.datafile("tour.safetensors"))'
    assert trace_code(trace, False, {"_3": trace, "mine": trace}) == "trace = mine"
    assert trace_code(trace, False, {"mine": trace, "trace": trace}).startswith("# `trace` is the one of this notebook")
    assert trace_code(trace, False, {"trace": 3}).startswith("# `trace` is the one given to fm.explore: Trace(")


def test_the_slider_has_the_budgets_at_hand(trace):
    replays = Replays(trace)
    assert budget_grid(trace, replays)[-1] == len(trace) and budget_grid(trace, replays)[:3] == [8, 12, 16]
    for budget in (9, 20, len(trace) + 5):
        replays.expiry(fm.policies.SlidingWindow(), budget)
    assert budget_grid(trace, replays) == [9, 20, len(trace)]


# the worker


def test_the_latest_job_wins():
    done, failed, started = [], [], threading.Event()

    def slow(ticket: Ticket):
        started.set()
        ticket.pause(30.0)
        done.append("slow")

    worker = Worker(lambda ticket, error: failed.append(error))
    first = worker.submit(slow, 0.0)
    started.wait(10)
    worker.submit(lambda ticket: done.append("skipped"), 0.0)
    worker.submit(lambda ticket: done.append("latest"), 10.0)
    worker.join()
    worker.close()
    assert done == ["latest"] and failed == [] and isinstance(first.future.exception(), Cancelled)


def test_a_job_that_outlasts_patience_goes_on_and_can_be_cancelled():
    failed, started = [], threading.Event()

    def slow(ticket: Ticket):
        started.set()
        ticket.pause(30.0)

    worker = Worker(lambda ticket, error: failed.append((ticket, error)))
    start = time.perf_counter()
    ticket = worker.submit(slow, 0.05)
    assert ticket.running and time.perf_counter() - start < 5
    started.wait(10)
    assert worker.cancel()
    worker.join()
    assert not worker.cancel()
    worker.close()
    assert [type(error) for _, error in failed] == [Cancelled] and failed[0][0] is ticket


class Unusual(BaseException):
    """What not even `except Exception` would see."""


def test_whatever_a_job_raises_is_reported():
    failed = []
    worker = Worker(lambda ticket, error: failed.append(error))

    def broken(ticket: Ticket):
        raise Unusual("no")

    worker.submit(broken, 10.0)
    worker.join()
    worker.close()
    assert [type(error) for error in failed] == [Unusual]


# pictures and pages


def test_a_fragment_refuses_what_does_not_fit():
    drawn = Drawn("full", 4, torch.full((1, 4), 5))
    assert map_fragment([drawn], list("abcd")).startswith('<div class="fmlab-page">')
    with pytest.raises(ValueError, match="no maps"):
        map_fragment([], list("abcd"))
    with pytest.raises(ValueError, match="4 tokens for 3 texts"):
        map_fragment([drawn], list("abc"))
    with pytest.raises(ValueError, match="against='other' is not drawn; give one of full"):
        map_fragment([drawn], list("abcd"), against="other")
    assert "<title>a &lt;b&gt;</title>" in page("", "a <b>")
    assert in_script("</script><!--") == '"\\u003c/script>\\u003c!--"'


def test_the_still_shows_held_evicted_and_not_read():
    expiry = torch.tensor([[5, 3, 5, 5]])  # of four tokens, the second is gone after its second step
    picture = still([Run.of("a", expiry)], side_pixels=4)
    assert picture[12:16] == b"IHDR" and struct.unpack(">II", picture[16:24]) == (4, 4)
    start = picture.index(b"IDAT")
    length = struct.unpack(">I", picture[start - 4 : start])[0]
    lines = np.frombuffer(zlib.decompress(picture[start + 4 : start + 4 + length]), np.uint8).reshape(4, 13)
    assert not lines[:, 0].any()
    names = {(0, 114, 178): "held", (227, 227, 227): "gone", (255, 255, 255): "    "}
    seen = [[names[tuple(map(int, pixel))] for pixel in line[1:].reshape(4, 3)] for line in lines]
    assert seen == [
        ["held", "held", "held", "held"],
        ["    ", "held", "held", "gone"],
        ["    ", "    ", "held", "held"],
        ["    ", "    ", "    ", "held"],
    ]
