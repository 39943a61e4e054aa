"""Where a number comes from: commit, whether the checkout is dirty, versions, device."""

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import fmlab


@dataclass(frozen=True)
class Provenance:
    """The state of the code that measures."""

    commit: str
    """The commit of the checkout that fmlab runs from, or 'no checkout'."""
    dirty: bool
    """Whether the checkout differs from that commit, notebooks apart, since Jupyter writes to them while they run."""
    changes: str
    """A hash of that difference, the package's new files included; '' where there is none."""
    versions: str
    """Versions of python, torch, transformers and fmlab."""

    @property
    def columns(self) -> dict[str, str | bool]:
        """What of it stands in a table."""
        return {"commit": self.commit, "dirty": self.dirty, "versions": self.versions}


def provenance() -> Provenance:
    """The state of the code at this moment. Raises OSError where git cannot tell it."""
    packages = " ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    versions = f"python {platform.python_version()} {packages} fmlab {fmlab.__version__}"
    root = Path(fmlab.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return Provenance("no checkout", False, "", versions)
    head = _git(root, "rev-parse", "--verify", "--quiet", "HEAD", may_fail=True).decode().strip()
    base = head or _git(root, "hash-object", "-t", "tree", os.devnull).decode().strip()
    difference = _git(root, "diff", "--binary", "--no-ext-diff", "--no-textconv", base, "--", ".", ":(exclude)*.ipynb")
    unknown = _git(root, "ls-files", "--others", "--exclude-standard", "-z", "--", "fmlab", "data").decode()
    for name in filter(None, unknown.split("\0")):
        difference += f"\n{name}\n".encode() + (root / name).read_bytes()
    changes = sha256(difference).hexdigest() if difference else ""
    return Provenance(head or "no commit", bool(difference), changes, versions)


def device() -> str:
    """The device that this process computes on: what torch has in use, if torch is loaded at all."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return torch.cuda.get_device_name()
    if torch is not None and torch.backends.mps.is_available() and torch.mps.current_allocated_memory():
        return "mps"
    return f"cpu ({platform.machine()}, {os.cpu_count()} cores)"


def _git(root: Path, *words: str, may_fail: bool = False) -> bytes:
    command = ["git", "--no-optional-locks", "-C", str(root), *words]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{root} is a git checkout, but there is no git to name its commit; install git"
        ) from error
    if done.returncode and not may_fail:
        raise OSError(f"{' '.join(command)} failed, so no row can name its commit: {done.stderr.decode().strip()}")
    return done.stdout
