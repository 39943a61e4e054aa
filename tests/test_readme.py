"""The README says of the house what the house says of itself."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PACKAGE = ROOT / "fmlab"
MODULES = {path.name: path for path in PACKAGE.glob("*.py") if path.name not in ("__init__.py", "__main__.py")} | {
    f"{path.parent.name}/": path for path in PACKAGE.glob("*/__init__.py")
}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_module_has_its_line(name):
    first = ast.get_docstring(ast.parse(MODULES[name].read_text(encoding="utf-8"))).split("\n")[0]
    assert f"| `{name}` | {first} |" in README


def test_no_line_without_a_module():
    assert sorted(re.findall(r"^\| `([\w]+(?:\.py|/))` \|", README, re.MULTILINE)) == sorted(MODULES)


def test_every_dependency_has_its_reason():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    names = {re.match(r"[\w-]+", requirement)[0] for requirement in wanted} - {"fmlab"}
    explained = set(re.findall(r"`([\w-]+)`", README[README.index("## What it stands on") :]))
    assert names <= explained, names - explained


def test_the_ten_line_policy_runs():
    import fmlab as fm

    code = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "fm.Policy" in block)
    names = {}
    exec(code, names)  # the reader's own cell
    policy = next(v for v in names.values() if isinstance(v, type) and issubclass(v, fm.Policy))()
    assert len(fm.contract.check(policy)) == len(fm.contract.CHECKS)


def test_every_figure_names_its_command():
    results = README[README.index("## First results") : README.index("## The house")]
    sections = [part for part in re.split(r"\n\n", results) if re.search(r"\d", part) and not part.startswith("#")]
    commands = re.findall(r"`(?:python3 lab\.py|python) ([\w/. -]+)`", results)
    assert sections and commands
    for command in commands:
        script = command.split()[0]
        assert (ROOT / script).exists() or script in ("compare", "fetch", "test"), command
