"""A real JupyterLab on 127.0.0.1 and a real Chromium: shared by the browser tests and the slider benchmark."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[2]
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip
START_SECONDS = 120
TOUR = "import fmlab as fm\nview = fm.explore()\nview"  # the Explorer on the shipped text


def chromium() -> str | None:
    """The browser: FMLAB_CHROMIUM, or the first one on the path."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return os.environ.get("FMLAB_CHROMIUM") or next((found for name in names if (found := shutil.which(name))), None)


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab: its address, its token and the folder it serves."""

    url: str
    token: str
    folder: Path

    def notebook(self, name: str, *cells: str) -> str:
        """Write a notebook of code cells into the folder and return its name."""
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(book, self.folder / name)
        return name

    def shipped(self, name: str, **parameters: object) -> str:
        """Copy a notebook of this repository into the folder, with a cell of parameters behind its own; its name."""
        book = nbformat.read(ROOT / "notebooks" / name, as_version=4)
        own = next(at for at, cell in enumerate(book.cells) if "parameters" in cell.metadata.get("tags", []))
        words = "\n".join(f"{parameter} = {value!r}" for parameter, value in parameters.items())
        book.cells.insert(own + 1, nbformat.v4.new_code_cell(words))
        nbformat.write(book, self.folder / name)
        return name


@contextlib.contextmanager
def lab(folder: Path) -> Iterator[Lab]:
    """Serve `folder/work` with settings of its own, and end the server and its kernels afterwards."""
    served, private = folder / "work", folder / "jupyter"
    served.mkdir(parents=True)
    settings = private / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    environment = {
        **os.environ,
        "JUPYTER_CONFIG_DIR": str(private),
        "JUPYTER_DATA_DIR": str(private / "data"),
        "JUPYTER_RUNTIME_DIR": str(private / "runtime"),
        "JUPYTERLAB_WORKSPACES_DIR": str(private / "workspaces"),
        "JUPYTERLAB_SETTINGS_DIR": str(private / "settings"),
        "IPYTHONDIR": str(private / "ipython"),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
        "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={served}",
        "--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly",
        "--ServerApp.terminals_enabled=False",
    ]  # fmt: skip
    url, log = f"http://127.0.0.1:{port}", private / "lab.log"
    with log.open("w") as out:
        server = subprocess.Popen(command, env=environment, cwd=served, stdout=out, stderr=out, start_new_session=True)
    try:
        _await_server(server, f"{url}/api/status?token={token}", log)
        yield Lab(url, token, served)
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # its own process group: the kernels go with it
        server.wait(30)


def _await_server(server: subprocess.Popen, address: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            urllib.request.urlopen(address, timeout=1).close()
            return
        except (urllib.error.URLError, TimeoutError):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-3000:]}") from None
            time.sleep(0.25)


@contextlib.contextmanager
def browser() -> Iterator:
    """A headless Chromium. Raises RuntimeError where there is none."""
    path = chromium()
    if path is None:
        raise RuntimeError("no Chromium: install one, or name it in FMLAB_CHROMIUM")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        try:
            yield running
        finally:
            running.close()


def open_notebook(lab: Lab, page, name: str) -> None:
    """Open a notebook in Lab and wait until its kernel is ready."""
    page.goto(f"{lab.url}/lab/tree/{name}?token={lab.token}&reset", wait_until="domcontentloaded")
    page.wait_for_function("window.jupyterapp && window.jupyterapp.restored.then(() => true)", timeout=90_000)
    page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Notebook").wait_for(timeout=60_000)
    page.wait_for_function(
        """async () => {
            const panel = window.jupyterapp.shell.currentWidget;
            if (!panel?.sessionContext) return false;
            await panel.sessionContext.ready;
            await panel.context.ready;
            return true;
        }""",
        timeout=90_000,
    )


def run_all(page, seconds: float = 180) -> None:
    """Run every cell; raises AssertionError with the text of any error a cell ended in."""
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    await_cells(page, seconds)


def await_cells(page, seconds: float = 180) -> None:
    """Wait until every code cell has run and the kernel is idle; an error in a cell is an AssertionError."""
    page.wait_for_function(
        """() => {
            const panel = window.jupyterapp.shell.currentWidget;
            const cells = [...panel.content.widgets].filter((cell) => cell.model.type === 'code');
            return cells.every((cell) => cell.model.executionCount)
                && panel.sessionContext.session.kernel.status === 'idle';
        }""",
        timeout=seconds * 1000,
    )
    errors = page.evaluate(
        """() => [...window.jupyterapp.shell.currentWidget.content.widgets]
            .filter((cell) => cell.model.type === 'code')
            .flatMap((cell) => cell.model.outputs.toJSON())
            .filter((output) => output.output_type === 'error')
            .map((output) => output.ename + ': ' + output.evalue)"""
    )
    assert not errors, errors


def execute(page, code: str) -> str:
    """Run code in the notebook's kernel, outside its cells, and return what it printed; errors are raised."""
    return page.evaluate(
        """async (code) => {
            const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
            const future = kernel.requestExecute({code, store_history: false});
            let printed = '', failure = null;
            future.onIOPub = (message) => {
                if (message.header.msg_type === 'stream') printed += message.content.text;
                if (message.header.msg_type === 'error') failure = message.content.traceback.join('\\n');
            };
            await future.done;
            if (failure) throw new Error(failure);
            return printed;
        }""",
        code,
    )


def start(page, code: str) -> None:
    """Let the notebook's kernel run code, and do not wait for it."""
    page.evaluate(
        """(code) => { window.jupyterapp.shell.currentWidget.sessionContext.session.kernel
            .requestExecute({code, store_history: false}); }""",
        code,
    )
