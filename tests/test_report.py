"""The report: one file, nothing fetched, texts never markup; opened in a real Chromium without a network."""

import json
import os
import re
import shutil

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
    read = passage(tiny, tokens=300, scored=56)
    return read, list(compare(tiny, read, [P.H2O(), P.SinkWindow(), P.SnapKV()], [20, 40, 80]))


@pytest.fixture(scope="module")
def marked(tiny):
    """A comparison of a text that is all markup."""
    read = passage(tiny, MARKUP * 12, f"{MARKUP}.txt", tokens=200, scored=56)
    return read, list(compare(tiny, read, [P.TOVA()], [40]))


def test_it_holds_the_rows(told):
    read, cells = told
    page = report.html(read, cells, len(cells), "fmlab compare")
    rows = json.loads(re.search(r'<script type="application/json" id="rows">(.*?)</script>', page).group(1))
    assert rows == [cell.row for cell in cells]
    table = page[page.index('<table class="rows">') : page.index("</table>")]
    assert table.count("<tr") == 1 + len(cells) and table.count("refused: ") == 1
    assert f">{cells[1].row['nll_delta']:+.3f}<" in table
    assert read.sha256 in page and "fmlab compare" in page and "Interrupted" not in page
    assert all(note in page.replace("&#x27;", "'") for note in printed.notes(read, rows))


def test_nothing_is_fetched(told):
    read, cells = told
    page = report.html(read, cells, len(cells))
    outside = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)  # plotly.js names addresses that it never opens
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


# in a browser


def chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return os.environ.get("FMLAB_CHROMIUM") or next((found for name in names if (found := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser():
    from conftest import unavailable

    playwright = pytest.importorskip("playwright.sync_api") if os.environ.get("FMLAB_CI") != "1" else None
    if playwright is None:
        import playwright.sync_api as playwright
    path = chromium()
    if path is None:
        unavailable("there is no Chromium: install one, or name it in FMLAB_CHROMIUM")
    with playwright.sync_playwright() as started:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
        running = started.chromium.launch(executable_path=path, headless=True, args=flags)
        yield running
        running.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a report from a file, without a network, and gathers what goes wrong and what it asks for."""
    contexts = []

    def open_(page_html, **options):
        file = tmp_path / "report.html"
        file.write_text(page_html, encoding="utf-8")
        context = browser.new_context(offline=True, viewport={"width": 1360, "height": 1000}, **options)
        contexts.append(context)
        page = context.new_page()
        page.wrong, page.asked = [], []
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        page.on("console", lambda said: said.type == "error" and page.wrong.append(said.text))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(file.as_uri())
        charts = page.locator(".chart").count()
        page.wait_for_function(f"document.querySelectorAll('.chart[data-drawn]').length === {charts}", timeout=60_000)
        page.wait_for_selector(".fm-view[data-paints]", state="attached")
        return page

    yield open_
    for context in contexts:
        context.close()


def inked(page, selector: str) -> float:
    """Share of the pixels of a canvas that are neither clear nor of one colour with its first."""
    return page.evaluate(
        """(selector) => {
            const canvas = document.querySelector(selector), context = canvas.getContext('2d');
            const pixels = new Uint32Array(context.getImageData(0, 0, canvas.width, canvas.height).data.buffer);
            const blank = pixels[canvas.width * (canvas.height - 1)];
            return pixels.filter((pixel) => pixel !== blank).length / pixels.length;
        }""",
        selector,
    )


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_offline(opened, told, scheme, tmp_path):
    read, cells = told
    page = opened(report.html(read, cells, len(cells)), color_scheme=scheme)
    assert page.wrong == [] and [url for url in page.asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert page.locator(".chart .main-svg").count() >= 5
    assert inked(page, ".fm-plot canvas") > 0.2
    shown = page.locator(".fm-text").first.inner_text()
    assert read.planted[0].fact.sentence in re.sub(r"\s+", " ", shown)
    ink, paper = page.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    assert (ink > paper) == (scheme == "dark")
    assert page.evaluate("getComputedStyle(document.querySelector('.chart .xtick text')).fill") == ink
    assert page.locator(".modebar-btn[data-title*='hare'], .modebar-btn[data-title*='loud']").count() == 0


@pytest.mark.browser
def test_the_reader_can_choose_policy_and_budget(opened, told):
    read, cells = told
    page = opened(report.html(read, cells, len(cells)))
    figures = page.locator(".fm-figures")
    assert cells[2].row["policy"] == "H2O(recent=0.5)" and cells[2].row["budget"] == 40
    assert f"{cells[2].row['mass_recall']:.3f}" in figures.inner_text()
    page.locator("select.fm-policy").first.select_option("SinkWindow(sinks=4)")
    slider = page.locator("input.fm-budget")
    slider.focus()
    slider.press("End")
    sink = next(cell for cell in cells if cell.row["policy"] == "SinkWindow(sinks=4)" and cell.row["budget"] == 80)
    assert f"{sink.row['mass_recall']:.3f}" in figures.inner_text() and page.wrong == []


@pytest.mark.browser
def test_markup_in_the_text_is_shown_as_text(opened, marked):
    read, cells = marked
    page = opened(report.html(read, cells, len(cells), MARKUP))
    assert page.wrong == [] and "hacked" in page.title() and page.title() != "hacked"
    assert "<script>document.title" in page.locator(".fm-text").first.inner_text()
    assert page.locator(".fm-text script, .fm-text img, main img").count() == 0
    assert "🦊" in page.locator("h1").inner_text()
