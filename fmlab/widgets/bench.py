"""Bench: pairs of a plain and a fast way, measured in the kernel at the press of a button, and drawn as they come in."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import anywidget
import pandas as pd
import traitlets

import fmlab as fm

from ..optimizations.clock import FEWEST_ROUNDS
from ..optimizations.comparison import Comparison, claimed, duration
from ..optimizations.machine import machine
from ..optimizations.outcome import Refused, attempt, table
from ..optimizations.wholes import in_the_wholes
from .about import busy, failure, ready
from .assets import script, style
from .worker import Cancelled, Ticket, Worker

STOPS = 9
TOLD_EVERY_SECONDS = 0.5  # a message to the browser costs the kernel time that the next round would feel


@dataclass(frozen=True)
class Asked:
    """What is to be measured: pairs by their names, the stop of the size slider (0 is the smallest size), rounds."""

    pairs: Sequence[str]
    stop: int
    rounds: int


class Bench(anywidget.AnyWidget):
    """A switch for each pair, a slider for the size, and a forest plot with a row for every pair and size measured.

    `pairs` are those of the lab (`fm.optimizations.ALL`) unless others are given. The slider goes from the smallest of a
    pair's own sizes to its largest in nine steps of equal ratio. A size is measured for `rounds` rounds or `seconds`
    seconds, whichever ends first. It is measured in this kernel, in a thread beside the cells: what else runs
    meanwhile disturbs it, and the row says so. Raises ValueError for no pair, or two of one name.
    """

    _esm = script("dom", "svg", "controls", "bench", "entry_bench")
    _css = style("fmlab", "bench")

    about = traitlets.Dict().tag(sync=True)
    choice = traitlets.Dict().tag(sync=True)
    rows = traitlets.List().tag(sync=True)
    status = traitlets.Dict().tag(sync=True)

    _worker: Worker | None = None  # close() is called on a widget, too, whose opening was refused

    def __init__(self, pairs: Sequence["fm.optimizations.Pair"] | None = None, rounds: int = 12, seconds: float = 10.0):
        pairs = fm.optimizations.ALL if pairs is None else pairs
        self.pairs = {pair.name: pair for pair in pairs}
        if not self.pairs or len(self.pairs) < len(pairs):
            raise ValueError(f"pairs {[pair.name for pair in pairs]}; give at least one, each with a name of its own")
        self.seconds = seconds
        self._outcomes: dict[tuple[str, int], Comparison | Refused] = {}
        self._error: BaseException | None = None
        self._lock = threading.RLock()  # the kernel's thread and the worker's both speak to the browser
        asked = Asked([next(iter(self.pairs))], STOPS // 2, rounds)
        self._check(asked)
        super().__init__(about=self._about(), choice=_sent(asked), status=ready())
        self._worker = Worker(self._failed)
        self.on_msg(self._heard)

    # what a reader can do, from Python too

    def show(self, **changes: Any) -> "Bench":
        """Change what is to be measured and return the widget: `pairs` (their names), `stop` (0 to 8, the size),
        `rounds`. Raises ValueError for a pair that there is not, for a stop beyond, for too few rounds."""
        asked = replace(self._asked, **changes)
        self._check(asked)
        with self._lock:
            self.choice = _sent(replace(asked, pairs=[name for name in self.pairs if name in asked.pairs]))
        return self

    def measure(self) -> "Bench":
        """Begin to measure the pairs that are switched on, one after another, and return the widget at once.

        Raises ValueError where none is switched on.
        """
        asked = self._asked
        if not asked.pairs:
            raise ValueError("no pair is switched on; show(pairs=[...]) switches some on")
        self._error = None
        with self._lock:
            self.status = busy("Measuring …", 0.0)
        self._worker.submit(lambda ticket: self._measure(ticket, asked), 0.0)
        return self

    def cancel(self) -> "Bench":
        """Stop after the round in work; what was measured before stays."""
        with self._lock:  # so that the job's end is not told before
            if self._worker.cancel():
                self.status = busy("Cancelling: the round in work is the last …")
        return self

    def clear(self) -> "Bench":
        """Forget every row."""
        with self._lock:
            self._outcomes.clear()
            self.rows = []
        return self

    def wait(self) -> "Bench":
        """Return once nothing is being measured; raises what ended the measuring, unless it was cancelled."""
        self._worker.join()
        if self._error is not None:
            raise self._error
        return self

    @property
    def table(self) -> pd.DataFrame:
        """The rows as `fm.figures.speedups` takes them; those of a refused pair have no figure, and its error."""
        with self._lock:
            return table(self._in_order())

    def close(self) -> None:
        """Stop measuring and leave the notebook."""
        if self._worker is not None:
            self._worker.close()
        super().close()

    def __repr__(self) -> str:
        return f"Bench({len(self.pairs)} pairs, {len(self._outcomes)} rows measured)"

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict, dict]:
        data, metadata = super()._repr_mimebundle_(**options)
        data["text/plain"] = "\n".join([repr(self), self.about["machine"], *map(repr, self._in_order())])
        return data, metadata

    # what the worker does

    def _measure(self, ticket: Ticket, asked: Asked) -> None:
        for at, name in enumerate(asked.pairs):
            pair, size = self.pairs[name], size_at(self.pairs[name], asked.stop)
            words = f"{name}, {size:,} {pair.unit}"
            self._say(ticket, f"{words}: do both ways give the same?", at / len(asked.pairs))
            told = time.perf_counter()

            def after_round(_: int, done: int, at: int = at, words: str = words) -> bool:
                nonlocal told
                ticket.check()
                if time.perf_counter() - told > TOLD_EVERY_SECONDS:
                    share = (at + done / asked.rounds) / len(asked.pairs)
                    self._say(ticket, f"{words}: round {done} of {asked.rounds}", share)
                    told = time.perf_counter()
                return True

            outcome = attempt(pair, (size,), asked.rounds, self.seconds, after_round)
            with self._lock:
                ticket.check()
                self._outcomes[name, size] = outcome
                self.rows = [row for each in self._in_order() for row in _drawn(each)]
        with self._lock:
            ticket.ended = True
            self.status = ready(f"Measured: {_counted(len(asked.pairs))}.")

    def _say(self, ticket: Ticket, text: str, share: float) -> None:
        with self._lock:
            ticket.check()  # in the lock, or it might be told after "cancelling"
            self.status = busy(text, share)

    def _failed(self, ticket: Ticket, error: BaseException) -> None:
        with self._lock:
            ticket.ended = True
            if isinstance(error, Cancelled):
                self.status = ready("Cancelled; what was measured before stays.")
            else:
                self._error, self.status = error, failure(error)

    def _in_order(self) -> list[Comparison | Refused]:
        places = {name: at for at, name in enumerate(self.pairs)}
        return [self._outcomes[key] for key in sorted(self._outcomes, key=lambda key: (places[key[0]], key[1]))]

    # the way to the browser and back

    @property
    def _asked(self) -> Asked:
        return Asked(self.choice["pairs"], self.choice["stop"], self.choice["rounds"])

    def _about(self) -> dict:
        return {
            "machine": f"measured in this kernel, on {machine()}",
            "stops": STOPS,
            "fewest": FEWEST_ROUNDS,
            "pairs": [
                {
                    "name": pair.name,
                    "claim": claimed(pair),
                    "source": pair.source,
                    "unit": pair.unit,
                    "sizes": [size_at(pair, stop) for stop in range(STOPS)],
                }
                for pair in self.pairs.values()
            ],
        }

    def _heard(self, _: "Bench", message: dict, buffers: list) -> None:
        kind = message["kind"]
        try:
            if kind in ("choose", "measure"):
                self.show(**message["choice"])
            if kind != "choose":
                {"measure": self.measure, "cancel": self.cancel, "clear": self.clear}[kind]()
        except ValueError as error:
            with self._lock:
                self.status = failure(error)

    def _check(self, asked: Asked) -> None:
        for name in asked.pairs:
            if name not in self.pairs:
                raise ValueError(f"no pair {name!r}; there are: {'; '.join(self.pairs)}")
        if not 0 <= asked.stop < STOPS:
            raise ValueError(f"stop={asked.stop}; give 0 (the smallest size) to {STOPS - 1} (the largest)")
        if asked.rounds < FEWEST_ROUNDS:
            raise ValueError(f"rounds={asked.rounds}; give {FEWEST_ROUNDS} or more")


def size_at(pair: "fm.optimizations.Pair", stop: int) -> int:
    """The size of a pair at a stop of the slider, of two digits between the smallest and the largest."""
    above = [size for size in pair.sizes if size > 0] or [0]
    low, high = min(above), max(above)
    if stop == 0 or low == 0:
        return low
    if stop == STOPS - 1:
        return high
    return int(float(f"{low * (high / low) ** (stop / (STOPS - 1)):.1e}"))


def _sent(asked: Asked) -> dict:
    return {"pairs": list(asked.pairs), "stop": asked.stop, "rounds": asked.rounds}


def _drawn(outcome: Comparison | Refused) -> list[dict]:
    """The rows of a pair as the browser draws them; a refused one has no figure, but a verdict and the error."""
    pair = outcome.pair
    common = {"pair": pair.name, "unit": pair.unit, "claim": list(pair.claim) if pair.claim else None}
    if isinstance(outcome, Refused):
        return [common | {"size": s, "verdict": outcome.verdict, "error": str(outcome.error)} for s in outcome.sizes]
    return [
        common
        | {"size": row.size, "speedup": row.speedup, "low": row.low, "high": row.high, "n": row.n, "error": None}
        | {"seconds": [duration(seconds) for seconds in row.seconds], "verdict": str(row.verdict), "unrest": row.unrest}
        | {"floor": outcome.floor(row.size), "wholes": in_the_wholes(outcome.pair.name)}
        for row in outcome.rows
    ]


def _counted(pairs: int) -> str:
    return "1 pair" if pairs == 1 else f"{pairs} pairs"
