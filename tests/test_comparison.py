"""The `compare` command: what it prints, where, and how it ends."""

import json
import re

import pytest

import fmlab as fm
from fmlab import comparison
from fmlab.cli import main
from fmlab.needs import LIVE

OURS = fm.policies.every(LIVE)
OWN = """
from dataclasses import dataclass
import fmlab as fm

@dataclass(frozen=True)
class Broken(fm.Policy):
    at: int = 0
    error: str = "ValueError"

    def score(self, view, stats):
        if int(view.budget[0]) == self.at:
            raise {"ValueError": ValueError, "KeyboardInterrupt": KeyboardInterrupt}[self.error]("out of order")
        return -view.age.float()
"""


@pytest.fixture(scope="module")
def tiny():
    return fm.tiny()


@pytest.fixture
def run(tiny, tmp_path, monkeypatch, capsys):
    """Runs `fmlab compare` with the words given, on the tiny model: exit code, stdout, stderr, report."""

    def called(*words):
        monkeypatch.setattr(comparison, "load", lambda name, dtype, device: tiny)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as ended:
            main(["compare", "--tokens", "200", "--scored", "12", *words])
        printed = capsys.readouterr()
        report = tmp_path / "fmlab-compare.html"
        return ended.value.code, printed.out, printed.err, report.read_text("utf-8") if report.exists() else None

    return called


def test_the_table_and_the_report(run):
    policies = ["--policy", "TOVA", "--policy", "SinkWindow(sinks=2)"]
    code, out, err, report = run(*policies, "--budget", "16", "--budget", "60")
    assert code == 0
    lines = out.splitlines()
    headings = re.split(r"\s{2,}", lines[2])
    assert headings[:4] == ["policy", "budget", "early", "middle"] and headings[-3:] == ["n", "MB", "ms"]
    starts = [re.split(r"\s{2,}", line)[:2] for line in lines[3:8]]
    wanted = [["TOVA()", "16"], ["TOVA()", "60"], ["SinkWindow(sinks=2)", "16"], ["SinkWindow(sinks=2)", "60"]]
    assert starts == [["full cache", "–"], *wanted]
    assert all(len(re.split(r"\s{2,}", line)) == len(headings) for line in lines[3:8])
    words = " ".join(out.split())  # whatever the width of the terminal
    assert "not ranked" in words and "query-blind" in words and "report: fmlab-compare.html" in words
    assert "5/5" in err and "tiny llama" in out and report.startswith("<!doctype html>")
    assert "fmlab compare" not in err and "Traceback" not in err


def test_json_alone_on_stdout(run):
    code, out, err, report = run("--json", "--policy", "Random(seed=3)", "--budget", "20")
    rows = json.loads(out)
    assert code == 0 and [row["policy"] for row in rows] == ["full cache", "Random(seed=3)"]
    assert rows[1]["budget"] == 20 and rows[1]["n"] == 12 and rows[0]["budget"] is None
    assert len(rows[1]["fact_results"]) == 3 and rows[1]["commit"] and rows[1]["text_sha256"]
    assert "report:" in err and report


# what holds a window of 32, or pins as much for other reasons, where the shares of a context of 100 begin at 25
PIN_MORE = {"ChunkKV", "CriticalKV", "DuoAttention", "Finch", "LagKV", "SimLayerKV", "SnapKV"}


def test_by_default_every_policy_of_the_library_at_shares_of_the_context(run):
    code, out, _, _ = run("--json", "--facts", "0")
    rows = json.loads(out)
    known = sorted(map(repr, OURS))
    assert code == 0 and sorted({row["policy"] for row in rows[1:]}) == known
    assert [row["budget"] for row in rows[1:4]] == [25, 50, 100]
    refused = {(row["policy"], row["budget"]) for row in rows if row["refused"]}
    assert {policy.partition("(")[0] for policy, _ in refused} == PIN_MORE and {budget for _, budget in refused} == {25}


def test_a_refused_cell_is_printed_plainly(run):
    code, out, _, report = run("--policy", "SinkWindow", "--budget", "2", "--budget", "30")
    assert code == 0 and re.search(r"SinkWindow\(sinks=4\) +2 +refused: .*budget 2 < 5 pinned entries", out)
    assert "budget 2 &lt; 5 pinned entries" in report


def test_all_refused(run):
    code, out, _, report = run("--policy", "SinkWindow(sinks=50)", "--budget", "20")
    assert code == 1 and "refused" in out and "data-fmlab-page" not in report


def test_a_policy_of_ones_own(run, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    code, out, _, _ = run("--import", "own.py", "--policy", "Broken(at=1)", "--policy", "TOVA", "--budget", "20")
    assert code == 0 and "Broken(at=1, error='ValueError')" in out
    code, out, _, _ = run("--import", "own.py", "--budget", "100", "--json")
    assert code == 0 and len(json.loads(out)) == 1 + len(OURS) + 1


def test_an_interrupt_keeps_what_is_finished(run, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    broken = ["--import", "own.py", "--policy", "Broken(at=40, error='KeyboardInterrupt')"]
    code, out, err, report = run(*broken, "--budget", "20", "--budget", "40")
    assert code == 130 and "interrupted; 2 of 3 rows are finished" in err and "Traceback" not in err
    assert re.findall(r"^Broken\(.*\) +(\d+) ", out, re.MULTILINE) == ["20"]
    assert "Interrupted: 2 of 3 rows were finished." in report


def test_an_interrupt_before_the_first_row(run, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(comparison, "passage", interrupted)
    code, out, err, report = run()
    assert (code, out, report) == (130, "", None) and "interrupted" in err


def test_an_error_keeps_what_is_finished(run, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    code, out, err, report = run("--import", "own.py", "--policy", "Broken(at=40)", "--budget", "20", "--budget", "40")
    assert code == 2 and "out of order" in err and "Traceback" not in err
    assert re.search(r"^Broken\(.*\) +20 ", out, re.MULTILINE) and "2 of 3 rows" in report


def test_rows_are_resumed(run, tmp_path, tiny):
    words = ["--policy", "TOVA", "--budget", "20", "--rows", "rows.sqlite", "--json"]
    first = json.loads(run(*words)[1])
    calls = []
    watch = tiny.model.register_forward_hook(lambda *_: calls.append(1))
    code, out, _, _ = run(*words)
    watch.remove()
    assert code == 0 and json.loads(out) == first and not calls


def test_a_text_with_markup_and_emoji(run, tmp_path):
    (tmp_path / "x.txt").write_text("<script>alert('🦊')</script> & \x00 </main>\n" * 30, encoding="utf-8")
    code, out, _, report = run("x.txt", "--policy", "TOVA", "--budget", "20")
    assert code == 0 and "x.txt" in out and "told" not in out
    assert "alert('🦊')" not in report and report.count("</main>") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing.txt"], "nothing.txt is no file"),
        (["latin.txt"], "latin.txt is no UTF-8 text: byte 0xe9 at offset 3"),
        (["empty.txt"], "empty.txt is empty"),
        (["short.txt"], "short.txt has 5 tokens, too few"),
        (["--budget", "0"], "budget 0 < 1"),
        (["--budget=-3"], "budget -3 < 1"),
        (["--budget", "abc"], "budget 'abc' is no whole number"),
        (["--budget", "1.5"], "budget '1.5' is no whole number"),
        (["--budget", "9", "--budget", "9"], "budget 9 is given twice"),
        (["--policy", "TOVA", "--policy", "TOVA()"], "policy TOVA() is given twice"),
        (["--policy", "Nope"], "no policy is called 'Nope'; there are"),
        (["--policy", "TOVA(window=3)"], "TOVA has no field 'window'; the policy is TOVA()"),
        (["--policy", "H2O(recent='x')"], "recent is float"),
        (["--scored", "0"], "--scored 0; give at least 1"),
        (["--chunk", "0"], "--chunk 0; give at least 1"),
        (["--facts", "4"], "4 facts; give 3, 6, 9 or 12"),
        (["--facts", "-1"], "--facts -1; give at least 0"),
        (["--dtype", "int8"], "--dtype 'int8'; give float32, bfloat16, float16"),
        (["--device", "abacus"], "--device 'abacus' is no device"),
        (["--out", "nowhere/x.html"], "nowhere is no folder"),
        (["--out", "."], "is a folder"),
        (["--import", "nothing.py"], "nothing.py is no file"),
        (["--rows", "latin.txt", "--policy", "TOVA", "--budget", "9"], "cannot serve as the store"),
    ],
)
def test_what_a_user_can_mend_is_one_line(run, tmp_path, words, said):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9" * 100)
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "short.txt").write_text("short")
    code, out, err, report = run(*words)
    told = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("fmlab: ")]
    assert code == 2 and out == "" and report is None
    assert len(told) == 1 and said in told[0] and "Traceback" not in err


def test_an_unknown_model_says_what_there_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["compare", "--model", "./no-such-folder", "--budget", "9", "--policy", "TOVA"])
    assert ended.value.code == 2 and "no-such-folder" in capsys.readouterr().err


@pytest.mark.real
def test_the_real_model_from_the_command_line(lm, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(comparison, "load", lambda name, dtype, device: lm)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["compare", "--json", "--tokens", "160", "--scored", "8", "--policy", "TOVA", "--budget", "40"])
    full, row = json.loads(capsys.readouterr().out)
    assert ended.value.code == 0 and row["nbytes"] == 41 * 30 * 3 * 64 * 2 * 4
    assert full["model_source"].startswith("wheel") and 0.5 < row["mass_recall"] < 1
