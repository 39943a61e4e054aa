import pytest

import fmlab as fm
from fmlab.conversation.asking import replies


def alone(lm, prompt, count):
    """The same a token at a time, every prompt whole, without a cache."""
    said = []
    while len(said) < count:
        logits = lm.model(input_ids=lm.ids([*prompt, *said])[None], use_cache=False).logits[0, -1]
        if int(logits.argmax()) in lm.ends:
            break
        said.append(int(logits.argmax()))
    return lm.tokenizer.decode(said, skip_special_tokens=True).strip()


@pytest.mark.parametrize("shared", [0, 1, 9])
def test_a_batch_says_what_each_prompt_says_alone(shared):
    lm = fm.tiny()
    prompts = [[7] * shared + rest for rest in ([65, 66, 67], [90], [80, 81, 82, 83, 84, 85, 86])]
    assert replies(lm, prompts, 6) == [alone(lm, prompt, 6) for prompt in prompts]
    assert replies(lm, prompts[:1], 4) == [alone(lm, prompts[0], 4)]
    assert replies(lm, [prompts[1], prompts[1]], 3) == [alone(lm, prompts[1], 3)] * 2


@pytest.mark.real
def test_real_answers_of_a_batch(lm):
    facts = "My cat is called Otto and my dog is called Ferdinand."
    asked = ("What is the cat called?", "And the dog, which I got last year from a farm by the sea, what is its name?")
    prompts = [lm.chat_ids([{"role": "user", "content": f"{facts} {question}"}]).tolist() for question in asked]
    said = replies(lm, prompts, 12)
    assert said == [alone(lm, prompt, 12) for prompt in prompts] and "Otto" in said[0]


def test_nothing_to_answer_is_refused():
    for wrong in ([], [[1], []]):
        with pytest.raises(ValueError, match="at least one token each"):
            replies(fm.tiny(), wrong)
