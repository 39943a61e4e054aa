"""HitCurves: hit ratios over capacity and block size, a line a policy, and the figures at a chosen point as a table."""

from collections.abc import Iterable, Mapping
from typing import Any

import anywidget
import pandas as pd
import traitlets

from ..figures.hits import CEILING, RATIOS
from ..figures.look import styles
from .assets import script, style

PLACE = ["policy", "block_tokens", "capacity_tokens"]
COLUMNS = [*PLACE, "capacity", *RATIOS]


class HitCurves(anywidget.AnyWidget):
    """Draws the rows of `fm.caches.hit_rows`: sliders for the capacity and the block size, a choice of the ratio.

    All curves travel to the browser once and are drawn there, so a slider never waits for the kernel. `block_tokens`,
    `capacity_tokens` and `ratio` are what the reader chose, and may be assigned; at first the smallest blocks, the middle
    capacity and the ratio by token. Raises ValueError for rows without a field, two for one point, a ratio that is none,
    or no row at all; traitlets.TraitError for choices that the rows do not have.
    """

    _esm = script("dom", "svg", "hits", "entry_hits")
    _css = style("fmlab", "hits")

    curves = traitlets.Dict().tag(sync=True)
    block_tokens = traitlets.Int().tag(sync=True)
    capacity_tokens = traitlets.Int().tag(sync=True)
    ratio = traitlets.Enum(list(RATIOS), "token").tag(sync=True)

    def __init__(self, rows: Iterable[Mapping[str, Any]]):
        self._rows = _checked(pd.DataFrame(list(rows)))
        blocks, capacities = (sorted(map(int, self._rows[name].unique())) for name in PLACE[1:])
        super().__init__(
            curves=_curves(self._rows, blocks, capacities),
            block_tokens=blocks[0],
            capacity_tokens=capacities[len(capacities) // 2],
        )

    @property
    def table(self) -> pd.DataFrame:
        """Every ratio of every policy at the chosen point; NaN where no whole block of this size fits the capacity."""
        rows = self._rows
        chosen = rows[(rows["block_tokens"] == self.block_tokens) & (rows["capacity_tokens"] == self.capacity_tokens)]
        return chosen.set_index("policy")[list(RATIOS)].reindex(self.curves["policies"])

    @traitlets.validate("block_tokens", "capacity_tokens")
    def _one_of(self, proposal: Any) -> int:
        name, value = proposal["trait"].name, proposal["value"]
        known = self.curves[{"block_tokens": "blocks", "capacity_tokens": "capacities"}[name]]
        if value not in known:
            raise traitlets.TraitError(f"{name}={value}; the rows have {', '.join(map(str, known))}")
        return value

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict, dict]:
        data, metadata = super()._repr_mimebundle_(**options)
        where = f"{self.capacity_tokens:,} tokens in blocks of {self.block_tokens:,}"
        data["text/plain"] = f"{self!r}\n{where}\n{self.table.round(3).to_string(na_rep='–')}"
        return data, metadata

    def __repr__(self) -> str:
        counts = (len(self.curves[name]) for name in ("policies", "blocks", "capacities"))
        return "HitCurves({} policies, {} block sizes, {} capacities)".format(*counts)


def _checked(rows: pd.DataFrame) -> pd.DataFrame:
    if rows.empty:
        raise ValueError("there is no row; give those of fm.caches.hit_rows, with at least one policy and capacity")
    if missing := [name for name in COLUMNS if name not in rows]:
        raise ValueError(f"the rows have no {', '.join(map(repr, missing))}; they have {', '.join(map(str, rows))}")
    twice = rows[rows.duplicated(PLACE)]
    if not twice.empty:
        policy, block, tokens = twice.iloc[0][PLACE]
        raise ValueError(f"{policy} has two rows at {tokens} tokens in blocks of {block}; give one a point")
    if (low := rows["capacity_tokens"].min()) <= 0:
        raise ValueError(f"capacity_tokens={low} has no place on a logarithmic axis; leave it out")
    for name in RATIOS:
        wrong = rows[~rows[name].between(0, 1)]
        if not wrong.empty:
            raise ValueError(f"{name}={wrong.iloc[0][name]} of {wrong.iloc[0]['policy']} is no ratio from 0 to 1")
    return rows


def _curves(rows: pd.DataFrame, blocks: list[int], capacities: list[int]) -> dict[str, Any]:
    """What the browser draws: policies with their looks, Belady last; ratios as [block][policy][capacity], null for none."""
    policies = sorted(dict.fromkeys(rows["policy"]), key=lambda name: name == CEILING)
    looks = styles(name for name in policies if name != CEILING)
    at = rows.set_index(PLACE)

    def values(column: str) -> list[list[list[float | None]]]:
        known = {place: round(float(value), 6) for place, value in at[column].items()}
        return [[[known.get((p, b, c)) for c in capacities] for p in policies] for b in blocks]

    return {
        "policies": policies,
        "looks": [None if name == CEILING else looks[name]._asdict() for name in policies],
        "blocks": blocks,
        "capacities": capacities,
        "names": RATIOS,
        "ratios": {name: values(name) for name in RATIOS},
    }
