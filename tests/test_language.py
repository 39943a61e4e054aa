import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import fmlab as fm
from fmlab.language import LanguageModel

TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}[/]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
AWKWARD = ["😀 <script>alert('x')</script>\n\n  x\t\r\n", "naïve — 漢字\u200d 👩‍🚀", " leading and trailing ", "a"]


@pytest.fixture(scope="module")
def tiny():
    return fm.tiny()


@pytest.fixture
def chatty():
    lm = fm.tiny()
    lm.tokenizer.chat_template = TEMPLATE
    return lm


def decoded(lm, ids):
    return lm.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def test_ids_of_a_text_are_its_bytes(tiny):
    ids = tiny.ids("né\n")
    assert ids.dtype == torch.int64 and ids.tolist() == list("né\n".encode())


@pytest.mark.parametrize("given_as", [list, tuple, torch.tensor, iter, lambda x: torch.tensor(x, dtype=torch.int32)])
def test_ids_are_taken_as_they_are(tiny, given_as):
    assert torch.equal(tiny.ids(given_as([104, 105])), torch.tensor([104, 105]))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("", "empty"),
        ([], "empty"),
        (torch.zeros(1, 3, dtype=torch.long), r"\(1, 3\).*ids\[0\]"),
        ([[1, 2]], r"\(1, 2\)"),
        (torch.tensor(5), r"shape \(\)"),
        ([1, 256], "1 to 256.*0 to 255"),
        ([-1, 3], "-1 to 3"),
        ([[1, 2], [3]], "no row of token ids"),
        (["a", "b"], r"\['a', 'b'\] is no row of token ids"),
        ([0.5, 1.0], "float32"),
        (torch.tensor([True, False]), "bool"),
    ],
)
def test_wrong_ids_are_refused(tiny, wrong, says):
    with pytest.raises(ValueError, match=says):
        tiny.ids(wrong)


@settings(deadline=None)
@given(st.text(min_size=1))
def test_every_text_goes_there_and_back(text):
    lm = fm.tiny()
    ids = lm.ids(text)
    pieces = lm.pieces(ids)
    assert decoded(lm, ids) == text == "".join(pieces)
    assert len(pieces) == len(ids)


@settings(deadline=None)
@given(st.lists(st.integers(0, 255), min_size=1))
def test_pieces_of_any_bytes_are_what_the_tokenizer_decodes(ids):
    lm = fm.tiny()
    assert "".join(lm.pieces(ids)) == decoded(lm, ids)


def test_a_character_belongs_to_its_last_token(tiny):
    assert tiny.pieces("a😀b".encode()) == ["a", "", "", "", "😀", "b"]
    assert tiny.pieces(list("é".encode())[:1]) == ["\ufffd"]


@pytest.fixture(scope="module")
def sentencepiece(tiny):
    """A tokenizer of another family: words with a mark for the blank, bytes as a way out."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a"]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("▁", "a")], byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Metaspace(prepend_scheme="first"), decoders.ByteFallback(), decoders.Fuse()]
    )
    model = fm.tiny(vocab_size=len(words)).model
    return LanguageModel(model, PreTrainedTokenizerFast(tokenizer_object=tokenizer), "other", "random")


@pytest.mark.parametrize("text", ["a ba 😀b", "é", "a  a", "a😀"])
def test_pieces_of_a_tokenizer_of_another_family(sentencepiece, text):
    ids = sentencepiece.ids(text)
    pieces = sentencepiece.pieces(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == decoded(sentencepiece, ids) == text


def test_pieces_that_cannot_be_told_apart_are_refused(tiny):
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    tokenizer.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("ba", "x")])
    odd = LanguageModel(tiny.model, PreTrainedTokenizerFast(tokenizer_object=tokenizer), "odd", "random")
    with pytest.raises(ValueError, match="does not decode token by token"):
        odd.pieces([0, 1, 0, 1])


def test_chat_ids_render_the_template(chatty):
    ids = chatty.chat_ids([{"role": "user", "content": "hi"}])
    assert decoded(chatty, ids) == "[user]hi[/][assistant]"


def test_chat_ids_refuse(tiny, chatty):
    with pytest.raises(ValueError, match="no chat template"):
        tiny.chat_ids([{"role": "user", "content": "hi"}])
    with pytest.raises(ValueError, match="no messages"):
        chatty.chat_ids([])


def test_a_prompt_is_the_template_cut_after_the_context(chatty):
    context, question = chatty.prompt("user", "who?")  # a context that the template's own text contains
    assert decoded(chatty, context) == "[user]user"
    assert decoded(chatty, question) == "\n\nwho?[/][assistant]"


def test_a_prompt_without_a_template(tiny):
    context, question = tiny.prompt("It rains.", "Does it?")
    assert decoded(tiny, torch.cat([context, question])) == "It rains.\n\nDoes it?\n"


@pytest.mark.parametrize(("context", "question"), [("", "why?"), ("text", " \n")])
def test_a_prompt_must_say_something(tiny, context, question):
    with pytest.raises(ValueError, match="must say something"):
        tiny.prompt(context, question)


def test_a_next_turn_is_the_template_from_the_answer_on(chatty, tiny):
    assert decoded(chatty, chatty.next_turn("And why 😀?")) == "[/][user]And why 😀?[/][assistant]"
    assert decoded(tiny, tiny.next_turn("And why?")) == "\n\nAnd why?\n"
    with pytest.raises(ValueError, match="the question must say something"):
        tiny.next_turn(" \n")
    chatty.tokenizer.chat_template = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    with pytest.raises(ValueError, match="shows the answer 0 times"):
        chatty.next_turn("Why?")


def test_a_template_that_hides_the_user_is_refused(chatty):
    chatty.tokenizer.chat_template = "nothing"
    with pytest.raises(ValueError, match="shows the user's words 0 times"):
        chatty.prompt("context", "question")


def test_repr_says_which_weights(tiny):
    assert repr(tiny) == "LanguageModel('tiny llama', random weights, seed 0, 0.071M parameters, float32, cpu)"


@pytest.mark.real
@pytest.mark.parametrize("text", [*AWKWARD, "1. one\n\n2. two  33 44"])
def test_smollm2_goes_there_and_back(lm, text):
    ids = lm.ids(text)
    pieces = lm.pieces(ids)
    assert decoded(lm, ids) == "".join(pieces) == text
    assert len(pieces) == len(ids)


@pytest.mark.real
def test_smollm2_tokens_are_those_it_was_trained_on(lm):
    tokens = lm.tokenizer.convert_ids_to_tokens(lm.ids("Key 7493.\n\n12  5"))
    assert tokens == ["Key", "Ġ", "7", "4", "9", "3", ".", "ĊĊ", "1", "2", "ĠĠ", "5"]  # digits one by one, split first
    tokenizer = lm.tokenizer
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert len(tokenizer) == lm.model.config.vocab_size == 49_152
    assert tokenizer("hi")["input_ids"] == lm.ids("hi").tolist()


@pytest.mark.real
def test_smollm2_prompt_is_its_rendered_template(lm):
    context, question = lm.prompt("The sky is green.", "What colour is the sky?")
    message = {"role": "user", "content": "The sky is green.\n\nWhat colour is the sky?"}
    rendered = lm.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    assert decoded(lm, torch.cat([context, question])) == rendered
    assert decoded(lm, context).endswith("The sky is green.")
    assert rendered.startswith("<|im_start|>system\n") and rendered.endswith("<|im_start|>assistant\n")
    assert decoded(lm, lm.chat_ids([message])) == rendered


@pytest.mark.real
def test_pieces_of_ten_thousand_tokens_are_fast(lm):
    ids = torch.randint(49_152, (10_000,), generator=torch.Generator().manual_seed(0))
    lm.pieces(ids)
    start = time.perf_counter()
    pieces = lm.pieces(ids)
    seconds = time.perf_counter() - start
    assert "".join(pieces) == decoded(lm, ids)
    assert seconds < 0.5


@pytest.mark.real
def test_smollm2_answers_and_stops(lm, recwarn):
    ids = lm.chat_ids([{"role": "user", "content": "What is the capital of France?"}])
    out = lm.model.generate(ids[None], attention_mask=torch.ones_like(ids)[None], max_new_tokens=20, do_sample=False)
    assert decoded(lm, out[0, len(ids) :]) == "The capital of France is Paris.<|im_end|>"
    assert not recwarn.list


def test_a_text_beyond_the_models_length_is_read_without_a_false_alarm(lm, capfd):
    assert len(lm.ids("hello world " * 4_500)) > lm.tokenizer.model_max_length
    assert "longer than" not in capfd.readouterr().err
