"""The Explorer in a real JupyterLab, in a real Chromium: what a reader sees and does."""

import harness
import pytest
from harness import TOUR

SMALL = """
import fmlab as fm
lm = fm.tiny()
trace = fm.record(lm, {text!r}, layers=[0, 2])
view = fm.explore(trace, lm=lm)
view
"""
MAP, TEXT, BUDGET = ".fm-map:not([hidden]) .fm-over", ".fm-text-box:not([hidden]) .fm-text", ".fm-budget"


def picture(page, at: int = 0) -> str:
    """The pixels of a map."""
    return page.locator(".fm-base").nth(at).evaluate("(canvas) => canvas.toDataURL()")


def struck(page, at: int = 0) -> int:
    """Tokens that are struck through in a text, once all of them have been dressed: what is out of sight comes later."""
    gone, before = page.locator(TEXT).nth(at).locator(".fm-gone"), None
    while (now := gone.count()) != before:
        before = now
        page.wait_for_timeout(600)
    return now


def await_label(page, words: str, at: int = 0) -> None:
    page.wait_for_function(
        "([words, at]) => document.querySelectorAll('.fm-map-title')[at].textContent.includes(words)", arg=[words, at]
    )


def await_step(page, step: int) -> None:
    page.wait_for_function(
        "(step) => document.querySelector('.fm-over').getAttribute('aria-valuenow') === String(step)", arg=step
    )


def cells(page) -> int:
    return page.evaluate("window.jupyterapp.shell.currentWidget.content.widgets.length")


def pick(page, side: str, name: str) -> None:
    """Choose a policy as a reader does."""
    page.locator(f".fm-picker-{side} .fm-policy").select_option(label=name)


def test_the_slider_changes_map_text_and_figures(page, screenshot):
    page.locator(".fmlab").scroll_into_view_if_needed()
    screenshot(page, "explorer-light")
    before, pixels, figures = struck(page), picture(page), page.locator(".fm-figures tbody").inner_text()
    held = page.locator(TEXT).locator(".fm-held").count()
    assert before > 300 and held > 100
    page.locator(BUDGET).focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    await_label(page, "budget 192")
    after = struck(page)
    assert after < before - 50
    assert page.locator(TEXT).locator(".fm-held").count() > held + 50
    assert picture(page) != pixels
    assert page.locator(".fm-figures tbody").inner_text() != figures
    assert page.locator(BUDGET).get_attribute("aria-valuetext") == "192 of 710 tokens"
    page.keyboard.press("End")  # the whole text: nothing is forgotten
    await_label(page, "budget 710")
    assert struck(page) == 0


def test_a_budget_that_is_not_at_hand_is_replayed(page):
    box = page.locator(".fm-budget-box")
    box.fill("100")
    box.press("Enter")
    await_label(page, "H2O(recent=0.5), budget 100")
    told = harness.execute(page, "print(view.choice.budget, int((view.expiries[0] > 710).sum(-1).max()))")
    assert told.split() == ["100", "100"]
    box.fill("0")
    box.press("Enter")
    assert not box.evaluate("(input) => input.checkValidity()")
    assert harness.execute(page, "print(view.choice.budget)").strip() == "100"


def test_the_keyboard_reaches_everything_and_never_the_notebook(page):
    before = cells(page)
    page.locator(MAP).focus()
    steps = [("ArrowLeft", 708), ("Home", 0), ("ArrowRight", 1), ("Shift+ArrowRight", 11), ("PageUp", 82)]
    for key, step in [*steps, ("PageDown", 11), ("End", 709)]:
        page.keyboard.press(key)
        await_step(page, step)
    assert page.locator(".fm-text-title").first.inner_text() == "What step 709 sees"
    page.keyboard.press("ArrowUp")
    assert page.locator(".fm-marked").count() == 1
    assert page.locator(".fm-readout").inner_text().startswith("Token 708 ")
    ticks = page.locator(".fm-y-axis .fm-tick").first
    whole = ticks.inner_text()
    page.keyboard.press("+")
    page.keyboard.press("+")
    assert int(ticks.inner_text()) > int(whole)
    page.keyboard.press("Escape")
    assert ticks.inner_text() == whole and page.locator(".fm-marked").count() == 0
    page.locator(TEXT).focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator(".fm-readout").inner_text().startswith("Token 708 ")
    for place in (MAP, TEXT, BUDGET, ".fm-step", ".fm-policy >> nth=0", ".fm-play", ".fm-copy", ".fm-question"):
        page.locator(place).first.focus()
        for key in "abmy":  # each of them is a command of the notebook: insert above, below, make Markdown, code
            page.keyboard.press(key)
    assert cells(page) == before
    assert page.locator(".fm-question").input_value() == "abmy"
    page.evaluate("document.activeElement.blur()")
    page.locator(".fm-budget").focus()
    seen = []
    for _ in range(30):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.getAttribute('class') ?? document.activeElement.tagName"))
    for stop in ("fm-number fm-budget-box", "fm-over", "fm-text", "fm-step", "fm-question", "fm-button fm-copy"):
        assert stop in seen


def test_map_and_text_light_up_together(page, screenshot):
    page.locator(".fmlab").scroll_into_view_if_needed()
    scrolled = "document.querySelector('.jp-WindowedPanel-outer, .jp-Notebook').scrollTop"
    where = page.evaluate(scrolled)
    page.locator(TEXT).locator("span").nth(45).hover()
    assert page.locator(".fm-readout").inner_text().startswith("Token 45 ")
    over = page.locator(MAP)
    marked = over.evaluate("(canvas) => canvas.toDataURL()")
    page.locator(TEXT).locator("span").nth(20).hover()
    assert over.evaluate("(canvas) => canvas.toDataURL()") != marked
    box = over.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.99, box["y"] + box["height"] * 0.9)
    token = page.locator(".fm-marked")
    number = token.evaluate("(span) => span.index")
    assert 630 < number < 650
    inside = token.evaluate(
        """(span) => { const box = span.parentElement.getBoundingClientRect(), own = span.getBoundingClientRect();
        return own.top >= box.top && own.bottom <= box.bottom; }"""
    )
    assert inside and page.evaluate(scrolled) == where
    screenshot(page, "explorer-hover")
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.3, steps=4)
    page.mouse.up()
    await_step(page, 355)
    assert page.locator(TEXT).locator(".fm-ahead").count() > 300
    page.wait_for_function("() => document.querySelector('.fm-step-label').textContent === 'step 355 of 709'")
    page.wait_for_timeout(500)
    assert harness.execute(page, "print(view.step)").strip() == "355"


def test_the_wheel_zooms_a_focused_map_only(page):
    over, tick = page.locator(MAP), page.locator(".fm-x-axis .fm-tick")
    over.scroll_into_view_if_needed()
    whole = tick.all_inner_texts()
    over.hover()
    page.mouse.wheel(0, -200)
    page.wait_for_timeout(300)
    assert tick.all_inner_texts() == whole
    over.click(position={"x": 200, "y": 60})
    page.mouse.wheel(0, -400)
    page.wait_for_function(
        "(before) => document.querySelectorAll('.fm-x-axis .fm-tick')[1].textContent !== before", arg=whole[1]
    )
    page.get_by_role("button", name="Show the whole map").click()
    assert tick.all_inner_texts() == whole


def test_play_reads_the_text(page):
    page.get_by_role("button", name="Play the reading").click()
    page.wait_for_function(
        "() => { const at = +document.querySelector('.fm-step').value; return at > 20 && at < 600; }"
    )
    page.get_by_role("button", name="Pause the reading").click()
    page.evaluate("() => new Promise(requestAnimationFrame)")  # it draws the step under way
    at = page.locator(".fm-step").input_value()
    page.wait_for_timeout(400)
    assert page.locator(".fm-step").input_value() == at


def test_two_policies_side_by_side_and_their_difference(page, screenshot):
    assert page.locator(".fm-map:not([hidden])").count() == 1
    pick(page, "b", "SinkWindow")
    await_label(page, "SinkWindow(sinks=4), budget 96", at=1)
    assert page.locator(".fm-map:not([hidden])").count() == page.locator(".fm-text-box:not([hidden])").count() == 2
    assert picture(page, 0) != picture(page, 1)
    assert page.locator(".fm-figures thead").inner_text().split() == ["A", "B", "full", "cache"]
    assert struck(page, 1) == 710 - 97  # every head of a window holds the same: its budget and the token being read
    page.locator(".fmlab").scroll_into_view_if_needed()
    screenshot(page, "explorer-side-by-side")
    page.get_by_text("Difference", exact=True).click()
    await_label(page, "who holds what")
    assert page.locator(".fm-map:not([hidden])").count() == 1
    page.wait_for_timeout(400)
    counts = {look: page.locator(TEXT).locator(f".fm-{look}").count() for look in ("both", "only-a", "only-b", "gone")}
    assert all(counts.values()) and sum(counts.values()) == 710
    assert page.locator(".fm-legend").inner_text().split("\n")[1:3] == ["only by A", "only by B"]
    page.wait_for_function("() => document.querySelector('.fmlab').dataset.state === 'ready'")
    page.wait_for_timeout(300)
    assert harness.execute(page, "print(view.choice.mode)").strip() == "difference"
    screenshot(page, "explorer-difference")
    pick(page, "b", "compare with …")
    page.wait_for_function("() => document.querySelectorAll('.fm-figures thead th').length === 2")
    assert page.locator(".fm-view-bar .fm-segments").is_hidden()


def test_the_optimum_is_a_third_row(page, screenshot):
    assert page.locator(".fm-map:not([hidden])").count() == 1
    page.get_by_role("checkbox", name="Optimum").check()
    await_label(page, "optimum, budget 96", at=2)
    assert page.locator(".fm-map:not([hidden])").count() == page.locator(".fm-text-box:not([hidden])").count() == 2
    page.wait_for_timeout(500)
    assert struck(page, 1) == int(harness.execute(page, "print(int((view.optimum <= 709).all(0).all(0).sum()))"))
    page.locator(TEXT).nth(1).locator("span").nth(40).hover()
    assert "the optimum holds it in" in page.locator(".fm-readout").inner_text()
    assert "Regret, worst head" in page.locator(".fm-figures").inner_text()
    pick(page, "b", "TOVA")
    await_label(page, "TOVA(), budget 96", at=1)
    page.locator(".fmlab").scroll_into_view_if_needed()
    page.set_viewport_size({"width": 1400, "height": 1900})
    screenshot(page, "explorer-optimum")
    before = picture(page, 2)
    page.locator(BUDGET).focus()
    page.keyboard.press("ArrowRight")
    await_label(page, "optimum, budget 128", at=2)
    assert picture(page, 2) != before
    box = page.locator(".fm-budget-box")
    box.fill("100")  # not at hand: computed beside the picture, which does not wait
    box.press("Enter")
    page.locator(".fm-solving").wait_for()
    page.wait_for_function("() => document.querySelector('.fm-status').textContent.includes('Computing the optimum')")
    assert page.locator(".fmlab").get_attribute("data-state") == "solving"
    await_label(page, "H2O(recent=0.5), budget 100")
    screenshot(page, "explorer-solving")
    await_label(page, "optimum, budget 100", at=2)
    assert harness.execute(page, "print(view.replays.has_oracle(100))").strip() == "True"
    box.fill("101")
    box.press("Enter")
    page.wait_for_function("() => document.querySelector('.fm-status').textContent.includes('Computing the optimum')")
    page.locator(".fm-cancel").click()
    page.wait_for_function("() => !document.querySelector('.fm-oracle').checked")
    assert page.locator(".fm-solving").is_hidden() and page.locator(".fm-map").nth(2).is_hidden()


def test_a_head_is_picked_from_the_map_of_heads(page, screenshot):
    page.wait_for_timeout(400)  # the heads are drawn when all is at rest
    grid = page.locator(".fm-head-grid").first
    assert grid.get_attribute("aria-label") == "H2O(recent=0.5): Mass recall of each head"
    assert grid.locator(".fm-head").count() == 15
    cell = grid.get_by_role("gridcell", name="Layer 15, KV head 1:")
    pixels = picture(page)
    cell.click()
    page.wait_for_function("(before) => document.querySelector('.fm-base').toDataURL() !== before", arg=pixels)
    assert harness.execute(page, "print(view.choice.layer, view.choice.head)").split() == ["15", "1"]
    page.locator(".fm-head[aria-selected=true]").wait_for()
    assert cell.get_attribute("aria-selected") == "true"
    assert "layer 15, KV head 1" in page.locator(".fm-figures caption").inner_text()
    before = cells(page)
    cell.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("a")  # a command of the notebook
    assert cells(page) == before
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith(
        "H2O(recent=0.5), Layer 22, KV head 2"
    )
    page.keyboard.press("Enter")
    page.wait_for_function(
        "() => document.querySelector('.fm-figures caption').textContent.includes('layer 22, KV head 2')"
    )
    page.wait_for_function("() => document.querySelector('.fm-head[aria-selected=true]')?.dataset.place === 'a-2-3'")
    assert page.evaluate("document.activeElement.dataset.place") == "a-2-3"  # the focus survives the redrawing
    page.get_by_text("Regret", exact=True).first.click()
    assert page.locator(".fm-head-grid").first.get_attribute("aria-label") == "H2O(recent=0.5): Regret of each head"
    page.get_by_role("button", name="Mean of all").click()
    page.wait_for_function(
        "() => document.querySelector('.fm-figures caption').textContent.includes('5 layers, 3 KV heads')"
    )
    page.wait_for_function("() => !document.querySelector('.fm-head[aria-selected=true]')")
    page.get_by_text("Mass recall", exact=True).first.click()


def test_a_token_says_why_it_was_evicted(page, screenshot):
    hint = page.locator(".fm-reason-body").inner_text()
    assert hint.startswith("Click a token")
    page.locator(TEXT).locator("span").nth(120).click()
    page.locator(".fm-reason").wait_for()
    title = page.locator(".fm-reasons .fm-section-title")
    assert title.inner_text().startswith("Why was token 120 ")
    told = harness.execute(page, "print(fm.why(view.trace, view.choice.policy, 96, 120).rows()[0]['step'])").strip()
    assert page.locator(".fm-reason-table tbody tr").first.locator("td").nth(1).inner_text() == told
    assert "of 15 heads" in page.locator(".fm-reason-words").inner_text()
    page.locator(".fm-insight").scroll_into_view_if_needed()
    screenshot(page, "explorer-why")
    page.locator(".fm-head").first.click()
    page.wait_for_function("() => document.querySelector('.fm-reason-words').textContent.includes('is below the cut')")
    assert page.locator(".fm-reason-table").count() == 0
    page.locator(MAP).focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_function(
        "() => document.querySelector('.fm-reasons .fm-section-title').textContent.includes('token 121')"
    )
    page.keyboard.press("Escape")
    page.wait_for_function("() => document.querySelector('.fm-reason-body').textContent.startsWith('Click a token')")


def test_dark_and_light(page, screenshot):
    harness.execute(page, "view.show(fm.policies.H2O(), against=fm.policies.TOVA())")
    await_label(page, "TOVA()", at=1)
    page.locator(".fmlab").scroll_into_view_if_needed()
    light = picture(page)
    ink = page.locator(".fm-title").evaluate("(node) => getComputedStyle(node).color")
    page.evaluate("window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
    page.wait_for_function("(ink) => getComputedStyle(document.querySelector('.fm-title')).color !== ink", arg=ink)
    page.wait_for_timeout(700)
    assert picture(page) != light
    look = """(canvas) => [[5, canvas.height - 5], [2, 1], [canvas.width - 20, canvas.height >> 1]]
        .map(([x, y]) => [...canvas.getContext('2d').getImageData(x, y, 1, 1).data.slice(0, 3)])"""
    unread, held, gone = page.locator(".fm-base").nth(1).evaluate(look)
    assert max(unread) < 60 and max(gone) < 90  # as dark as the page
    assert held == [230, 159, 0]  # the lighter orange of the dark theme
    screenshot(page, "explorer-dark")
    page.get_by_text("Difference", exact=True).click()
    await_label(page, "who holds what")
    screenshot(page, "explorer-dark-difference")
    page.evaluate("window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Light'})")
    page.get_by_text("Side by side", exact=True).click()
    page.wait_for_function("(light) => document.querySelector('.fm-base').toDataURL() === light", arg=light)


MARKUP = [
    "<script>window.hacked = 1</script>",
    " <img src=x onerror='window.hacked = 2'>",
    " a",
    " 🦭",
    " &amp;",
    "\n",
    "<b>",
]


def test_token_text_stays_text(notebook, screenshot):
    page = notebook(
        f"""
import fmlab as fm
from dataclasses import replace
tokens = {MARKUP!r}
trace = replace(fm.record(fm.tiny(), "1234567"), tokens=tuple(tokens))
view = fm.explore(trace).show(budget=3)
view
"""
    )
    assert page.locator(TEXT).locator("span").all_text_contents() == MARKUP
    assert page.locator(".fm-text script, .fm-text img, .fm-text b").count() == 0
    for token in (0, 1, 3, 6):
        page.locator(TEXT).locator("span").nth(token).hover()
        assert MARKUP[token].strip() in page.locator(".fm-readout").inner_text()
        page.locator(TEXT).locator("span").nth(token).click()
        title = page.locator(".fm-reasons .fm-section-title")
        page.wait_for_function(
            "(at) => document.querySelector('.fm-reasons').textContent.includes(`token ${at} `)", arg=token
        )
        assert MARKUP[token].strip() in title.inner_text() and title.locator("*").count() == 0
    assert page.locator(".fm-readout *").count() == 0
    assert page.evaluate("window.hacked") is None
    screenshot(page, "explorer-markup")


def test_two_explorers_in_one_notebook(notebook):
    page = notebook(TOUR, "other = fm.explore()\nother")
    roots = page.locator(".fmlab")
    assert roots.count() == 2
    first, second = roots.nth(0), roots.nth(1)
    untouched = second.locator(".fm-base").first.evaluate("(canvas) => canvas.toDataURL()")
    first.locator(".fm-budget").focus()
    page.keyboard.press("End")
    await_label(page, "budget 710")
    first.locator(MAP).focus()
    page.keyboard.press("Home")
    await_step(page, 0)
    assert second.locator(".fm-map-title").first.inner_text() == "H2O(recent=0.5), budget 96"
    assert second.locator(".fm-base").first.evaluate("(canvas) => canvas.toDataURL()") == untouched
    assert second.locator(".fm-step").input_value() == "709"
    assert harness.execute(page, "print(view.choice.budget, other.choice.budget)").split() == ["710", "96"]
    second.locator(".fm-picker-b .fm-policy").select_option(label="TOVA")
    page.wait_for_function(
        "() => document.querySelectorAll('.fmlab')[1].querySelectorAll('.fm-map:not([hidden])').length === 2"
    )
    assert first.locator(".fm-map:not([hidden])").count() == 1


EARLY = """
from dataclasses import dataclass
import torch

@dataclass(frozen=True)
class EarlyBird(fm.Policy):
    'Keep the oldest entries and the newest one.'
    extra: int = 0
    def score(self, view, stats):
        newest = view.positions == view.positions.amax(-1, keepdim=True)
        return (-view.positions.float()).masked_fill(newest, torch.inf)
"""


def test_a_policy_of_a_cell_appears_once_with_its_settings(notebook):
    page = notebook(TOUR, EARLY)
    choices = page.locator(".fm-picker-a .fm-policy option")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.fm-picker-a option')].some((each) => each.textContent === 'EarlyBird')"
    )
    pick(page, "a", "EarlyBird")
    await_label(page, "EarlyBird(extra=0), budget 96")
    first = picture(page)
    assert page.locator(".fm-picker-a .fm-about-policy").inner_text() == "Keep the oldest entries and the newest one."
    extra = page.locator(".fm-picker-a").get_by_label("extra")
    extra.fill("3")
    await_label(page, "EarlyBird(extra=3), budget 96")
    page.evaluate(
        """() => { const cell = window.jupyterapp.shell.currentWidget.content.widgets[1].model.sharedModel;
        cell.setSource(cell.getSource().replace('-view.positions.float()', 'view.positions.float()')); }"""
    )
    page.evaluate("""() => { const book = window.jupyterapp.shell.currentWidget.content; book.activeCellIndex = 1;
        return window.jupyterapp.commands.execute('notebook:run-cell'); }""")
    page.wait_for_function("(before) => document.querySelector('.fm-base').toDataURL() !== before", arg=first)
    names = choices.all_inner_texts()
    assert names.count("EarlyBird") == 1 and len(names) == len(set(names))
    assert page.locator(".fm-map-title").first.inner_text() == "EarlyBird(extra=3), budget 96"


def test_settings_are_controls_of_their_kind(page):
    recent = page.locator(".fm-picker-a").get_by_label("recent")
    assert recent.get_attribute("type") == "range"
    recent.focus()
    page.keyboard.press("ArrowRight")
    await_label(page, "H2O(recent=0.55)")
    pick(page, "a", "SinkWindow")
    await_label(page, "SinkWindow(sinks=4)")
    sinks = page.locator(".fm-picker-a").get_by_label("sinks")
    assert sinks.get_attribute("type") == "number"
    sinks.fill("200")
    page.locator(".fm-error").wait_for()
    words = page.locator(".fm-error-text").inner_text()
    assert words.startswith("BudgetError") and "raise the budget or pin fewer" in words
    assert sinks.input_value() == "200"
    sinks.fill("8")
    await_label(page, "SinkWindow(sinks=8)")
    assert page.locator(".fm-error").count() == 0


def test_what_a_policy_raises_is_shown(page, screenshot):
    pick(page, "a", "Broken")
    page.locator(".fm-error").wait_for()
    assert page.locator(".fm-error-text").inner_text() == "RuntimeError: the seal <b>has</b> the belt; feed it first"
    assert page.locator(".fm-error pre").is_hidden()
    page.locator(".fm-error summary").click()
    assert "in score" in page.locator(".fm-error pre").inner_text()
    screenshot(page, "explorer-error")


def test_a_slow_policy_is_busy_and_can_be_cancelled(page, screenshot):
    before = picture(page)
    pick(page, "a", "Snail")
    page.wait_for_function("() => document.querySelector('.fm-status').textContent.includes('Replaying Snail')")
    assert page.locator(".fmlab").get_attribute("data-state") == "busy"
    assert page.locator(".fm-view").get_attribute("aria-busy") == "true"
    screenshot(page, "explorer-busy")
    page.locator(".fm-cancel").click()
    page.wait_for_function("() => document.querySelector('.fm-status').textContent.startsWith('Cancelled')")
    assert page.locator(".fm-picker-a .fm-policy").evaluate("(select) => select.selectedOptions[0].text") == "H2O"
    assert picture(page) == before
    page.locator(BUDGET).focus()
    page.keyboard.press("ArrowRight")
    await_label(page, "H2O(recent=0.5), budget 128")


def test_a_busy_kernel_is_told_and_the_move_is_not_lost(page):
    harness.start(page, "time.sleep(4)")
    page.locator(BUDGET).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("() => document.querySelector('.fm-status').textContent.startsWith('The kernel is busy')")
    assert page.locator(".fm-budget-box").input_value() == "160"
    await_label(page, "H2O(recent=0.5), budget 160")
    assert page.locator(".fm-status").inner_text() == ""


@pytest.mark.parametrize(
    "cell", [TOUR, SMALL.format(text="A kettle, a ring of keys and a notebook. " * 3)], ids=["shipped", "recorded"]
)
def test_the_copied_code_runs_and_gives_the_same(notebook, cell):
    page = notebook(cell)
    pick(page, "b", "KeyNorm")
    await_label(page, "KeyNorm()", at=1)
    page.locator(MAP).first.focus()
    page.keyboard.press("PageDown")
    page.wait_for_timeout(600)
    page.locator(".fm-copy").click()
    page.wait_for_function("() => document.querySelector('.fm-copied').textContent.startsWith('Copied')")
    code = page.locator(".fm-code").input_value()
    assert page.evaluate("navigator.clipboard.readText()") == code
    book = """(code) => { const book = window.jupyterapp.shell.currentWidget.content;
        book.model.sharedModel.addCell({cell_type: 'code', source: code});
        book.activeCellIndex = book.widgets.length - 1;
        return window.jupyterapp.commands.execute('notebook:run-cell'); }"""
    page.evaluate(book, code)
    page.wait_for_function("() => document.querySelectorAll('.fmlab .fm-view[data-paints]').length === 2")
    harness.await_cells(page)
    check = "print(expiry.equal(view.expiries[0]), expiry_against.equal(view.expiries[1]))"
    assert harness.execute(page, check).split() == ["True", "True"]
    # The second view shows its own first choice until the replay of this one has come.
    same = """() => { const said = (css) => [...document.querySelectorAll(css)].map((node) => node.innerText);
        const [titles, steps] = [said('.fm-map-title'), said('.fm-step-label')];
        return titles.length === 6 && titles.slice(0, 3).join('|') === titles.slice(3).join('|')
            && titles[1].startsWith('B KeyNorm') && new Set(steps).size === 1; }"""
    page.wait_for_function(same)


def test_the_model_answers_beside_the_full_cache(notebook, screenshot):
    page = notebook(SMALL.format(text="A kettle, a ring of keys and a notebook. " * 2))
    page.locator(".fm-question").fill("What is green?")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelectorAll('.fm-answer').length === 2")
    page.wait_for_function("() => document.querySelector('.fmlab').dataset.state === 'ready'", timeout=60_000)
    assert page.locator(".fm-asked").inner_text() == "What is green?"
    who = page.locator(".fm-answer-who").all_inner_texts()
    assert "H2O(recent=0.5), budget" in who[0] and "full cache" in who[1]
    assert all(words.strip("…") for words in page.locator(".fm-answer-text").all_text_contents())
    page.locator(".fm-footer").scroll_into_view_if_needed()
    screenshot(page, "explorer-answers")


def test_a_narrow_page_keeps_everything_in_sight(page, screenshot):
    page.set_viewport_size({"width": 620, "height": 1100})
    page.wait_for_timeout(500)
    wide = page.locator(".fmlab").evaluate("(root) => root.scrollWidth - root.clientWidth")
    assert wide <= 1
    columns = page.locator(".fm-stage").evaluate(
        "(node) => getComputedStyle(node).gridTemplateColumns.split(' ').length"
    )
    assert columns == 1
    page.locator(".fmlab").scroll_into_view_if_needed()
    screenshot(page, "explorer-narrow")


def test_the_written_page_opens_from_a_file_without_a_network(lab, page, new_page, screenshot):
    harness.execute(page, "view.show(against=fm.policies.TOVA(), step=300).wait().to_html('view.html')")
    for scheme in ("light", "dark"):
        alone = new_page(offline=True, color_scheme=scheme)
        asked = []
        alone.on("request", lambda request, asked=asked: asked.append(request.url))
        alone.goto((lab.folder / "view.html").as_uri())
        alone.wait_for_function("() => document.querySelector('.fm-view[data-paints]')")
        assert asked == [(lab.folder / "view.html").as_uri()]
        assert alone.locator(".fm-step-label").inner_text() == "step 300 of 709"
        assert alone.locator(".fm-map-title").all_inner_texts()[:2] == [
            "A H2O(recent=0.5), budget 96",
            "B TOVA(), budget 96",
        ]
        alone.get_by_role("checkbox", name="Optimum").check()
        assert alone.locator(".fm-map-title").nth(2).inner_text().startswith("O optimum, budget 96")
        assert "Regret" in alone.locator(".fm-figures").inner_text()
        assert alone.locator(".fm-figures thead").inner_text().split() == ["A", "B", "O"]
        alone.get_by_role("checkbox", name="Optimum").uncheck()
        assert alone.locator(".fm-map:not([hidden])").count() == 2
        before, pixels = struck(alone), picture(alone)
        alone.locator(BUDGET).focus()
        alone.keyboard.press("PageUp")
        alone.keyboard.press("PageUp")
        alone.wait_for_function("(pixels) => document.querySelector('.fm-base').toDataURL() !== pixels", arg=pixels)
        assert struck(alone) < before
        alone.locator(TEXT).first.locator("span").nth(45).hover()
        assert alone.locator(".fm-readout").inner_text().startswith("Token 45 ")
        assert "Attention-mass recall" in alone.locator(".fm-figures").inner_text()
        screenshot(alone, f"page-{scheme}")


def test_the_map_alone_is_a_widget(notebook):
    page = notebook(
        "import fmlab as fm\nfrom fmlab.widgets import RetentionMap\nlm = fm.tiny()\n"
        "trace = fm.record(lm, 'A kettle, a ring of keys and a notebook.')\n"
        "policies = {'live': fm.policies.TOVA(), 'window': fm.policies.SlidingWindow()}\n"
        "runs = {name: fm.replay(trace, policy, 12) for name, policy in policies.items()}\n"
        "shown = RetentionMap(trace.tokens, runs)\nshown"
    )
    assert page.locator(".fm-map:not([hidden]) .fm-map-title").all_inner_texts() == ["A live", "B window"]
    page.locator(MAP).first.focus()
    page.keyboard.press("Home")
    await_step(page, 0)
    page.wait_for_timeout(300)
    assert harness.execute(page, "print(shown.step)").strip() == "0"
    harness.execute(page, "shown.step = 7")
    await_step(page, 7)
