"""A comparison as one HTML file that opens offline: the table, the map with its text, the charts, the provenance."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from . import figures, printed
from .compare import FULL, Cell, Row
from .passage import Passage
from .texts import THIRDS
from .widgets.export import Drawn, in_script, map_fragment

HERE = Path(__file__).parent
NO_NETWORK = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
PROVENANCE = {
    "model": "model", "model_source": "weights", "dtype": "precision", "device": "device", "text": "text",
    "text_sha256": "sha256 of the text", "context_tokens": "tokens of context", "scored_tokens": "scored tokens",
    "chunk": "tokens a call (context)", "recall_layers": "layers in the recall", "seed": "seed of the text",
    "commit": "commit", "dirty": "differs from the commit", "versions": "versions", "started": "started",
}  # fmt: skip


def html(passage: Passage, cells: Sequence[Cell], planned: int, command: str = "") -> str:
    """The whole report of the cells that are finished, out of `planned`. Raises ValueError where there is none."""
    if not cells:
        raise ValueError("no cell is finished; there is nothing to report")
    rows = [cell.row for cell in cells]
    notes = "".join(f"<li>{escape(note)}</li>" for note in printed.notes(passage, rows))
    warning = ""
    if len(cells) < planned:
        warning = f'<p class="warning">Interrupted: {len(cells)} of {planned} rows were finished.</p>'
    title = f"What memory policies keep of {passage.title}"
    body = (
        f"<h1>{escape(title)}</h1>"
        f'<p class="lead">{escape(printed.headline(passage, rows))}</p>{warning}'
        f'<div class="scroll">{_table(rows)}</div><ul class="notes">{notes}</ul>'
        f"{_map(passage, cells)}{_charts(rows)}{_answers(rows)}{_provenance(rows[0], command)}"
        f'<script type="application/json" id="rows">{in_script(rows)}</script>'
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{NO_NETWORK}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_beside('report.css')}</style></head>"
        f'<body class="fmlab-page"><main class="report">{body}</main></body></html>\n'
    )


def charts(rows: Sequence[Row]) -> dict[str, go.Figure]:
    """The charts that these rows allow, by name; none where every cell was refused."""
    table = pd.DataFrame(rows)
    measured = table[table["refused"].isna()]
    if measured["budget"].isna().all():
        return {}
    drawn = {"mass_recall_by_budget": figures.mass_recall_by_budget(measured)}
    compared = measured.dropna(subset=["nll_delta"])
    if compared["budget"].notna().any():
        drawn["nll_by_budget"] = figures.nll_by_budget(compared)
        drawn["bytes_against_quality"] = figures.bytes_against_quality(compared)
    facts = pd.DataFrame([_cell_of(row) | fact for row in rows for fact in row["fact_results"]])
    thirds = [_cell_of(row) | {"third": third, "present": row[third]} for row in rows for third in THIRDS]
    drawn["retention_by_depth"] = figures.retention_by_depth(pd.DataFrame(thirds).dropna(subset=["present"]))
    if len(facts):
        drawn["needle_heatmap"] = figures.needle_heatmap(facts)
    return drawn


def _table(rows: Sequence[Row]) -> str:
    shown = printed.columns(rows, terminal=False)
    head = "".join(f'<th scope="col" title="{escape(c.meaning)}">{escape(c.heading)}</th>' for c in shown)
    lines, last = [], None
    for row in rows:
        cells = [f"<td>{escape(column.text(row))}</td>" for column in shown[1:]]
        if row["refused"]:
            cells = [cells[0], f'<td class="words" colspan="{len(shown) - 2}">refused: {escape(row["refused"])}</td>']
        kind = "baseline" if row["policy"] == FULL else "first-of-policy" if row["policy"] != last else ""
        lines.append(f'<tr class="{kind}"><th scope="row">{escape(row["policy"])}</th>{"".join(cells)}</tr>')
        last = row["policy"]
    return f'<table class="rows"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'


def _map(passage: Passage, cells: Sequence[Cell]) -> str:
    drawn = [cell for cell in cells if cell.expiry is not None and cell.row["policy"] != FULL]
    if not drawn:
        return ""
    policies = list(dict.fromkeys(cell.row["policy"] for cell in drawn))
    budgets = sorted({cell.row["budget"] for cell in drawn if cell.row["policy"] == policies[0]})
    layers = ", ".join(map(str, drawn[0].layers))
    fragment = map_fragment(
        [Drawn(cell.row["policy"], cell.row["budget"], cell.expiry, _figures(cell.row)) for cell in drawn],
        passage.read,
        title="What the memory keeps",
        caption="Each row of the map is a token, each column a step: coloured while it is held, grey once it is "
        "evicted. Point at a token in the map or in the text to find it in the other.",
        source=f"{drawn[0].row['model']}\nlayers {layers}, all KV heads",
        figures_caption="This policy and budget",
        against=policies[1] if len(policies) > 1 else None,
        budget=budgets[len(budgets) // 2],
    )
    return f"<h2>Map and text</h2>{fragment}"


def _figures(row: Row) -> Mapping[str, str]:
    names = ("early", "middle", "late", "facts", "told", "recall", "NLL +", "95% interval", "MB", "ms")
    shown = [column for column in printed.columns([row], terminal=True) if column.heading in names]
    return {column.heading: column.text(row) for column in shown}


def _charts(rows: Sequence[Row]) -> str:
    drawn = charts(rows)
    if not drawn:
        return ""
    wide = {"bytes_against_quality", "retention_by_depth", "needle_heatmap"}
    parts = []
    for name, figure in drawn.items():
        label = escape(f"{figure.layout.title.text}; the figures stand in the table above")
        data = figure.to_json().replace("<", "\\u003c")
        kind = "chart wide" if name in wide else "chart"
        parts.append(
            f'<div class="{kind}" id="{name}"><script type="application/json">{data}</script>'
            f'<div role="img" aria-label="{label}"></div></div>'
        )
    return (
        f'<h2>Charts</h2><div class="charts">{"".join(parts)}</div>'
        f'<script type="application/json" data-chart-config>{in_script(figures.CONFIG)}</script>'
        f'<script>{_script(get_plotlyjs())}</script><script type="module">{_beside("report.js")}</script>'
    )


def _answers(rows: Sequence[Row]) -> str:
    """What the model said, question by question."""
    if not any(row["fact_results"] for row in rows):
        return ""
    asked = next(row["fact_results"] for row in rows if row["fact_results"])
    questions = (f"{fact['question']} ({fact['depth']:.0%})" for fact in asked)
    head = "".join(f'<th scope="col" class="words">{escape(question)}</th>' for question in questions)
    lines = []
    for row in rows:
        answers = (f"{'✓' if fact['answered'] else '✗'} {fact['said']}" for fact in row["fact_results"])
        said = "".join(f'<td class="words">{escape(answer)}</td>' for answer in answers)
        if said:
            budget = printed.NOTHING if row["budget"] is None else row["budget"]
            lines.append(f'<tr><th scope="row">{escape(row["policy"])}</th><td>{budget}</td>{said}</tr>')
    table = f'<th scope="col">policy</th><th scope="col">budget</th>{head}'
    return (
        "<h2>What the model said</h2><details><summary>Every answer, by question and depth in the text</summary>"
        f'<div class="scroll"><table class="rows"><thead><tr>{table}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></details>"
    )


def _provenance(row: Row, command: str) -> str:
    known = {"command": command} if command else {}
    for name, words in PROVENANCE.items():
        if row[name] is not None:
            known[words] = {True: "yes", False: "no"}.get(row[name], row[name]) if name == "dirty" else row[name]
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in known.items())
    return f"<h2>Where the numbers come from</h2><dl>{lines}</dl>"


def _cell_of(row: Row) -> dict[str, Any]:
    return {"policy": row["policy"], "budget": row["budget"]}


def _beside(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _script(source: str) -> str:
    """JavaScript that cannot end the script element it stands in."""
    return source.replace("</script", "<\\/script").replace("<!--", "<\\!--")
