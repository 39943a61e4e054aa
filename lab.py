#!/usr/bin/env python3
"""The lab in one command. It needs nothing but Python 3.11 or newer.

  python3 lab.py                  set up, fetch the default model, open JupyterLab on the tour
  python3 lab.py --port 9999 ...  the same: flags, and names of notebooks, go to JupyterLab
  python3 lab.py test             set up and run every test: the library's, the browser's, the notebooks
  python3 lab.py test WORDS ...   set up and run pytest with these words alone
  python3 lab.py setup            only set up
  python3 lab.py COMMAND ...      set up and run `fmlab COMMAND ...` (try: python3 lab.py fetch --help)

Setting up makes a virtual environment in .venv beside this file, or in the folder that the environment variable
FMLAB_VENV names, and happens again only when pyproject.toml, the folder or the environment's Python has changed.
"""

# Everything up to the check of the version must be readable to an older Python, or it could not say what is wrong.
import shutil
import sys

if sys.version_info < (3, 11):
    newer = [name for name in ("python3.14", "python3.13", "python3.12", "python3.11") if shutil.which(name)]
    mend = "try: %s lab.py" % newer[0] if newer else "install a newer one, for example from https://www.python.org"
    sys.exit("The lab needs Python 3.11 or newer, and this is %s; %s" % (sys.version.split()[0], mend))

import hashlib
import json
import os
import re
import subprocess
import threading
import time
from collections import deque
from pathlib import Path
from urllib.parse import quote

ROOT = Path(__file__).resolve().parent
VENV = Path(os.environ.get("FMLAB_VENV") or ROOT / ".venv").expanduser().absolute()
SCRIPTS = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = SCRIPTS / ("python.exe" if os.name == "nt" else "python")
STAMP = VENV / "fmlab-installed"
MODEL = VENV / "fmlab-model"
LOG = VENV / "fmlab-install.log"
TOUR = ROOT / "notebooks" / "00_tour.ipynb"
EVERY_TEST = ["-n2", "--dist=loadfile", "--nbmake", "--nbmake-timeout=600", "--cov", "--cov-report=term-missing",
              "tests", "notebooks"]  # fmt: skip
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "PYTHONHOME"},
    "VIRTUAL_ENV": str(VENV),
    "PATH": str(SCRIPTS) + os.pathsep + os.environ.get("PATH", ""),
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_USER": "0",
    "JUPYTER_PREFER_ENV_PATH": "1",  # the python3 kernel is this environment's, whatever kernels the user has
}


def main(words):
    if words[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    opens = not words or words[0].startswith("-") or words[0].endswith(".ipynb")
    command, *rest = ["lab", *words] if opens else words
    set_up()
    if command not in ("lab", "test", "setup"):
        return become("-P", "-m", "fmlab", command, *rest)
    fetched = fetch_model()
    if command == "setup":
        say(f"{VENV} is ready." if fetched else f"{VENV} is ready, but it has no model.")
        return 0 if fetched else 1
    if not fetched:
        say("Going on without the model: whatever needs it will say so again.")
    if command == "test":
        os.chdir(ROOT)
        return become("-m", "pytest", *(rest or EVERY_TEST))
    return become("-m", "jupyterlab", *jupyter_words(rest))


def jupyter_words(words):
    """What JupyterLab is started with: files of the whole lab at hand, and a URL that leads to the notebook."""
    own = []
    if hasattr(os, "geteuid") and os.geteuid() == 0 and "--allow-root" not in words:
        say("You are root, so JupyterLab is started with --allow-root.")
        own.append("--allow-root")
    if any(re.match(r"--(ServerApp\.root_dir|notebook-dir|(Server|Lab)App\.default_url)", word) for word in words):
        return [*own, *words]  # the user knows better
    notebook = next((word for word in words if word.endswith(".ipynb")), str(TOUR))
    path = Path(notebook).absolute()
    if ROOT not in path.parents:
        return [*own, *words]  # and JupyterLab opens the folder that the notebook lies in
    url = "/lab/tree/" + quote(path.relative_to(ROOT).as_posix())
    rest = [word for word in words if word != notebook]
    return [*own, f"--ServerApp.root_dir={ROOT}", f"--LabApp.default_url={url}", *rest]


def become(*words):
    """Go on as the environment's Python: its exit code and its Ctrl-C are then ours."""
    sys.stdout.flush()
    command = [str(PYTHON), *words]
    if os.name == "nt":  # which has no exec that the console waits for
        process = subprocess.Popen(command, env=ENVIRONMENT)
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue  # the console sends it to the child too, which decides what it means
    os.execve(command[0], command, ENVIRONMENT)


def say(text):
    print(text, flush=True)


# Setting up


def set_up():
    """Make the environment and install into it, unless the stamp says that this was done and the environment runs."""
    runs = probe()
    place, _, done = STAMP.read_text("utf-8").partition("\n") if runs and STAMP.exists() else ("", "", "")
    if runs and (place, done) == (here(), wanted(runs)):
        return
    if not runs or (place and place != here()):  # scripts of a moved environment point to where it was
        make()
        runs = probe()
    STAMP.unlink(missing_ok=True)  # from here on the environment is neither the old nor the new one
    MODEL.unlink(missing_ok=True)
    install()
    STAMP.write_text(here() + "\n" + wanted(runs), "utf-8")


def probe():
    """Version of the environment's Python, with that of its pip; '' if there is none that runs and is new enough."""
    if not PYTHON.exists():
        return ""
    ask = "import sys, pip; assert sys.version_info >= (3, 11); print(sys.version.split()[0], pip.__version__)"
    try:
        done = subprocess.run([str(PYTHON), "-c", ask], env=ENVIRONMENT, cwd=str(VENV), capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def here():
    return json.dumps([str(ROOT), str(VENV)])


def wanted(runs):
    return hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + runs.split()[0].encode()).hexdigest()


def make():
    if VENV.exists() and VENV != ROOT / ".venv" and not (VENV / "pyvenv.cfg").exists() and any(VENV.iterdir()):
        sys.exit(f"FMLAB_VENV names {VENV}, which holds files but is no virtual environment; name another folder.")
    if VENV.exists():
        say(f"{VENV} does not run here (its Python is gone or it was moved or unfinished): making it anew.")
        shutil.rmtree(VENV)
    say(f"Making {VENV} with Python {sys.version.split()[0]}.")
    if subprocess.call([sys.executable, "-m", "venv", str(VENV)]) or not probe():
        shutil.rmtree(VENV, ignore_errors=True)
        sys.exit(
            f"{sys.executable} could not make a virtual environment with pip in it; what it said is above. "
            "On Debian and Ubuntu this mends it: sudo apt install python3-venv"
        )


def install():
    begun = time.monotonic()
    LOG.write_text("", "utf-8")
    if int(probe().split()[1].split(".")[0]) < 25:  # older ones download everything in order to plan
        pip("Updating pip", "--progress-bar=off", "--upgrade", "pip>=25")
    plan = VENV / "fmlab-plan.json"
    target = ["--progress-bar=raw", "-e", f"{ROOT}[all]"]
    pip("Choosing versions", *target, "--dry-run", "--report", str(plan))
    names = [each["metadata"]["name"] for each in json.loads(plan.read_text("utf-8"))["install"]]
    if any(name.startswith("nvidia-") for name in names) and not shutil.which("nvidia-smi"):
        say(
            "Note: pip is about to download PyTorch for CUDA, several GB, and no NVIDIA GPU was found here.\n"
            "      For the small build press Ctrl-C, let PIP_EXTRA_INDEX_URL name PyTorch's index of CPU builds\n"
            "      (pytorch.org tells it under 'Get started', Pip, CPU), and start again."
        )
    pip("Installing", *target, total=len(names))
    say(f"Installed {len(names)} packages in {time.monotonic() - begun:.0f} s.")


def fetch_model():
    """Fetch the default model unless it was and its folder still stands; False if it cannot be had."""
    if MODEL.exists() and Path(MODEL.read_text("utf-8")).is_dir():
        return True
    say("Fetching the default model.")
    done = subprocess.run([str(PYTHON), "-P", "-m", "fmlab", "fetch"], env=ENVIRONMENT, stdout=subprocess.PIPE)
    folder = done.stdout.decode().strip().split("\n")[-1].strip()
    if done.returncode == 0:
        MODEL.write_text(folder, "utf-8")
    return done.returncode == 0


# Running pip


def pip(title, *words, total=0):
    """Run `pip install`, show on one line how far it is, and keep all it says in the log. Exits where pip fails."""
    command = [str(PYTHON), "-m", "pip", "install", *words]
    before, state, tail = installed(), {}, deque(maxlen=15)
    line = Line(title)
    with LOG.open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, env=ENVIRONMENT, cwd=str(ROOT), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        reader = threading.Thread(target=listen, args=(process.stdout, log, state, tail), daemon=True)
        reader.start()
        try:
            while reader.is_alive():
                line.show(progress(state, installed() - before, total))
                reader.join(0.2)
            process.wait()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
    line.end("done" if process.returncode == 0 else "failed")
    if process.returncode:
        sys.exit(
            "\n  " + "\n  ".join(tail) + f"\n\npip failed; its last lines are above, all of them in {LOG}.\n"
            "Run the same command again when the cause is gone: what was downloaded is kept. No network? A proxy is\n"
            "named by HTTPS_PROXY, a mirror by PIP_INDEX_URL. A disk that is full? The lab needs about 3 GB.\n"
            f"By hand: {subprocess.list2cmdline(command)}"
        )


def listen(stream, log, state, tail):
    for raw in stream:
        text = raw.decode("utf-8", "replace").rstrip()
        got = re.match(r"Progress (\d+) of (\d+)", text)
        if got:
            state["percent"] = f" {100 * int(got[1]) // max(int(got[2]), 1)} %"
            continue
        log.write(text + "\n")
        tail.append(text)
        verb, _, what = text.strip().partition(" ")
        if verb in ("Collecting", "Downloading", "Processing", "Using", "Building", "Obtaining"):
            state.update(what=f"{verb.lower()} {what.removeprefix('cached ').split('/')[-1]}", percent="")
            state["count"] = state.get("count", 0) + (verb == "Collecting")
        elif text.startswith("Installing collected packages"):
            state.update(unpacking=True, percent="")


def progress(state, new, total):
    if state.get("unpacking"):
        return f"{max(new, 0)} of {total or 1} unpacked"
    of = f" of {total}" if total else ""
    return f"{state.get('count', 0)}{of} packages, {state.get('what', 'starting')}{state.get('percent', '')}"


def installed():
    """How many packages the environment holds."""
    places = [*VENV.glob("lib/python*/site-packages"), VENV / "Lib" / "site-packages"]
    return len({entry.name for place in places for entry in place.glob("*.dist-info")})


class Line:
    """One line that is written over again on a terminal, and now and then a line elsewhere."""

    def __init__(self, title):
        self.title, self.begun, self.shown = title, time.monotonic(), time.monotonic()
        self.terminal = sys.stdout.isatty()
        if not self.terminal:
            say(f"{title} ...")

    def show(self, text):
        text = f"{self.title}: {time.monotonic() - self.begun:.0f} s, {text}"
        if self.terminal:
            width = shutil.get_terminal_size().columns - 1
            print("\r" + text[:width].ljust(width), end="", flush=True)
        elif time.monotonic() - self.shown > 10:
            self.shown = time.monotonic()
            say("  " + text)

    def end(self, text):
        self.shown = -1000.0
        self.show(text)
        if self.terminal:
            print(flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on from here.")
        sys.exit(130)
