"""Open a large run in TensorBoard's tab: `python -m tests.benchmarks.tab [--layers 200] [--readings 10000]`.

Writes a run in which every layer is read each time, starts TensorBoard with each of its back ends, waits until it has
read the run, and prints how long the page takes in Chromium from the address to the drawn map, spectrum and table, how
long a click on another layer takes, and how large the answers are before they are compressed.
"""

import argparse
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from playwright.sync_api import sync_playwright
from tensorboard.compat.proto.summary_pb2 import Summary

from esdmon.records import Coverage, Report
from esdmon.spectrum import Phase
from esdmon_tensorboard.events import EventFile
from esdmon_tensorboard.tensors import TensorLog
from tests.esdmon_tensorboard.server import Server, tensorboard
from tests.webpage.made import a_layer, alert_at

VARIANTS = 40
"""Different readings; making each of ten thousand would take longer than all that is measured."""


def write(folder: Path, layers: int, readings: int) -> None:
    """Write a run whose layers go through all phases, the later ones later."""
    log, file, phases = TensorLog(), EventFile(folder, "aa", purge=0), list(Phase)[:6]
    variants = []
    for variant in range(VARIANTS):
        found = [
            replace(
                a_layer(),
                name=f"blocks.{k // 4}.{('q', 'k', 'fc1', 'fc2')[k % 4]}",
                step=1,
                phase=phases[min(5, 6 * variant * (layers + k) // (2 * layers * VARIANTS))],
            )
            for k in range(layers)
        ]
        report = Report(1, tuple(found), Coverage(0, 0))
        variants.append(Summary(value=log.reading(report, found[variant % 5 :: 5][:24])))
    for k in range(readings):
        file.add_summary(variants[k * VARIANTS // readings], 10 * (k + 1))
    for k in range(100):
        alert = alert_at(10 * (k + 1) * max(1, readings // 101), f"blocks.{k % 50}.fc1")
        file.add_summary(Summary(value=log.alert(alert, alert.step)), alert.step)
    file.close()


def measure(server: Server, last: int) -> None:
    """Print times and sizes."""
    server.overview("run", last)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        base = f"{server.url}data/plugin_entry.html?name=esdmon"
        start = time.perf_counter()
        page.goto(base)
        page.wait_for_function("window.__esd && window.__esd.ready && window.__esd.state.frames", timeout=60_000)
        opened = time.perf_counter() - start
        name = page.evaluate("window.__esd.state.view.layers[7].name")
        place = page.evaluate("name => window.__esd.place(name, window.__esd.state.view.steps.at(-1))", name)
        start = time.perf_counter()
        page.locator(".esd-map canvas").first.click(position=place)
        page.wait_for_function("window.__esd.state.frames && window.__esd.state.lines.size", timeout=60_000)
        clicked = time.perf_counter() - start
        columns = page.evaluate("window.__esd.state.view.steps.length")
        print(f"  {columns} columns; opened in {opened:.1f} s, a click {clicked:.1f} s")
        browser.close()
    for route, query in (("overview", {}), ("lines", {"layer": "blocks.3.fc1"}), ("frames", {"layer": "blocks.3.fc1"})):
        start = time.perf_counter()
        content = server.fetch(f"data/plugin/esdmon/{route}?run=run" + "".join(f"&{k}={v}" for k, v in query.items()))[
            1
        ]
        print(f"  {route}: {len(content) / 1e3:.0f} kB, answered in {time.perf_counter() - start:.2f} s")


def main() -> None:
    """Measure with both back ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=200)
    parser.add_argument("--readings", type=int, default=10_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "run", given.layers, given.readings)
        size = sum(file.stat().st_size for file in Path(folder, "run").iterdir())
        print(f"{given.layers} layers, {given.readings} readings: {size / 1e6:.0f} MB of events")
        for fast in (True, False):
            print("TensorBoard's data server" if fast else "TensorBoard's reader in Python")
            with tensorboard(Path(folder), fast=fast) as server:
                measure(server, 10 * given.readings)


if __name__ == "__main__":
    main()
