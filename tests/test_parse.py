"""Policies spelled in words: what is understood, what is refused and how the refusal helps."""

from dataclasses import dataclass
from typing import Literal

import pytest
import torch

import fmlab as fm
from fmlab.parse import policies_of, policy

P = fm.policies
KNOWN = [getattr(P, name) for name in P.__all__]


@dataclass(frozen=True)
class Picky(fm.Policy):
    """Fields of every kind that a literal can fill."""

    needed: int
    share: float = 0.5
    mode: Literal["a", "b"] = "a"
    names: tuple[str, ...] = ()
    limit: int | None = None
    flag: bool = False

    def score(self, view, stats):
        return torch.zeros_like(view.positions, dtype=torch.float32)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("SinkWindow", P.SinkWindow()),
        ("SinkWindow()", P.SinkWindow()),
        (" SinkWindow( sinks = 8 ) ", P.SinkWindow(sinks=8)),
        ("H2O(recent=1)", P.H2O(recent=1.0)),
        ("Random(seed=-3)", P.Random(seed=-3)),
        ("SnapKV(window=16, kernel=3)", P.SnapKV(window=16, kernel=3)),
        ("ChunkKV(policy=SnapKV(window=16), chunk=10)", P.ChunkKV(P.SnapKV(window=16), chunk=10)),
        ("Pinned(policy=TOVA)", P.Pinned(P.TOVA())),
        ("Pinned(policy=ChunkKV(policy=TOVA()), sinks=1)", P.Pinned(P.ChunkKV(P.TOVA()), sinks=1)),
    ],
)
def test_what_is_understood(words, meant):
    assert policy(words, KNOWN) == meant


def test_fields_of_every_kind():
    given = policy("Picky(needed=1, share=2, mode='b', names=('x', 'y'), limit=None, flag=True)", [Picky])
    assert given == Picky(1, 2, "b", ("x", "y"), None, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("Sinkwindow", "do you mean SinkWindow?"),
        ("Nothing", "; there are CUR(leverage='product', block=16, "),
        ("Nothing", ", H2O(recent=0.5), TOVA(), "),
        ("SinkWindow(sink=4)", "has no field 'sink'; the policy is SinkWindow(sinks=4)"),
        ("SinkWindow(sinks='4')", "SinkWindow(sinks='4'): sinks is int"),
        ("SinkWindow(sinks=True)", "sinks is int"),
        ("SinkWindow(sinks=4.0)", "sinks is int"),
        ("SinkWindow(sinks=-1)", "'SinkWindow(sinks=-1)': sinks=-1; give 0 or more"),
        ("SinkWindow(4)", "gives a value without its field"),
        ("SinkWindow(**{})", "gives a value without its field"),
        ("SinkWindow(sinks=2 + 2)", "sinks=2 + 2 is no literal"),
        ("SinkWindow(sinks=len('abcd'))", "is no literal"),
        ("SinkWindow(sinks=4", "spells no policy"),
        ("", "spells no policy"),
        ("fm.policies.SinkWindow()", "spells no policy"),
        ("SinkWindow()()", "spells no policy"),
        ("SinkWindow\x00", "spells no policy"),
        ("__import__('os').remove('x')", "spells no policy"),
        ("(lambda: 1)()", "spells no policy"),
        ("ChunkKV(policy=SnapKv())", "policy=SnapKv() is no literal (do you mean SnapKV?); give a number"),
        ("ChunkKV(policy=SnapKV(window=0))", "'SnapKV(window=0)': window=0; give 1 or more queries"),
        ("ChunkKV(policy=SnapKV(4))", "'SnapKV(4)' gives a value without its field"),
        ("ChunkKV(policy=SnapKV(wide=4))", "SnapKV has no field 'wide'; the policy is SnapKV(window=32, kernel=5)"),
        ("ChunkKV(policy=3)", "ChunkKV(policy=3): policy is Policy; the policy is ChunkKV(policy=SnapKV(window=32"),
        ("SinkWindow(sinks=TOVA)", "SinkWindow(sinks=TOVA()): sinks is int"),
        ("Picky", "leaves out needed; the policy is Picky(needed: int, share=0.5"),
        ("Picky(needed=1, mode='c')", "mode is"),
        ("Picky(needed=1, limit='x')", "limit is int | None"),
    ],
)
def test_what_is_refused(words, said):
    with pytest.raises(ValueError) as caught:
        policy(words, [*KNOWN, Picky])
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KNOWN, ids=lambda kind: kind.__name__)
def test_every_label_of_the_library_can_be_typed(kind):
    assert policy(repr(kind()), KNOWN) == kind()


def test_a_field_given_twice():
    with pytest.raises(ValueError, match="spells no policy|gives sinks twice"):
        policy("SinkWindow(sinks=1, sinks=2)", KNOWN)


def test_two_policies_of_one_name():
    twin = type("SinkWindow", (fm.Policy,), {"score": Picky.score, "__module__": "mine"})
    with pytest.raises(ValueError, match="two policies are called 'SinkWindow', in fmlab.policies.recency and mine"):
        policy("SinkWindow", [*KNOWN, twin])


OWN = """
from dataclasses import dataclass
import fmlab as fm

@dataclass(frozen=True)
class EarlyBird(fm.Policy):
    pinned: int = 1

    def score(self, view, stats):
        return (-view.positions.float()).masked_fill(view.age < self.pinned, float("inf"))
"""


def test_a_policy_of_a_file(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(OWN)
    (kind,) = policies_of(file)
    assert repr(policy("EarlyBird(pinned=2)", [kind])) == "EarlyBird(pinned=2)"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("own.py", "def f(:\n", "line 1, is no Python"),
        ("own.py", "x = 1\n", "defines no policy"),
        ("own.txt", OWN, "is no Python file"),
    ],
)
def test_files_without_a_policy(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=said):
        policies_of(tmp_path / name)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.py is no file"):
        policies_of(tmp_path / "nothing.py")
