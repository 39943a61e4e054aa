"""The Sparsity widget without a browser: what it shows, what it refuses, what it measures, and what travels."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

import fmlab as fm
from fmlab.sparsity import BlockTopK, LocalGlobal, Oracle, Pattern, SlidingBlocks, Streaming, mass_recall, output_error
from fmlab.trace import Trace
from fmlab.widgets import Sparsity
from fmlab.widgets.layer import SIDE, Layer
from fmlab.widgets.patterns import build, catalogue, key_of, values_of

TOKENS, BLOCK = 200, 16


def made(tokens=TOKENS, softcap=None, windows=(None, None), scaling=0.4):
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, tokens, 8, generator=draw).half() for heads in (4, 2, 2))
    texts = tuple(f"t{i}" for i in range(tokens))
    return Trace(torch.arange(tokens), texts, (3, 7), "made up", q, k, v, scaling, softcap, windows)


@pytest.fixture
def widget():
    view = Sparsity(made(), block=BLOCK, rounds=6, seconds=0.3)
    view.wait()
    yield view
    view.close()


def reference(view):
    """The same figures from the room's own functions, on the trace as it is."""
    at = view.trace.layers.index(view.layer)
    q, k, v = (x[at][None].float() for x in (view.trace.queries, view.trace.keys, view.trace.values))
    choice = view.pattern.blocks(q * (0.4 * 8**0.5), k, BLOCK)
    recall, error = mass_recall(q, k, choice, 0.4)[0], output_error(q, k, v, choice, 0.4)[0]
    mine = choice.blocks[0, view.head]
    return {
        "density": float(choice.grid.pairs[mine].sum() / choice.grid.pairs.sum()),
        "recall": float(recall[view.head]),
        "error": float(error[view.head]),
        "all_density": choice.density,
        "all_recall": float(recall.mean()),
        "least_recall": float(recall.min()),
    }, mine


@pytest.mark.parametrize("pattern", [Streaming(4, 40), BlockTopK(3), LocalGlobal(20, (5, 90)), Oracle(0.3)], ids=repr)
def test_the_figures_are_those_of_the_room(widget, pattern):
    figures = widget.show(pattern=pattern, layer=3, head=3).figures
    wanted, blocks = reference(widget)
    assert {name: figures[name] for name in wanted} == pytest.approx(wanted, abs=2e-6)
    assert figures["all_recall"] <= figures["oracle_recall"] + 1 / TOKENS
    sent = np.frombuffer(widget.chosen, np.uint8).reshape(13, 13)
    assert np.array_equal(sent, blocks.numpy())
    masses = np.frombuffer(widget.masses, np.float32).reshape(13, 13)
    assert masses.sum() == pytest.approx(TOKENS, rel=1e-5)
    assert (widget.whole["layer"], widget.whole["head"], widget.seen["label"]) == (3, 3, repr(pattern))


def test_the_dial_comes_near_the_density_that_is_wanted(widget):
    for pattern in (SlidingBlocks(), BlockTopK(), Oracle()):
        found = widget.show(pattern=pattern, density=0.4).figures["all_density"]
        assert abs(found - 0.4) < 0.08 and type(widget.pattern) is type(pattern)
        assert found in [density for _, density in widget.reach["stops"]]
    for density in (0, 1.5):
        with pytest.raises(ValueError, match=f"density={density}; give a share"):
            widget.show(density=density)
    with pytest.raises(ValueError, match="has no number that turns its density"):
        widget.show(pattern=Streaming() | BlockTopK(), density=0.4)


def test_the_page_speaks_and_is_answered(widget):
    choice = {"layer": 3, "head": 2, "key": key_of(BlockTopK), "values": {"top": 2}}
    widget._heard(widget, {"kind": "choose", "choice": choice, "serial": 5}, [])
    widget.wait()
    assert widget.pattern == BlockTopK(2) and widget.seen["serial"] == 5 and widget.seen["values"] == {"top": 2}
    widget._heard(widget, {"kind": "density", "density": 0.5, "serial": 6}, [])
    assert widget.wait().pattern.top > 2 and widget.seen["serial"] == 6
    wrong = choice | {"values": {"top": 0}}
    widget._heard(widget, {"kind": "choose", "choice": wrong, "serial": 7}, [])
    assert widget.seen["serial"] == 7 and widget.status["state"] == "error" and "top=0; give 1" in widget.status["text"]
    assert widget.pattern.top > 2, "what was refused changes nothing"
    widget._heard(widget, {"kind": "look", "queries": [64, 128], "keys": [0, 48]}, [])
    widget.wait()
    assert (widget.tile["rows"], widget.tile["columns"], widget.tile["each"]) == (64, 48, 1)
    assert len(widget.tile_shades) == 64 * 48
    given = Streaming(2, 20) & BlockTopK(4)
    widget.show(pattern=given).wait()
    assert widget.seen["key"] == "" and widget.seen["label"] == repr(given)
    again = {"layer": 7, "head": 0, "key": "", "values": {}}
    widget._heard(widget, {"kind": "choose", "choice": again, "serial": 8}, [])
    assert widget.wait().pattern == given and widget.layer == 7


def test_a_map_never_has_more_than_its_pixels():
    layer = Layer(made(1_100), 0, 64)
    about, shades = layer.shades(1, range(1_100), range(1_100))
    assert about["each"] == 3 and about["rows"] == about["columns"] == 367 <= SIDE
    grid = np.frombuffer(shades, np.uint8).reshape(367, 367)
    assert (grid[np.triu_indices(367, 1)] == 0).all() and (grid[np.tril_indices(367)] > 0).all()
    about, shades = layer.shades(1, range(500, 600), range(500, 600))
    weights = layer.head(1).weights(range(500, 600), range(500, 600)).numpy()
    told = np.frombuffer(shades, np.uint8).reshape(100, 100).astype(float)
    seen = (weights > 2e-5) & (told > 0)
    assert seen.sum() > 1_000
    assert np.allclose(10 ** (-5 * (1 - (told[seen] - 1) / 254)), weights[seen], rtol=0.03)


def test_speed_is_a_row_and_the_figure_takes_it(widget):
    assert widget.table.empty and widget.points == []
    widget.show(pattern=BlockTopK(3)).measure().wait()
    row = widget.table.iloc[0]
    assert (row["pattern"], row["setting"], row["layer"], row["speedup_n"]) == ("BlockTopK", "BlockTopK(top=3)", 7, 6)
    assert row["speedup_low"] <= row["speedup"] <= row["speedup_high"] and row["kernel"] in row["why"]
    wanted, _ = reference(widget)
    assert row["mass_recall"] == pytest.approx(wanted["all_recall"], abs=1e-5)
    assert row["density"] == pytest.approx(wanted["all_density"]) and row["choosing_seconds"] > 0
    assert widget.points == [dict(row)] or len(widget.points) == 1
    for x in ("density", "speedup"):
        assert len(fm.figures.sparsity_pareto(widget.table, x).data) == 1
    assert widget.clear().table.empty


def test_measuring_can_be_cancelled(widget):
    widget.rounds, widget.seconds = 10**6, 600.0
    widget.measure()
    while "in turn" not in widget.metering["text"]:
        assert widget.metering["state"] == "busy"
    widget.cancel()
    widget._meter.join()
    assert widget.metering["text"].startswith("Cancelled") and widget.table.empty
    assert widget.wait() is widget


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"layer": 5}, r"layer 5 is not in the trace, which has 3, 7; .* fm.record\(lm, text, layers=\[5\]\)"),
        ({"head": 4}, "head 4 is none of 4 query heads"),
        ({"budget": 4}, "budget: there is no such thing to show; give pattern, layer, head, density"),
    ],
)
def test_what_there_is_not_is_named(widget, change, says):
    before = widget.seen
    with pytest.raises(ValueError, match=says):
        widget.show(**change)
    assert widget.seen == before


@pytest.mark.parametrize(
    ("trace", "more", "says"),
    [
        ({"tokens": 64}, {"block": 64}, "64 tokens are one block of 64, and there is nothing to choose"),
        ({}, {"block": 0}, "block=0; give 1 token or more"),
        ({}, {"layer": 4}, "layer 4 is not in the trace"),
        ({"softcap": 30.0}, {}, "made up caps its scores at 30.0"),
        ({"windows": (None, 100)}, {}, r"layer 7 sees 100 tokens only.*trace.only"),
    ],
)
def test_a_trace_that_cannot_be_shown_is_refused(trace, more, says):
    with pytest.raises(ValueError, match=says):
        Sparsity(made(**trace), **({"block": BLOCK} | more))


@dataclass(frozen=True)
class Raises(Pattern):
    """Refuses."""

    why: str = "<b>no</b> blocks today"

    def blocks(self, q, k, block=64):
        raise RuntimeError(self.why)


def test_an_error_of_a_readers_pattern_is_told_and_raised(widget):
    with pytest.raises(RuntimeError, match="no</b> blocks today"):
        widget.show(pattern=Raises()).wait()
    assert widget.status["state"] == "error" and "RuntimeError: <b>no</b> blocks" in widget.status["text"]
    assert widget.show(pattern=Streaming()).figures["density"] == 1 and widget.status["state"] == "ready"


def test_the_catalogue_has_every_pattern_with_its_sliders():
    known = {entry["name"]: entry for entry in catalogue(TOKENS)}
    assert list(known)[:2] == ["SlidingBlocks", "Streaming"] and "Raises" in known and "Union" not in known
    sinks, window = known["Streaming"]["fields"]
    assert sinks["stops"][:3] == [0, 1, 2] and window["stops"][0] == 1 and window["stops"][-1] == TOKENS
    assert known["LocalGlobal"]["fields"][1]["stops"] is None and known["Oracle"]["fields"][0]["stops"][0] == 0.01
    for kind in (Streaming, LocalGlobal, Oracle, Raises):
        assert build(key_of(kind), values_of(kind())) == kind()
    assert build(key_of(LocalGlobal), {"positions": "(1, 2)"}).positions == (1, 2)
    with pytest.raises(ValueError, match="no pattern nowhere.Gone is alive"):
        build("nowhere.Gone", {})
    with pytest.raises(ValueError, match="Streaming has no setting width; it has sinks, window"):
        build(key_of(Streaming), {"width": 3})
    with pytest.raises(TypeError, match="window: 2.5 is no int"):
        build(key_of(Streaming), {"window": 2.5})


@dataclass(frozen=True)
class Places(Pattern):
    """Of a reader who took a list, which has no hash."""

    places: object = ()

    def blocks(self, q, k, block=64):
        return LocalGlobal(16, tuple(self.places)).blocks(q, k, block)


def test_a_pattern_without_a_hash_is_shown_too(widget):
    assert 0 < widget.show(pattern=Places([1, 60])).figures["density"] < 1
    assert "Places(places=[1, 60])" in widget._repr_mimebundle_()[0]["text/plain"]
