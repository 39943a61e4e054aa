"""The Bench in a real JupyterLab, in a real Chromium: switch pairs on, measure, watch the rows come, cancel."""

import harness
import pytest

PAIRS = """
import time
from dataclasses import replace
import numpy as np
import fmlab as fm

def plain(values):
    return sorted(values)

def numbers(size, seed):
    return (np.random.default_rng(seed).random(size).tolist(),)

def twice(values):
    return sorted(sorted(values))

def slow(values):
    time.sleep(0.15)
    return sorted(values)

def wrong(values):
    return sorted(values)[:-1] + [2.0]

def broken(values):
    raise RuntimeError("<img src=x onerror=\\"document.title='broken'\\"> no")

def floor(size):
    return fm.optimizations.Floor(8 * size, "bytes", "<i>each number</i> read once and written where it belongs")

pair = fm.optimizations.Pair("sorting: NumPy", (1.1, 1.3), "nobody", plain, np.sort, numbers, sizes=(10, 1_000, 10_000),
                             floor=floor)
pairs = [pair, replace(pair, name="sorting twice", claim=None, optimised=twice), replace(pair, name="asleep", optimised=slow),
         replace(pair, name="wrong <b>", optimised=wrong), replace(pair, name="fails", baseline=broken)]
view = fm.widgets.Bench(pairs, rounds=6, seconds=120)
view
"""


@pytest.fixture
def opened(notebook):
    page = notebook(PAIRS)
    said = []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.locator(".fm-measure").wait_for()
    yield page
    assert said == [] and page.title() != "broken"


def rows(page) -> list[list[str]]:
    """Pair, size and the last cell of every row."""
    return page.locator(".fm-bench-table tbody tr").evaluate_all(
        "(rows) => rows.map(({cells}) => [cells[0], cells[1], [...cells].at(-1).firstChild].map((cell) => cell.textContent))"
    )


def switch(page, *names: str) -> None:
    page.locator(".fm-none").click()
    for name in names:
        page.get_by_label(name).check()


def await_rows(page, count: int) -> None:
    page.wait_for_function(
        f"() => document.querySelector('.fmlab').dataset.rows === '{count}'"
        " && document.querySelector('.fmlab').dataset.state === 'ready'",
        timeout=60_000,
    )


def test_pairs_are_switched_on_measured_and_drawn_as_they_come(opened, screenshot):
    page = opened
    assert page.locator(".fm-bench-table").is_hidden()
    assert "measured in this kernel, on cpu" in page.locator(".fm-bench-machine").inner_text()
    page.locator(".fm-measure").click()
    await_rows(page, 1)
    assert rows(page)[0][:2] == ["sorting: NumPy", "320 items"]
    switch(page, "sorting: NumPy", "sorting twice")
    page.locator(".fm-size").focus()
    page.keyboard.press("End")
    assert page.locator(".fm-bench-pair .fm-value").all_inner_texts() == ["10,000 items"] * 5
    assert page.locator(".fm-size").get_attribute("aria-valuetext") == "each pair's largest"
    page.locator(".fm-measure").click()
    await_rows(page, 3)
    told = rows(page)
    assert [row[:2] for row in told] == [
        ["sorting: NumPy", "320 items"],
        ["sorting: NumPy", "10,000 items"],
        ["sorting twice", "10,000 items"],
    ]
    assert [row[2] for row in told] == harness.execute(page, "print('|'.join(view.table.verdict))").strip().split("|")
    marks = page.locator(".fm-bench-plot circle").evaluate_all(
        "(marks) => marks.map((mark) => parseFloat(mark.getAttribute('cx')))"
    )
    assert len(marks) == 3 and all(0 < place < 100 for place in marks)
    ones = page.locator(".fm-bench-one").evaluate_all(
        "(lines) => [...new Set(lines.map((line) => line.getBoundingClientRect().left.toFixed(1)))]"
    )
    assert len(ones) == 1, "the rows share one axis"
    page.locator(".fm-bench-legend").scroll_into_view_if_needed()
    screenshot(page, "bench-light")


def test_a_refused_pair_is_told_as_text(opened, screenshot):
    page = opened
    switch(page, "sorting: NumPy", "wrong <b>", "fails")
    page.locator(".fm-measure").click()
    await_rows(page, 3)
    assert [row[2] for row in rows(page)[1:]] == ["not equivalent", "failed"]
    least = page.locator(".fm-bench-floor").all_inner_texts()
    assert least == ["at least 2,560 bytes: <i>each number</i> read once and written where it belongs"]
    told = page.locator(".fm-bench-error").all_inner_texts()
    assert "result[319]" in told[0] and "RuntimeError: <img src=x" in told[1]
    assert page.locator(".fm-bench-plot").count() == 1 and page.locator(".fm-bench-table img").count() == 0
    page.evaluate("window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
    page.wait_for_timeout(1500)
    page.locator(".fm-bench-legend").scroll_into_view_if_needed()
    screenshot(page, "bench-dark")
    page.set_viewport_size({"width": 620, "height": 1150})
    page.wait_for_timeout(400)
    assert page.locator(".fmlab").evaluate("(root) => root.scrollWidth - root.clientWidth") <= 1
    page.locator(".fm-bench-legend").scroll_into_view_if_needed()
    screenshot(page, "bench-narrow")
    page.evaluate("window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Light'})")
    page.wait_for_timeout(500)


def test_what_is_being_typed_is_not_taken_back_by_what_the_kernel_says(opened):
    page = opened
    page.locator(".fm-rounds").fill("400")
    harness.execute(page, "view.show(stop=8)")
    page.wait_for_function("() => document.querySelector('.fm-size').value === '8'")
    assert page.locator(".fm-rounds").input_value() == "400"
    page.locator(".fm-rounds").press("Enter")
    page.wait_for_function("() => document.querySelector('.fm-bench-pair .fm-value').textContent === '10,000 items'")
    page.locator(".fm-rounds").fill("2")
    page.locator(".fm-rounds").press("Enter")
    assert page.locator(".fm-rounds").input_value() == "6", "the fewest there can be"


def test_the_page_stays_alive_while_it_measures_and_cancel_stops_it(opened, screenshot):
    page = opened
    switch(page, "sorting: NumPy", "asleep")
    page.locator(".fm-rounds").fill("400")
    page.locator(".fm-rounds").press("Enter")
    page.get_by_label("sorting: NumPy").uncheck()
    page.locator(".fm-measure").click()
    page.wait_for_function(
        "() => /asleep, 320 items: round \\d+ of 400/.test(document.querySelector('.fm-status').textContent)"
    )
    assert page.locator(".fm-measure").is_disabled() and page.locator(".fm-progress").count() == 1
    page.get_by_label("sorting: NumPy").check()  # the controls and the kernel answer meanwhile
    assert harness.execute(page, "print(6 * 7)").strip() == "42"
    screenshot(page, "bench-busy")
    page.locator(".fm-cancel").click()
    page.wait_for_function(
        "() => document.querySelector('.fm-status').textContent.startsWith('Cancelled')", timeout=30_000
    )
    assert page.locator(".fm-bench-table").is_hidden() and page.locator(".fm-measure").is_enabled()
    switch(page, "sorting: NumPy")
    page.locator(".fm-rounds").fill("6")
    page.locator(".fm-rounds").press("Enter")
    page.locator(".fm-measure").click()
    await_rows(page, 1)
    page.locator(".fm-clear").click()
    page.wait_for_function("() => document.querySelector('.fmlab').dataset.rows === '0'")
    assert page.locator(".fm-bench-table").is_hidden()


@pytest.mark.real
def test_the_shipped_notebook_runs_and_its_bench_measures(lab, new_page, screenshot):
    page = new_page()
    names = ["token decoding: LRU cache", "sliding eviction: deque"]
    harness.open_notebook(lab, page, lab.shipped("08_optimizations.ipynb", names=names, rounds=6, seconds=0.2))
    harness.run_all(page)
    told = harness.execute(page, "print(len(measured), measured.speedup.notna().all(), measured.floor.notna().all())")
    assert told.split() == ["8", "True", "True"]
    page.locator(".fm-bench-controls").scroll_into_view_if_needed()
    switch(page, names[1])
    page.locator(".fm-size").focus()
    page.keyboard.press("Home")
    page.locator(".fm-measure").click()
    await_rows(page, 1)
    assert rows(page)[0][:2] == [names[1], "1,000 tokens"]
    assert page.locator(".fm-bench-floor").inner_text().startswith("at least ")
    assert page.locator(".fm-bench-whole").inner_text().startswith("the whole chat with this alone: ")
    page.locator(".fm-bench-legend").scroll_into_view_if_needed()
    screenshot(page, "bench-notebook")
