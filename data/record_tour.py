"""Records data/tour.safetensors and its replays from the real model: python data/record_tour.py

With `--replays` the trace stays as it is, and only its replays and optima are made again; that needs no model.
"""

import sys
from pathlib import Path

import fmlab as fm
from fmlab.replays import Replays

HERE = Path(__file__).resolve().parent
LAYERS = (0, 7, 15, 22, 29)  # first, last and three between: all thirty would take 45 MB
SHIPPED = ("H2O", "TOVA", "Clairvoyant", "KeyNorm", "Random", "SinkWindow", "SlidingWindow", "SnapKV")
BUDGETS = (48, 64, 96, 128, 160, 192, 256, 320, 384, 512, 640)


def main() -> None:
    if "--replays" in sys.argv[1:]:
        trace = fm.Trace.load(HERE / "tour.safetensors")
    else:
        lm = fm.load("smollm2-135m")
        trace = fm.record(lm, (HERE / "tour.txt").read_text(encoding="utf-8"), layers=LAYERS, second_pass=True)
        trace.save(HERE / "tour.safetensors")
    replays = Replays(trace)
    for budget in BUDGETS:
        for policy in (getattr(fm.policies, name) for name in SHIPPED):
            replays.expiry(policy(), budget)
        replays.oracle(budget)
    replays.save(HERE / "tour.replays.safetensors")
    for path in sorted(HERE.glob("tour*.safetensors")):
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")
    print(repr(trace), "and", len(replays), "replays and optima")


if __name__ == "__main__":
    main()
