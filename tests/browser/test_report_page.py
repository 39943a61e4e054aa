"""The report of a comparison in a real Chromium that has no network."""

import re

import pytest

import fmlab as fm
from fmlab import report
from fmlab.compare import compare
from fmlab.passage import passage

P = fm.policies
MARKUP = "<script>document.title = 'hacked'</script> & <img src=x onerror=document.title='hacked'> 🦊 </script><!-- "


@pytest.fixture(scope="module")
def tiny():
    return fm.tiny()


@pytest.fixture(scope="module")
def told(tiny):
    """A comparison with planted facts: the passage and its cells."""
    read = passage(tiny, tokens=300, scored=48)
    return read, list(compare(tiny, read, [P.H2O(), P.SinkWindow()], [20, 80]))


@pytest.fixture
def opened(new_page, tmp_path):
    """Opens a report from a file, without a network; what it complains of and asks for is gathered."""

    def open_(page_html, **options):
        file = tmp_path / "report.html"
        file.write_text(page_html, encoding="utf-8")
        page = new_page(offline=True, **options)
        page.complaints, page.asked = [], []
        page.on("console", lambda said: said.type == "error" and page.complaints.append(said.text))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(file.as_uri())
        charts = page.locator(".chart").count()
        page.wait_for_function(f"document.querySelectorAll('.chart[data-drawn]').length === {charts}", timeout=60_000)
        page.wait_for_selector(".fm-view[data-paints]", state="attached")
        return page

    return open_


def inked(page, selector: str) -> float:
    """Share of the pixels of a canvas that differ from its lower left one, which no token has reached."""
    return page.evaluate(
        """(selector) => {
            const canvas = document.querySelector(selector), context = canvas.getContext('2d');
            const pixels = new Uint32Array(context.getImageData(0, 0, canvas.width, canvas.height).data.buffer);
            const blank = pixels[canvas.width * (canvas.height - 1)];
            return pixels.filter((pixel) => pixel !== blank).length / pixels.length;
        }""",
        selector,
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_offline(opened, told, scheme, screenshot):
    read, cells = told
    page = opened(report.html(read, cells, len(cells)), color_scheme=scheme)
    assert page.complaints == []
    assert [url for url in page.asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert page.locator(".chart .main-svg").count() >= 5
    assert inked(page, ".fm-plot canvas") > 0.2
    assert read.planted[0].fact.sentence in re.sub(r"\s+", " ", page.locator(".fm-text").first.inner_text())
    colour = "getComputedStyle(document.body)"
    ink, paper = page.evaluate(f"[{colour}.color, {colour}.backgroundColor]")
    light = [sum(map(int, re.findall(r"\d+", each)[:3])) for each in (ink, paper)]
    assert (light[0] > light[1]) == (scheme == "dark")
    assert page.evaluate("getComputedStyle(document.querySelector('.chart .xtick text')).fill") == ink
    assert page.locator(".modebar-btn").count() > 0
    assert page.locator(".modebar-btn[data-title*='hare'], .modebar-btn[data-title*='loud']").count() == 0
    screenshot(page, f"report_{scheme}")


def test_the_reader_can_choose_policy_and_budget(opened, told):
    read, cells = told
    page = opened(report.html(read, cells, len(cells)))
    figures = page.locator(".fm-figures")
    assert (cells[2].row["policy"], cells[2].row["budget"]) == ("H2O(recent=0.5)", 80)
    assert f"{cells[2].row['mass_recall']:.3f}" in figures.inner_text()
    page.locator("select.fm-policy").first.select_option("SinkWindow(sinks=4)")
    slider = page.locator("input.fm-budget")
    slider.focus()
    slider.press("Home")
    sink = next(cell.row for cell in cells if (cell.row["policy"], cell.row["budget"]) == ("SinkWindow(sinks=4)", 20))
    assert f"{sink['mass_recall']:.3f}" in figures.inner_text() and page.complaints == []


def test_markup_in_the_text_is_shown_as_text(opened, tiny):
    read = passage(tiny, MARKUP * 12, f"{MARKUP}.txt", tokens=200, scored=8)
    cells = list(compare(tiny, read, [P.TOVA()], [40]))
    page = opened(report.html(read, cells, len(cells), MARKUP))
    assert page.complaints == [] and page.title() != "hacked"
    assert "<script>document.title" in page.locator(".fm-text").first.inner_text()
    assert page.locator(".fm-text script, .fm-text img, main img").count() == 0
    assert "🦊" in page.locator("h1").inner_text()
