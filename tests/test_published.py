import re

import numpy as np
import pandas as pd
import pytest

import fmlab as fm
from fmlab.figures import ours_and_theirs
from fmlab.published import NAMES, VERDICTS, against, means, printed, published

FOLDER = fm.datafile("published/sink_effect.csv").parent
OURS = pd.DataFrame(
    {
        "policy": list("abcde"),
        "value": [1.0, 1.0, 1.0, 1.0, 1.0],
        "low": [0.9] * 3 + [None, 0.9],
        "high": [1.1] * 3 + [None, 1.1],
    }
)
THEIRS = pd.DataFrame({"policy": list("abcdf"), "value": [1.05, 1.2, 0.5, 1.0, 7.0]})


@pytest.mark.parametrize("name", NAMES)
def test_every_number_has_a_unit_and_a_source(name):
    table = published(name)
    assert len(table) and table[["value", "unit", "source"]].notna().all().all()
    assert np.isfinite(table["value"]).all()
    assert not table.duplicated(list(table.columns)).any()
    for source in table["source"].unique():
        assert re.search(r"arXiv:\d{4}\.\d{5}|pull request \d+|measured by an earlier study on|figure \d+", source), (
            source
        )
        assert "arXiv" not in source or source.endswith("as recalled, not re-checked")
    text = (FOLDER / f"{name}.csv").read_text("utf-8")
    assert "\r" not in text and not re.search(r"/(home|tmp|root|work|usr)\b|[A-Z]:\\", text)


def test_every_file_has_its_name():
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(NAMES)
    with pytest.raises(ValueError, match="no published figure 'sinks'; there are attention_mass, "):
        published("sinks")


def test_known_figures_are_there():
    sinks = published("sink_effect").query("model == 'SmolLM2-135M-Instruct'").set_index("sinks")["value"]
    assert (sinks[0], sinks[4], sinks[np.nan]) == (46.09, 23.82, 20.86)
    mass = published("attention_mass").set_index(["policy", "share"])["value"]
    assert mass["TOVA()", 0.2] == 0.841 and mass["static oracle", 0.5] == 0.968
    keys = published("passkey").set_index(["policy", "share", "query_aware"])["value"]
    assert keys["SnapKV(window=32, kernel=5)", 0.2, True] == 1.23


def test_policies_in_the_files_are_the_lab_s_own_labels():
    ours = {repr(getattr(fm.policies, name)()) for name in fm.policies.__all__} | {repr(fm.policies.H2O(recent=0.0))}
    named = {
        policy for name in ("attention_mass", "passkey", "h2o_budget") for policy in published(name)["policy"].dropna()
    }
    assert len(named & ours) >= 7
    assert named - ours <= {"full cache", "dynamic oracle", "static oracle"}


def test_a_verdict_needs_an_interval():
    table = against(OURS, THEIRS, ["policy"]).set_index("policy")
    assert table.verdict.to_dict() == {
        "a": "agrees",
        "b": "differs",
        "c": "differs",
        "d": "no verdict",
        "e": "no verdict",
        "f": "no verdict",
    }
    assert table.gap[["a", "b", "c", "d"]].tolist() == pytest.approx([-0.05, -0.2, 0.5, 0])
    assert np.isnan(table.loc["e", "theirs"]) and np.isnan(table.loc["f", "ours"])
    assert table.columns.tolist() == ["ours", "low", "high", "theirs", "gap", "verdict"]
    assert set(table.verdict) == set(VERDICTS)


def test_two_intervals_agree_where_they_meet():
    theirs = THEIRS.assign(low=THEIRS["value"] - 0.12, high=THEIRS["value"] + 0.12)
    table = against(OURS, theirs, ["policy"]).set_index("policy")
    assert table.verdict[["a", "b", "c"]].tolist() == ["agrees", "agrees", "differs"]
    edge = against(OURS.head(1), pd.DataFrame({"policy": ["a"], "value": [1.1]}), ["policy"])
    assert edge.verdict.tolist() == ["agrees"]


def test_an_empty_setting_matches_an_empty_setting():
    ours = pd.DataFrame(
        {"policy": ["full", "x"], "share": [None, 0.2], "value": [1.0, 2.0], "low": [0.5, 1.9], "high": [2.0, 2.1]}
    )
    theirs = pd.DataFrame({"policy": ["full", "x"], "share": [np.nan, 0.2], "value": [1.0, 3.0], "unit": "m"})
    assert against(ours, theirs, ["policy", "share"]).verdict.tolist() == ["agrees", "differs"]


@pytest.mark.parametrize(
    ("ours", "theirs", "on", "says"),
    [
        (OURS, THEIRS, ["policy", "share"], "ours has no column 'share'; it has policy, value, low, high"),
        (OURS, THEIRS.drop(columns="value"), ["policy"], "theirs has no column 'value'"),
        (pd.concat([OURS, OURS.head(1)]), THEIRS, ["policy"], "ours holds {'policy': 'a'} twice"),
        (OURS, pd.concat([THEIRS, THEIRS]), ["policy"], "theirs holds {'policy': 'a'} twice"),
    ],
)
def test_what_cannot_be_matched_is_refused(ours, theirs, on, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        against(ours, theirs, on)


def test_means_are_over_texts():
    rows = pd.DataFrame(
        {"policy": ["a"] * 4 + ["b"], "share": [0.1] * 4 + [None], "seed": [0, 0, 1, 2, 0], "value": [1, 1, 2, 4, 3]}
    )
    table = means(rows, ["policy", "share"])
    assert table.value.tolist() == [2, 3] and table.n.tolist() == [3, 1]
    expected = fm.intervals.bootstrap([1, 1, 2, 4], [0, 0, 1, 2])
    assert (table.low[0], table.high[0]) == (expected.low, expected.high)
    assert np.isnan(table.low[1])
    assert against(table, table[["policy", "share", "value"]], ["policy", "share"]).verdict.tolist() == [
        "agrees",
        "no verdict",
    ]


def test_the_printed_table_says_everything():
    lines = printed(against(OURS, THEIRS, ["policy"])).splitlines()
    assert lines[1].split() == ["a", "1.000", "[0.900,", "1.100]", "1.050", "-0.050", "agrees"]
    assert lines[4].split() == ["d", "1.000", "1.000", "+0.000", "no", "verdict"]
    assert lines[6].split() == ["f", "–", "7.000", "–", "no", "verdict"]
    assert lines[-1] == "1 agrees, 2 differs, 3 no verdict"


def test_the_chart_shows_what_can_be_compared():
    table = against(OURS.assign(sinks=1.0), THEIRS.assign(sinks=1.0), ["policy", "sinks"])
    ours, theirs = ours_and_theirs(table, value="nats").data
    assert list(ours.y) == list(theirs.y) == [f"{policy}, sinks=1" for policy in "abcd"]
    assert list(theirs.x) == [1.05, 1.2, 0.5, 1.0]
    assert np.allclose(ours.error_x.array, [0.1, 0.1, 0.1, 0]) and np.allclose(
        ours.error_x.arrayminus, [0.1, 0.1, 0.1, 0]
    )
    assert ours_and_theirs(table, value="nats").layout.xaxis.title.text == "nats"
    assert (
        "<b>"
        not in ours_and_theirs(against(OURS.replace("a", "<b>"), THEIRS.replace("a", "<b>"), ["policy"])).data[0].y[0]
    )


def test_the_chart_refuses_what_it_cannot_show():
    with pytest.raises(ValueError, match="has no column 'ours', 'theirs'"):
        ours_and_theirs(OURS.assign(gap=0, verdict=""))
    with pytest.raises(ValueError, match="no setting has a figure of ours and one of theirs"):
        ours_and_theirs(against(OURS.tail(1), THEIRS.tail(1), ["policy"]))
