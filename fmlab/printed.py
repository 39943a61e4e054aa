"""The rows of a comparison in words: a table for the terminal, and what its columns mean."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from .compare import LEAST_RUNS, RUN_TOKENS, Row
from .passage import Passage

NOTHING = "–"


class Column(NamedTuple):
    """A column of the table: its heading, what it says, and how a row is written in it."""

    heading: str
    meaning: str
    text: Callable[[Row], str]
    in_terminal: bool = True
    of_facts: bool = False


def _one(name: str, form: str, scale: float | int = 1) -> Callable[[Row], str]:
    return lambda row: NOTHING if row[name] is None else format(row[name] * scale, form)


def _interval(row: Row) -> str:
    low, high = row["nll_delta_low"], row["nll_delta_high"]
    return NOTHING if low is None else f"[{low:+.3f}, {high:+.3f}]"


_THIRD = "share of the tokens in the {} third of the context that are held at its end, mean over all heads"
COLUMNS = (
    Column("policy", "what chose the entries to evict", lambda row: row["policy"]),
    Column("budget", "entries that a KV head may hold between calls", lambda row: str(row["budget"] or NOTHING)),
    Column("early", _THIRD.format("first"), _one("early", ".0%")),
    Column("middle", _THIRD.format("second"), _one("middle", ".0%")),
    Column("late", _THIRD.format("last"), _one("late", ".0%")),
    Column("facts", "the same share, of the tokens of the planted facts", _one("facts_present", ".0%"), of_facts=True),
    Column(
        "told",
        "planted facts that the model tells when it is asked after the eviction",
        lambda row: NOTHING if row["answered"] is None else f"{row['answered']}/{row['questions']}",
        of_facts=True,
    ),
    Column(
        "query aware",
        "whether the policy saw the question before it evicted",
        lambda row: NOTHING if row["query_aware"] is None else ("yes" if row["query_aware"] else "no"),
        in_terminal=False,
        of_facts=True,
    ),
    Column(
        "recall",
        "attention-mass recall: share of the full cache's softmax mass that lies on what is held, mean over the tail's "
        "queries and all heads",
        _one("mass_recall", ".3f"),
    ),
    Column("p10", "what nine of ten (query, KV head) pairs exceed of it", _one("mass_recall_p10", ".3f")),
    Column(
        "NLL +",
        "nats a token by which the scored tail is less likely than with the full cache",
        _one("nll_delta", "+.3f"),
    ),
    Column("95% interval", "of the column before it", _interval),
    Column("n", "scored tokens behind it, all predicted after an eviction", _one("n", "d")),
    Column("MB", "keys and values held after the last token, 10^6 bytes", _one("nbytes", ".2f", 1e-6)),
    Column(
        "overhead MB",
        "positions, the policy's columns and the record of the run",
        _one("overhead_nbytes", ".2f", 1e-6),
        in_terminal=False,
    ),
    Column(
        "peak MB",
        "the most that both reached, the context's call included; not measured for the stock cache",
        _one("peak_nbytes", ".2f", 1e-6),
        in_terminal=False,
    ),
    Column("ms", "milliseconds a decode step, median over the tail", _one("decode_milliseconds", ".1f")),
)


def columns(rows: Sequence[Row], terminal: bool) -> list[Column]:
    """The columns that these rows fill."""
    facts = any(row["questions"] for row in rows)
    return [column for column in COLUMNS if (facts or not column.of_facts) and (column.in_terminal or not terminal)]


def as_text(rows: Sequence[Row]) -> str:
    """The table, one line a row, in the order given; what was refused says why."""
    shown = columns(rows, terminal=True)
    lines = [[column.heading for column in shown]]
    lines += [[column.text(row) for column in shown] for row in rows if not row["refused"]]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    widths[0] = max(len(row["policy"]) for row in rows)

    def line(cells: Sequence[str]) -> str:
        right = [cell.rjust(width) for cell, width in zip(cells, widths, strict=False)]
        return "  ".join([cells[0].ljust(widths[0]), *right[1:]]).rstrip()

    written = [line(lines[0])]
    for row in rows:
        cells = [column.text(row) for column in shown]
        written.append(f"{line(cells[:2])}  refused: {row['refused']}" if row["refused"] else line(cells))
    return "\n".join(written)


def headline(passage: Passage, rows: Sequence[Row]) -> str:
    """What was read, in one line."""
    row = rows[0]
    facts = f" with {len(passage.planted)} planted facts" if passage.planted else ""
    return (
        f"{row['model']} ({row['model_source']}, {row['dtype']}, {row['device']}) reads {len(passage.context_ids):,} "
        f"tokens of {passage.title}{facts}, then {passage.scored} scored tokens one by one."
    )


def notes(passage: Passage, rows: Sequence[Row]) -> list[str]:
    """What the figures mean and what they do not say."""
    row = rows[0]
    one_call = "in one call of the model, followed by one eviction"
    calls = one_call if row["chunk"] is None else f"in calls of {row['chunk']} tokens, each followed by an eviction"
    clusters = max(row["clusters"] or 0 for row in rows)
    said = [
        f"The context is read {calls} down to the budget. early, middle, late: share of its tokens, by third, that a "
        "KV head then holds, mean over all heads.",
        "recall: share of the full cache's attention that lies on what is held, mean over the scored tail's queries "
        f"and the KV heads of {row['recall_layers']} layers; p10: what nine of ten (query, head) pairs exceed.",
        "NLL +: nats a token by which the tail is less likely than with the full cache, on the same tokens, all "
        "predicted after an eviction; teacher-forced, a token a call. Interval: paired bootstrap over "
        f"{clusters} runs of {RUN_TOKENS} neighbouring tokens, none from fewer than {LEAST_RUNS}. One text supports "
        "no statement about others.",
        "Rows stand in the order given. Two rows whose intervals overlap are not ranked.",
        "MB: keys and values allocated after the last token. ms: median of this cell's decode steps, unpaired; the "
        "machine may have done other things meanwhile.",
    ]
    if passage.planted:
        said.insert(
            1,
            "facts: the same share, of the planted facts' tokens. told: facts that the model tells, asked from a copy "
            "of the cache after the eviction (query-blind: the policy has not seen the question). A fact told though "
            "it is gone was guessed, or leaked into entries that were kept.",
        )
    if row["position_limit"] is not None and len(passage.read) > row["position_limit"]:
        said.append(f"The text is longer than the {row['position_limit']:,} positions that the model was made for.")
    return said
