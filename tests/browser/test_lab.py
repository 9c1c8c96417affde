"""The lab as a person meets it: in JupyterLab and Chromium, by keyboard, without a network."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import papermill
import pytest

QUIET = 350  # ms without a change of the charts, after which they count as drawn
CHANGE = 30  # seconds that a chart is waited for which has to change
SLOW = 120_000  # ms that a run may take which compiles first, on a loaded machine

IMPORTS = "import isolab\nfrom isolab import RunConfig"
REFERENCE = "lab = isolab.Lab()\nlab"
# Small enough to train in seconds; its curve has 60 points, and every multiple of 100 steps from
# 2,000 on has the same program.
SMALL = """small = RunConfig(
    width=16, base_width=16, depth=1, head_size=8, context=16, mlp_ratio=2, batch_size=4,
    steps=6000, warmup_steps=600, evaluate_every=100, learning_rate=2**-6, corpus="words.txt",
)"""
TINY = f"{SMALL}\ntiny = isolab.Lab(config=small)\ntiny"
FREE = 'print("the kernel is free; training:", tiny.running)'
WILD = f"""import dataclasses
{SMALL}
wild = isolab.Lab(config=dataclasses.replace(small, steps=2000, learning_rate=2.0**9))
wild.train()
wild.join(120)
wild"""

WATCH = """root => {
    const seen = {begun: null, change: null, log: []};
    root.seen = seen;
    const begin = () => { seen.begun = performance.now(); seen.change = null; seen.log = []; };
    document.addEventListener('keydown', begin, true);
    document.addEventListener('pointerdown', begin, true);
    const curve = root.querySelector('.isolab-lab-curve');
    const note = () => {
        seen.change = performance.now();
        const drawn = curve.querySelector('[aria-roledescription=visualization]');
        if (!drawn || !drawn.querySelector('svg')) return;
        const points = drawn.querySelectorAll('.mark-symbol path').length;
        seen.log.push([seen.change - seen.begun, drawn.getAttribute('aria-label'), points]);
    };
    for (const chart of root.querySelectorAll('.isolab-lab-curve, .isolab-lab-summary'))
        new MutationObserver(note).observe(chart, {childList: true, subtree: true});
}"""
SETTLED = "([root, quiet]) => root.seen.change && performance.now() - root.seen.change > quiet"
# A picture that was just replaced has no size until it is decoded.
SIZED = """lab => {
    const pictures = [...lab.querySelectorAll('.isolab-lab-curve img, .isolab-lab-summary img')];
    return pictures.length === 2
        && pictures.every(each => each.clientWidth > 300 && each.clientHeight > 300);
}"""
FOCUSED = """() => {
    const now = document.activeElement;
    const label = now.labels && now.labels[0] ? now.labels[0].textContent : now.textContent;
    return (now.getAttribute('aria-label') || label).trim();
}"""
FILTER = "drawn => getComputedStyle(drawn).filter"
# Everything of a picture but the numbers that differ each time it is drawn.
PICTURE = "drawn => drawn.outerHTML.replace(/clip\\d+/g, '')"


class Shown:
    """A lab in a page."""

    def __init__(self, book: Any, cell: int) -> None:
        self.book, self.page = book, book.page
        self.root = book.cell(cell).locator(".isolab-lab")
        self.root.locator(".isolab-lab-summary svg.marks").wait_for(timeout=SLOW)
        self.root.locator(".isolab-lab-curve svg.marks").wait_for()
        self.handle = self.root.element_handle()
        self.root.evaluate(WATCH)
        self.status = self.root.get_by_role("status")
        self.runs = self.root.locator(".isolab-lab-runs")
        self.messages = self.root.locator("[class*=isolab-lab-control] [role=alert]")

    def chart(self, name: str) -> Any:
        return self.root.locator(f".isolab-lab-{name}")

    def pictures(self) -> dict[str, str]:
        names = ("curve", "summary")
        return {name: self.chart(name).locator("svg.marks").evaluate(PICTURE) for name in names}

    def eventually(self, holds: Callable[[dict[str, str]], bool]) -> None:
        """Waits until the pictures are as they should be."""
        until = time.monotonic() + CHANGE
        while not holds(self.pictures()):
            assert time.monotonic() < until, f"the charts are not so after {CHANGE} s"
            self.page.wait_for_timeout(50)

    def described(self, name: str) -> str:
        """Returns what a screen reader says of a chart."""
        drawn = self.chart(name).locator("[role=graphics-document]")
        return drawn.get_attribute("aria-label")

    def control(self, field: str) -> Any:
        return self.root.locator(f".isolab-lab-control-{field}")

    def button(self, name: str) -> Any:
        return self.root.get_by_role("button", name=name, exact=True)

    def settle(self) -> None:
        """Waits until the charts have changed since the last key, and then stay as they are."""
        self.page.wait_for_function(SETTLED, arg=[self.handle, QUIET], timeout=20_000)

    def press(self, key: str) -> float:
        """Presses a key, and returns after how many ms the charts had their last change."""
        self.page.keyboard.press(key)
        self.settle()
        return self.root.evaluate("root => root.seen.change - root.seen.begun")

    def move(self, field: str, keys: list[str], record_property: Any) -> None:
        """Moves a control by keys; each has to change the curve, which names the setting."""
        self.control(field).locator(".noUi-handle, select").focus()
        for key in keys:
            before = self.pictures()["curve"]
            record_property(f"move {field}", self.press(key))
            self.eventually(lambda now, before=before: now["curve"] != before)

    def drag(self, field: str, pixels: float) -> None:
        """Drags a slider's handle to the right by mouse."""
        at = self.control(field).locator(".noUi-handle").bounding_box()
        x, y = at["x"] + at["width"] / 2, at["y"] + at["height"] / 2
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + pixels, y, steps=8)
        self.page.mouse.up()
        self.settle()

    def log(self) -> list[tuple[float, str, int]]:
        """Returns what the curve has shown since the last key: ms, description, points."""
        return [tuple(each) for each in self.root.evaluate("root => root.seen.log")]

    def wait(self, text: str) -> None:
        """Waits for a text in the list of runs, and for the charts after it."""
        self.runs.get_by_text(text).first.wait_for(timeout=SLOW)
        expect(self.button("Stop")).to_be_disabled()
        self.settle()

    def fill(self, field: str, text: str) -> None:
        box = self.control(field).locator("input")
        box.fill(text)
        box.press("Tab")

    def open(self, name: str) -> None:
        """Opens a part of the lab by keyboard."""
        header = self.root.get_by_role("button", name=name)
        header.focus()
        self.page.keyboard.press("Enter")
        expect(header).to_have_attribute("aria-expanded", "true")


def write_words(server: Any) -> None:
    """Writes the corpus of the small runs."""
    (server.folder / "words.txt").write_text(Path(__file__).read_text() * 3)


@pytest.fixture(scope="module")
def book(server: Any, open_book: Any) -> Any:
    server.write("lab.ipynb", IMPORTS, REFERENCE, TINY, FREE)
    write_words(server)
    book = open_book("lab.ipynb")
    book.run_all()
    book.cell(3).get_by_text("the kernel is free").wait_for(timeout=SLOW)
    return book


@pytest.fixture
def lab(book: Any) -> Shown:
    """A new lab that draws the reference runs."""
    book.run(1)
    return Shown(book, 1)


@pytest.fixture
def tiny(book: Any) -> Any:
    """A new lab whose runs are small."""
    book.run(2)
    shown = Shown(book, 2)
    shown.root.scroll_into_view_if_needed()
    yield shown
    if shown.button("Stop").is_enabled():
        shown.button("Stop").click()
        shown.wait("stopped")


def expect(locator: Any) -> Any:
    from playwright.sync_api import expect

    return expect(locator)


def test_names_for_screen_readers_and_the_order_of_tab(lab: Shown) -> None:
    for name, value in (("width", "64"), ("learning rate", "0.0313")):
        slider = lab.root.get_by_role("slider", name=name, exact=True)
        expect(slider).to_have_attribute("aria-valuetext", value)
    assert "Asked for: Adam, width 64, 2^-5." in lab.described("curve")
    assert "Marked: learning rate 2^-5." in lab.described("summary")
    more = lab.root.get_by_role("button", name="More settings")
    expect(more).to_have_attribute("aria-expanded", "false")
    lab.root.get_by_role("slider", name="width", exact=True).focus()
    reached = []
    while len(reached) < 20 and "Watch it work" not in reached:
        reached.append(lab.page.evaluate(FOCUSED))
        lab.page.keyboard.press("Tab")
    front = ["width", "learning rate", "optimizer", "parameterization"]
    wanted = [*front, "More settings", "Train", "Watch it work"]
    assert [each for each in reached if each in wanted] == wanted
    lab.open("More settings")
    for name, role in (("steps", "spinbutton"), ("seed", "spinbutton"), ("corpus", "textbox")):
        expect(lab.root.get_by_role(role, name=name, exact=True)).to_have_count(1)


def test_keys_in_a_control_are_not_jupyterlabs(lab: Shown) -> None:
    cells = lab.page.locator(".jp-CodeCell").count()
    for control in (lab.button("Train"), lab.control("optimizer").locator("select")):
        control.focus()
        for key in "dd":  # in JupyterLab: delete the cell
            lab.page.keyboard.press(key)
        expect(control).to_be_focused()
    assert lab.page.locator(".jp-CodeCell").count() == cells


@pytest.mark.parametrize(
    ("field", "keys", "named"),
    [
        ("width", ["ArrowRight"] * 3, "width 112"),
        ("learning_rate", ["ArrowLeft"] * 4, "2^-7"),
        ("optimizer", ["ArrowDown"] * 3, "IsoAdam"),
        ("parameterization", ["ArrowDown"] * 2, "muP"),
    ],
)
def test_a_control_redraws_both_charts(
    lab: Shown, record_property: Any, field: str, keys: list[str], named: str
) -> None:
    before = lab.pictures()["summary"]
    lab.move(field, keys, record_property)
    lab.eventually(lambda now: now["summary"] != before)
    assert named in lab.described("curve")
    expect(lab.status).to_contain_text("tored")
    assert lab.chart("curve").locator("svg.marks").evaluate(FILTER) == "none"
    lab.book.shoot(f"light_{field}")


def test_train_draws_lists_and_removes_a_run(tiny: Shown, record_property: Any) -> None:
    expect(tiny.runs).to_contain_text("None yet")
    before = tiny.pictures()
    tiny.open("Watch it work")
    tiny.button("Train").focus()
    tiny.page.keyboard.press("Enter")
    expect(tiny.button("Train")).to_be_disabled()
    tiny.book.page.wait_for_function(
        "root => root.seen.log.some(([ms, text]) => /Run 1: training, loss/.test(text))",
        arg=tiny.handle, timeout=SLOW,
    )  # fmt: skip
    tiny.book.shoot("light_training")
    tiny.wait("1: Adam, width 16")
    expect(tiny.status).to_contain_text("Run 1: loss")
    training = [(text, n) for _, text, n in tiny.log() if "Run 1: training, loss" in text]
    steps = [int(re.findall(r"Run 1:.* at step (\d+)", text)[0]) for text, _ in training]
    assert steps[0] == 0 and steps == sorted(steps) and len(set(steps)) >= 3
    assert training[-1][1] > training[0][1]  # points
    inside = tiny.root.locator(".isolab-lab-inside")
    expect(inside.locator("svg.marks")).to_have_count(2)
    expect(inside).to_contain_text("before")
    inside.scroll_into_view_if_needed()
    tiny.book.shoot("light_inside")

    tiny.open("More settings")
    tiny.fill("seed", "7")
    tiny.button("Train").focus()
    tiny.page.keyboard.press("Space")
    tiny.wait("seed 7")
    tiny.book.shoot("light_two_runs")
    points_of_2 = [ms for ms, text, _ in tiny.log() if "Run 2: training, loss" in text]
    record_property("first point of a warm run", points_of_2[0])

    both = tiny.pictures()
    tiny.root.get_by_role("checkbox", name=re.compile("^1: Adam, width 16")).focus()
    tiny.press("Space")
    tiny.eventually(lambda now: now["curve"] != both["curve"])  # a hidden run is not drawn
    tiny.press("Space")
    tiny.eventually(lambda now: now == both)
    for left in (1, 0):
        removing = tiny.runs.get_by_role("button", name=re.compile("^Remove run [12]"))
        removing.first.focus()
        tiny.press("Enter")
        expect(removing).to_have_count(left)
    assert "Run 1" not in tiny.chart("curve").inner_html()
    tiny.eventually(lambda now: now["curve"] != before["curve"])  # the runs were stored


def test_the_kernel_is_free_while_it_trains_and_stop_stops(tiny: Shown) -> None:
    tiny.open("More settings")
    tiny.fill("steps", "1000000")
    tiny.button("Train").click()
    expect(tiny.button("Stop")).to_be_enabled()
    tiny.book.run(3)
    output = tiny.book.cell(3).locator(".jp-OutputArea-output")
    expect(output).to_have_text("the kernel is free; training: True")
    tiny.root.get_by_text(re.compile(r"step \d+00 of 1000000")).wait_for(timeout=SLOW)
    tiny.button("Stop").focus()
    tiny.page.keyboard.press("Enter")
    tiny.wait("stopped, loss")
    expect(tiny.root.get_by_text("not stored").first).to_be_visible()
    tiny.book.shoot("light_stopped")


def test_a_refusal_stands_at_its_control(tiny: Shown) -> None:
    tiny.open("More settings")
    before = tiny.pictures()
    tiny.fill("steps", "-5")
    alert = tiny.control("steps").get_by_role("alert")
    expect(alert).to_contain_text("steps is -5")
    expect(alert).to_be_visible()
    expect(tiny.button("Train")).to_be_disabled()
    expect(tiny.messages).to_have_count(1)
    assert tiny.pictures() == before
    tiny.book.shoot("light_refused")
    tiny.fill("steps", "2000")
    expect(tiny.messages).to_have_count(0)


def test_chapter_3_and_a_diverged_run_in_a_dark_theme(
    server: Any, open_book: Any, record_property: Any
) -> None:
    write_words(server)
    server.write("dark.ipynb", IMPORTS, 'isolab.Lab("epsilon")', WILD)
    book = open_book("dark.ipynb", theme="Dark")
    expect(book.page.locator("body")).to_have_attribute("data-jp-theme-name", "JupyterLab Dark")
    book.run_all()
    wild = Shown(book, 2)
    lab = Shown(book, 1)
    book.idle()
    for field in ("eps", "loss_scale"):
        lab.move(field, ["ArrowLeft"] * 2, record_property)
    assert "invert" in lab.chart("curve").locator("svg.marks").evaluate(FILTER)
    book.shoot("dark_epsilon")
    assert "Run 1: diverged, diverged." in wild.described("curve")
    expect(wild.chart("curve").get_by_text("1 diverged")).to_be_visible()
    expect(wild.runs).to_contain_text("diverged")
    wild.runs.scroll_into_view_if_needed()
    book.shoot("dark_diverged")


def test_the_labs_of_chapters_1_and_2_follow_the_mouse(server: Any, open_book: Any) -> None:
    moves = {"speedup": ("learning_rate", "rate 2^"), "transfer": ("width", "width ")}
    server.write("chapters.ipynb", IMPORTS, *(f'isolab.Lab("{name}")' for name in moves))
    book = open_book("chapters.ipynb")
    book.run_all()
    for cell, (question, (field, words)) in enumerate(moves.items(), 1):
        lab = Shown(book, cell)
        book.idle()
        before = lab.pictures()
        lab.drag(field, 60)
        lab.eventually(lambda now, old=before: all(now[name] != old[name] for name in old))
        expect(lab.status).to_contain_text(words)
        lab.runs.scroll_into_view_if_needed()
        book.shoot(f"light_{question}")


def test_what_papermill_leaves_opens_as_a_picture(
    server: Any, open_book: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOLAB_RUNS", str(server.home / "ISOLAB_RUNS"))
    server.write("left.ipynb", IMPORTS, REFERENCE)
    path = server.folder / "left.ipynb"
    papermill.execute_notebook(path, path, progress_bar=False)
    book = open_book("left.ipynb")
    picture = book.cell(1).locator(".jp-OutputArea-output img")
    expect(picture).to_be_visible()
    assert picture.bounding_box()["width"] > 700
    expect(book.page.locator(".isolab-lab")).to_have_count(0)
    book.shoot("light_left_by_papermill")


def test_a_front_end_that_draws_no_vega_shows_pictures(server: Any, open_book: Any) -> None:
    server.write("pictures.ipynb", IMPORTS, REFERENCE)
    page = "JUPYTER_CONFIG_DIR/labconfig/page_config.json"
    server.configure(page, {"disabledExtensions": {"@jupyterlab/vega5-extension": True}})
    try:
        book = open_book("pictures.ipynb")
    finally:
        server.configure(page, {})
    book.run_all()
    lab = book.cell(1).locator(".isolab-lab")
    pictures = lab.locator(".isolab-lab-curve img, .isolab-lab-summary img")
    expect(pictures).to_have_count(2)
    book.idle()
    handle = lab.get_by_role("slider", name="learning rate", exact=True)
    for moved in ("2^-5.5", "2^-6"):
        before = pictures.first.get_attribute("src")
        handle.focus()
        book.page.keyboard.press("ArrowLeft")
        expect(lab.get_by_text(f"{moved} =")).to_be_visible()
        expect(pictures.first).not_to_have_attribute("src", before)
        book.page.wait_for_function(SIZED, arg=lab.element_handle())
    book.shoot("light_pictures")


def test_nothing_was_asked_of_another_machine(lab: Shown, browser: Any) -> None:
    assert len(browser.requests) > 50
    assert browser.foreign == []
    assert browser.errors == []
