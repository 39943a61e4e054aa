import random
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, MambaConfig

import fmlab as fm
from fmlab.conversation import (
    BM25,
    Hybrid,
    Importance,
    Memory,
    Random,
    RollingSummary,
    Semantic,
    Sliding,
    Span,
    TokenEmbeddings,
    opening,
    prompt,
)
from fmlab.conversation import chat as chat_module
from fmlab.conversation.state import Stats
from fmlab.models import ready

CHATML = (
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}[end]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
SYSTEM = "Answer in one word."


class Newest(Memory):
    def score(self, spans, query):
        return np.arange(1.0, len(spans) + 1)


@dataclass(frozen=True)
class Everything:
    def select(self, spans, query=None):
        return list(spans)


class Lottery(Memory):
    """Other spans at every turn, so that the prompts share more with each other or less."""

    def score(self, spans, query):
        return np.random.default_rng(len(spans)).random(len(spans))


def talker(arch="llama", **overrides):
    lm = fm.tiny(arch, **overrides)
    lm.tokenizer.chat_template = CHATML
    return lm


def scripted(*answers):
    """A tiny model that says these bytes, each answer ended by a zero."""
    lm = talker(eos_token_id=0)
    coming = [byte for answer in answers for byte in [*answer, 0]]

    def say(module, args, out):
        out.logits = torch.nn.functional.one_hot(torch.tensor([[coming.pop(0)]]), 256).float()

    lm.model.register_forward_hook(say)
    return lm


@contextmanager
def computed(lm):
    """The number of tokens of every forward call from now on."""
    calls = []
    hook = lm.model.register_forward_pre_hook(
        lambda module, args, given: calls.append(given["input_ids"].numel()), with_kwargs=True
    )
    yield calls
    hook.remove()


def alone(lm, chat, n):
    """What the stock model says to the session's last prompt, read from its beginning."""
    ids = torch.tensor([prompt(chat.kept, lm.tokenizer)])
    return lm.tokenizer.decode(lm.model.generate(ids, max_new_tokens=n, do_sample=False)[0, ids.shape[1] :])


def state(chat):
    return chat.messages, chat.stats, chat.kept


@pytest.mark.parametrize(
    ("arch", "overrides"), [("llama", {}), ("qwen3", {}), ("gpt_neox", {}), ("mistral", {"sliding_window": 16})]
)
@pytest.mark.parametrize("memory", [Everything(), Newest(150), Lottery(200)])
def test_a_carried_cache_answers_as_the_stock_model_from_the_beginning(arch, overrides, memory):
    lm = talker(arch, **overrides)
    chat = fm.ChatSession(lm, memory, SYSTEM, max_new_tokens=6)
    for turn in range(6):
        answer = chat.send(f"Question {turn}, {'and more' * turn}?")
        assert answer == alone(lm, chat, 6)
        assert [message["content"] for message in chat.messages[-2:]][1] == answer
    assert chat.stats.turns == 6 and 0 < chat.stats.reused_in_all < chat.stats.kept_in_all


def test_reused_is_what_the_model_did_not_read():
    lm = talker()
    chat = fm.ChatSession(lm, Newest(150), SYSTEM, max_new_tokens=5)
    in_all = dict.fromkeys(("kept", "prefilled", "reused", "said"), 0)
    for turn in range(6):
        with computed(lm) as calls:
            chat.send(f"Question {turn}, a little longer?")
        stats = chat.stats
        assert calls == [stats.prefilled, *[1] * (stats.said - 1)]
        assert stats.prefilled + stats.reused == stats.kept == len(prompt(chat.kept, lm.tokenizer)) <= 150
        assert stats.kept == sum(span.tokens for span in chat.kept)
        in_all = {name: total + getattr(stats, name) for name, total in in_all.items()}
        assert in_all == {name: getattr(stats, f"{name}_in_all") for name in in_all}
        everything = [chat.kept[0], *(Span(m["content"], 0, m["role"], ()) for m in chat.messages)]
        assert stats.seen == len(prompt(everything, lm.tokenizer))


def test_what_was_said_is_carried_and_an_eviction_at_the_front_leaves_the_opening():
    lm = scripted(*[b"Yes, certainly."] * 3)
    chat = fm.ChatSession(lm, Newest(180), SYSTEM, max_new_tokens=40)
    first, common = "How are you today?", len("[system]Answer in one word.[end][user]")
    chat.send(first)
    assert chat.stats.reused == 0
    chat.send("And now?")
    # All of the first prompt and of the answer.
    assert chat.stats.reused == common + len(f"{first}[end][assistant]Yes, certainly.")
    chat.send("What did you mean by that answer, please? " * 2)
    assert [span.sources for span in chat.kept][1] != (0,)  # the first turn is out
    assert chat.stats.reused < common + 2
    assert chat.stats.reused >= common - len("[user]") and chat.stats.reused + chat.stats.prefilled == chat.stats.kept


def test_characters_are_streamed_whole():
    said = "Ça va 🙂 née"
    chat = fm.ChatSession(scripted(said.encode(), said.encode()), Everything(), max_new_tokens=99)
    pieces = list(chat.stream("Hello"))
    assert pieces == list(said) and chat.messages[1] == {"role": "assistant", "content": said}
    cut = len("Ça va ".encode()) + 2
    chat = fm.ChatSession(scripted(said.encode()), Everything(), max_new_tokens=cut)
    assert list(chat.stream("Hello")) == [*"Ça va ", "\ufffd"] and chat.stats.said == cut


def test_without_a_template_the_blank_before_the_answer_is_not_said():
    lm = scripted(b" Yes.", b" No.")
    lm.tokenizer.chat_template = None
    chat = fm.ChatSession(lm, Everything(), max_new_tokens=9)
    assert chat.send("Well?") == "Yes."
    chat.send("Really?")
    assert chat.stats.reused == len("user: Well?\nassistant: Yes.")


STRICT = (
    "{% set rest = messages[1:] if messages[0]['role'] == 'system' else messages %}"
    "{% for message in rest %}{% if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
) + CHATML
MEMORIES = {
    "Everything": lambda lm: Everything(),
    "Sliding": lambda lm: Sliding(250),
    "Random": lambda lm: Random(250),
    "Lottery": lambda lm: Lottery(250),
    "BM25": lambda lm: BM25(250),
    "Semantic": lambda lm: Semantic(250, TokenEmbeddings(lm)),
    "Hybrid": lambda lm: Hybrid(250, ((BM25(1), 1.0), (Sliding(1), 1.0))),
    "Importance": lambda lm: Importance(250, lm),
    "RollingSummary": lambda lm: RollingSummary(250, lm, write=lambda lm, text, tokens, seed: "They talked."),
}


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("system", [None, SYSTEM])
def test_every_memory_goes_on_under_a_template_that_demands_turns(memory, system):
    lm = talker()
    lm.tokenizer.chat_template = STRICT
    chat = fm.ChatSession(lm, MEMORIES[memory](lm), system, max_new_tokens=6)
    for turn in range(9):
        assert chat.send(f"Question {turn}, {'and more' * (turn % 4)}?") == alone(lm, chat, 6)
        assert chat.stats.kept == len(prompt(chat.kept, lm.tokenizer))
        assert memory == "Everything" or chat.stats.kept <= 250
    assert chat.stats.turns == 9


def test_what_the_memory_is_shown():
    shown = []

    class Looking(Memory):
        def score(self, spans, query):
            shown.append(([span.text for span in spans], query))
            return np.ones(len(spans))

    chat = fm.ChatSession(scripted(b"A", b"B"), Looking(500), SYSTEM)
    chat.send("one")
    chat.send("two")
    assert shown == [(["one", "A"], "two")]
    assert [span.text for span in chat.kept] == [SYSTEM, "one", "A", "two"]
    assert [span.sources for span in chat.kept] == [(), (0,), (1,), (2,)] and chat.kept[0] == opening(
        chat.lm.tokenizer, SYSTEM
    )


def test_a_turn_counts_its_own_messages_only(monkeypatch):
    counted = []
    real = chat_module.tokens_of
    monkeypatch.setattr(chat_module, "tokens_of", lambda *args: counted.append(args[1]) or real(*args))
    chat = fm.ChatSession(scripted(b"A", b"B"), Everything())
    chat.send("one")
    chat.send("two")
    assert counted == ["one", "A", "two", "B"]


# What cannot be done leaves the session as it was


def test_a_message_that_does_not_fit_is_refused():
    chat = fm.ChatSession(talker(), Newest(80), SYSTEM, max_new_tokens=3)
    chat.send("Hi")
    before, held = state(chat), list(chat._voice.ids)
    cost = len("[system]Answer in one word.[end][user][end][assistant]")
    room = 80 - cost
    with pytest.raises(fm.BudgetError, match=r"81 tokens > budget 80 of Newest; shorten the message or give .* of 81"):
        chat.send("x" * (room + 1))
    assert state(chat) == before and chat._voice.ids == held
    chat.send("x" * room)
    assert chat.stats.kept == 80 and len(chat.kept) == 2


def test_a_prompt_beyond_the_context_is_refused():
    chat = fm.ChatSession(talker(max_position_embeddings=64), Everything(), max_new_tokens=10)
    with pytest.raises(fm.BudgetError, match="61 tokens of prompt and 10 of answer exceed the context of 64 tokens"):
        chat.send("x" * (61 - len("[user][end][assistant]")))
    chat.send("x" * (54 - len("[user][end][assistant]")))
    assert chat.stats.kept == 54


def test_a_memory_that_breaks_its_contract_is_refused():
    class Greedy(Newest):
        def select(self, spans, query=None):
            return list(spans)

    class Forgetful(Newest):
        def select(self, spans, query=None):
            return [span for span in spans if span.role != "system"]

    chat = fm.ChatSession(talker(), Greedy(70), max_new_tokens=20)
    chat.send("Hello there")
    before = state(chat)
    with pytest.raises(fm.BudgetError, match="what it selected: .* > budget 70 of Greedy"):
        chat.send("Hello there")
    chat.memory = Forgetful(70)
    with pytest.raises(ValueError, match="Forgetful dropped the system prompt"):
        chat.send("Hello there")
    assert state(chat) == before


@pytest.mark.parametrize("text", ["", " \n", None, ["Hi"]])
def test_a_message_must_say_something(text):
    chat = fm.ChatSession(talker(), Everything())
    with pytest.raises((ValueError, TypeError)):
        chat.send(text)
    assert chat.messages == [] and chat.stats == Stats()


def test_wrong_arguments_are_named():
    with pytest.raises(TypeError, match="memory=512 has no select"):
        fm.ChatSession(talker(), 512)
    for wrong in (0, True, 2.5):
        with pytest.raises((ValueError, TypeError)):
            fm.ChatSession(talker(), Everything(), max_new_tokens=wrong)
    config = MambaConfig(vocab_size=256, hidden_size=8, num_hidden_layers=1, state_size=4)
    recurrent = ready(AutoModelForCausalLM.from_config(config), talker().tokenizer, "recurrent", "random")
    with pytest.raises(ValueError, match="recurrent has layers of state that cannot be cut"):
        fm.ChatSession(recurrent, Everything())


@pytest.mark.parametrize("error", [RuntimeError("no memory left"), KeyboardInterrupt()])
@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("call", [0, 1, 3])
def test_an_interrupt_in_the_middle_of_a_call_leaves_the_session_as_it_was(error, layer, call):
    lm = talker()
    chat = fm.ChatSession(lm, Newest(200), SYSTEM, max_new_tokens=6)
    chat.send("One?")
    before, left = state(chat), [call]

    def fail(module, args, out):
        left[0] -= 1
        if left[0] < 0:
            raise error

    hook = lm.model.model.layers[layer].self_attn.register_forward_hook(fail)
    with pytest.raises(type(error)):
        chat.send("Two, which is longer than One?")
    hook.remove()
    assert state(chat) == before
    assert len({held.get_seq_length() for held in chat._voice.cache.layers}) == (1 if layer == 2 else 2)  # uneven
    for text in ("Two, which is longer?", "Three?"):
        assert chat.send(text) == alone(lm, chat, 6)


def test_a_memory_that_raises_leaves_the_session_as_it_was():
    class Broken(Newest):
        def score(self, spans, query):
            raise OSError("the encoder is gone")

    lm = talker()
    chat = fm.ChatSession(lm, Newest(200), max_new_tokens=6)
    chat.send("One?")
    before = state(chat)
    chat.memory = Broken(200)
    with pytest.raises(OSError, match="the encoder is gone"):
        chat.send("Two?")
    assert state(chat) == before
    chat.memory = Newest(200)
    assert chat.send("Two?") == alone(lm, chat, 6)


def test_a_stream_left_before_its_end_has_not_happened():
    lm = talker()
    chat = fm.ChatSession(lm, Newest(200), max_new_tokens=8)
    chat.send("One?")
    before = state(chat)
    stream = chat.stream("Two?")
    next(stream), next(stream)
    stream.close()
    unread = chat.stream("Two?")
    assert state(chat) == before
    interrupted = chat.stream("Two?")
    next(interrupted)
    assert chat.send("Three?") == alone(lm, chat, 8)
    after = state(chat)
    for overtaken in (unread, interrupted):
        with pytest.raises(RuntimeError, match="a later turn of this session has begun"):
            list(overtaken)
    assert state(chat) == after
    assert chat.send("Four?") == alone(lm, chat, 8)


@pytest.mark.parametrize("seed", range(8))
def test_whatever_goes_wrong_later_answers_are_those_of_the_stock_model(seed):
    chance = random.Random(seed)
    lm = talker(seed=seed)
    chat = fm.ChatSession(lm, Lottery(220), SYSTEM, max_new_tokens=5)
    for turn in range(10):
        text = f"{turn} " + "word " * chance.randrange(8)
        what, before = chance.choice(["send", "send", "break off", "fail"]), state(chat)
        if what == "send":
            assert chat.send(text) == alone(lm, chat, 5)
            assert chat.stats.prefilled + chat.stats.reused == chat.stats.kept
            continue
        if what == "break off":
            stream = chat.stream(text)
            for _ in range(chance.randrange(1, 3)):
                next(stream, None)
                before = state(chat)  # a stream of few pieces may have come to its end
            stream.close()
        else:
            calls = iter(range(chance.randrange(4)))

            def fail(module, args, out, calls=calls):
                if next(calls, None) is None:
                    raise KeyboardInterrupt

            hook = lm.model.model.layers[chance.randrange(3)].mlp.register_forward_hook(fail)
            with pytest.raises(KeyboardInterrupt):
                chat.send(text)
            hook.remove()
        assert state(chat) == before


@pytest.mark.real
def test_the_real_model_answers_alike_with_a_carried_cache(lm):
    chat = fm.ChatSession(lm, Newest(100), "You are terse.", max_new_tokens=8)
    reused = []
    for text in ("My name is Ada. 🙂", "What is two and three?", "Name a colour of the sky, and a fruit."):
        with computed(lm) as calls:
            answer = chat.send(text)
        stats = chat.stats
        assert calls == [stats.prefilled, *[1] * (len(calls) - 1)]
        assert stats.prefilled + stats.reused == stats.kept == len(prompt(chat.kept, lm.tokenizer)) <= 100
        reused.append(stats.reused)
        whole = alone(lm, chat, 8)
        assert answer == whole.removesuffix("<|im_end|>")
    assert reused[0] == 0 < reused[1]
