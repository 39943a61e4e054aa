"""One JupyterLab and one Chromium for all browser tests, and notebooks to open in them."""

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import harness
import pytest

SCREENSHOTS = harness.ROOT / "screenshots"


def need(there: object, what: str) -> None:
    """Skip, or fail in CI, where everything must be at hand."""
    if there:
        return
    if os.environ.get("FMLAB_CI") == "1":
        pytest.fail(f"in CI, but {what}", pytrace=False)
    pytest.skip(what)


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
        context = chromium.new_context(viewport={"width": 1400, "height": 1150}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        return page

    yield make
    for context in contexts:
        context.close()
    assert not errors, errors


@pytest.fixture
def notebook(lab, new_page, request) -> Callable:
    """Opens a notebook of the given cells, runs them, and waits until every Explorer in it has drawn."""

    def run(*cells: str):
        page = new_page()
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        name = request.node.name.rstrip("]").replace("[", "-")
        harness.open_notebook(lab, page, lab.notebook(f"{name}.ipynb", *cells))
        harness.run_all(page)
        page.wait_for_function(
            """() => [...document.querySelectorAll('.fmlab')].every(
                (root) => root.parentElement.querySelector('[data-paints]'))"""
        )
        page.evaluate("window.jupyterapp.commands.execute('application:toggle-left-area')")
        return page

    return run


@pytest.fixture
def screenshot(request) -> Callable:
    """Saves a picture for a person to look at."""

    def save(page, name: str) -> None:
        SCREENSHOTS.mkdir(exist_ok=True)
        page.wait_for_timeout(300)
        page.screenshot(path=SCREENSHOTS / f"{name}.png")

    return save
