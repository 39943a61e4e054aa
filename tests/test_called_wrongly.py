"""What memories and caches refuse and take as users run them: no annotation is checked for them, so each says by itself what is wrong."""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json
import numpy as np
import fmlab as fm
from fmlab.conversation import (
    Ablation, AnswerLogProb, Deadline, Hybrid, Importance, QuestionLogProb, RollingSummary, Sliding, Span
)

caches = fm.caches
ASKED = [{"hash_ids": [1, 2], "input_length": 2}]
lm = fm.tiny()
slide = Sliding(8)
said = {}
for call in json.loads(input()):
    try:
        said[call] = ["", repr(eval(call))]
    except Exception as error:
        said[call] = [type(error).__name__, str(error)]
print(json.dumps(said))
"""
TAKEN = {
    "Sliding(np.int64(8))": "Sliding(budget=8)",
    "type(Sliding(np.int64(8)).budget)": "<class 'int'>",
    "Span('x', np.int64(3), 'user', (np.int32(0),))": "Span(text='x', tokens=3, role='user', sources=(0,))",
    "type(Span('x', np.int64(3), 'user', (0,)).tokens)": "<class 'int'>",
    "type(Span('x', 3, 'user', (np.int64(0),)).sources[0])": "<class 'int'>",
    "Deadline(slide, np.float32(1), slide).budget": "8",
    "caches.PrefixCache(np.int64(4), np.int32(9))": "PrefixCache(block=4, capacity=9, 0 blocks, 0 bytes, 0 of 0 tokens hit)",
}
REFUSED = {
    "caches.PrefixCache(True)": ("ValueError", "block=True; give an integer, 1 or more"),
    "caches.hit_curve(ASKED, caches.LRU, block=1)": (
        "TypeError",
        "LRU'>; give a policy of eviction such as fm.caches.LRU()",
    ),
    "caches.hit_curve(ASKED, 'LRU', block=1)": ("TypeError", "policy='LRU'; give a policy of eviction"),
    "Sliding(8.0)": ("BudgetError", "budget=8.0; give a number of tokens"),
    "Sliding('8')": ("BudgetError", "budget='8'; give a number of tokens"),
    "Sliding(np.int64(0))": ("BudgetError", "give a number of tokens, 1 or more"),
    "Span('x', 3.5, 'user', (0,))": ("ValueError", "tokens=3.5 of the span 'x'; give its number"),
    "Span('x', 3, 'user', (0.5,))": ("TypeError", "sources=(0.5,) of the span 'x'; give a tuple of turns"),
    "Importance(8, 'smollm2')": ("TypeError", "lm='smollm2' is no LanguageModel; give a model that is loaded"),
    "RollingSummary(8, 'smollm2')": ("TypeError", "lm='smollm2' is no LanguageModel; give a model that is loaded"),
    "QuestionLogProb('smollm2')": ("TypeError", "lm='smollm2' is no LanguageModel"),
    "AnswerLogProb('smollm2')": ("TypeError", "lm='smollm2' is no LanguageModel"),
    "AnswerLogProb(lm, 1.5)": ("ValueError", "max_new_tokens=1.5; give a number of tokens"),
    "Ablation(8, lm)": ("TypeError", "cannot be called; give a function of (context, question)"),
    "Deadline(5, 1, 6)": ("TypeError", "memory=5 has no select(spans, query); give a memory"),
    "Deadline(slide, 1, 6)": ("TypeError", "otherwise=6 has no select(spans, query); give a memory"),
    "Deadline(slide, '1', slide)": ("ValueError", "seconds='1'; give how long to wait, more than 0"),
    "Hybrid(8, (Sliding(8),))": ("TypeError", "Sliding(budget=8) among the parts; give (memory, weight) pairs"),
    "Hybrid(8, Sliding(8))": ("TypeError", "parts=Sliding(budget=8); give (memory, weight) pairs"),
    "Hybrid(8, (Sliding(8), 1.0))": ("TypeError", "give (memory, weight) pairs"),
    "Hybrid(8, ((Sliding(8), '1'),))": ("ValueError", "weight '1' of Sliding(budget=8); give a number above 0"),
}


@pytest.fixture(scope="module")
def said():
    calls = json.dumps([*TAKEN, *REFUSED])
    done = subprocess.run([sys.executable, "-c", PROGRAM], input=calls, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("call", TAKEN)
def test_integers_of_numpy_are_taken_and_kept_as_ints(said, call):
    assert said[call] == ["", TAKEN[call]]


@pytest.mark.parametrize("call", REFUSED)
def test_what_is_wrong_is_named_with_its_mend(said, call):
    kind, part = REFUSED[call]
    assert said[call][0] == kind and part in said[call][1], said[call]
