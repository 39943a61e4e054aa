"""The map and its text as HTML that needs no kernel, no network and no second file."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from jaxtyping import Int
from torch import Tensor

from .assets import VIEW, script, style
from .map import check_runs
from .wire import Run, encode


@dataclass(frozen=True, eq=False)
class Drawn:
    """A run in an exported page: policy, budget, expiry (..., tokens), and figures as text by name."""

    policy: str
    budget: int
    expiry: Int[Tensor, "*heads tokens"]
    figures: Mapping[str, str] = field(default_factory=dict)


def map_fragment(
    maps: Sequence[Drawn],
    tokens: Sequence[str],
    title: str = "What the memory keeps",
    caption: str = "Each row is a token, each column a step. Colour: still held. Grey: evicted.",
    source: str = "",
    figures_caption: str = "At the end of the text",
    against: str | None = None,
    budget: int | None = None,
    step: int | None = None,
    mode: str = "pair",
    optimum: Sequence[Drawn] = (),
    oracle: bool = False,
) -> str:
    """An HTML fragment with the map and the text, linked, for any page; it works from a file, offline.

    The reader chooses among the policies and budgets of `maps`; the first is shown at first, at `budget`, beside the
    policy `against`. `optimum` are the runs that can be shown under them, at the budgets they have; `oracle` whether
    they are at first. It follows the system's light or dark theme. Raises ValueError where maps and tokens do not fit.
    """
    if not maps:
        raise ValueError("no maps; give one Drawn at least")
    blocks, offset = [], 0

    def entry(drawn: Drawn) -> dict:
        nonlocal offset
        run = Run.of(f"{drawn.policy}, budget {drawn.budget}", drawn.expiry)
        check_runs([run], tokens)
        (header,), block = encode([run])
        header = header | {"offset": offset}
        blocks.append(block)
        offset += len(block)
        return {"policy": drawn.policy, "budget": drawn.budget, "figures": dict(drawn.figures), "headers": [header]}

    runs, best = [entry(drawn) for drawn in maps], [entry(drawn) for drawn in optimum]
    if against is not None and against not in (drawn_policies := sorted({drawn.policy for drawn in maps})):
        raise ValueError(f"against={against!r} is not drawn; give one of {', '.join(drawn_policies)}")
    start = {
        "a": maps[0].policy, "b": against, "budget": maps[0].budget if budget is None else budget,
        "step": len(tokens) - 1 if step is None else step, "mode": mode, "oracle": oracle,
    }  # fmt: skip
    payload = {
        "tokens": list(tokens), "runs": runs, "optimum": best, "title": title, "caption": caption, "source": source, "start": start,
        "figuresCaption": figures_caption, "data": base64.b64encode(b"".join(blocks)).decode(),
    }  # fmt: skip
    return (
        '<div class="fmlab-page">'
        f"<style>{style('fmlab', 'page')}</style>"
        '<div class="fmlab" data-fmlab-page>'
        f'<script type="application/json" data-fmlab-payload>{in_script(payload)}</script>'
        "<noscript>The map is drawn by the script in this page; allow scripts to see it.</noscript>"
        "</div>"
        f'<script type="module">{script(*VIEW, "controls", "figures", "entry_page")}</script>'
        "</div>"
    )


def page(fragment: str, title: str) -> str:
    """A whole HTML document around a fragment."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>"
        f'</head><body class="fmlab-page" style="margin:0;padding:16px 24px">{fragment}</body></html>\n'
    )


def in_script(value: object) -> str:
    """JSON that cannot end the script element it stands in, nor open a comment in it."""
    return json.dumps(value).replace("<", "\\u003c")
