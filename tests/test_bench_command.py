"""The `bench optimizations` command: what it prints, where, and how it ends."""

import csv
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

import fmlab as fm
from fmlab import bench
from fmlab.cli import main
from fmlab.optimizations import chat
from fmlab.optimizations.outcome import attempt
from fmlab.optimizations.whole import Workload

QUICK = ["--rounds", "6", "--seconds", "1"]


def plain(values: list[float]) -> list[float]:
    return sorted(values)


def numbers(size: int, seed: int) -> tuple[list[float]]:
    return (np.random.default_rng(seed).random(size).tolist(),)


def broken(values):
    raise RuntimeError("no sorting today")


def interrupted(values):
    raise KeyboardInterrupt


def missing(size: int, seed: int):
    raise ImportError("pip install 'abacus'")


PAIR = fm.optimizations.Pair("sorting: NumPy", (1.1, 1.3), "nobody", plain, np.sort, numbers, sizes=(0, 20, 50))
OTHER = replace(PAIR, name="sorting twice", claim=None, optimised=lambda values: sorted(sorted(values)), sizes=(10,))
WRONG = replace(PAIR, name="wrong", optimised=lambda values: [*sorted(values)[:-1], 2.0], sizes=(10,))
FAILS = replace(PAIR, name="fails", baseline=broken, sizes=(10,))


def attempt_but(pair):
    """`attempt`, which raises for this pair what no refusal is."""

    def tried(asked, *rest):
        return missing(0, 0) if asked is pair else attempt(asked, *rest)

    return tried


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs `fmlab bench optimizations` on these pairs with the words given: exit code, stdout, stderr."""

    def called(pairs, *words):
        monkeypatch.setattr(fm.optimizations, "ALL", tuple(pairs), raising=False)
        with pytest.raises(SystemExit) as ended:
            main(["bench", "optimizations", *(() if "--turns" in words else ("--turns", "0")), *words])
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return called


def test_the_pairs_then_the_verdicts(run):
    code, out, err = run([PAIR, OTHER], *QUICK)
    assert code == 0 and "Traceback" not in err and "2/2" in err
    head, *pairs, last = out.strip().split("\n\n")
    assert re.search(r"^machine: cpu \(.*torch on \d+ thread", head) and re.search(r"^n: 6 rounds", head, re.MULTILINE)
    assert all(f"{name} " in head for name in ("python", "torch", "transformers", "numpy", "fmlab"))
    assert re.search(r"^commit: [0-9a-f]{40}|^commit: no checkout", head, re.MULTILINE)
    assert len(pairs) == 2 and pairs[0].startswith("sorting: NumPy: claimed 1.1-1.3 x\n") and "n=6" in pairs[0]
    headings, *lines = (re.split(r"\s{2,}", line) for line in last.splitlines())
    assert headings == list(bench.HEADINGS)
    assert [line[:3] for line in lines] == [
        ["sorting: NumPy", "0 items", "1.1-1.3 x"],
        ["sorting: NumPy", "20 items", "1.1-1.3 x"],
        ["sorting: NumPy", "50 items", "1.1-1.3 x"],
        ["sorting twice", "10 items", "–"],
    ]
    assert all(re.fullmatch(r"[\d.e+-]+ x \[[\d.e+-]+, [\d.e+-]+\]", line[3]) and line[4] == "6" for line in lines)


def test_json_alone_on_stdout_and_the_same_rows_as_csv(run, tmp_path):
    path = tmp_path / "rows.csv"
    words = ["--pair", "sorting twice", "--size", "5", "--size", "1", "--json", "--csv", str(path), *QUICK]
    code, out, err = run([PAIR, OTHER], *words)
    told = json.loads(out)
    assert code == 0 and {"machine", "versions", "commit", "dirty", "n", "rows"} <= set(told) and told["n"] == 6
    assert [(row["pair"], row["size"], row["n"]) for row in told["rows"]] == [
        ("sorting twice", 5, 6),
        ("sorting twice", 1, 6),
    ]
    assert told["rows"][0]["claim_low"] is None and told["rows"][0]["low"] <= told["rows"][0]["speedup"]
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    assert [row["size"] for row in rows] == ["5", "1"] and rows[0]["claim_low"] == "" and "rows: " in err
    assert float(rows[0]["speedup"]) == told["rows"][0]["speedup"]
    assert (rows[0]["commit"], rows[0]["machine"]) == (told["commit"], told["machine"])


def test_a_refused_pair_is_in_the_table_and_the_exit_code(run):
    code, out, _ = run([WRONG, PAIR, FAILS], *QUICK)
    assert code == 1
    assert "not equivalent: wrong at 10 items, seed 1000: result[9]" in out
    lines = [re.split(r"\s{2,}", line) for line in out.strip().split("\n\n")[-1].splitlines()]
    assert lines[1] == ["wrong", "10 items", "1.1-1.3 x", "–", "0", "not equivalent", "–"]
    assert lines[-1] == ["fails", "10 items", "1.1-1.3 x", "–", "0", "failed", "–"] and len(lines) == 6
    code, out, _ = run([FAILS], "--json", *QUICK)
    assert code == 1 and json.loads(out)["rows"][0]["speedup"] is None
    assert "the baseline way raised RuntimeError: no sorting today" in json.loads(out)["rows"][0]["error"]


def test_an_unstable_machine_is_said(run, monkeypatch):
    monkeypatch.setattr("fmlab.optimizations.clock.SPREAD", -1.0)
    assert "(unstable machine: half of the rounds lie" in run([OTHER], *QUICK)[1].splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--pair", "sort"], "--pair 'sort' is no pair; there are: sorting: NumPy; wrong"),
        (["--size", "-1"], "--size -1; give 0 or more"),
        (["--rounds", "5"], "--rounds 5; give 6 or more"),
        (["--seconds", "0"], "--seconds 0.0; give a time above 0"),
        (["--seconds", "inf", "--json"], "--seconds inf; give a time above 0 that ends"),
        (["--seconds", "nan"], "--seconds nan; give a time above 0 that ends"),
        (["--csv=~/none/x.csv"], "none is no folder"),
        (["--csv=~nobody.at.home/x.csv"], "--csv ~nobody.at.home/x.csv: there is no such home"),
        (["--csv", "nowhere/x.csv"], "nowhere is no folder"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_measured(run, words, says):
    code, out, err = run([PAIR, WRONG], *words)
    assert (code, out) == (2, "") and says in err and "Traceback" not in err


def test_what_is_finished_is_printed_and_written_after_an_interrupt_or_an_error(run, tmp_path, monkeypatch):
    path = tmp_path / "rows.csv"
    code, out, err = run([OTHER, replace(PAIR, optimised=interrupted)], "--csv", str(path), *QUICK)
    assert code == 130 and "interrupted; 1 of 2 pairs are finished" in err
    assert out.count("sorting twice") == 2 and len(path.read_text().splitlines()) == 2
    monkeypatch.setattr(bench, "attempt", attempt_but(PAIR))
    code, out, err = run([OTHER, PAIR], *QUICK)
    assert code == 2 and "fmlab: pip install 'abacus'" in err and out.count("sorting twice") == 2


def test_inputs_that_raise_are_a_refused_row_and_the_next_pair_is_measured(run):
    code, out, _ = run([replace(PAIR, name="gone", inputs=missing), OTHER], "--size", "5", *QUICK)
    assert code == 1 and "the inputs raised ImportError: pip install 'abacus'" in out
    lines = [re.split(r"\s{2,}", line) for line in out.strip().split("\n\n")[-1].splitlines()]
    assert [line[0] for line in lines[1:]] == ["gone", "sorting twice"] and lines[1][5] == "failed"


def test_the_floor_stands_beside_the_figure(run):
    def floor(size):
        return fm.optimizations.Floor(8 * size, "bytes", "each number read")

    code, out, _ = run([replace(OTHER, floor=floor), PAIR], "--size", "5", *QUICK)
    lines = [re.split(r"\s{2,}", line) for line in out.strip().split("\n\n")[-1].splitlines()]
    assert code == 0 and [line[-1] for line in lines] == ["at least", "40 bytes: each number read", "–"]


def test_rows_are_written_at_home_and_said_only_where_they_are(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    code, out, _ = run([OTHER], "--csv=~/rows.csv", *QUICK)
    assert code == 0 and f"rows: {tmp_path}/rows.csv" in out and (tmp_path / "rows.csv").exists()
    folder = tmp_path / "leaves"
    folder.mkdir()

    def leaves(size, seed):
        shutil.rmtree(folder, ignore_errors=True)
        return numbers(size, seed)

    code, out, err = run([replace(OTHER, inputs=leaves)], "--csv", str(folder / "rows.csv"), *QUICK)
    assert code == 2 and "No such file" in err and "rows: " not in out and "sorting twice" in out


def test_the_claims_of_a_whole_chat_stand_below_the_pairs(run, monkeypatch):
    def said(turns):
        return Workload("chat", tuple(chat.chat(1).switches), lambda on: iter(range(turns)))

    monkeypatch.setattr(bench, "chat", said)
    code, out, err = run([OTHER], "--turns", "3", *QUICK)
    lines = [re.split(r"\s{2,}", line) for line in out.strip().split("\n\n")[-1].splitlines()]
    whole = [line for line in lines if line[1] == "whole chat"]
    assert code == 0 and "3/3" in err and len(whole) == 10
    assert {line[4] for line in whole} == {"2"}  # the first turn warms up
    assert ["both phases together", "1.45-1.95 x"] == [whole[-3][0], whole[-3][2]]
    assert ["KV carry-over, elsewhere", "51 x"] == [whole[-2][0], whole[-2][2]]
    code, out, _ = run([OTHER], "--turns", "3", "--json", *QUICK)
    document = json.loads(out)
    assert document["turns"] == 3 and len(document["rows"]) == 1 and len(document["whole"]) == 10
    assert sum(row["claim_low"] is None for row in document["whole"]) == 1  # of lazy evaluation no number is claimed


def test_where_pairs_are_named_there_is_no_whole_chat_unless_its_turns_are():
    def turns(names, asked):
        return bench.Request.of(names, [], 6, 1.0, asked, None).turns

    name = fm.optimizations.ALL[0].name
    assert (turns([], None), turns([name], None), turns([name], 5), turns([], 0)) == (40, 0, 5, 0)
    with pytest.raises(ValueError, match="--turns -1; give 0 or more"):
        turns([], -1)
    with pytest.raises(ValueError, match="--turns 1; the first turn is the warm-up, so give 2 or more"):
        turns([], 1)
