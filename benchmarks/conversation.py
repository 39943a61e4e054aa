"""What conversation memories keep of the evidence, on real meetings and on the lab's own dialogues; and what is answered.

Part `recall` (the default) writes data/evidence_recall.csv.gz, a row a question: the meetings of QMSum (qmsum/meetings.jsonl
in the folder that FMLAB_DATA names) and the six dialogues, every memory at 1/16 to 1/2 of the conversation's tokens.
Query-blind memories select once a conversation, query-aware ones once a question, and the two are never in one column.
What every prompt has besides its turns comes on top of that share. What a memory needs besides (an encoder's passes, a
model's reading) is not in the budget; a summary's tokens are. Part `answers` writes data/dialogue_answers.csv.gz: SmolLM2's
greedy replies to every question of the dialogues from what each memory kept of a quarter of the tokens, with the whole
conversation and the bare evidence beside it. An interrupted run goes on where it stopped.

Of RollingSummary, whose model would write for days on the meetings, `recall` has the two ends between which it lies: no
summary is refused, and the older turns are gone but for what it says; every one is, and in its place stay the turns that
it held first, as far as they fit. Which turns stay does not depend on what a summary says. `answers` has the model write
them. Ablation reads a window for every turn and question, a hundred times the work of Importance: three questions of each
dialogue are drawn for it, and no meeting. Full keeps all at any budget, so its recall is 1 and has no row.
"""

import json
import os
import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pandas as pd
from paired import ROOT, machine, options, ship

import fmlab as fm
from fmlab.conversation import (
    BM25,
    Ablation,
    Hybrid,
    Importance,
    Memory,
    MiniLM,
    QuestionLogProb,
    Random,
    RollingSummary,
    Semantic,
    Sliding,
    Span,
    TokenEmbeddings,
    answered,
    dialogues,
    evidence_recall,
    meetings,
    opening,
    prompt,
    replies,
    spans,
)
from fmlab.conversation.evidence import third
from fmlab.conversation.template import tokens_of
from fmlab.intervals import bootstrap

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
SEEDS = 10  # of Random, whose recall is their mean
SYSTEM = (
    "Answer the last question from the conversation, in a few words. If it was never said, say that you do not know."
)
WORDS = 24  # tokens of a reply
AT_A_TIME = 12  # prompts of a batch
BLIND, AWARE = [False], [True]


@cache
def model(tiny: bool) -> fm.LanguageModel:
    return fm.tiny() if tiny else fm.load()


@cache
def scorer(tiny: bool) -> QuestionLogProb:
    return QuestionLogProb(model(tiny))


@cache
def encoder(tiny: bool):
    return fm.caches.EmbeddingCache(TokenEmbeddings(model(True)) if tiny else MiniLM())


@cache
def table_encoder(tiny: bool):
    return fm.caches.EmbeddingCache(TokenEmbeddings(model(tiny)))


MEMORIES: dict[str, tuple[list[bool], Callable[[int, bool], Memory]]] = {
    "Random": (BLIND, lambda budget, tiny: Random(budget)),
    "Sliding": (BLIND, lambda budget, tiny: Sliding(budget)),
    "Semantic (MiniLM)": (BLIND + AWARE, lambda budget, tiny: Semantic(budget, encoder(tiny))),
    "Semantic (token table)": (BLIND + AWARE, lambda budget, tiny: Semantic(budget, table_encoder(tiny))),
    "Hybrid (Semantic, Sliding)": (
        BLIND,
        lambda budget, tiny: Hybrid(budget, ((Semantic(budget, encoder(tiny)), 1.0), (Sliding(budget), 1.0))),
    ),
    "BM25": (AWARE, lambda budget, tiny: BM25(budget)),
    "Hybrid (Semantic, BM25)": (
        AWARE,
        lambda budget, tiny: Hybrid(budget, ((Semantic(budget, encoder(tiny)), 1.0), (BM25(budget), 1.0))),
    ),
    "Importance": (AWARE, lambda budget, tiny: Importance(budget, model(tiny))),
    "Importance of the newest turn": (BLIND, lambda budget, tiny: Importance(budget, model(tiny))),
    "Ablation of the question": (AWARE, lambda budget, tiny: Ablation(budget, scorer(tiny))),
    "RollingSummary": (BLIND, lambda budget, tiny: RollingSummary(budget, model(tiny))),
    "RollingSummary, none refused": (BLIND, lambda budget, tiny: RollingSummary(budget, model(tiny), write=said_well)),
    "RollingSummary, all refused": (
        BLIND,
        lambda budget, tiny: RollingSummary(budget, model(tiny), write=said_nothing),
    ),
}
SAMPLED = {"Ablation of the question": 3}  # questions of each dialogue; the meetings would take days
RECALLED = [memory for memory in MEMORIES if memory != "RollingSummary"]
TOYS = ["Random", "Sliding", "BM25", "Semantic (MiniLM)", "RollingSummary, all refused"]
ANSWERED = [
    "Full",
    "Evidence",
    "Random",
    "Sliding",
    "Semantic (MiniLM)",
    "BM25",
    "Hybrid (Semantic, BM25)",
    "RollingSummary",
    "Importance",
    "Hybrid (Semantic, Sliding)",
]


def said_well(lm: fm.LanguageModel, text: str, tokens: int, seed: int) -> str:
    return "They talked."


def said_nothing(lm: fm.LanguageModel, text: str, tokens: int, seed: int) -> str:
    return ""


@cache
def conversations(source: str) -> list[tuple[str, Sequence, Sequence]]:
    """Name, messages and questions with evidence of each conversation."""
    if source == "dialogues":
        return [(talk.name, talk.messages, [q for q in talk.questions if q.evidence]) for talk in dialogues()]
    read = meetings(Path(os.environ["FMLAB_DATA"]) / "qmsum" / "meetings.jsonl")
    return [(f"meeting {talk.name}", talk.messages, talk.questions) for talk in read]


@cache
def spans_of(source: str, place: int, tiny: bool) -> list[Span]:
    return spans(list(conversations(source)[place][1]), model(tiny).tokenizer)


def recall(source, conversation, memory, tiny):
    """One conversation under one memory: its rows, as JSON."""
    name, _, questions = conversations(source)[conversation]
    if memory in SAMPLED:
        questions = random.Random(name).sample(list(questions), SAMPLED[memory])
    said = spans_of(source, conversation, tiny)
    total, rows = sum(span.tokens for span in said), []
    ways, make = MEMORIES[memory]
    for share in SHARES:
        budget = int(share * total)
        room = budget + said[0].beside
        made = [Random(room, seed) for seed in range(SEEDS)] if memory == "Random" else [make(room, tiny)]
        for aware in ways:
            blind = None if aware else [each.select(said) for each in made]
            for question, evidence in ((q.question, q.evidence) for q in questions):
                kept = [each.select(said, question) for each in made] if aware else blind
                found = [evidence_recall(selected, said, evidence) for selected in kept]
                means = {
                    part: sum(getattr(each, part) for each in found) / len(found) for part in ("mean", "all", "any")
                }
                tokens = sum(span.tokens for selected in kept for span in selected) / len(kept)
                label = {"query_aware": aware, "share": share, "budget": budget, "kept_tokens": tokens}
                rows.append(label | {"question": question, "third": third(said, evidence)} | means)
    return {"name": name, "rows": json.dumps(rows)}


def answers(conversation, memory, share, tiny):
    """One dialogue under one memory: the model's replies, a row a question and way, as JSON."""
    talk, lm = dialogues()[conversation], model(tiny)
    said = spans_of("dialogues", conversation, tiny)
    budget, rows = int(share * sum(span.tokens for span in said)), []
    for aware in {"Full": BLIND, "Evidence": AWARE}.get(memory) or MEMORIES[memory][0]:
        kept = selections(said, talk.questions, memory, aware, budget, tiny)
        prompts = [asked(lm, selected, q.question) for selected, q in zip(kept, talk.questions, strict=True)]
        texts = []
        for start in range(0, len(prompts), AT_A_TIME):
            texts += replies(lm, prompts[start : start + AT_A_TIME], WORDS)
        for q, selected, text in zip(talk.questions, kept, texts, strict=True):
            row = {"query_aware": aware, "budget": budget, "question": q.question, "kind": q.kind, "reply": text}
            row |= {"kept_tokens": sum(span.tokens for span in selected), "answered": answered(text, q)}
            if q.evidence:
                row |= {"third": third(said, q.evidence), "present": evidence_recall(selected, said, q.evidence).all}
            rows.append(row)
    return {"name": talk.name, "rows": json.dumps(rows)}


def selections(said: list[Span], questions, memory: str, aware: bool, budget: int, tiny: bool) -> list[Sequence[Span]]:
    """What is kept for each question."""
    if memory == "Full":
        return [said] * len(questions)
    if memory == "Evidence":
        return [[span for span in said if set(span.sources) & set(q.evidence)] for q in questions]
    made = MEMORIES[memory][1](budget + said[0].beside, tiny)
    if aware:
        return [made.select(said, q.question) for q in questions]
    return [made.select(said)] * len(questions)


def asked(lm: fm.LanguageModel, selected: Sequence[Span], question: str) -> list[int]:
    last = Span(question, tokens_of("user", question, lm.tokenizer), "user", ())
    return prompt([opening(lm.tokenizer, SYSTEM), *selected, last], lm.tokenizer)


def long(wide: pd.DataFrame) -> pd.DataFrame:
    """One row a question."""
    tables = []
    for _, about in wide.iterrows():
        named = about.drop(["rows", "tiny", "seconds", "started", "conversation", "name"]).to_dict()
        rows = pd.DataFrame(json.loads(about["rows"]))
        named = {name: value for name, value in named.items() if name not in rows}
        tables.append(
            rows.assign(conversation=about["name"], **{name: [value] * len(rows) for name, value in named.items()})
        )
    return pd.concat(tables, ignore_index=True)


def summary(table: pd.DataFrame, figures: Sequence[str], keys: Sequence[str]) -> pd.DataFrame:
    """Means over the questions with 95% intervals that draw whole conversations."""
    lines = []
    for names, rows in table.groupby(list(keys), sort=False):
        line = dict(zip(keys, names, strict=True)) | {"n": len(rows)}
        for figure in figures:
            known = rows.dropna(subset=[figure])
            mean = bootstrap(known[figure].to_numpy(dtype=float), known["conversation"].to_numpy())
            line[figure] = f"{mean.mean:.3f} [{mean.low:.3f}, {mean.high:.3f}]"
        lines.append(line)
    return pd.DataFrame(lines)


def against_controls(table: pd.DataFrame, figure: str) -> pd.DataFrame:
    """Every memory minus Random and minus Sliding on the questions whose evidence stands in the early third, paired by
    question, 95% intervals that draw whole conversations."""
    early, keys = table[table.third == "early"], ["conversation", "question", "share"]
    lines = []
    for control in [name for name in ("Random", "Sliding") if name in set(early.memory)]:
        base = early[early.memory == control].set_index(keys)[figure]
        for (memory, aware, share), rows in early[early.memory != control].groupby(["memory", "query_aware", "share"]):
            mine = rows.set_index(keys)[figure]
            gap = (mine - base.loc[mine.index]).astype(float)
            mean = bootstrap(gap.to_numpy(), gap.index.get_level_values("conversation").to_numpy())
            spoken = f"{mean.mean:+.3f} [{mean.low:+.3f}, {mean.high:+.3f}]"
            sure = mean.low > 0 or mean.high < 0
            lines.append(
                {"minus": control, "query_aware": aware, "memory": memory, "share": share, "gap": spoken, "sure": sure}
            )
    return pd.DataFrame(lines)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("part", nargs="?", choices=("recall", "answers"), default="recall")
    parser.add_argument("--memory", nargs="+", help="measure these alone; the rows of others stay as they are")
    given = parser.parse_args()
    print(f"# {machine()}")
    measured, toys = (ANSWERED, ["Full", "Sliding"]) if given.part == "answers" else (RECALLED, TOYS)
    memories = given.memory or (toys if given.toy else measured)
    if unknown := [memory for memory in memories if memory not in measured]:
        parser.error(f"--memory {unknown[0]!r} is not measured here; there are: {'; '.join(measured)}")
    (answers_of if given.part == "answers" else recall_of)(memories, given.toy)


def sources(memory: str, toy: bool) -> list[tuple[str, int]]:
    """The conversations that a memory is measured on, and how many."""
    if toy:
        return [("dialogues", 1)]
    return [("dialogues", 6), ("meetings", 18)][: 1 if memory in SAMPLED else 2]


def recall_of(memories: Sequence[str], toy: bool) -> None:
    out, parts = None if toy else ROOT / "runs" / "evidence_recall.sqlite", []
    for memory in memories:
        for source, count in sources(memory, toy):
            grid = {"source": source, "conversation": range(count), "memory": memory, "tiny": toy}
            parts.append(long(fm.sweep(recall, out, **grid)))
    table = pd.concat(parts) if toy else ship(pd.concat(parts), "evidence_recall.csv.gz", "memory", "%.4g")
    for source, rows in table.groupby("source", sort=False):
        print(f"# {source}: {rows.conversation.nunique()} conversations, {rows.question.nunique()} questions")
        print(summary(rows, ("mean", "all", "any"), ("query_aware", "memory", "share")).to_string(index=False))
        print("# early evidence, paired differences")
        print(against_controls(rows, "mean").to_string(index=False))


def answers_of(memories: Sequence[str], toy: bool) -> None:
    out, parts = None if toy else ROOT / "runs" / "dialogue_answers.sqlite", []
    for memory in memories:
        grid = {"conversation": range(1 if toy else 6), "memory": memory, "share": 1 / 4, "tiny": toy}
        parts.append(long(fm.sweep(answers, out, **grid)))
    table = pd.concat(parts) if toy else ship(pd.concat(parts), "dialogue_answers.csv.gz", "memory", "%.6g")
    table = table.assign(answered=table.answered.astype(float))
    answerable, never = table[table.third.notna()], table[table.third.isna()]
    print(summary(answerable, ("present", "answered"), ("query_aware", "memory")).to_string(index=False))
    print(summary(answerable, ("present", "answered"), ("query_aware", "memory", "third")).to_string(index=False))
    print("# answered where the evidence is early, paired differences")
    print(against_controls(answerable, "answered").to_string(index=False))
    print("# never said: answered by abstaining")
    print(summary(never, ("answered",), ("query_aware", "memory")).to_string(index=False))


if __name__ == "__main__":
    main()
