"""An environment with kvpress beside fmlab, in runs/peers-venv: kvpress wants an older transformers than fmlab's newest."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / "runs" / "peers-venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
WANTED = ["torch>=2.9,<2.14", "transformers>=5.2,<5.3", "kvpress>=0.5.5", "-e", str(ROOT)]


def there() -> bool:
    """Whether kvpress can be imported here."""
    return importlib.util.find_spec("kvpress") is not None


def go_on_inside() -> None:
    """Return where kvpress can be imported; else make the environment, run this program again in it, and exit with its
    code. Exits where the environment cannot be made; pip has said why."""
    if there():
        return
    if Path(sys.prefix).resolve() == VENV.resolve():
        sys.exit(f"{VENV} was made, but kvpress cannot be imported in it; delete the folder and start again")
    _make()
    sys.exit(subprocess.call([str(PYTHON), *sys.argv]))


def _make() -> None:
    stamp = VENV / "fmlab-installed"
    done = hashlib.sha256((repr(WANTED) + (ROOT / "pyproject.toml").read_text("utf-8")).encode()).hexdigest()
    if stamp.is_file() and stamp.read_text("utf-8") == done:
        return
    print(f"kvpress is not installed here: making {VENV}, about 2 GB.", flush=True)
    shutil.rmtree(VENV, ignore_errors=True)
    for command in (
        [sys.executable, "-m", "venv", str(VENV)],
        [str(PYTHON), "-m", "pip", "install", "-q", "--upgrade", "pip>=25"],  # older ones download everything to plan
        [str(PYTHON), "-m", "pip", "install", "-q", *WANTED],
    ):
        if code := subprocess.call(command):
            sys.exit(f"{subprocess.list2cmdline(command)} failed with {code}; what it said is above")
    stamp.write_text(done, "utf-8")
