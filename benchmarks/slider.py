"""From the key press on the budget slider to the repainted map, in a real JupyterLab in Chromium.

The clock runs in the page: from the keydown event to the first frame after the new picture has been drawn. The runs are
precomputed, as those of the shipped text are; every head of the synthetic ones forgets differently, the worst case for
what has to travel.
"""

import json
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
from paired import arguments, show

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "browser"))
import harness

TIMER = """() => {
    window.moves = [];
    let pressed = null;
    document.addEventListener('keydown', (event) => {
        if (event.target.matches('.fm-budget')) pressed = performance.now();
    }, true);
    document.addEventListener('fmlab:painted', () => {
        const start = pressed;
        pressed = null;
        if (start === null) return;
        requestAnimationFrame(() => {  // runs before the frame with the picture; a task after it is past its paint
            const channel = new MessageChannel();
            channel.port1.onmessage = () => window.moves.push(performance.now() - start);
            channel.port2.postMessage(null);
        });
    });
}"""

SYNTHETIC = """
import heapq
import torch
import fmlab as fm
from fmlab.replays import Replays


class Precomputed(Replays):
    '''Runs of a policy that keeps the best of random scores, other in every head, after four sinks.'''

    def expiry(self, policy, budget, prefill=1, progress=None):
        return self._known[repr(policy), budget].long()

    def has(self, policy, budget, prefill=1):
        return (repr(policy), budget) in self._known

    def budgets(self, policy, prefill=1):
        return sorted(budget for label, budget in self._known if label == repr(policy))


def run(tokens, heads, budget, seed):
    scores = torch.rand(heads, tokens, generator=torch.Generator().manual_seed(seed))
    scores[:, :4] = 2
    expiry = torch.full((heads, tokens), tokens + 1, dtype=torch.int32)
    for head, row in enumerate(scores.tolist()):
        held, out = [], [tokens + 1] * tokens
        for t, score in enumerate(row):
            heapq.heappush(held, (score, t))
            if len(held) > budget:
                out[heapq.heappop(held)[1]] = t + 1
        expiry[head] = torch.tensor(out)
    return expiry


def explorer(tokens, layers, budgets, two):
    def part(heads):
        return torch.randn(layers, heads, tokens, 4, generator=torch.Generator().manual_seed(heads)).half()

    trace = fm.Trace(
        ids=torch.arange(tokens), tokens=tuple(f" word{i}" for i in range(tokens)), layers=tuple(range(layers)),
        model="synthetic", queries=part(9), keys=part(3), values=part(3), scaling=0.5, windows=(None,) * layers,
    )
    replays = Precomputed(trace)
    for seed, policy in enumerate((fm.policies.H2O(), fm.policies.TOVA())[: 1 + two]):
        for budget in [*budgets, tokens]:
            shape = (layers, 3, tokens)
            replays._known[repr(policy), budget] = run(tokens, layers * 3, budget, seed).view(shape)
    view = fm.explore(trace, replays=replays)
    view.show(budget=budgets[len(budgets) // 2], **({"against": fm.policies.TOVA()} if two else {}))
    return view
"""


def cases(toy: bool) -> list[tuple[str, str]]:
    """What is shown, and the code of the cell that shows it."""
    tokens, layers = (256, 2) if toy else (4096, 30)
    budgets = [tokens // 16 * k for k in range(1, 8)]
    return [
        ("shipped text", "import fmlab as fm\nview = fm.explore()\nview"),
        ("one policy", f"view = explorer({tokens}, 2, {budgets}, False)\nview"),
        ("one policy", f"view = explorer({tokens}, {layers}, {budgets}, False)\nview"),
        ("two side by side", f"view = explorer({tokens}, {layers}, {budgets}, True)\nview"),
        (
            "difference of two",
            f"view = explorer({tokens}, {layers}, {budgets}, True).show(mode='difference')\nview",
        ),
    ]


def measure(lab: harness.Lab, browser, name: str, code: str, moves: int) -> dict:
    """Milliseconds of `moves` key presses, after a few that warm up, and the bytes of the runs that one sends.

    Nobody listens to the websocket meanwhile: to hand megabytes to a listener would be timed too.
    """
    page = browser.new_page(viewport={"width": 1400, "height": 1100})
    cells = [code] if code.startswith("import") else [SYNTHETIC, code]
    harness.open_notebook(lab, page, lab.notebook(f"{name}.ipynb", *cells))
    harness.run_all(page, seconds=300)
    page.wait_for_selector(".fmlab .fm-view[data-seq]", timeout=60_000)
    harness.execute(page, "view._worker.join()")
    page.wait_for_timeout(1_000)
    about = json.loads(
        harness.execute(page, "print('[%d, %d]' % (len(view.trace), len(view.trace.layers) * view.trace.kv_heads))")
    )
    page.evaluate(TIMER)
    page.locator(".fmlab .fm-budget").focus()
    warm_up = 5
    for move in range(warm_up + moves):
        page.keyboard.press("ArrowRight" if move // 3 % 2 == 0 else "ArrowLeft")
        page.wait_for_function("(count) => window.moves.length >= count", arg=move + 1, polling=10, timeout=20_000)
        page.wait_for_timeout(60)  # a reader's pause: presses do not queue up
    times = np.array(page.evaluate("window.moves"))[warm_up:]
    sent = int(harness.execute(page, "print(len(view.data))"))
    harness.execute(page, "view.close()")  # its figures for the last picture would be computed beside the next view
    page.close()
    drawn = np.random.default_rng(0).integers(moves, size=(4_000, moves))
    low, high = np.quantile(np.median(times[drawn], axis=1), [0.025, 0.975])
    return {
        "tokens": about[0],
        "heads": about[1],
        "median_ms": round(median(times), 1),
        "low": round(low, 1),
        "high": round(high, 1),
        "p95_ms": round(float(np.quantile(times, 0.95)), 1),
        "n": moves,
        "sent_kB_a_move": round(sent / 1e3, 1),
    }


def main() -> None:
    toy = arguments(__doc__).toy
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        harness.lab(Path(folder) / "lab") as lab,
        harness.browser() as browser,
    ):
        for at, (name, code) in enumerate(cases(toy)):
            rows.append({"view": name, **measure(lab, browser, f"slider{at}", code, 6 if toy else 40)})
    show(rows, "budget slider: key press to repainted map, milliseconds (median, 95% interval)")


if __name__ == "__main__":
    main()
