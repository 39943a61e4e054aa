"""The report: one file with the rows, the map and the charts; nothing fetched, texts never markup."""

import json
import re

import pytest

import fmlab as fm
from fmlab import printed, report
from fmlab.compare import compare
from fmlab.passage import passage

P = fm.policies
MARKUP = "<script>document.title = 'hacked'</script> & <img src=x onerror=alert(1)> 🦊 </script><!-- "


@pytest.fixture(scope="module")
def tiny():
    return fm.tiny()


@pytest.fixture(scope="module")
def told(tiny):
    """A comparison with planted facts: the passage and its cells."""
    read = passage(tiny, tokens=300, scored=48)
    return read, list(compare(tiny, read, [P.H2O(), P.SnapKV()], [20, 80]))


@pytest.fixture(scope="module")
def marked(tiny):
    """A comparison of a text that is all markup."""
    read = passage(tiny, MARKUP * 12, f"{MARKUP}.txt", tokens=200, scored=8)
    return read, list(compare(tiny, read, [P.TOVA()], [40]))


def test_it_holds_the_rows(told):
    read, cells = told
    page = report.html(read, cells, len(cells), "fmlab compare")
    rows = json.loads(re.search(r'<script type="application/json" id="rows">(.*?)</script>', page).group(1))
    assert rows == [cell.row for cell in cells]
    table = page[page.index('<table class="rows">') : page.index("</table>")]
    assert table.count("<tr") == 1 + len(cells) and table.count("refused: ") == 1
    assert f">{cells[1].row['nll_delta']:+.3f}<" in table
    assert read.sha256 in page and "fmlab compare" in page and "Interrupted:" not in page
    assert all(note in page.replace("&#x27;", "'") for note in printed.notes(read, rows))


def test_nothing_is_fetched(told):
    read, cells = told
    page = report.html(read, cells, len(cells))
    outside = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)  # plotly.js names addresses it never opens
    assert not re.search(r"(src|href)\s*=|url\(|@import|https?://", outside)
    assert page.count("default-src 'none'") == 1 and page.count("Plotly.newPlot(place") == 1
    assert len(page) < 7_000_000


def test_the_charts(told):
    read, cells = told
    rows = [cell.row for cell in cells]
    names = ["mass_recall_by_budget", "nll_by_budget", "bytes_against_quality", "retention_by_depth", "needle_heatmap"]
    assert list(report.charts(rows)) == names
    page = report.html(read, cells, len(cells))
    for name in names:
        figure = json.loads(re.search(rf'id="{name}"><script type="application/json">(.*?)</script>', page).group(1))
        assert figure["data"] and figure["layout"]["title"]["text"]


def test_without_facts_there_is_no_needle_map(marked):
    read, cells = marked
    page = report.html(read, cells, len(cells))
    assert "needle_heatmap" not in page and "What the model said" not in page and "query aware" not in page


def test_without_measured_cells_there_are_no_charts(tiny, told):
    read, cells = told
    refused = [cell for cell in cells if cell.row["refused"]]
    page = report.html(read, [cells[0], *refused], 2)
    assert "newPlot" not in page and "data-fmlab-page" not in page and "refused" in page
    assert report.charts([cells[0].row]) == {}


def test_without_forgetting_there_is_no_cost_to_draw(tiny):
    read = passage(tiny, "x" * 300, tokens=100, scored=20)
    rows = [cell.row for cell in compare(tiny, read, [P.TOVA()], [500])]
    assert list(report.charts(rows)) == ["mass_recall_by_budget", "retention_by_depth"]


def test_texts_are_never_markup(marked):
    read, cells = marked
    page = report.html(read, cells, len(cells), command=f"fmlab compare '{MARKUP}'")
    assert MARKUP not in page and "<img" not in page and "<script>document.title" not in page
    assert page.count("&lt;script&gt;document.title") >= 3


def test_an_interrupted_report_says_so(told):
    read, cells = told
    assert "Interrupted: 2 of 10 rows were finished." in report.html(read, cells[:2], 10)
    with pytest.raises(ValueError, match="no cell is finished"):
        report.html(read, [], 10)


def test_the_terminal_table_fits_its_columns(told):
    read, cells = told
    lines = printed.as_text([cell.row for cell in cells]).splitlines()
    assert len({len(line) for line in lines if "refused" not in line}) == 1
    assert len(lines) == 1 + len(cells) and max(map(len, lines[:2])) < 140
