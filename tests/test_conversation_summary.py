from dataclasses import replace

import pytest
import torch

import fmlab as fm
from fmlab.conversation import RollingSummary, Span, spans
from fmlab.conversation.facts import unsupported
from fmlab.conversation.summary import HEADING, REQUEST, write_summary
from fmlab.conversation.template import tokens_of


@pytest.fixture(scope="module")
def tiny():
    return fm.tiny()


def talk(lm, turns, system=None):
    said = [f"Turn {turn} tells of thing{turn}, and of a hundred idle words." for turn in range(turns)]
    messages = [{"role": ("user", "assistant")[turn % 2], "content": text} for turn, text in enumerate(said)]
    made = spans([{"role": "system", "content": system}] * (system is not None) + messages, lm.tokenizer)
    return [replace(span, beside=0) for span in made]  # the budgets here are of the turns


class Writer:
    """Says what it is told to, the first answer first, and remembers what it was given."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def __call__(self, lm, text, tokens, seed):
        self.asked.append((text, tokens, seed))
        return self.answers.pop(0)


def total(selected):
    return sum(span.tokens for span in selected)


def short(lm, text, tokens, seed):
    return "idle words"


@pytest.mark.parametrize("system", [None, "Be kind."])
@pytest.mark.parametrize("budget", [300, 500, 700, 2000])
def test_the_newest_are_kept_word_for_word_and_the_older_stand_in_the_summary(tiny, system, budget):
    made = talk(tiny, 20, system)
    memory = RollingSummary(budget, tiny, write=short)
    kept = memory.select(made)
    assert total(kept) <= budget and kept == memory.select(made, "a query")
    if budget == 2000:
        assert kept == made and memory.counts.written == 0
        return
    assert [span for span in kept if span.role == "system"] == made[: system is not None]
    summary, *newest = kept[system is not None :]
    assert newest == made[len(made) - len(newest) :] and summary.role == "user"
    assert summary.text == HEADING + "idle words" and summary.tokens == tokens_of("user", summary.text, tiny.tokenizer)
    gone = made[system is not None : len(made) - len(newest)]
    assert summary.sources == tuple(turn for span in gone for turn in span.sources)
    room = budget - total(made[: system is not None])
    assert total(newest) <= int(0.75 * room) and (not newest or total(newest) >= int(0.75 * room) // 2 - 80)


def test_a_conversation_that_grows_is_summed_up_once(tiny):
    made = talk(tiny, 60)
    growing, read = RollingSummary(500, tiny, write=short), []
    object.__setattr__(growing, "write", lambda lm, text, tokens, seed: read.append(text) or "idle words")
    grown = [growing.select(made[:turns]) for turns in range(1, 61)]
    new = [line for text in read for line in text.splitlines() if "idle words." in line]
    assert len(new) == len(set(new)) and len(read) == growing.counts.written > 10  # no turn is read twice: O(n)
    assert all(text.startswith(f"user: {HEADING}idle words\n") for text in read[1:])
    for turns in (20, 41, 60):  # and it is what a memory that sees it all at once makes
        assert RollingSummary(500, tiny, write=short).select(made[:turns]) == grown[turns - 1]


def test_a_summary_that_states_what_was_not_said_is_written_anew(tiny):
    writer = Writer("It was 77 and Odile.", "", "idle thing0")
    memory = RollingSummary(420, tiny, write=writer)
    summary, *newest = memory.select(talk(tiny, 8))
    assert summary.text == HEADING + "idle thing0" and summary.sources == (0, 1, 2) and len(newest) == 5
    assert [seed for _, _, seed in writer.asked] == [0, 1, 2] and len({text for text, _, _ in writer.asked}) == 1
    counts = memory.counts
    assert (counts.written, counts.redone, counts.given_up) == (1, 2, 0)
    assert dict(counts.unsupported) == {"77": 1, "odile": 1}


def test_where_no_try_is_good_the_turns_themselves_are_kept_as_far_as_they_fit(tiny):
    made = talk(tiny, 10)
    writer = Writer("It was 77.", "Odile 78", "idle")
    memory = RollingSummary(460, tiny, tries=2, write=writer)
    assert memory.select(made[:8]) == made[2:8]  # turns 0 to 2 leave; 115 tokens are theirs, of which turn 2 takes 59
    assert (memory.counts.written, memory.counts.redone, memory.counts.given_up) == (0, 2, 1)
    summary, *newest = memory.select(made)
    assert summary.sources == (2, 3, 4, 5) and newest == made[6:]  # turn 2 is summed up with the next block
    assert writer.asked[2][0].splitlines()[0] == f"user: {made[2].text}"
    assert (memory.counts.written, memory.counts.redone, memory.counts.given_up) == (1, 2, 1)


def test_a_summary_longer_than_its_room_is_not_taken(tiny):
    memory = RollingSummary(400, tiny, write=lambda *_: "idle " * 100)
    assert total(memory.select(talk(tiny, 12))) <= 400
    assert memory.counts.written == 0 < memory.counts.given_up


@pytest.mark.parametrize("budget", [1, 10, 60, 300])
def test_a_turn_larger_than_the_budget_is_summed_up_or_left_out(tiny, budget):
    made = [*talk(tiny, 3), Span("long " * 2000, 10_010, "user", (3,))]
    memory = RollingSummary(budget, tiny, write=short)
    kept = memory.select(made)
    assert total(kept) <= budget and [span.text for span in kept] == [HEADING + "idle words"] * (budget == 300)
    assert memory.select([]) == []


@pytest.mark.parametrize("context", [420, 700])
def test_the_model_is_given_no_more_than_its_context_holds(context):
    lm, read = fm.tiny(max_position_embeddings=context), []

    def write(lm, text, tokens, seed):
        read.append((text, sum(map(len, lm.prompt(text, REQUEST.format(words=max(5, tokens * 2 // 3))))) + tokens))
        return "idle words" if len(read) % 5 else ""

    long = Span("".join(f"{number} 🙂" for number in range(400)), 3_300, "user", (6,))
    memory = RollingSummary(300, lm, write=write)
    assert total(memory.select([*talk(lm, 6), long, *talk(lm, 6)])) <= 300
    assert max(tokens for _, tokens in read) <= context and len(read) > 3300 / context
    assert all(any(f" {number} " in text.replace("🙂", " ") for text, _ in read) for number in (1, 150, 390))
    assert total(RollingSummary(300, lm).select(talk(lm, 12))) <= 300  # and it writes by itself


def test_where_the_context_has_no_room_for_a_summary_it_says_so():
    lm = fm.tiny(max_position_embeddings=150)
    with pytest.raises(
        fm.BudgetError, match="budget=300: text and summary are .* context of 150 tokens .* smaller budget"
    ):
        RollingSummary(300, lm).select(talk(lm, 12))


def test_the_tiny_model_writes_and_the_same_again(tiny):
    text = "user: 🙂 <script>alert(1)</script>"
    state = torch.random.get_rng_state()
    said = [write_summary(tiny, text, 12, seed) for seed in (0, 1, 2, 0, 1, 2)]
    assert said[:3] == said[3:] and len(set(said)) == 3
    assert torch.equal(torch.random.get_rng_state(), state)
    memory = RollingSummary(200, tiny)
    made = [*talk(tiny, 4), *spans([{"role": "user", "content": "🙂" * 9 + "<script>"}], tiny.tokenizer)]
    assert total(memory.select(made)) <= 200 and memory.select(made) == RollingSummary(200, tiny).select(made)


def test_bad_input_is_refused(tiny):
    for wrong in ({"keep": 0.0}, {"keep": 1.0}, {"tries": 0}):
        with pytest.raises(ValueError, match="share between 0 and 1, and 1 try"):
            RollingSummary(100, tiny, **wrong)
    with pytest.raises(ValueError, match="nothing to optimise"):
        RollingSummary(100, tiny, exact=True)
    with pytest.raises(fm.BudgetError, match="of the system prompt"):
        RollingSummary(5, tiny).select(talk(tiny, 3, "Be kind."))
    assert RollingSummary(100, tiny) == RollingSummary(100, tiny) and "counts" not in repr(RollingSummary(100, tiny))


@pytest.mark.real
def test_what_the_real_model_sums_up_was_said(lm):
    said = ["My sister Noor moved to Leeds in May.", "How nice! Will you visit her?", "I will, on the 14th, by train."]
    said += [
        "It takes 3 hours, so bring a book.",
        "I have one by Woolf.",
        "Then all is well.",
        "Yes.",
        "Good night.",
    ] * 2
    roles = ("user", "assistant")
    made = spans([{"role": roles[turn % 2], "content": text} for turn, text in enumerate(said)], lm.tokenizer)
    memory = RollingSummary(150, lm, keep=0.5)
    kept = memory.select(made)
    assert total(kept) <= 150 and kept[-1] == made[-1]
    counts = memory.counts
    assert counts.written + counts.given_up > 0
    for span in kept:
        assert span in made or not unsupported(span.text.removeprefix(HEADING), " ".join(said))
