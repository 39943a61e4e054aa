"""The optimum of a few tokens drawn whole: what every query pays to every entry, and where the entry is gone."""

from collections.abc import Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go

from .look import COLOURS, finish


def attention_and_evictions(
    attention: np.ndarray, expiry: Sequence[int], tokens: Sequence[str], title: str
) -> go.Figure:
    """Attention of one head (queries, entries) in hundredths, struck out from the query on that no longer sees it.

    `expiry` has an entry's first query that does not see it, as a run has. Made for a few tokens; raises ValueError
    for shapes that do not belong together.
    """
    n = len(tokens)
    if attention.shape != (n, n) or len(expiry) != n:
        raise ValueError(
            f"attention of shape {attention.shape} and {len(expiry)} expiries for {n} tokens; give one trace's"
        )
    names = [f"{i} {escape(token.strip() or repr(token), quote=False)}" for i, token in enumerate(tokens)]
    causal = np.tril(np.ones((n, n), bool))
    gone = causal & (np.arange(n)[:, None] >= np.array([int(each) for each in expiry]))
    shown = [[f"{100 * attention[q, i]:.0f}" if causal[q, i] else "" for i in range(n)] for q in range(n)]
    figure = go.Figure(
        go.Heatmap(
            z=np.where(causal, attention, np.nan), x=names, y=names, text=shown, texttemplate="%{text}", xgap=2, ygap=2,
            colorscale="Cividis", zmin=0, zmax=1, hoverongaps=False,
            colorbar={"title": {"text": "attention"}, "thickness": 12, "tickformat": ".0%"},
            hovertemplate="query %{y} pays %{z:.1%} to %{x}<extra></extra>",
        )
    )  # fmt: skip
    queries, entries = gone.nonzero()
    figure.add_scatter(
        x=[names[i] for i in entries], y=[names[q] for q in queries], mode="markers", name="evicted: no longer seen",
        marker={"symbol": "line-ne", "size": 26, "line": {"width": 3, "color": COLOURS[1]}}, hoverinfo="skip",
    )  # fmt: skip
    figure.update_xaxes(title_text="entry", showgrid=False, type="category", categoryarray=names, constrain="domain")
    figure.update_yaxes(title_text="query", showgrid=False, type="category", categoryarray=names, autorange="reversed")
    figure.update_layout(showlegend=True)
    return finish(figure, title, 440)
