"""One JupyterLab and one Chromium for all browser tests, and notebooks to open in them."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import harness
import pytest
from at_hand import unavailable

SCREENSHOTS = harness.ROOT / "screenshots"
VIEWPORT = {"width": 1400, "height": 1150}
SLOW = """
from dataclasses import dataclass
import time

@dataclass(frozen=True)
class Snail(fm.Policy):
    'Takes its time.'
    seconds: float = 2.0
    def score(self, view, stats):
        time.sleep(self.seconds / 100)
        return -view.age.float()

@dataclass(frozen=True)
class Broken(fm.Policy):
    'Raises.'
    def score(self, view, stats):
        raise RuntimeError('the seal <b>has</b> the belt; feed it first')
"""


def need(there: object, what: str) -> None:
    """Skip or fail where it is not there."""
    if not there:
        unavailable(what)


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def lab(tmp_path_factory) -> Iterator[harness.Lab]:
    need(importlib.util.find_spec("jupyterlab"), "JupyterLab is not installed: pip install 'fmlab[lab]'")
    with harness.lab(tmp_path_factory.mktemp("jupyter")) as running:
        yield running


@pytest.fixture(scope="session")
def chromium() -> Iterator:
    need(importlib.util.find_spec("playwright"), "playwright is not installed: pip install 'fmlab[test]'")
    need(harness.chromium(), "there is no Chromium: install one, or name it in FMLAB_CHROMIUM")
    with harness.browser() as running:
        yield running


@pytest.fixture
def new_page(chromium) -> Iterator[Callable]:
    """Pages that gather what goes wrong in them; a test ends with an error if anything did."""
    contexts, errors = [], []

    def make(**options):
        page, context = open_page(chromium, errors, **options)
        contexts.append(context)
        return page

    yield make
    for context in contexts:
        context.close()
    assert not errors, errors


def open_page(chromium, errors: list[str], **options):
    context = chromium.new_context(viewport=VIEWPORT, **options)
    page = context.new_page()
    page.on("pageerror", lambda error: errors.append(str(error)))
    return page, context


def open_cells(lab: harness.Lab, page, name: str, *cells: str) -> None:
    """Open a notebook of these cells, run them, and wait until every Explorer in it has drawn."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    harness.open_notebook(lab, page, lab.notebook(f"{name}.ipynb", *cells))
    harness.run_all(page)
    page.wait_for_function(
        """() => [...document.querySelectorAll('.fmlab')].every(
            (root) => root.parentElement.querySelector('[data-paints]'))"""
    )
    page.evaluate("window.jupyterapp.commands.execute('application:toggle-left-area')")


@pytest.fixture
def notebook(lab, new_page, request) -> Callable:
    """Opens a notebook of the given cells in a page of its own."""

    def run(*cells: str):
        page = new_page()
        open_cells(lab, page, request.node.name.rstrip("]").replace("[", "-"), *cells)
        return page

    return run


@pytest.fixture(scope="module")
def opened_tour(lab, chromium) -> Iterator[tuple]:
    """One notebook with the Explorer on the shipped text, and policies that are slow and broken, for many tests."""
    errors: list[str] = []
    page, context = open_page(chromium, errors)
    open_cells(lab, page, "tour", harness.TOUR, SLOW)
    yield page, errors
    context.close()


@pytest.fixture
def page(opened_tour):
    """That notebook, as it was when it was opened; the test ends with an error if anything went wrong in the page."""
    page, errors = opened_tour
    errors.clear()
    page.set_viewport_size(VIEWPORT)
    start = "against=None, budget=96, layer=None, head=None, step=709, mode='pair', oracle=False"
    harness.execute(page, f"view.explain(None).show(fm.policies.H2O(), {start}).wait()")
    page.wait_for_function("() => document.querySelector('.fm-map-title').textContent === 'H2O(recent=0.5), budget 96'")
    page.locator(".fm-over").first.focus()
    page.keyboard.press("Escape")
    page.evaluate("document.activeElement.blur()")
    page.mouse.move(5, 5)
    page.locator(".fm-question").fill("")
    page.evaluate("document.querySelectorAll('.fm-text').forEach((text) => { text.scrollTop = 0; })")
    page.locator(".fmlab").scroll_into_view_if_needed()
    yield page
    assert not errors, errors


@pytest.fixture
def screenshot(request) -> Callable:
    """Saves a picture for a person to look at."""

    def save(page, name: str) -> None:
        SCREENSHOTS.mkdir(exist_ok=True)
        page.wait_for_timeout(300)
        page.screenshot(path=SCREENSHOTS / f"{name}.png")

    return save
