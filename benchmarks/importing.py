"""How long `import fmlab` takes in a fresh process, and which heavy modules it brings along (none)."""

import subprocess
import sys
from statistics import median

from paired import arguments, show

MEASURE = """
import sys, time
start = time.perf_counter()
import {module}
print(time.perf_counter() - start, *(m for m in ("torch", "transformers", "plotly", "pandas") if m in sys.modules))
"""


def main() -> None:
    rounds = 2 if arguments(__doc__).toy else 11
    rows = []
    for module in ("fmlab", "torch"):
        runs = [
            subprocess.run(
                [sys.executable, "-c", MEASURE.format(module=module)], check=True, capture_output=True, text=True
            ).stdout.split()
            for _ in range(rounds)
        ]
        times = sorted(float(run[0]) for run in runs)
        heavy = " ".join(sorted({name for run in runs for name in run[1:]})) or "none"
        rows.append(
            {
                "module": module,
                "seconds": round(median(times), 4),
                "max": round(times[-1], 4),
                "n": rounds,
                "heavy": heavy,
            }
        )
    show(rows, "import time in a fresh process")


if __name__ == "__main__":
    main()
