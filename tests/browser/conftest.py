"""A real JupyterLab and a real Chromium, offline, for the tests in this folder.

One server and one browser serve a whole file.  Everything lives in temporary folders, waits end,
and what was started is killed at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nbformat
import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "build" / "browser"
NAMES = ("chromium", "chromium-browser", "google-chrome")
WAIT = 30_000  # ms that the browser is waited for, where nothing else is said
START = 180  # seconds that JupyterLab may take to start, or a notebook to open
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",  # no network, whatever is asked
]  # fmt: skip

OWN_FOLDERS = (
    "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR",
    "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR", "ISOLAB_RUNS", "ISOLAB_PROGRAMS",
)  # fmt: skip
APPUTILS = "JUPYTERLAB_SETTINGS_DIR/@jupyterlab/apputils-extension/{}.jupyterlab-settings"
HAS_RUN = """([cell, before]) => {
    const now = cell.querySelector('.jp-InputArea-prompt').innerText;
    return /\\d/.test(now) && now !== before;
}"""


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints how long it took until a chart was drawn; nothing fails for it."""
    times: dict[str, list[float]] = {}
    for report in terminalreporter.getreports("passed"):
        for what, ms in report.user_properties if report.when == "call" else ():
            times.setdefault(what, []).append(ms)
    if times:
        terminalreporter.section("ms in the browser, from the key to the charts' last change")
    for what, found in times.items():
        middle = statistics.median(found)
        terminalreporter.line(f"{what}: {len(found)}x, median {middle:.0f}, most {max(found):.0f}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Keeps what the last page showed when a test failed."""
    report = yield
    browser = getattr(item, "funcargs", {}).get("browser")
    if report.when == "call" and report.failed and browser and browser.context.pages:
        OUT.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"\W+", "_", item.name)
        with contextlib.suppress(Exception):  # the browser may be what failed
            browser.context.pages[-1].screenshot(path=OUT / f"failed_{name}.png", timeout=5000)
    return report


@dataclass
class Server:
    """A running JupyterLab."""

    folder: Path
    home: Path
    address: str
    token: str

    def write(self, name: str, *cells: str) -> None:
        """Writes a notebook of code cells."""
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(book, self.folder / name)

    def configure(self, path: str, values: dict[str, Any]) -> None:
        """Writes a file of settings for pages that are opened from now on."""
        file = self.home / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))

    def url(self, name: str) -> str:
        """Returns the address at which a notebook is opened."""
        return f"{self.address}/lab/tree/{name}?reset&token={self.token}"


@pytest.fixture(scope="module")
def server(executable: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """This environment's own JupyterLab, with settings, kernels' folders and runs of its own."""
    folder, home = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("home")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = Server(folder, home, f"http://127.0.0.1:{port}", secrets.token_hex(16))
    made.configure(
        APPUTILS.format("notification"), {"fetchNews": "false", "checkForUpdates": False}
    )
    paths = {name: str(home / name) for name in OWN_FOLDERS}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += ["--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0"]
    command += [f"--IdentityProvider.token={made.token}", f"--ServerApp.root_dir={folder}"]
    command += ["--LabApp.extension_manager=readonly"]
    with open(home / "lab.log", "w") as log:
        process = subprocess.Popen(
            command, env={**os.environ, **paths, "HF_HUB_OFFLINE": "1"}, stdin=subprocess.DEVNULL,
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    ready = f"{made.address}/api/status?token={made.token}"
    try:
        until = time.monotonic() + START
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(ready, timeout=2):
                break
            if process.poll() is not None or time.monotonic() > until:
                pytest.fail(f"JupyterLab did not start:\n{(home / 'lab.log').read_text()}")
            time.sleep(0.1)
        yield made
    finally:
        kernels = psutil.Process(process.pid).children(recursive=True)
        process.terminate()  # it ends its kernels itself
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
        for each in (*kernels, process):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait(5)


@dataclass
class Browser:
    """A browser context that notes every address it was asked for."""

    context: Any
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def open(self) -> Any:
        """Returns a new page."""
        page = self.context.new_page()
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("websocket", lambda socket: self.requests.append(socket.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        return page

    @property
    def foreign(self) -> list[str]:
        """Addresses on another machine."""
        parts = {url: urlsplit(url) for url in self.requests}
        local = ("data", "blob", "about")
        return [u for u, p in parts.items() if p.scheme not in local and p.hostname != "127.0.0.1"]


@pytest.fixture(scope="module")
def executable() -> str:
    """The browser; the tests are skipped where there is none."""
    pytest.importorskip("playwright", reason="playwright is not installed: isolab's extra 'test'")
    asked = os.environ.get("ISOLAB_BROWSER")
    path = next(filter(None, map(shutil.which, [asked] if asked else NAMES)), None)
    if path is None and asked:  # who names a browser wants it tested
        pytest.fail(f"$ISOLAB_BROWSER is {asked!r}, which is no program")
    if path is None:
        pytest.skip(f"no browser: none of {list(NAMES)} is on the PATH; or set $ISOLAB_BROWSER")
    return path


@pytest.fixture(scope="module")
def browser(executable: str) -> Iterator[Browser]:
    """A running Chromium."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=WAIT)  # its own 5 s are few on a loaded machine
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=executable, args=FLAGS, timeout=START * 1000
        )
        context = running.new_context(viewport={"width": 1280, "height": 1100})
        context.set_default_timeout(WAIT)
        yield Browser(context)
        running.close()


@dataclass
class Book:
    """A notebook that is open in a page."""

    page: Any

    def run_all(self) -> None:
        """Runs all cells by the menu."""
        for name in ("Run", "Run All Cells"):
            self.page.get_by_role("menuitem", name=name, exact=True).click()

    def idle(self) -> None:
        """Waits until the kernel has nothing to do."""
        # Not the toolbar's indicator: it says idle before there is a kernel to run anything.
        idle = self.page.locator("#jp-main-statusbar").get_by_text(re.compile(r"\| Idle"))
        idle.wait_for(timeout=START * 1000)

    def cell(self, number: int) -> Any:
        """Returns a code cell, from 0."""
        return self.page.locator(".jp-CodeCell").nth(number)

    def run(self, number: int) -> None:
        """Runs one cell from its prompt, and waits until it has run."""
        cell = self.cell(number)
        prompt = cell.locator(".jp-InputArea-prompt")
        before = prompt.inner_text()
        # a click elsewhere leaves the keyboard with the control that has it
        self.page.evaluate("document.activeElement.blur()")
        prompt.click()
        self.page.keyboard.press("Control+Enter")
        arguments = [cell.element_handle(), before]
        self.page.wait_for_function(HAS_RUN, arg=arguments, timeout=START * 1000)

    def shoot(self, name: str) -> None:
        """Keeps a screenshot as build/browser/NAME.png."""
        OUT.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=OUT / f"{name}.png")


@pytest.fixture(scope="module")
def open_book(server: Server, browser: Browser) -> Iterator[Any]:
    """Opens a notebook of the server's folder and waits until its kernel is there."""
    pages = []

    def open_named(name: str, theme: str = "Light") -> Book:
        server.configure(APPUTILS.format("themes"), {"theme": f"JupyterLab {theme}"})
        page = browser.open()
        pages.append(page)
        page.goto(server.url(name), timeout=START * 1000)
        page.locator(".jp-Notebook").wait_for(timeout=START * 1000)
        book = Book(page)
        book.idle()
        page.keyboard.press("Control+b")  # the file browser makes room
        return book

    yield open_named
    for page in pages:
        page.close()
