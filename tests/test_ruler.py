import re
from collections import Counter

import pytest
import torch

import fmlab as fm
from fmlab import ruler
from fmlab.policies import TOVA, SlidingWindow, SnapKV
from fmlab.ruler import FAMILIES, converse, matches, score

TOKENS = 900  # bytes, to the tiny model
EMOJI = "It rained 🌧️ on the 漢字 roof of the naïve 👩‍🚀 all day. " * 60
NEEDLES = (ruler.single, ruler.multi_key, ruler.multi_value, ruler.multi_query, ruler.variable_tracking)
families = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__)


@pytest.fixture(scope="module")
def tiny():
    return fm.tiny()


@pytest.fixture(scope="module")
def sample(tiny):
    return ruler.multi_query(tiny, TOKENS)


def words(lm, sample, span):
    return "".join(lm.pieces(sample.context_ids[slice(*span)]))


@families
def test_a_seed_is_a_sample(tiny, family):
    once, again, other = (family(tiny, TOKENS, seed) for seed in (3, 3, 4))
    for name in ("context", "question", "opening", "answers", "evidence", "seed", "tokens", "family"):
        assert getattr(once, name) == getattr(again, name)
    assert torch.equal(once.context_ids, again.context_ids)
    assert once.context != other.context and once.answers != other.answers
    assert once.family == family.__name__


@families
@pytest.mark.parametrize("tokens", [700, TOKENS])
def test_a_context_is_as_long_as_asked_for(tiny, family, tokens):
    sample = family(tiny, tokens, 1)
    assert tokens - 40 <= len(sample.context_ids) <= tokens  # whole words, or a few words more of each count
    assert torch.equal(sample.context_ids, tiny.prompt(sample.context, sample.question)[0])


@families
def test_the_evidence_is_where_it_is_said_to_be(tiny, family):
    for seed in range(3):
        sample = family(tiny, TOKENS, seed)
        assert len(sample.answers) == len(set(sample.answers)) == len(sample.evidence) >= 1
        assert not any(matches(sample.question + sample.opening, sample.answers)), "the question tells the answer"
        for answer, spans in zip(sample.answers, sample.evidence, strict=True):
            said = [words(tiny, sample, span) for span in spans]
            assert re.search(rf"\b{answer}\b", said[-1])
            assert all(part == answer or (part[0] in "TOL" and part.endswith(".")) for part in said)


@pytest.mark.parametrize("family", NEEDLES, ids=lambda f: f.__name__)
def test_evidence_in_a_text_of_one_s_own_with_emoji(tiny, family):
    sample = family(tiny, TOKENS, 2, text=EMOJI)
    assert "🌧️" in sample.context
    for answer, spans in zip(sample.answers, sample.evidence, strict=True):
        said = words(tiny, sample, spans[-1])
        assert answer in said and said.endswith(".") and said[0] in "TOL" and "rain" not in said


def test_keys_are_told_apart_by_their_place_alone(tiny):
    asked = [ruler.multi_key(tiny, TOKENS, 5, keys=4, asked=which) for which in range(4)]
    assert len({sample.context for sample in asked}) == 1 and len({sample.answers for sample in asked}) == 4
    facts = [words(tiny, sample, sample.evidence[0][0]) for sample in asked]
    assert len({fact.partition(" of ")[0] for fact in facts}) == 1
    for sample, fact in zip(asked, facts, strict=True):
        assert fact == f"{sample.opening} {sample.answers[0]}."
        assert sample.opening[4:-3] in sample.question


def test_values_stand_in_the_order_of_the_text(tiny):
    sample = ruler.multi_value(tiny, TOKENS, 1, values=4)
    assert [sample.context.index(answer) for answer in sample.answers] == sorted(
        map(sample.context.index, sample.answers)
    )
    (thing,) = {words(tiny, sample, span).rpartition(" is ")[0] for (span,) in sample.evidence}
    assert thing.removeprefix("One ").replace(" of", "s of") in sample.question
    assert sample.gold == " " + ", ".join(sample.answers)


def test_queries_are_answered_in_the_order_of_the_question(tiny):
    sample = ruler.multi_query(tiny, TOKENS, 2, queries=3)
    facts = [words(tiny, sample, span) for (span,) in sample.evidence]
    places = [sample.question.index(fact.partition(" is ")[0].removeprefix("The ")) for fact in facts]
    assert places == sorted(places) and len(set(places)) == 3


def test_a_chain_leads_from_every_name_to_the_value(tiny):
    sample = ruler.variable_tracking(tiny, TOKENS, 3, hops=3, chains=2)
    value = re.search(r"\d{4}", sample.question)[0]
    given = dict(re.findall(r"Let (\w+) be (?:the same as )?(\w+)\.", sample.context))
    assert len(given) == 8

    def resolved(name):
        return resolved(given[name]) if name in given else name

    assert {name for name in given if resolved(name) == value} == set(sample.answers)
    for hops, spans in enumerate(sample.evidence):
        said = [words(tiny, sample, span) for span in spans]
        assert len(said) == hops + 1 and value in said[0]
        assert all(before in after for before, after in zip(sample.answers, said[1:], strict=False))
        assert spans == tuple(sorted(spans))


@pytest.mark.parametrize("family", [ruler.common_words, ruler.frequent_words])
@pytest.mark.parametrize("seed", range(3))
def test_the_expected_words_are_those_that_stand_most_often(tiny, family, seed):
    sample = family(tiny, TOKENS, seed)
    counts = Counter(sample.context.partition(": ")[2].rstrip(".").split(", "))
    assert {word for word, _ in counts.most_common(3)} == set(sample.answers)
    (_, third), (_, fourth) = counts.most_common(4)[2:]
    assert third > fourth
    assert [len(spans) for spans in sample.evidence] == [counts[word] for word in sample.answers]
    assert all(
        words(tiny, sample, s) == word
        for word, spans in zip(sample.answers, sample.evidence, strict=True)
        for s in spans
    )


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda lm: ruler.single(lm, 30), "30 tokens cannot hold 1 facts"),
        (lambda lm: ruler.single(lm, TOKENS, text=" "), "the text to plant in is empty"),
        (lambda lm: ruler.multi_value(lm, TOKENS, text="short."), "give a longer text"),
        (lambda lm: ruler.multi_key(lm, TOKENS, asked=4), "asked=4 of 4 keys"),
        (lambda lm: ruler.multi_key(lm, TOKENS, keys=13), "13 facts"),
        (lambda lm: ruler.multi_query(lm, TOKENS, queries=0), "0 facts"),
        (lambda lm: ruler.variable_tracking(lm, TOKENS, hops=0), "hops=0, chains=2"),
        (lambda lm: ruler.common_words(lm, 100), "100 tokens cannot hold a list in which 3 words stand most often"),
        (lambda lm: ruler.common_words(lm, TOKENS, often=1), "often=1, seldom=1; give"),
        (lambda lm: ruler.common_words(lm, TOKENS, common=0), "common=0"),
        (lambda lm: ruler.frequent_words(lm, 60), "60 tokens cannot hold a list"),
        (lambda lm: ruler.frequent_words(lm, TOKENS, frequent=0), "frequent=0"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_refused(tiny, make, says):
    with pytest.raises(ValueError, match=says):
        make(tiny)


@pytest.mark.parametrize(
    ("said", "answers", "found"),
    [
        ("It is 4821.", ["4821"], [True]),
        ("48213 or 14821", ["4821"], [False]),
        ("4821_a", ["4821"], [False]),
        ("", ["4821"], [False]),
        ("2, 1 and 1", ["1", "2", "3"], [True, True, False]),
        ("koru", ["KORU"], [True]),
        ("KORUM", ["KORU"], [False]),
        ("so 👩‍🚀!", ["👩‍🚀", "🌧️"], [True, False]),
        ("a+b", ["a+b", "a.b"], [True, False]),
        ("two words", ["two words", "words two"], [True, False]),
    ],
)
def test_an_answer_must_stand_as_words(said, answers, found):
    assert matches(said, answers) == tuple(found)


@pytest.mark.parametrize("answers", [[], [""], ["a", " "]])
def test_there_must_be_an_answer(answers):
    with pytest.raises(ValueError, match="give at least one"):
        matches("anything", answers)


def prompt(lm, sample):
    return torch.cat([*lm.prompt(sample.context, sample.question), lm.ids(sample.opening)])


def stock(lm, ids, gold, tokens=2):
    """Losses of the gold tokens after `ids`, and the ids of the likeliest tokens there, by full forward passes."""
    logits = lm.model(torch.cat([ids, gold])[None]).logits[0, len(ids) - 1 : -1]
    for _ in range(tokens):
        ids = torch.cat([ids, lm.model(ids[None]).logits[0, -1].argmax()[None]])
    return torch.nn.functional.cross_entropy(logits, gold, reduction="none"), ids[-tokens:]


@pytest.mark.parametrize("query_aware", [False, True])
def test_the_full_cache_scores_as_the_stock_model(tiny, sample, query_aware):
    result = score(tiny, sample, query_aware=query_aware, max_new_tokens=2)
    losses, said = stock(tiny, prompt(tiny, sample), tiny.ids(sample.gold))
    torch.testing.assert_close(result.losses, losses, rtol=1e-4, atol=1e-4)
    assert result.said == tiny.tokenizer.decode(said).strip()
    assert result.answer_nll == pytest.approx(float(losses.mean()), rel=1e-4)
    assert (result.answered, result.matched) == (0, (False,) * 3) and float(result.held.min()) == 1
    assert result.held.shape == (3, 3, 2)


@pytest.mark.parametrize("query_aware", [False, True])
def test_a_policy_s_score_is_that_of_its_own_cache(tiny, sample, query_aware):
    result = score(tiny, sample, TOVA(), 40, query_aware, max_new_tokens=2)
    gold, whole, context = tiny.ids(sample.gold), prompt(tiny, sample), len(sample.context_ids)
    losses = []
    with fm.finite(tiny.model, TOVA(), 40, query_aware) as cache:
        for part in [whole] if query_aware else [whole[:context], whole[context:]]:
            logits = tiny.model(part[None], past_key_values=cache).logits[0, -1]
        expiry = cache.copy().expiry
        for token in gold:
            losses.append(-logits.log_softmax(-1)[token])
            logits = tiny.model(token.view(1, 1), past_key_values=cache).logits[0, -1]
    torch.testing.assert_close(result.losses, torch.stack(losses), rtol=1e-4, atol=1e-4)
    if query_aware:
        held = [fm.metrics.present(expiry, *span) for (span,) in sample.evidence]
        assert torch.equal(result.held, torch.stack(held))
    assert result.query_aware == query_aware
    assert abs(result.answer_nll - score(tiny, sample, max_new_tokens=1).answer_nll) > 1e-4


def test_held_weighs_all_spans_of_an_answer(tiny):
    sample = ruler.common_words(tiny, TOKENS, 1)
    result = score(tiny, sample, SlidingWindow(), 300, max_new_tokens=1)
    first = len(sample.context_ids) - 300
    for spans, held in zip(sample.evidence, result.held, strict=True):
        tokens = [token for span in spans for token in range(*span)]
        assert 0 < float(held[0, 0]) < 1
        assert float(held[0, 0]) == pytest.approx(sum(token >= first for token in tokens) / len(tokens))


def test_copies_answer_as_if_each_were_asked_alone(tiny):
    samples = ruler.turns(tiny, TOKENS, 2, questions=2)
    copies = converse(tiny, samples, TOVA(), 40, running=False, max_new_tokens=2)
    for sample, copy in zip(samples, copies, strict=True):
        alone = score(tiny, sample, TOVA(), 40, max_new_tokens=2)
        assert copy.said == alone.said and torch.equal(copy.losses, alone.losses)
        assert (copy.turn, copy.query_aware) == (0, False)


def test_a_running_conversation_goes_on_from_its_own_answers():
    tiny = fm.tiny()
    turn = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}[/]{% endfor %}"
    tiny.tokenizer.chat_template = turn + "{% if add_generation_prompt %}[assistant]{% endif %}"
    samples = ruler.turns(tiny, TOKENS, 2, questions=2)
    scores = converse(tiny, samples, max_new_tokens=2)
    assert [each.turn for each in scores] == [0, 1]
    ids = prompt(tiny, samples[0])
    for result in scores:
        if result.turn:
            ids = torch.cat([ids, tiny.next_turn(result.sample.question), tiny.ids(result.sample.opening)])
        losses, said = stock(tiny, ids, tiny.ids(result.sample.gold))
        ids = torch.cat([ids, said])
        torch.testing.assert_close(result.losses, losses, rtol=1e-4, atol=1e-4)
        assert result.said == tiny.tokenizer.decode(said).strip()


def test_a_running_conversation_goes_on_evicting(tiny):
    samples = ruler.turns(tiny, TOKENS, 2, questions=2)
    depth = len(samples[0].context_ids) - samples[1].evidence[0][0][0]
    settings = {"policy": SlidingWindow(), "budget": depth + 5, "max_new_tokens": 2}
    running, copies = (converse(tiny, samples, running=running, **settings) for running in (True, False))
    assert torch.equal(running[0].losses, copies[0].losses)
    assert float(copies[1].held.min()) == 1  # the window reaches back to it when the context ends
    assert float(running[1].held.max()) == 0  # and no longer after the first turn
    assert running[1].nbytes == copies[1].nbytes


def test_questions_about_several_contexts_are_no_conversation(tiny, sample):
    with pytest.raises(ValueError, match="2 questions about several contexts"):
        converse(tiny, [sample, ruler.single(tiny, TOKENS)])
    with pytest.raises(ValueError, match="0 questions about several contexts, or none"):
        converse(tiny, [])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"policy": TOVA()}, "give both"),
        ({"budget": 4}, "give both"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"chunk": 0}, "chunk=0"),
    ],
)
def test_what_cannot_be_scored_is_refused(tiny, sample, settings, says):
    with pytest.raises(ValueError, match=says):
        score(tiny, sample, **settings)


def test_rows_make_a_table_that_says_whether_the_question_was_known(tiny, sample):
    def run(policy, budget, query_aware, seed):
        return score(tiny, sample, policy, budget, query_aware, max_new_tokens=1).row()

    table = fm.sweep(run, policy=[TOVA()], budget=[40], query_aware=[False, True], seed=0, progress=False)
    assert table.query_aware.tolist() == [False, True]
    assert table.policy.unique() == ["TOVA()"] and table.budget.unique() == [40]
    assert (table.context_tokens <= TOKENS).all() and table.family.unique() == ["multi_query"]
    assert (table.answer_nll > 0).all() and table.answer_nll.nunique() == 2
    assert table.answered.tolist() == [0, 0] and table.all_answered.tolist() == [False, False]
    row = score(tiny, sample, max_new_tokens=1).row()
    assert (row["query_aware"], row["policy"], row["budget"]) == (False, None, None)


def test_a_row_under_an_allocation_is_plain(tiny, sample):
    share = fm.policies.Pyramid(40)
    row = score(tiny, sample, TOVA(), share, max_new_tokens=1).row()
    assert row["budget"] == repr(share)
    assert 0 < row["held"] < 1


@pytest.mark.real
def test_smollm2_answers_what_it_keeps_and_what_it_was_asked_before_forgetting(lm):
    found = [score(lm, family(lm, 512, seed)) for family in (ruler.single, ruler.multi_key) for seed in range(3)]
    assert sum(each.answered for each in found) >= 5
    assert max(each.answer_nll for each in found) < 1
    sample = ruler.single(lm, 512, 1)
    blind, aware = (score(lm, sample, SnapKV(), 102, query_aware=known) for known in (False, True))
    assert blind.answer_nll > aware.answer_nll + 0.5
    assert float(aware.held.mean()) > float(blind.held.mean())
