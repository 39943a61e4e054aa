"""Sparsity: the blocks that an attention pattern chooses over the true attention of a head, and what they are worth."""

import threading
from functools import partial
from typing import Any

import anywidget
import pandas as pd
import torch
import traitlets

import fmlab as fm

from ..optimizations import Cancelled as Ended
from ..optimizations import measure_pattern
from ..optimizations.machine import machine
from ..sparsity import Pattern, Streaming
from ..sparsity.dial import Stop, at_density, dial, stops
from .about import busy, failure, ready, source
from .assets import script, style
from .layer import Layer, check_trace
from .patterns import build, catalogue, key_of, values_of
from .worker import Cancelled, Ticket, Worker

PATIENCE_SECONDS = 0.1
PAUSE_SECONDS = 0.25  # after which the reader is taken to look, and the dial is worked out
UNKNOWN = {"key": "", "values": {}}  # a pattern that the picker does not have
KEYS = ("pattern", "layer", "head", "density")


class Sparsity(anywidget.AnyWidget):
    """Pick a layer, a query head and a pattern; its blocks are drawn over the head's true attention, and judged.

    `trace` is what `fm.record` gives. `pattern` (Streaming of an eighth of the text unless given), `layer` (the middle one
    recorded) and `head` (a query head) are where it opens; `block` is for good. What is not chosen is dimmed; the figures
    are those of `fm.sparsity.mass_recall` and `output_error`. "Measure speed" runs the kernels on all heads of
    the layer, in this kernel, in a thread beside the cells; `rounds` and `seconds` say how long at most.

    Raises ValueError for a trace of a single block, a block that is not positive, a layer or head that there is not, and
    a model whose attention the patterns do not know: soft-capped, or windowed in a layer.
    """

    _esm = script("dom", "svg", "controls", "figures", "frontier", "blocks", "sparsity", "entry_sparsity")
    _css = style("fmlab", "sparsity")

    tokens = traitlets.List(traitlets.Unicode()).tag(sync=True)
    about = traitlets.Dict().tag(sync=True)
    patterns = traitlets.List().tag(sync=True)
    whole = traitlets.Dict().tag(sync=True)
    shades = traitlets.Bytes().tag(sync=True)
    masses = traitlets.Bytes().tag(sync=True)
    seen = traitlets.Dict().tag(sync=True)
    chosen = traitlets.Bytes().tag(sync=True)
    tile = traitlets.Dict().tag(sync=True)
    tile_shades = traitlets.Bytes().tag(sync=True)
    reach = traitlets.Dict().tag(sync=True)
    points = traitlets.List().tag(sync=True)
    status = traitlets.Dict().tag(sync=True)
    metering = traitlets.Dict().tag(sync=True)

    _workers: tuple[Worker, ...] = ()  # close() is called on a widget, too, whose opening was refused

    def __init__(
        self,
        trace: "fm.Trace",
        pattern: Pattern | None = None,
        layer: int | None = None,
        head: int = 0,
        block: int = 64,
        rounds: int = 12,
        seconds: float = 8.0,
    ):
        check_trace(trace, block)
        pattern = Streaming(4, max(len(trace) // 8, 1)) if pattern is None else pattern
        layer = trace.layers[len(trace.layers) // 2] if layer is None else layer
        self.trace, self.block, self.rounds, self.seconds = trace, block, rounds, seconds
        self._check(pattern, layer, head)
        self.pattern, self.layer, self.head = pattern, layer, head
        self._layers: dict[int, Layer] = {}
        self._rows: list[dict] = []
        self._serial, self._error = 0, None
        self._lock, self._loading = threading.RLock(), threading.Lock()
        about = {
            "layers": list(trace.layers), "heads": trace.queries.shape[1], "block": block, "tokens": len(trace),
            "source": source(trace), "machine": machine(),
        }  # fmt: skip
        super().__init__(
            tokens=list(trace.tokens), about=about, patterns=catalogue(len(trace)), status=ready(), metering=ready()
        )
        self._drawer, self._looker, self._turner = (Worker(self._failed) for _ in range(3))
        self._meter = Worker(self._meter_failed)
        self._workers = (self._drawer, self._looker, self._turner, self._meter)
        self.on_msg(self._heard)
        self._draw()

    # what a reader can do, from Python too

    def show(self, **changes: Any) -> "Sparsity":
        """Change `pattern`, `layer`, `head`, or set the pattern's dial to come nearest to a `density`; returns the widget.

        A change of layer takes a second; `wait()` returns when all is drawn. Raises ValueError for what there is not.
        """
        if unknown := sorted(set(changes) - set(KEYS)):
            raise ValueError(f"{', '.join(unknown)}: there is no such thing to show; give {', '.join(KEYS)}")
        asked = {name: changes.get(name, getattr(self, name)) for name in KEYS[:3]}
        self._check(**asked)
        if (density := changes.get("density")) is not None:
            if not 0 < density <= 1:
                raise ValueError(f"density={density}; give a share of the causal pairs, above 0 and at most 1")
            asked["pattern"] = at_density(asked["pattern"], self._stops(asked["pattern"], asked["layer"]), density)
        self.pattern, self.layer, self.head = asked["pattern"], asked["layer"], asked["head"]
        self._draw()
        return self

    def measure(self) -> "Sparsity":
        """Begin to measure the pattern on all heads of the layer, and return the widget at once."""
        self._error = None
        with self._lock:
            self.metering = busy("Measuring …", 0.0)
        self._meter.submit(partial(self._measure, self.pattern, self.layer), 0.0)
        return self

    def cancel(self) -> "Sparsity":
        """Stop measuring after the round in work."""
        with self._lock:  # so that the job's end is not told before
            if self._meter.cancel():
                self.metering = busy("Cancelling: the round in work is the last …")
        return self

    def clear(self) -> "Sparsity":
        """Forget what was measured."""
        with self._lock:
            self._rows, self.points = [], []
        return self

    def wait(self) -> "Sparsity":
        """Return once nothing is being worked out; raises what ended it."""
        for worker in self._workers:
            worker.join()
        if self._error is not None:
            raise self._error
        return self

    @property
    def figures(self) -> dict[str, float]:
        """What the chosen blocks are worth, of the head in view and of all heads of the layer."""
        return dict(self.wait().seen["worth"])

    @property
    def table(self) -> pd.DataFrame:
        """What was measured, as `fm.figures.sparsity_pareto` takes it."""
        with self._lock:
            return pd.DataFrame(self._rows)

    def close(self) -> None:
        """Stop all work and leave the notebook."""
        for worker in self._workers:
            worker.close()
        super().close()

    def __repr__(self) -> str:
        return f"Sparsity({self.pattern!r}, layer {self.layer}, head {self.head}, blocks of {self.block}, {len(self.trace):,} tokens)"

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict, dict]:
        data, metadata = super()._repr_mimebundle_(**options)
        lines = [f"{name.replace('_', ' ')}: {value:.3f}" for name, value in self.seen.get("worth", {}).items()]
        data["text/plain"] = "\n".join([repr(self), *lines])
        return data, metadata

    # what the workers do

    def _draw(self) -> None:
        self._error = None
        ticket = self._drawer.submit(
            partial(self._drawn, self.pattern, self.layer, self.head, self._serial), PATIENCE_SECONDS
        )
        with self._lock:
            if not ticket.ended:
                self.status = busy(f"Layer {self.layer}, head {self.head} …")

    def _drawn(self, pattern: Pattern, number: int, head: int, serial: int, ticket: Ticket) -> None:
        layer, sent = self._layer(number), {}
        if (self.whole.get("layer"), self.whole.get("head")) != (number, head):
            everything = range(len(self.trace))
            about, shades = layer.shades(head, everything, everything)
            masses = layer.head(head).mass.numpy().tobytes()
            about |= {"layer": number, "head": head, "oracle": layer.oracle()}
            sent = {"whole": about, "shades": shades, "masses": masses, "tile": {}, "tile_shades": b""}
        ticket.check()
        choice = layer.choice(pattern)
        key = key_of(type(pattern))
        known = (
            {"key": key, "values": values_of(pattern)} if key in {entry["key"] for entry in self.patterns} else UNKNOWN
        )
        worth = layer.worth(choice, head)._asdict()
        seen = {"serial": serial, "layer": number, "head": head, "label": repr(pattern), "worth": worth} | known
        chosen = choice.blocks[0, head].to(torch.uint8).numpy().tobytes()
        with self._lock, self.hold_sync():
            ticket.check()
            ticket.ended = True
            if turned := self.reach.get("of") != self._turned(pattern, number):
                sent["reach"] = {}
            for name, value in (sent | {"seen": seen, "chosen": chosen, "status": ready()}).items():
                setattr(self, name, value)
        if turned:
            self._turner.submit(partial(self._turn, pattern, number), 0.0)

    def _turn(self, pattern: Pattern, number: int, ticket: Ticket) -> None:
        """Work out what the density slider can reach."""
        ticket.pause(PAUSE_SECONDS)
        found = self._stops(pattern, number, ticket)
        with self._lock:
            ticket.check()
            ticket.ended = True
            self.reach = {"of": self._turned(pattern, number), "stops": [list(stop) for stop in found]}

    def _look(self, queries: range, keys: range, number: int, head: int, ticket: Ticket) -> None:
        about, shades = self._layer(number).shades(head, queries, keys)
        with self._lock, self.hold_sync():
            ticket.check()
            ticket.ended = True
            self.tile, self.tile_shades = about | {"layer": number, "head": head}, shades

    def _measure(self, pattern: Pattern, number: int, ticket: Ticket) -> None:
        layer = self._layer(number)

        def go_on(doing: str, done: int) -> bool:
            with self._lock:
                ticket.check()
                self.metering = busy(f"{pattern!r}, layer {number}: {doing}", done / self.rounds)
            return True

        found = measure_pattern(
            pattern, layer.q, layer.k, layer.v, self.block, rounds=self.rounds, seconds=self.seconds, go_on=go_on
        )
        with self._lock:
            ticket.check()
            ticket.ended = True
            self._rows.append({"layer": number} | found.row())
            self.points, self.metering = [dict(row) for row in self._rows], ready("Measured.")

    def _failed(self, ticket: Ticket, error: BaseException) -> None:
        if isinstance(error, Cancelled):
            return
        with self._lock:
            ticket.ended = True
            self._error, self.status = error, failure(error)
            self.seen = self.seen | {"serial": self._serial}

    def _meter_failed(self, ticket: Ticket, error: BaseException) -> None:
        with self._lock:
            ticket.ended = True
            if isinstance(error, Cancelled | Ended):
                self.metering = ready("Cancelled; what was measured before stays.")
            else:
                self._error, self.metering = error, failure(error)

    def _layer(self, number: int) -> Layer:
        with self._loading:
            if number not in self._layers:
                self._layers.clear()  # one layer's heads take tens of megabytes each
                self._layers[number] = Layer(self.trace, self.trace.layers.index(number), self.block)
            return self._layers[number]

    def _stops(self, pattern: Pattern, number: int, ticket: Ticket | None = None) -> list[Stop]:
        layer, check = self._layer(number), (lambda: None) if ticket is None else ticket.check
        return stops(pattern, lambda one: layer.choice(one).density, len(self.trace), check)

    def _turned(self, pattern: Pattern, number: int) -> str:
        """What the stops of a dial depend on: all but where it stands."""
        rest = {name: value for name, value in values_of(pattern).items() if name != dial(type(pattern))}
        return f"{number} {key_of(type(pattern))} {rest}"

    # the way from the browser

    def _heard(self, _: "Sparsity", message: dict, buffers: list) -> None:
        kind, serial = message["kind"], message.get("serial", self._serial)
        self._serial = serial
        try:
            if kind == "choose":
                asked = message["choice"]
                pattern = build(asked["key"], asked["values"]) if asked["key"] else self.pattern
                self.show(pattern=pattern, layer=asked["layer"], head=asked["head"])
            elif kind == "density":
                self.show(density=message["density"])
            elif kind == "look":
                queries, keys = (range(*message[name]) for name in ("queries", "keys"))
                self._looker.submit(partial(self._look, queries, keys, self.layer, self.head), 0.0)
            elif kind == "refresh":
                self.patterns = catalogue(len(self.trace))
            else:
                {"measure": self.measure, "cancel": self.cancel, "clear": self.clear}[kind]()
        except (ValueError, TypeError) as error:
            with self._lock, self.hold_sync():
                self.status, self.seen = failure(error), self.seen | {"serial": serial}

    def _check(self, pattern: Pattern, layer: int, head: int) -> None:
        if not isinstance(pattern, Pattern):
            raise ValueError(f"pattern={pattern!r} is no pattern; give one such as fm.sparsity.Streaming(4, 512)")
        if layer not in self.trace.layers:
            raise ValueError(
                f"layer {layer} is not in the trace, which has {', '.join(map(str, self.trace.layers))}; give one of "
                f"these, or record it: fm.record(lm, text, layers=[{layer}])"
            )
        if not 0 <= head < self.trace.queries.shape[1]:
            raise ValueError(f"head {head} is none of {self.trace.queries.shape[1]} query heads; give a smaller one")
