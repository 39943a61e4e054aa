from copy import copy

import pytest

import fmlab as fm
from fmlab.conversation import Memory, Sliding, Span, opening, prompt, spans
from fmlab.conversation.span import said
from fmlab.conversation.template import GAP

TALK = [
    {"role": "user", "content": "Where did I leave the key? 🙂"},
    {"role": "assistant", "content": "<script>alert(1)</script>\n\nIn the blue drawer."},
    {"role": "user", "content": ""},
]
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}[system]Be kind.[end]{% endif %}"
    "[{{ message['role'] }}]{{ message['content'] }}[end]{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
ALTERNATING = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}({{ message['content'] }}){% endfor %}"
)

TOOLLESS = (
    "{% for message in messages %}{% if message['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "{{ message['content'] }}{% endfor %}"
)


@pytest.fixture
def tokenizer():
    return fm.tiny().tokenizer


@pytest.mark.parametrize("template", [None, CHATML])
@pytest.mark.parametrize("system", [None, "Answer in one word."])
def test_the_tokens_of_the_spans_are_those_of_their_prompt(tokenizer, template, system):
    tokenizer.chat_template = template
    messages = ([{"role": "system", "content": system}] if system else []) + TALK
    made = spans(messages, tokenizer)
    assert [span.sources for span in made] == [(turn,) for turn in range(len(messages))]
    for kept in (made, made[:1] + made[-1:]):
        whole = kept if system else [opening(tokenizer), *kept]
        assert len(prompt(whole, tokenizer)) == sum(span.tokens for span in whole)


def test_a_tokenizer_that_is_given_another_template_counts_by_it(tokenizer):
    found = []
    for template in (None, CHATML, None):
        tokenizer.chat_template = template
        [span] = spans([{"role": "user", "content": "hi"}], tokenizer)
        found.append(span.tokens)
        assert span.tokens == len(prompt([opening(tokenizer), span], tokenizer)) - opening(tokenizer).tokens
    assert found[0] == found[2] != found[1]


@pytest.mark.real
def test_the_tokens_are_those_of_the_real_template(lm):
    made = spans(TALK, lm.tokenizer)
    for system in (None, "Answer in one word."):
        whole = [opening(lm.tokenizer, system), *made]
        assert len(prompt(whole, lm.tokenizer)) == sum(span.tokens for span in whole)
        messages = [{"role": "system", "content": system}] * (system is not None) + TALK
        assert prompt(whole, lm.tokenizer) == lm.chat_ids(messages).tolist()


def test_what_is_no_message_is_named_with_its_place(tokenizer):
    for wrong in ({"role": "user"}, {"role": "", "content": "x"}, {"role": "user", "content": None}):
        with pytest.raises(ValueError, match="message 1 is"):
            spans([TALK[0], wrong], tokenizer)
    with pytest.raises(ValueError, match="at least one span"):
        prompt([opening(tokenizer)], tokenizer)
    with pytest.raises(ValueError, match=r"'\\ud83d' in .*Hi \\ud83d.* is half a character"):
        spans([{"role": "user", "content": "Hi \ud83d"}], tokenizer)


def test_a_template_that_refuses_says_which_roles(tokenizer):
    tokenizer.chat_template = ALTERNATING
    with pytest.raises(ValueError, match=r"\['system', 'user'\].*must alternate"):
        opening(tokenizer, "Be kind.")
    with pytest.raises(ValueError, match=r"\['user', 'tool'\].*no tools"):
        tokenizer.chat_template = TOOLLESS
        spans([{"role": "tool", "content": "7"}], tokenizer)


def test_where_a_template_demands_turns_any_selection_takes_them_within_its_tokens(tokenizer):
    tokenizer.chat_template = ALTERNATING
    made = spans(
        [*TALK, {"role": "assistant", "content": "In the drawer."}, {"role": "user", "content": "Bye."}], tokenizer
    )
    for chosen in range(1, 2 ** len(made)):
        kept = [span for place, span in enumerate(made) if chosen >> place & 1]
        assert len(prompt(kept, tokenizer)) <= sum(span.tokens for span in kept) + made[0].beside
    texts = [message["content"] for message in said(made[1:3] + made[4:], tokenizer)]
    assert texts == [GAP, made[1].text, "\nBye."]
    assert said(made, tokenizer) == [{"role": span.role, "content": span.text} for span in made]


LINES = ["", "\n", "a\n\n", "tail ", " head", "\n\n\nx", "🙂\n", "user: ", "don't\n\n"]


@pytest.mark.real
@pytest.mark.parametrize("template", [None, "the model's own"])
def test_the_prompt_of_what_is_selected_is_no_longer_than_the_budget(lm, template):
    tokenizer = copy(lm.tokenizer)
    if template is None:
        tokenizer.chat_template = None
    made = spans(
        [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(LINES * 2)], tokenizer
    )
    for budget in range(made[0].beside, sum(span.tokens for span in made) + 40):
        kept = Sliding(budget).select(made)
        if kept:
            assert len(prompt(kept, tokenizer)) == sum(span.tokens for span in kept) + made[0].beside <= budget
    with pytest.raises(fm.BudgetError, match="of how a prompt without one begins"):
        Sliding(made[0].beside - 1).select(made)


@pytest.mark.parametrize("wrong", [{"tokens": -1}, {"tokens": 2.0}, {"role": ""}, {"sources": [1]}, {"text": None}])
def test_a_span_is_checked(wrong):
    with pytest.raises((TypeError, ValueError)):
        Span(**{"text": "x", "tokens": 1, "role": "user", "sources": (0,)} | wrong)


class Longest(Memory):
    def score(self, spans, query):
        return [len(span.text) for span in spans]


def test_a_memory_of_ones_own_pins_the_system_prompt_and_keeps_order_and_budget():
    talk = [Span("s", 4, "system", (0,)), *(Span("x" * n, n, "user", (1 + i,)) for i, n in enumerate((3, 9, 5, 2)))]
    assert [span.tokens for span in Longest(13).select(talk)] == [4, 9]
    assert [span.tokens for span in Longest(15).select(talk)] == [4, 9, 2]
    assert [span.tokens for span in Longest(9).select(talk)] == [4, 5]
    assert Longest(4).select(talk) == talk[:1] and Longest(100).select(talk) == talk and Longest(5).select([]) == []
    with pytest.raises(fm.BudgetError, match="budget 3 < 4 tokens of the system prompt"):
        Longest(3).select(talk)
    for wrong in (0, -1, True):
        with pytest.raises(fm.BudgetError, match="give a number of tokens"):
            Longest(wrong)


def test_scores_that_are_none_are_refused():
    talk = [Span("x", 1, "user", (0,))]
    for scores in ([-1.0], [float("nan")], [1.0, 2.0]):

        class Wrong(Memory):
            def score(self, spans, query, scores=scores):
                return scores

        with pytest.raises(ValueError, match="Wrong.score gave shape"):
            Wrong(5).select(talk)


def test_what_a_score_pins_is_kept_or_the_budget_refused():
    class Newest(Memory):
        def score(self, spans, query):
            return [float("inf") if span is spans[-1] else 1.0 for span in spans]

    talk = [Span("x", 3, "user", (i,)) for i in range(4)]
    assert Newest(6).select(talk) == talk[2:]
    with pytest.raises(fm.BudgetError, match="1 tokens less than what is pinned"):
        Newest(2).select(talk)
