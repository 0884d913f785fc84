"""A real JupyterLab in a real browser: server, kernel and page, each stopped at the end, every wait bounded."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
WAIT = (
    float(os.environ.get("PIPELAB_BROWSER_WAIT", "60")) * 1000
)  # a busy machine is slow; a hang is still bounded

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]

SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # else cells off the screen are not in the page
    "apputils-extension/notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    "docmanager-extension/plugin": {"autosave": False},
}

READY = """() => { const c = window.jupyterapp?.shell?.currentWidget?.sessionContext;
  return !!c && c.isReady && c.session?.kernel?.connectionStatus === 'connected'
    && c.session.kernel.status === 'idle' }"""
ALL_RUN = r"""n => { const p = [...document.querySelectorAll('.jp-Notebook .jp-InputPrompt')]
    .map(e => e.innerText.trim()).filter(Boolean);
  return p.length >= n && p.every(t => /^\[\d+\]:?$/.test(t)) }"""
SETTLED = """([selector, old]) => { const i = document.querySelector(selector);
  return i && i.src !== old && i.complete && i.naturalWidth > 0 }"""


@dataclass(frozen=True)
class Server:
    """A running JupyterLab.

    Attributes:
        url: where it listens, on this machine only.
        token: the key to it.
        root: the folder of its notebooks.
    """

    url: str
    token: str
    root: Path


@contextlib.contextmanager
def jupyterlab(folder: Path) -> Iterator[Server]:
    """Start a JupyterLab with folders of its own; stop it, and its kernels, at the end."""
    root, token = folder / "root", secrets.token_hex(16)
    root.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Server(f"http://127.0.0.1:{port}", token, root)
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--port={port}",
    ]
    command += [
        "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={root}",
    ]
    command += ["--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly"]
    with (folder / "lab.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            env=_environment(folder),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        try:
            _await_server(process, server, folder / "lab.log")
            yield server
        finally:
            process.terminate()  # the server shuts its kernels down
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _environment(folder: Path) -> dict[str, str]:
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("JUPYTER", "IPYTHON", "MPL"))
    }
    names = "JUPYTER_CONFIG_DIR JUPYTER_DATA_DIR JUPYTER_RUNTIME_DIR JUPYTERLAB_SETTINGS_DIR"
    for name in [*names.split(), "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR", "MPLCONFIGDIR"]:
        (folder / name.lower()).mkdir()
        env[name] = str(folder / name.lower())
    for name, value in SETTINGS.items():
        path = folder / "jupyterlab_settings_dir" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
    return env


def _end_with_parent() -> None:
    with contextlib.suppress(OSError):  # Linux: the server ends when pytest itself is killed
        ctypes.CDLL("libc.so.6").prctl(1, signal.SIGTERM)


def _await_server(process: subprocess.Popen[bytes], server: Server, log: Path) -> None:
    end = time.monotonic() + WAIT / 1000
    while True:
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError("JupyterLab did not start:\n" + log.read_text()[-3000:])
        try:
            urllib.request.urlopen(f"{server.url}/api/status?token={server.token}", timeout=2).close()
            return
        except OSError:
            time.sleep(0.1)


class Notebook:
    """A notebook open in a page, its cells run.

    Attributes:
        page: Playwright's page.
        server, name: where its file is.
        errors: what the page's scripts raised.
        foreign: addresses other than the server's that the page asked for; none was answered.
    """

    def __init__(self, browser: Any, server: Server, name: str, cells: list[str]) -> None:
        import nbformat

        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, server.root / f"{name}.ipynb")
        self.errors: list[str] = []
        self.foreign: list[str] = []
        self.server, self.name = server, name
        self.page = browser.new_page(viewport={"width": 1280, "height": 1000})
        self.page.set_default_timeout(WAIT)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.route(lambda url: not url.startswith(("data:", "blob:")), self._only_from(server.url))
        self._goto()
        self.run_all(len(cells))

    def _goto(self) -> None:
        where = f"{self.server.url}/lab/workspaces/{secrets.token_hex(4)}/tree/{self.name}.ipynb"
        self.page.goto(f"{where}?reset&token={self.server.token}")
        self.page.wait_for_function(READY)

    def run_all(self, cells: int) -> None:
        """Run every cell and wait for the last of so many."""
        # Not awaited: a promise that never settles would hang evaluate(), which has no limit.
        self.page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")
        self.page.wait_for_function(ALL_RUN, arg=cells)

    @property
    def path(self) -> Path:
        """The notebook's file."""
        return self.server.root / f"{self.name}.ipynb"

    def save(self) -> bytes:
        """Save the notebook and return its file."""
        script = """limit => Promise.race([window.jupyterapp.shell.currentWidget.context.save(),
            new Promise((_, fail) => setTimeout(() => fail(new Error('not saved')), limit))])"""
        self.page.evaluate(script, WAIT)
        return self.path.read_bytes()

    def reopen(self) -> None:
        """Open the saved notebook anew, as after a night: its kernel has gone, nothing is run."""
        self.page.evaluate("() => { window.jupyterapp.shell.currentWidget.sessionContext.shutdown() }")
        self.page.wait_for_timeout(500)
        self._goto()

    def use_theme(self, name: str) -> None:
        """Switch JupyterLab to a theme, such as "JupyterLab Dark"."""
        self.page.evaluate(
            "theme => { window.jupyterapp.commands.execute('apputils:change-theme', {theme}) }", name
        )
        light = "false" if "Dark" in name else "true"
        self.page.wait_for_function("light => document.body.dataset.jpThemeLight === light", arg=light)

    def _only_from(self, url: str) -> Callable[[Any], None]:
        def route(request: Any) -> None:
            if request.request.url.startswith(url):
                request.continue_()
            else:
                self.foreign.append(request.request.url)
                request.abort()

        return route

    def output_errors(self) -> str:
        """What cells wrote as an error."""
        kinds = ("application/vnd.jupyter.error", "application/vnd.jupyter.stderr")
        where = ", ".join(f".jp-OutputArea-output[data-mime-type='{kind}']" for kind in kinds)
        return "\n".join(self.page.locator(where).all_inner_texts())

    def picture(self, selector: str, old: str | None = None) -> str:
        """The source of a picture once it is loaded and is another than `old`."""
        self.page.wait_for_function(SETTLED, arg=[selector, old])
        return str(self.page.locator(selector).first.get_attribute("src"))

    def set_theme(self, name: str) -> None:
        """Change to "JupyterLab Dark" or "JupyterLab Light", as the menu does."""
        script = "name => { window.jupyterapp.commands.execute('apputils:change-theme', {theme: name}) }"
        self.page.evaluate(script, name)
        script = "name => document.body.dataset.jpThemeName === name && !document.querySelector('#jupyterlab-splash')"
        self.page.wait_for_function(script, arg=name)

    def run(self, code: str) -> str:
        """Run code in the notebook's kernel, as a cell would, and return what it prints."""
        script = """code => new Promise((done, fail) => {
            const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
            const future = kernel.requestExecute({code, store_history: false});
            let text = '';
            future.onIOPub = m => { if (m.header.msg_type === 'stream') text += m.content.text;
                                    if (m.header.msg_type === 'error') text += m.content.traceback.join('\\n'); };
            future.done.then(() => done(text), fail);
            setTimeout(() => fail(new Error('the kernel did not answer: ' + code)), LIMIT); })"""
        text: str = self.page.evaluate(script.replace("LIMIT", str(int(WAIT))), code)
        return re.sub(r"\x1b\[[0-9;]*m", "", text).strip()

    def close(self) -> None:
        """Shut the kernel down and close the page."""
        try:
            self.page.evaluate("() => { window.jupyterapp.shell.currentWidget.sessionContext.shutdown() }")
        finally:
            self.page.close()
