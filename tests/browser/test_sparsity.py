"""The Sparsity widget in a real JupyterLab, in a real Chromium: pick, slide, zoom, point, measure; and how fast it repaints."""

import statistics

import harness
import pytest

TRACE = """
import torch
import fmlab as fm
from fmlab.trace import Trace

def trace(tokens, seed=0):
    "Nine heads over three, that look at the first token, at their neighbours, and at some others."
    draw = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, heads, tokens, 64, generator=draw) for heads in (9, 3, 3))
    place = torch.arange(tokens) / 300
    near = torch.stack([place.cos(), place.sin()], -1) * 6
    q[..., :2], k[..., :2] = near, near
    q[..., 2], k[..., 2], k[:, :, 0, 2] = 5, 0, 9
    words = ["<script>document.title='broken'</script>", " ship", "🚢", "\\n", " harbour", " in", " the"]
    tokens_of = tuple(words[i % len(words)] for i in range(tokens))
    return Trace(torch.arange(tokens), tokens_of, (3, 7), "a made-up model", q, k, v, scaling=0.125, windows=(None, None), depth=9)
"""
OPEN = TRACE + "\nview = fm.widgets.Sparsity(trace({tokens}), rounds=6, seconds=2)\nview"
REPAINT_MS = 250  # in the lab 100: a shared machine of two cores gets some air
MOVE = """async ([slider, at]) => {
    const input = document.querySelector(slider), root = document.querySelector('.fm-sparse'), before = root.dataset.serial;
    const frame = () => new Promise((done) => requestAnimationFrame(done));
    await frame();
    const start = performance.now();
    input.value = at;
    input.dispatchEvent(new Event('input', {bubbles: true}));
    while (root.dataset.serial === before && performance.now() - start < 20000) await frame();
    await frame();  // it begins when the one before has been painted
    return performance.now() - start;
}"""


@pytest.fixture
def opened(notebook):
    def run(tokens: int = 512):
        page = notebook(OPEN.replace("{tokens}", str(tokens)))
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.locator(".fm-sparse").scroll_into_view_if_needed()
        settled(page)
        return page

    said, titles = [], []
    yield lambda tokens=512: titles.append(run(tokens)) or titles[-1]
    assert said == [] and all(page.title() != "broken" for page in titles)


def settled(page) -> None:
    """Wait until the kernel has answered, and the density slider knows what the pattern can reach."""
    page.wait_for_function(
        "() => document.querySelector('.fm-sparse').dataset.state === 'ready' && document.querySelector('.fm-sparse').dataset.serial"
        " && !document.querySelector('.fm-density').disabled",
        timeout=90_000,
    )


def figures(page) -> list[list[str]]:
    return page.locator(".fm-sparse-figures tbody tr").evaluate_all(
        "(rows) => rows.map((row) => [...row.cells].map((cell) => cell.textContent))"
    )


def shown(page, label: str) -> None:
    page.wait_for_function(
        "(label) => document.querySelector('.fm-sparse-plot .fm-over').getAttribute('aria-label').includes(label)",
        arg=label,
    )


def pixels(page) -> list[int]:
    """A coarse copy of the map: a number a place."""
    return page.evaluate(
        """() => {
            const canvas = document.querySelector('.fm-sparse-plot .fm-base'), context = canvas.getContext('2d'), found = [];
            for (let y = 5; y < canvas.height; y += 23) for (let x = 5; x < canvas.width; x += 23) {
                const [r, g, b] = context.getImageData(x, y, 1, 1).data;
                found.push(r * 65536 + g * 256 + b);
            }
            return found;
        }"""
    )


def test_every_pattern_can_be_picked_and_its_figures_are_the_kernels(opened, screenshot):
    page = opened()
    screenshot(page, "sparsity-light")
    names = page.locator(".fm-pattern option").all_inner_texts()
    assert names[:11] == [
        "SlidingBlocks", "Streaming", "LocalGlobal", "BigBird", "Strided", "Dilated",
        "VerticalSlash", "BlockTopK", "QuestTopK", "AntiDiagonal", "Oracle",
    ]  # fmt: skip
    seen = set()
    for name in names[:11]:
        page.locator(".fm-pattern").select_option(label=name)
        shown(page, f"{name}(")
        settled(page)
        worth = harness.execute(page, "print(*['%.4f' % value for value in view.figures.values()])").split()
        density, recall, error, all_density, all_recall, *_ = map(float, worth)
        table = figures(page)
        assert table[0][1:3] == [f"{100 * density:.1f}%", f"{100 * all_density:.1f}%"] or abs(density - 0.5) < 1e-3
        assert abs(float(table[1][1].rstrip("%")) / 100 - recall) < 1e-3
        assert abs(float(table[1][2].rstrip("%")) / 100 - all_recall) < 1e-3
        assert abs(float(table[3][1].rstrip("%")) / 100 - error) < 1e-3
        seen.add((harness.execute(page, "import hashlib; print(hashlib.sha1(view.chosen).hexdigest())"), *pixels(page)))
    blocks, pictures = {one[0] for one in seen}, {one[1:] for one in seen}
    assert len(blocks) == len(pictures) == len(seen) >= 4, "the picture follows the choice"


def test_sliders_layers_and_heads(opened):
    page = opened()
    before = pixels(page)
    page.locator('input[data-setting="window"]').focus()
    page.keyboard.press("End")
    shown(page, "Streaming(sinks=4, window=512)")
    assert figures(page)[0][1] == "100.0%" and pixels(page) != before
    page.locator(".fm-density").focus()
    page.keyboard.press("Home")
    shown(page, "Streaming(sinks=4, window=1)")
    settled(page)
    assert float(page.locator('input[type=number][aria-label="window, any value"]').input_value()) == 1
    page.locator(".fm-layer").select_option(label="layer 3")
    page.wait_for_function("() => document.querySelector('.fm-sparse-figures caption').textContent === 'Layer 3'")
    page.locator(".fm-head-of").select_option(label="head 8")
    page.wait_for_function("() => document.querySelector('.fm-sparse-figures th[title=\"head 8\"]')")
    assert harness.execute(page, "print(view.layer, view.head)").split() == ["3", "8"]
    harness.execute(page, "view.show(pattern=fm.sparsity.Streaming(4, 64) & fm.sparsity.BlockTopK(3)).wait()")
    shown(page, "Intersection(one=Streaming(sinks=4, window=64), other=BlockTopK(top=3))")
    assert page.locator(".fm-sparse-summary").inner_text() == "as given in Python"
    page.locator(".fm-pattern").select_option(label="BlockTopK")
    shown(page, "BlockTopK(top=16)")
    page.locator('input[type=number][aria-label="top, any value"]').fill("5")
    page.keyboard.press("Enter")
    shown(page, "BlockTopK(top=5)")
    page.locator(".fm-pattern").select_option(label="AntiDiagonal")
    page.locator('input[type=number][aria-label="stride, any value"]').fill("10")
    page.keyboard.press("Enter")
    page.locator(".fm-status .fm-error").wait_for()
    assert "stride=10 does not divide blocks of 64" in page.locator(".fm-status .fm-error-text").inner_text()
    page.locator(".fm-pattern").select_option(label="Oracle")
    shown(page, "Oracle(density=0.1)")
    settled(page)


def test_pointing_zooming_and_the_keys(opened, screenshot):
    page = opened()
    over = page.locator(".fm-sparse-plot .fm-over")
    over.scroll_into_view_if_needed()
    box = over.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.06, box["y"] + box["height"] * 0.95)
    told = page.locator(".fm-sparse-told").inner_text()
    mass = harness.execute(page, "print('%.2f' % (100 * float(view._layer(view.layer).head(0).mass[7, 0]) / 64))")
    assert told.startswith(f"Block 7, 0: {mass.strip()}% of these queries' attention, chosen")
    words = page.locator(".fm-sparse-words").all_inner_texts()
    assert "448–511" in words[0] and "0–63" in words[1] and "<script>" in words[1] and "🚢" in words[1]
    assert page.locator(".fm-sparse script").count() == 0
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + box["height"] * 0.1)
    assert "the future" in page.locator(".fm-sparse-told").inner_text()
    over.focus()
    page.keyboard.press("0")
    whole = pixels(page)
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.6)
    page.mouse.down()
    page.mouse.up()
    page.mouse.wheel(0, -2400)
    page.wait_for_function("() => document.querySelector('.fm-sparse-readout').textContent.includes('to key')")
    assert pixels(page) != whole
    query = "(() => document.querySelector('.fm-sparse-readout').textContent.match(/query (\\d+)/)[1])()"
    first = int(page.evaluate(query))
    page.keyboard.press("ArrowDown")
    assert int(page.evaluate(query)) == first + 1
    screenshot(page, "sparsity-zoomed")
    ticks = page.locator(".fm-sparse-map .fm-x-axis .fm-tick").all_inner_texts()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.6)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.4, steps=4)
    page.mouse.up()
    assert page.locator(".fm-sparse-map .fm-x-axis .fm-tick").all_inner_texts() != ticks
    cells = page.evaluate("window.jupyterapp.shell.currentWidget.content.widgets.length")
    page.keyboard.press("a")
    page.keyboard.press("b")  # in Lab these insert cells
    assert page.evaluate("window.jupyterapp.shell.currentWidget.content.widgets.length") == cells
    page.keyboard.press("0")
    assert pixels(page) == whole
    page.locator(".fm-in").click()
    page.locator(".fm-whole").click()
    assert pixels(page) == whole


def test_two_views_of_one_widget_answer_in_turn(notebook):
    page = notebook(OPEN.replace("{tokens}", "512"), "view")
    page.wait_for_function("() => document.querySelectorAll('.fm-sparse').length === 2")
    labels = (
        "() => [...document.querySelectorAll('.fm-sparse-plot .fm-over')]"
        ".map((map) => map.getAttribute('aria-label').match(/window=\\d+/)[0])"
    )
    for at, value in enumerate((20, 30, 40, 50)):
        box = page.locator('input[type=number][aria-label="window, any value"]').nth(at % 2)
        box.fill(str(value))
        box.press("Enter")
        page.wait_for_function(f"() => ({labels})().every((label) => label === 'window={value}')")
    assert harness.execute(page, "print(view.pattern)").strip() == "Streaming(sinks=4, window=50)"


def test_the_exact_part_takes_the_place_of_the_coarse_one(opened):
    page = opened(2_000)
    assert harness.execute(page, "print(view.whole['each'])").strip() == "4"
    page.locator(".fm-sparse-plot .fm-over").focus()
    for _ in range(7):
        page.keyboard.press("+")
    for _ in range(80):
        told = harness.execute(page, "print(view.tile.get('each'), view.tile.get('i0'), view.tile.get('i1'))").split()
        if told[0] == "1" and int(told[2]) < 1_100:  # the parts of the zooms before are exact, too
            break
        page.wait_for_timeout(100)
    assert told[0] == "1" and int(told[1]) < 1_000 < int(told[2]) < 1_100


def test_speed_is_measured_beside_the_page_and_can_be_cancelled(opened, screenshot):
    page = opened()
    page.locator(".fm-measure").click()
    page.wait_for_function("() => document.querySelector('.fm-sparse').dataset.points === '1'", timeout=120_000)
    page.wait_for_function("() => document.querySelector('.fm-sparse').dataset.metering === 'ready'")
    row = page.locator(".fm-sparse-table tbody tr").first.evaluate(
        "(row) => [...row.cells].map((cell) => cell.textContent)"
    )
    assert row[0].startswith("Streaming(sinks=4, window=64)") and " x [" in row[5] and "measured" in row[9]
    assert page.locator(".fm-sparse-chart .fm-sparse-point").count() == 1
    page.locator(".fm-sparse-table").scroll_into_view_if_needed()
    screenshot(page, "sparsity-measured")
    harness.execute(page, "view.rounds, view.seconds = 100_000, 600")
    page.locator(".fm-measure").click()
    page.wait_for_function(
        "() => /in turn/.test(document.querySelector('.fm-sparse-metering').textContent)", timeout=120_000
    )
    assert harness.execute(page, "print(6 * 7)").strip() == "42"
    page.locator(".fm-sparse-metering .fm-cancel").click()
    page.wait_for_function(
        "() => document.querySelector('.fm-sparse-metering').textContent.startsWith('Cancelled')", timeout=60_000
    )
    page.locator(".fm-clear").click()
    page.wait_for_function("() => document.querySelector('.fm-sparse').dataset.points === '0'")
    assert page.locator(".fm-sparse-table").is_hidden()


def test_a_move_repaints_at_once_at_4096_tokens(opened, record_property):
    page = opened(4_096)
    moves = {
        "Streaming": ('input[data-setting="window"]', range(3, 20)),
        "BlockTopK": ('input[data-setting="top"]', range(3, 12)),
        "AntiDiagonal": ('input[data-setting="threshold"]', range(50, 90, 5)),
    }
    for name, (slider, places) in moves.items():
        page.locator(".fm-pattern").select_option(label=name)
        shown(page, f"{name}(")
        settled(page)
        for what, slot, stops in ((slider, slider, places), ("density", ".fm-density", range(10, 60, 7))):
            took = [page.evaluate(MOVE, [slot, str(at)]) for at in stops]
            median, worst = statistics.median(took), max(took)
            record_property(f"{name} {what}", f"median {median:.0f} ms, worst {worst:.0f} ms")
            print(f"{name}, {what}: median {median:.0f} ms, worst {worst:.0f} ms of {len(took)}")
            assert median < REPAINT_MS
        settled(page)


def test_the_dark_theme_and_a_narrow_page(opened, screenshot):
    page = opened()
    before = pixels(page)
    page.evaluate("window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
    page.wait_for_timeout(1500)
    assert pixels(page) != before, "the map is painted in the theme's colours"
    page.mouse.move(5, 5)
    screenshot(page, "sparsity-dark")
    page.set_viewport_size({"width": 620, "height": 1150})
    page.wait_for_timeout(400)
    assert page.locator(".fmlab").evaluate("(root) => root.scrollWidth - root.clientWidth") <= 1
    page.locator(".fm-sparse").scroll_into_view_if_needed()
    screenshot(page, "sparsity-narrow")
    page.evaluate("window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Light'})")
    page.wait_for_timeout(500)
