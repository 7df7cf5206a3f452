"""The tab and the report in a real Chromium. One browser and one TensorBoard serve all tests of this file."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from esdmon.cli import main
from esdmon.records.colours import PHASE_HEX
from esdmon.spectrum import Phase
from esdmon.webpage.codes import CHARACTERS
from tests.esdmon_tensorboard.server import tensorboard
from tests.webpage.made import HOSTILE, PHASES, a_layer, alert_at, made_reports, report_at, write

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt install chromium")

READY = "window.__esd && window.__esd.ready"
PIXEL = """([layer, step]) => {
  const canvas = document.querySelector('.esd-map canvas'), place = canvas.place(layer, step);
  const scale = canvas.width / canvas.clientWidth;
  const [x, y] = [place.x, place.y].map(value => Math.round(value * scale));
  const data = canvas.getContext('2d').getImageData(x, y, 1, 1).data;
  return '#' + [...data.slice(0, 3)].map(value => value.toString(16).padStart(2, '0')).join('');
}"""
COLOURS = {phase.value: colour for phase, colour in PHASE_HEX.items()}


@dataclass
class Opened:
    """A page that was opened, with what it logged and asked for."""

    page: Any
    frame: Any
    """The frame of the tab, or the page itself."""
    logged: list[str] = field(default_factory=list)
    requested: list[str] = field(default_factory=list)

    def click(self, layer: str, step: int) -> None:
        """Click on a cell of the map."""
        place = self.frame.evaluate("([layer, step]) => window.__esd.place(layer, step)", [layer, step])
        self.frame.locator(".esd-map canvas").first.click(position=place)

    def title(self) -> str:
        """Return what the spectrum is of."""
        return str(self.frame.locator(".esd-columns h2").first.text_content())

    def wait(self, condition: str) -> None:
        """Wait until an expression is true in the page."""
        self.frame.wait_for_function(condition, timeout=60_000)

    def choose(self, run: str) -> None:
        """Choose a run."""
        self.frame.select_option("select[aria-label=run]", run)
        self.wait(f"{READY} && window.__esd.run === {json.dumps(run)}")


@pytest.fixture(scope="module")
def logdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    write(folder / "faulty", made_reports(), [alert_at(80, "blocks.1.fc")])
    write(folder / "growing", made_reports()[:4])
    write(folder / "hostile", [report_at(10, {HOSTILE: PHASES["out"][0]})], [alert_at(10, HOSTILE)])
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


def watched(page: Any) -> Opened:
    opened = Opened(page, page)

    def note(message: Any) -> None:
        if message.type == "error":
            opened.logged.append(f"{message.text} {message.location.get('url', '')}")

    page.on("console", note)
    page.on("pageerror", lambda error: opened.logged.append(str(error)))
    page.on("request", lambda request: opened.requested.append(request.url))
    return opened


@pytest.fixture(scope="module")
def tab(logdir: Path, browser: Any) -> Iterator[Opened]:
    """Open the tab."""
    with tensorboard(logdir, fast=True) as server:
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        opened = watched(page)
        page.goto(f"{server.url}#esdmon")
        entry = page.wait_for_selector("iframe", state="attached", timeout=60_000)
        opened.frame = entry.content_frame()
        opened.wait(f"{READY} && window.__esd.state.run !== null")
        yield opened
        assert opened.logged == []
        assert {url.split("/")[2] for url in opened.requested if url.startswith("http")} == {server.url.split("/")[2]}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a report of a faulty run and a hostile one."""
    folder = tmp_path_factory.mktemp("report")
    write(folder / "faulty", made_reports(), [alert_at(80, "blocks.1.fc")], events=False)
    write(folder / "hostile", [report_at(10, {HOSTILE: PHASES["out"][0]})], [alert_at(10, HOSTILE)], events=False)
    assert main(["report", str(folder / "faulty"), str(folder / "hostile"), "-o", str(folder / "report.html")]) == 0
    return folder / "report.html"


def open_file(browser: Any, path: Path, **options: Any) -> Opened:
    opened = watched(browser.new_context(offline=True, viewport={"width": 1300, "height": 1000}, **options).new_page())
    opened.page.goto(path.as_uri())
    return opened


def assert_cells_have_the_colours_of(opened: Opened, lines: Path) -> None:
    """Wait until each cell of the map has the colour of its phase in the JSONL."""
    phases: dict[str, str] = {}
    for line in map(json.loads, lines.read_text(encoding="utf-8").splitlines()):
        if line["kind"] == "layer":
            phases[line["name"]] = line.get("phase", phases.get(line["name"], ""))
            wanted = [[line["name"], line["step"]], COLOURS[phases[line["name"]]]]
            opened.frame.wait_for_function(
                f"([cell, colour]) => ({PIXEL})(cell) === colour", arg=wanted, timeout=20_000
            )


def test_the_first_screen_says_what_is_wrong(tab: Opened) -> None:
    """Which layer, since which step, and what to do."""
    tab.choose("faulty")
    text = tab.frame.locator(".esd-now").inner_text()
    assert "1 problem now, at step 100" in text
    assert "blocks.1.fc: rank collapse since step 70" in text
    assert "Lower the weight decay." in text
    assert tab.title() == "Spectrum of blocks.1.fc at step 80: rank-collapse"


def test_the_cells_of_the_map_are_the_phases_of_the_jsonl(tab: Opened, logdir: Path) -> None:
    """By the colour of the pixels that are drawn."""
    tab.choose("faulty")
    assert_cells_have_the_colours_of(tab, logdir / "faulty" / "esdmon.jsonl")


def test_a_click_shows_the_spectrum_of_this_layer_at_this_step(tab: Opened) -> None:
    """Keys and the slider go on from there."""
    tab.choose("faulty")
    tab.click("blocks.10.fc", 60)
    tab.wait("document.querySelector('.esd-columns h2').textContent.includes('blocks.10.fc at')")
    assert tab.title() == "Spectrum of blocks.10.fc at step 60: bulk+spikes"
    tab.page.keyboard.press("ArrowLeft")
    assert tab.title() == "Spectrum of blocks.10.fc at step 30: bleeding-out"
    tab.frame.locator("input[type=range]").fill("0")
    assert tab.title() == "Spectrum of blocks.10.fc at step 10: random-like"
    assert tab.frame.locator(".esd-player canvas").count() == 1
    assert tab.frame.locator(".esd-lines canvas").count() >= 4


def test_an_alert_leads_to_its_layer_and_step(tab: Opened) -> None:
    """From the list below."""
    tab.choose("faulty")
    tab.click("out", 20)
    tab.frame.locator(".esd-alerts button").first.click()
    tab.wait("document.querySelector('.esd-columns h2').textContent.includes('blocks.1.fc at step 80')")


def test_a_new_reading_appears_by_itself(tab: Opened, logdir: Path) -> None:
    """And after a resume no column is there twice."""
    tab.choose("growing")
    assert tab.frame.evaluate("window.__esd.state.view.steps") == [10, 20, 30, 40]
    write(logdir / "growing", made_reports()[4:7], [alert_at(70, "out")], rewind=40)
    tab.wait("window.__esd.state.view.steps.at(-1) === 70")
    assert tab.frame.evaluate("window.__esd.state.view.steps") == [10, 20, 30, 40, 50, 60, 70]
    tab.wait("document.querySelector('.esd-now').textContent.includes('out: rank collapse')")
    write(logdir / "growing", made_reports(first=5)[:4], rewind=50)
    tab.wait("window.__esd.state.view.steps.at(-1) === 90")
    assert tab.frame.evaluate("window.__esd.state.view.steps") == list(range(10, 100, 10))
    rows = {name: "".join(CHARACTERS[phase.code] for phase in row[:9]) for name, row in PHASES.items()}
    found = tab.frame.evaluate(
        "window.__esd.state.view.layers.map((layer, k) => [layer.name, window.__esd.state.view.rows[k]])"
    )
    assert dict(found) == rows
    assert_cells_have_the_colours_of(tab, logdir / "growing" / "esdmon.jsonl")


def test_two_runs_are_compared_on_one_axis(tab: Opened) -> None:
    """The second map is below, and its spectrum in the same picture."""
    tab.choose("faulty")
    tab.frame.select_option("select[aria-label='compare with']", "hostile")
    tab.wait("window.__esd.state.otherView !== null")
    assert tab.frame.locator(".esd-map canvas").count() == 2
    tab.frame.select_option("select[aria-label='compare with']", "")
    tab.wait("window.__esd.state.otherView === null")


def test_hostile_names_are_texts(tab: Opened, browser: Any, report: Path) -> None:
    """In the tab, in the report, and in the report without scripts."""
    tab.choose("hostile")
    file = open_file(browser, report)
    file.choose("hostile")
    still = open_file(browser, report, java_script_enabled=False)
    for opened in (tab, file, still):
        text = opened.frame.locator("body").inner_text()
        assert HOSTILE in text
        assert opened.frame.locator("img").count() == 0
        assert opened.logged == []
        opened.page.context.close() if opened is not tab else None


def test_the_report_shows_the_same_and_loads_nothing(browser: Any, report: Path) -> None:
    """From a file, offline, under its own policy."""
    opened = open_file(browser, report)
    opened.wait(READY)
    assert_cells_have_the_colours_of(opened, report.parent / "faulty" / "esdmon.jsonl")
    assert "blocks.1.fc: rank collapse since step 70" in opened.frame.locator(".esd-now").inner_text()
    table = opened.frame.locator(".esd-table").inner_text()
    assert re.search(r"\s\(?\d\.\d\d ± \d\.\d\d\)?\s", table)
    assert not re.search(r"± \d\.\d{3}", table)
    opened.click("blocks.0.fc", 70)
    opened.wait("document.querySelector('.esd-columns h2').textContent.includes('blocks.0.fc at step 70')")
    assert opened.logged == []
    assert opened.requested == [report.as_uri()]
    opened.page.context.close()


@pytest.mark.parametrize("width", [360, 390, 768, 1300])
def test_the_page_fits_a_phone(browser: Any, report: Path, width: int) -> None:
    """Nothing but the table, which scrolls in a box of its own, is wider than the window."""
    opened = watched(browser.new_context(offline=True, viewport={"width": width, "height": 800}).new_page())
    opened.page.goto(report.as_uri())
    opened.wait(READY)
    assert opened.frame.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    opened.click("blocks.0.fc", 70)
    opened.wait("document.querySelector('.esd-columns h2').textContent.includes('blocks.0.fc at step 70')")
    assert opened.logged == []
    opened.page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_layers_that_are_not_read_recede(browser: Any, tmp_path: Path, scheme: str) -> None:
    """A skipped layer has the colour of the page's lines, on a white page and on a dark one."""
    skipped = replace(
        a_layer(), name="small", status="skipped", reason="4 eigenvalues; at least 10 are needed", step=10
    )
    report = report_at(10, {"large": Phase.RANDOM_LIKE})
    write(tmp_path, [replace(report, layers=(*report.layers, skipped))], events=False)
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "report.html")]) == 0
    opened = open_file(browser, tmp_path / "report.html", color_scheme=scheme)
    opened.wait(READY)
    line = opened.frame.evaluate("theme().line")
    assert opened.frame.evaluate(PIXEL, ["small", 10]) == line
    assert opened.frame.evaluate(PIXEL, ["large", 10]) == COLOURS["random-like"] != line
    assert line == {"light": "#dfe3e8", "dark": "#3a424e"}[scheme]
    opened.page.context.close()


def test_a_collapse_at_few_steps_does_not_squeeze_the_spectra_of_the_others(browser: Any, report: Path) -> None:
    """Whose eigenvalues fall to numerically zero: the axis begins two decades below the usual smallest one."""
    opened = open_file(browser, report)
    frame = {"high": -1, "counts": [5, 0, 3, 8], "zeros": 0, "bulk_edge": 0.05}
    frames = [{**frame, "low": low} for low in (-3, -3.2, -9, -9, -3, -2.9, -3)]
    limits = opened.frame.evaluate("frames => esdLimits(frames)", frames)
    assert limits["low"] == pytest.approx(-5.05)
    assert opened.frame.evaluate("frames => esdLimits(frames).low", frames[2:4]) == pytest.approx(-9)
    opened.page.context.close()


def test_where_scripts_are_off_there_is_something_to_see(browser: Any, report: Path) -> None:
    """In a sandboxed frame, as Jenkins and mail have."""
    page = browser.new_page()
    page.set_content(f'<iframe sandbox="" width="1000" height="800" srcdoc="{_attribute(report)}"></iframe>')
    frame = page.frames[-1]
    frame.wait_for_selector("svg path")
    text = frame.locator("body").inner_text()
    assert "blocks.1.fc: rank collapse since step 70" in text
    assert re.search(r"\s\(?\d\.\d\d ± \d\.\d\d\)?\s", text)
    assert frame.locator("svg path").count() >= 6
    page.close()


def _attribute(path: Path) -> str:
    return path.read_text(encoding="utf-8").replace("&", "&amp;").replace('"', "&quot;")
