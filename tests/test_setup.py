"""Two commands, one package: lab.py on a small lab, the files that must agree, lazy names, the command line."""

import ast
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import fmlab as fm
from fmlab import cli

ROOT = Path(__file__).resolve().parents[1]
LAB = ROOT / "lab.py"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
STAMP, MODEL, LOG = ".venv/fmlab-installed", ".venv/fmlab-model", ".venv/fmlab-install.log"


# lab.py, run for real on a lab of one small package without dependencies, so that it needs no network

PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "fmlab"
version = "0"

[project.optional-dependencies]
all = []
"""

BACKEND = """
import os, time, zipfile
from pathlib import Path

def get_requires_for_build_editable(settings=None):
    return []

def build_editable(folder, settings=None, metadata=None):
    if os.environ.get("SLOW"):
        Path("building").touch()
        time.sleep(60)
    name, info = "fmlab-0-py3-none-any.whl", "fmlab-0.dist-info"
    extra = "".join(f"Requires-Dist: {each}; extra == 'all'\\n" for each in Path("needs").read_text().split())
    files = {
        "fmlab_lab.pth": str(Path.cwd()) + "\\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\\nName: fmlab\\nVersion: 0\\nProvides-Extra: all\\n" + extra,
        f"{info}/WHEEL": "Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\\n" for path in files)
    with zipfile.ZipFile(Path(folder) / name, "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
    return name
"""

ECHO = """
import json, os, sys
from pathlib import Path

def main(name):
    words = sys.argv[1:]
    if words == ["fetch"]:
        if os.environ.get("NO_MODEL"):
            sys.exit("the model cannot be had")
        Path("@/model").mkdir(exist_ok=True)
        print("@/model")
        return
    print(json.dumps({"name": name, "words": words, "cwd": os.getcwd(), "prefix": sys.prefix}))
    codes = [word.removeprefix("exit=") for word in words if word.startswith("exit=")]
    sys.exit(int(codes[0]) if codes else 0)
"""


def _hear_interrupts():
    """What a shell starts in the background ignores Ctrl-C, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Home:
    """A small lab in a folder, and what its lab.py does there."""

    def __init__(self, root, pip):
        self.root = root
        files = {
            "pyproject.toml": PYPROJECT,
            "backend.py": BACKEND,
            "needs": "",
            "echo.py": ECHO.replace("@", root.as_posix()),
            "fmlab/__init__.py": "",
            "fmlab/__main__.py": "import echo; echo.main('fmlab')",
            "pytest.py": "import echo; echo.main('pytest')",
            "jupyterlab.py": "import echo; echo.main('jupyterlab')",
            "notebooks/00_tour.ipynb": "{}",
        }
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text, "utf-8")
        shutil.copy(LAB, root)
        strange = ("PIP_", "FMLAB_", "COV", "PYTHON")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
        self.environment |= {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PYTHONPATH": str(pip)}

    def start(self, *words, **environment):
        return subprocess.Popen(
            [sys.executable, str(self.root / "lab.py"), *words],
            env=self.environment | environment,
            cwd=self.root.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=None if os.name == "nt" else _hear_interrupts,
        )

    def lab(self, *words, **environment):
        """Exit code and output of `python lab.py WORDS`."""
        process = self.start(*words, **environment)
        said, _ = process.communicate(timeout=120)
        return process.returncode, said

    def echo(self, *words, **environment):
        """What the last command that lab.py started was given."""
        code, said = self.lab(*words, **environment)
        return code, json.loads(said.strip().split("\n")[-1])


@pytest.fixture(scope="module")
def pip(tmp_path_factory):
    """A folder with this environment's pip alone: a new virtual environment's own may be too old and want an update."""
    import pip as package

    folder = tmp_path_factory.mktemp("pip")
    shutil.copytree(Path(package.__file__).parent, folder / "pip", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory, pip):
    """A small lab that was set up."""
    home = Home(tmp_path_factory.mktemp("a lab"), pip)
    code, said = home.lab("setup")
    assert code == 0, said
    assert "Making" in said and "Installed 1 packages" in said and "Fetching the default model" in said
    return home


def test_a_second_start_takes_no_time_and_installs_nothing(home):
    before = (home.root / LOG).stat().st_mtime_ns
    begun = time.monotonic()
    code, told = home.echo("--port", "9999", "--no-browser")
    assert time.monotonic() - begun < 2
    assert code == 0 and told["name"] == "jupyterlab"
    assert (home.root / LOG).stat().st_mtime_ns == before
    assert told["words"][-3:] == ["--port", "9999", "--no-browser"]
    assert f"--ServerApp.root_dir={home.root}" in told["words"]
    assert "--LabApp.default_url=/lab/tree/notebooks/00_tour.ipynb" in told["words"]
    assert told["prefix"] == str(home.root / ".venv")


def test_another_notebook_can_be_opened(home):
    (home.root / "notebooks" / "01 x.ipynb").write_text("{}")
    _, told = home.echo(str(home.root / "notebooks" / "01 x.ipynb"), "--no-browser")
    assert "--LabApp.default_url=/lab/tree/notebooks/01%20x.ipynb" in told["words"]
    assert not any(word.endswith("x.ipynb") and not word.startswith("--") for word in told["words"])
    _, told = home.echo("elsewhere.ipynb")
    assert told["words"][-1] == "elsewhere.ipynb"
    _, told = home.echo("--ServerApp.root_dir=/srv")
    assert told["words"][-1] == "--ServerApp.root_dir=/srv" and not any("00_tour" in word for word in told["words"])


def test_other_commands_are_those_of_fmlab_in_the_users_folder(home):
    code, told = home.echo("compare", "my text.txt", "--budget", "64", "exit=5")
    assert code == 5
    assert told["name"] == "fmlab" and told["words"] == ["compare", "my text.txt", "--budget", "64", "exit=5"]
    assert told["cwd"] == str(home.root.parent)


def test_the_tests_exit_code_and_words_pass_through(home):
    code, told = home.echo("test")
    assert code == 0 and told["name"] == "pytest" and told["cwd"] == str(home.root)
    assert told["words"][-2:] == ["tests", "notebooks"] and {"--nbmake", "--cov"} < set(told["words"])
    code, told = home.echo("test", "tests/test_core.py", "-k", "select", "exit=7")
    assert code == 7 and told["words"] == ["tests/test_core.py", "-k", "select", "exit=7"]


def test_a_model_that_cannot_be_had_is_said_and_asked_for_again(home):
    (home.root / MODEL).unlink()
    code, said = home.lab("setup", NO_MODEL="1")
    assert code == 1 and "the model cannot be had" in said and "no model" in said
    code, told = home.echo("test", NO_MODEL="1")
    assert code == 0 and told["name"] == "pytest"
    (home.root / "model").rmdir()
    code, said = home.lab("setup")
    assert code == 0 and (home.root / "model").is_dir()
    (home.root / "model").rmdir()
    assert "Fetching" in home.lab("setup")[1], "its folder was gone"


def test_an_interrupted_installation_leaves_no_stamp_and_goes_on(home):
    (home.root / "pyproject.toml").write_text(PYPROJECT + "\n# changed\n")
    process = home.start("setup", SLOW="1")
    deadline = time.monotonic() + 60
    while not (home.root / "building").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=180)
    assert process.returncode == 130 and "The same command goes on" in said and "Traceback" not in said
    assert not (home.root / STAMP).exists()
    code, said = home.lab("setup")
    assert code == 0 and "Installed" in said and "Making" not in said
    assert (home.root / STAMP).exists()


def test_a_failing_pip_is_said_with_its_reason_and_leaves_no_stamp(home):
    (home.root / "needs").write_text("no-such-package-of-fmlab")
    (home.root / "pyproject.toml").write_text(PYPROJECT + "\n# needs more\n")
    code, said = home.lab("compare")
    assert code == 1 and not (home.root / STAMP).exists()
    assert "no-such-package-of-fmlab" in said and "pip failed" in said and "PIP_INDEX_URL" in said
    (home.root / "needs").write_text("")
    assert home.lab("setup")[0] == 0


def test_a_cuda_build_without_a_gpu_is_warned_of(home, tmp_path):
    with zipfile.ZipFile(tmp_path / "nvidia_toy-1-py3-none-any.whl", "w") as wheel:
        info = "nvidia_toy-1.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: nvidia-toy\nVersion: 1\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", f"{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "nvidia-smi").touch(mode=0o755)
    for path, warned in ((str(tools), False), (str(tmp_path), True)):
        (home.root / "needs").write_text("nvidia-toy")
        (home.root / STAMP).unlink()
        code, said = home.lab("setup", PIP_FIND_LINKS=str(tmp_path), PATH=path)
        assert code == 0, said
        assert ("no NVIDIA GPU was found" in said and "PIP_EXTRA_INDEX_URL" in said) == warned, said
        python = home.root / ".venv" / "bin" / "python"
        subprocess.run([python, "-m", "pip", "uninstall", "-qy", "nvidia-toy"], env=home.environment, check=True)
    (home.root / "needs").write_text("")


def test_an_environment_that_was_moved_or_lost_its_python_is_made_anew(home, tmp_path):
    python = home.root / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to(tmp_path / "gone")
    code, said = home.lab("setup")
    assert code == 0 and "making it anew" in said and python.exists()

    moved = Home(tmp_path / "moved", home.environment["PYTHONPATH"])
    shutil.copytree(home.root / ".venv", moved.root / ".venv", symlinks=True)
    code, said = moved.lab("setup")
    assert code == 0 and "making it anew" in said
    assert moved.echo("x")[1]["prefix"] == str(moved.root / ".venv")


def test_a_folder_that_is_no_environment_is_left_alone(home, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    code, said = home.lab("setup", FMLAB_VENV=str(tmp_path))
    assert code == 1 and str(tmp_path) in said and "no virtual environment" in said
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_old_python_can_read_lab_and_is_told_what_to_do():
    source = LAB.read_text("utf-8")
    ast.parse(source, feature_version=(3, 6))
    for version in ("(3, 9, 1)", "(3, 10, 20)"):
        program = f"import sys; sys.version_info = {version}; exec(open(sys.argv[1]).read())"
        done = subprocess.run([sys.executable, "-c", program, str(LAB)], capture_output=True, text=True)
        assert done.returncode == 1 and "needs Python 3.11 or newer" in done.stderr and "Traceback" not in done.stderr


def test_lab_uses_the_standard_library_alone():
    nodes = list(ast.walk(ast.parse(LAB.read_text("utf-8"))))
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names
    done = subprocess.run([sys.executable, str(LAB), "--help"], capture_output=True, text=True, check=True)
    assert "python3 lab.py test" in done.stdout


# Files that must agree


def test_the_conda_environment_agrees_with_pyproject():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))["dependencies"]
    *packages, section = conda
    assert section == {"pip": ["-e .[all]"]}
    found = {each.name: str(each.specifier) for each in map(Requirement, packages)}
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["lab"]]
    renamed = {"torch": "pytorch-cpu"}
    expected = {renamed.get(each.name, each.name): str(each.specifier) for each in map(Requirement, wanted)}
    assert found.pop("python") == PROJECT["requires-python"]
    assert found.pop("pip")
    assert found == expected


def test_every_extra_is_in_all():
    extras = PROJECT["optional-dependencies"]
    (everything,) = map(Requirement, extras["all"])
    assert everything.name == "fmlab" and everything.extras == set(extras) - {"all"}


def test_ci_runs_the_test_command_of_the_readme():
    readme = (ROOT / "README.md").read_text("utf-8")
    (command,) = set(re.findall(r"^python3 lab\.py test$", readme, flags=re.MULTILINE))
    ci = ROOT / ".ci" / "run"
    assert command in ci.read_text("utf-8").splitlines()
    assert os.access(ci, os.X_OK)
    subprocess.run(["bash", "-n", str(ci)], check=True)


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == fm.__version__
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text("utf-8")


# The package


def python(source, **environment):
    strange = ("COV", "FMLAB_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-c", textwrap.dedent(source)]
    return subprocess.run(
        command, env=clean | {"PYTHONPATH": path} | environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_import_is_quick_and_loads_nothing_heavy():
    program = """
        import sys, time
        begun = time.perf_counter()
        import fmlab
        seconds = time.perf_counter() - begun
        heavy = {"torch", "numpy", "pandas", "transformers", "plotly", "typer", "ipywidgets"} & set(sys.modules)
        print(seconds, sorted(heavy), "sweep" in dir(fmlab))
    """
    runs = [python(program).partition(" ") for _ in range(3)]
    assert min(float(seconds) for seconds, _, _ in runs) < 0.3
    assert {rest for _, _, rest in runs} == {"[] True"}


def test_every_public_name_is_there():
    names = [name for name in dir(fm) if not name.startswith("__")]
    assert set("Policy View BudgetError Trace load tiny finite record replay sweep explore datafile".split()) < set(
        names
    )
    assert set("policies core live trace metrics tasks figures widgets models".split()) < set(names)
    missing = [name for name in names if getattr(fm, name, None) is None]
    assert missing == []
    with pytest.raises(AttributeError, match="has no attribute 'polices'"):
        _ = fm.polices


@pytest.mark.parametrize(
    "imports",
    [
        "import fmlab.sweep",
        "from fmlab.sweep import sweep",
        "import fmlab as fm; fm.sweep; import fmlab.sweep",
        "import importlib, fmlab; importlib.import_module('fmlab.sweep')",
        "import fmlab.sweep as taken; assert taken.__name__ == 'sweep'",
    ],
)
def test_sweep_stays_the_function(imports):
    told = python(f"{imports}\nimport fmlab\nprint(type(fmlab.sweep).__name__, fmlab.sweep.__name__)")
    assert told == "function sweep"


def test_datafile_is_found_in_a_checkout_and_in_a_wheel(tmp_path, monkeypatch):
    package = tmp_path / "fmlab"
    monkeypatch.setattr(fm, "__file__", str(package / "__init__.py"))
    for folder in (package / "data", tmp_path / "data"):  # the checkout's, made last, comes first
        folder.mkdir(parents=True)
        (folder / "x.csv").write_text("1")
        assert fm.datafile("x.csv") == folder / "x.csv"
    with pytest.raises(FileNotFoundError, match=re.escape(f"'y.csv': looked for {tmp_path / 'data' / 'y.csv'}")):
        fm.datafile("y.csv")


# The command line


def run_cli(*words):
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    return caught.value.code or 0


def test_fetch_prints_the_folder(monkeypatch, capsys, tmp_path):
    asked = []
    monkeypatch.setattr("fmlab.weights.fetch", lambda name: asked.append(name) or tmp_path)
    assert run_cli("fetch") == 0 and run_cli("fetch", "owner/name") == 0
    assert asked == ["smollm2-135m", "owner/name"]
    assert capsys.readouterr().out == f"{tmp_path}\n" * 2


@pytest.mark.parametrize(
    "error", [ValueError("budget 3 < 4"), FileNotFoundError("no x.txt"), ImportError("pip install y")]
)
def test_an_expected_error_is_one_line(monkeypatch, capsys, error):
    def raises(name):
        raise error

    monkeypatch.setattr("fmlab.weights.fetch", raises)
    monkeypatch.delenv("FMLAB_TRACEBACK", raising=False)
    assert run_cli("fetch") == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"fmlab: {error}\n") and "Traceback" not in said.err and said.out == ""
    with pytest.raises(type(error)):
        cli.main(["fetch", "--traceback"])
    monkeypatch.setenv("FMLAB_TRACEBACK", "1")
    with pytest.raises(type(error)):
        cli.main(["fetch"])


def test_an_unknown_error_is_not_swallowed(monkeypatch):
    def raises(name):
        raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setattr("fmlab.weights.fetch", raises)
    with pytest.raises(ZeroDivisionError):
        cli.main(["fetch"])


def test_version_help_and_wrong_words(monkeypatch, capsys):
    assert run_cli("--version") == 0
    assert capsys.readouterr().out == f"fmlab {fm.__version__}\n"
    monkeypatch.setattr(sys, "argv", ["fmlab", "--help"])
    with pytest.raises(SystemExit):
        runpy.run_module("fmlab", run_name="__main__")
    assert "fetch" in capsys.readouterr().out
    assert run_cli("fech") == 2
    assert "fech" in capsys.readouterr().err


def test_help_is_quick():
    program = """
        import sys
        from fmlab import cli
        try:
            cli.main(["--help"])
        except SystemExit:
            print({"torch", "transformers", "pandas", "plotly"} & set(sys.modules))
    """
    assert python(program).endswith("set()")
