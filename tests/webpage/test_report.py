"""The HTML report, and `esdmon report`."""

import base64
import hashlib
import json
import re
import shutil
import zipfile
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from esdmon.cli import main
from esdmon.records import LayerFinding
from esdmon.webpage import report as webpage_report
from esdmon.webpage.report import html
from esdmon.webpage.run_data import RunData
from tests.webpage.made import HOSTILE, PHASES, alert_at, made_reports, write

ROOT = Path(__file__).parents[2]


class Page(HTMLParser):
    """The elements of a page, and the texts in them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag != "meta":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts.setdefault(self._open[-1], []).append(data)

    @property
    def data(self) -> Any:
        return json.loads(self.texts["script"][0])


def data_of(name: str = "run", extra: str | None = None) -> RunData:
    data = RunData(name)
    phases = dict(PHASES) if extra is None else PHASES | {extra: PHASES["out"]}
    for report in made_reports(phases):
        data.add(report)
    data.add_alert(alert_at(100, extra or "blocks.1.fc"))
    return data


def test_the_command_writes_a_report_of_several_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From folders, files and gzipped files, each under its name."""
    for name in ("a", "b"):
        write(tmp_path / name, made_reports(), [alert_at(80, "blocks.1.fc")], events=False)
    out = tmp_path / "out" / "report.html"
    assert (
        main(["report", str(tmp_path / "a"), str(tmp_path / "b" / "esdmon.jsonl"), str(tmp_path / "a"), "-o", str(out)])
        == 0
    )
    assert "report.html: 3 runs, 15 layers" in capsys.readouterr().out
    page = Page(out.read_text(encoding="utf-8"))
    assert [run["name"] for run in page.data["runs"]] == ["a", "b", "a (2)"]
    first = page.data["runs"][0]
    rows = {
        layer["name"]: codes
        for layer, codes in zip(first["overview"]["layers"], first["overview"]["rows"], strict=True)
    }
    phases = {"random-like": "0", "bleeding-out": "1", "bulk+spikes": "2", "bulk-decay": "3", "heavy-tailed": "4"}
    phases |= {"rank-collapse": "5", "unclassified": "-"}
    lines = map(json.loads, (tmp_path / "a" / "esdmon.jsonl").read_text(encoding="utf-8").splitlines())
    written: dict[str, str] = {}
    last: dict[str, str] = {}
    for line in lines:
        if line["kind"] == "layer":
            last[line["name"]] = phases[line["phase"]] if "phase" in line else last[line["name"]]
            written[line["name"]] = written.get(line["name"], "") + last[line["name"]]
    assert rows == written
    assert first["overview"]["now"]["items"][0]["title"] == "blocks.1.fc: rank collapse since step 70"
    assert set(first["frames"]) == set(PHASES)
    assert len(first["frames"]["blocks.1.fc"]["frames"][0]["top"]) == 16


def test_runs_in_one_folder_have_the_names_of_their_files(tmp_path: Path) -> None:
    """They would all have that of the folder."""
    write(tmp_path / "run", made_reports()[:2], [], events=False)
    for name in ("small.jsonl", "large.jsonl"):
        shutil.copy(tmp_path / "run" / "esdmon.jsonl", tmp_path / name)
    out = tmp_path / "report.html"
    assert main(["report", *(str(tmp_path / name) for name in ("small.jsonl", "large.jsonl")), "-o", str(out)]) == 0
    page = Page(out.read_text(encoding="utf-8"))
    assert [run["name"] for run in page.data["runs"]] == ["small", "large"]


@pytest.mark.parametrize("path", ["missing", "notes.txt"])
def test_what_is_not_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str) -> None:
    """In one line, and no file is written."""
    (tmp_path / "notes.txt").write_text("groceries\n")
    assert main(["report", str(tmp_path / path), "-o", str(tmp_path / "r.html")]) == 2
    assert re.search(r"not found|not JSON: 'groceries'", capsys.readouterr().err)
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("name", ["a/esdmon.jsonl", "notes.txt"])
def test_only_html_is_replaced(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A slip in `-o` costs nobody a file: neither the run nor another one."""
    write(tmp_path / "a", made_reports(), [], events=False)
    (tmp_path / "notes.txt").write_text("groceries\n")
    before = (tmp_path / name).read_bytes()
    assert main(["report", str(tmp_path / "a"), "-o", str(tmp_path / name)]) == 2
    assert "contains something else" in capsys.readouterr().err
    assert (tmp_path / name).read_bytes() == before
    for _ in range(2):
        assert main(["report", str(tmp_path / "a"), "-o", str(tmp_path / "r.html")]) == 0


def test_the_policy_allows_this_script_and_style_and_nothing_else() -> None:
    """By their hashes; nothing is loaded."""
    text = html([data_of()])
    page = Page(text)
    (policy,) = (given["content"] for tag, given in page.elements if "http-equiv" in given)

    def hashed(content: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"

    scripts = page.texts["script"]
    script, style = hashed(scripts[1]), hashed(page.texts["style"][0])
    assert policy == f"default-src 'none'; script-src {script}; style-src {style}; base-uri 'none'"
    assert not [given for _, given in page.elements if {"src", "href", "style", "onclick", "onerror"} & set(given)]


def test_names_of_layers_stay_texts() -> None:
    """In the data, and in what is shown without scripts."""
    page = Page(html([data_of(HOSTILE, HOSTILE)]))
    assert [tag for tag, _ in page.elements].count("script") == 2
    assert not [tag for tag, _ in page.elements if tag == "img"]
    assert page.data["runs"][0]["name"] == HOSTILE
    assert HOSTILE in page.texts["h1"]
    assert HOSTILE in page.texts["th"]


def test_a_run_in_a_folder_whose_name_is_not_utf_8(tmp_path: Path) -> None:
    """Python reads the other bytes of its name as lone surrogates, which no page can contain."""
    run, out = tmp_path / "caf\udce9" / "esdmon.jsonl", tmp_path / "report.html"
    write(run.parent, made_reports())
    assert main(["report", str(run), "-o", str(out)]) == 0
    assert r"caf\udce9" in out.read_text("utf-8")


def test_without_scripts_there_are_a_map_the_alerts_and_a_table() -> None:
    """What mail and Jenkins show."""
    data = data_of()
    parts = tuple(LayerFinding(name, 60, "rank 40 of 64") for name in ("out", "<b>"))
    data.add_alert(replace(alert_at(100, "out", rule="dead_layer"), layers=("out", "<b>"), by_layer=parts))
    page = Page(html([data]))
    assert page.texts["li"].count("<b> since step 60: rank 40 of 64") == 2  # above the map, and in the list
    assert "step 100, error, firing: blocks.1.fc: rank_collapse:" in "".join(page.texts["li"])
    assert set(PHASES) <= set(page.texts["th"])
    assert "rank-collapse" in page.texts["td"]
    assert {"step 10", "step 100", "● blocks.1.fc"} <= set(page.texts["text"])
    paths = [given for tag, given in page.elements if tag == "path"]
    widths = sum(float(width) for path in paths for width in re.findall(r"h([\d.]+)v", path["d"] or ""))
    assert widths == pytest.approx(640 * len(PHASES), rel=1e-3)


def test_a_report_that_is_too_large_says_what_it_leaves_out() -> None:
    """Spectra of layers with an alert or a change of phase are kept as long as possible."""
    whole, small = html([data_of()]), html([data_of()], max_bytes=82_000)
    assert len(small.encode()) <= 82_000 < len(whole.encode())
    assert Page(whole).data["notes"] == []
    data = Page(small).data
    assert 0 < len(data["runs"][0]["frames"]) < len(PHASES)
    assert "blocks.1.fc" in data["runs"][0]["frames"]
    assert re.search(r"run: the spectra of \d of 5 layers are left out", " ".join(data["notes"]))


def test_the_wheel_contains_the_page(tmp_path: Path) -> None:
    """Its script and its style sheet are not Python."""
    from hatchling.builders.wheel import WheelBuilder

    project = tmp_path / "project"
    project.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, project)
    for name in ("esdmon", "integrations"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    (wheel,) = WheelBuilder(str(project)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as packed:
        names = {name for name in packed.namelist() if name.startswith("esdmon/webpage/static/")}
        entry_points = next(
            packed.read(name).decode() for name in packed.namelist() if name.endswith("entry_points.txt")
        )
    static = ROOT / "esdmon" / "webpage" / "static"
    assert names == {f"esdmon/webpage/static/{file.name}" for file in static.iterdir()}
    assert "[tensorboard_plugins]\nesdmon = esdmon_tensorboard.loader:EsdLoader" in entry_points


def test_detail_falls_from_step_to_step() -> None:
    """Else a report could grow where it should shrink."""
    for more, less in zip(webpage_report._DETAILS, webpage_report._DETAILS[1:], strict=False):
        assert all(a > b for a, b in zip(more, less, strict=True))
