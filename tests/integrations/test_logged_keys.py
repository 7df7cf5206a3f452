"""The table of logged keys in the docstring of each callback, against the tags of a report."""

import inspect
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import esdmon
from esdmon.options import WatchOptions
from esdmon.present.scalars import scalars
from esdmon.records import Screened
from esdmon.sinks import JsonlSink
from esdmon.spectrum import Phase
from esdmon.trainers.metrics import SummaryMetrics
from esdmon_lightning import SpectralMonitor as OfLightning
from esdmon_transformers import SpectralMonitor as OfTransformers
from tests.rules import ALWAYS

VALUES = {
    "<measure>": "|".join(measure.name for measure in WatchOptions().chosen_measures),
    "<phase>": "|".join(phase.value.replace("+", "-") for phase in Phase),
    "<rule>": "always",
    "<layer>": "Linear",
}
"""What each part in angle brackets stands for in the run below."""


def documented_keys(callback: type) -> list[str]:
    """The first column of the table in the docstring; each row has a meaning and a unit."""
    page = inspect.getdoc(callback) or ""
    _, _, rows = page.partition("key  ")
    rules = [line for line in page.splitlines() if line.startswith("====")]
    widths = [len(part) for part in rules[0].split()]
    keys = []
    for row in rows.splitlines()[2:]:
        if row.startswith("===="):
            break
        key, meaning, unit = (
            row[: widths[0]],
            row[widths[0] + 1 : widths[0] + widths[1] + 1],
            row[sum(widths[:2]) + 2 :],
        )
        assert all(part.strip() for part in (key, meaning, unit)), row
        assert row[widths[0]] == row[widths[0] + widths[1] + 1] == " ", row
        keys.append(key.strip())
    assert keys
    return keys


def logged_tags() -> set[str]:
    """Those of a run in which a rule has fired and a matrix was screened, and of its metrics in a Trainer."""
    model = torch.nn.Linear(96, 64)
    with esdmon.watch(model, every=1, sinks=None, alerts=[ALWAYS]) as monitor:
        monitor.step()
    assert monitor.report is not None
    screened = Screened("Linear", 2, 8.0, 2.0, 0.001, N=96)
    report = replace(monitor.report, step=2, screened=(screened,))
    options = WatchOptions(alerts=[ALWAYS])
    metrics = SummaryMetrics((rule.name for rule in options.alert_config.rules), options.chosen_measures)
    return set(scalars(monitor.report)) | set(scalars(report)) | set(metrics.of(report, {}))


@pytest.mark.parametrize("callback", [OfLightning, OfTransformers], ids=["lightning", "transformers"])
def test_the_docstring_lists_what_is_logged(callback: type) -> None:
    """Each tag is in the table, and each key of the table is logged."""
    patterns = {
        key: re.sub("<[a-z]+>", lambda part: f"(?:{VALUES[part[0]]})", key) for key in documented_keys(callback)
    }
    tags = logged_tags()
    assert [tag for tag in tags if not any(re.fullmatch(pattern, tag) for pattern in patterns.values())] == []
    assert [key for key, pattern in patterns.items() if not any(re.fullmatch(pattern, tag) for tag in tags)] == []


def test_both_callbacks_have_the_same_table() -> None:
    """They log the same numbers."""
    assert documented_keys(OfLightning) == documented_keys(OfTransformers)


def test_the_page_of_the_jsonl_names_the_keys_of_each_kind_of_line(tmp_path: Path) -> None:
    """Each key is in what the page says of that kind; measures and nulls are in the table of measures."""
    page = (Path(__file__).parents[2] / "docs" / "jsonl.md").read_text(encoding="utf-8")
    of_all, _, _ = page.partition('\n## `"kind"')
    path = tmp_path / "a.jsonl"
    with esdmon.watch(torch.nn.Linear(96, 64), every=1, sinks=[f"jsonl:{path}"], alerts=[ALWAYS]) as monitor:
        monitor.step()
    assert monitor.report is not None
    sink = JsonlSink(tmp_path / "b.jsonl")
    sink.write(replace(monitor.report, step=2, screened=(Screened("Linear", 2, 8.0, 2.0, 0.001, N=96),)))
    sink.close()
    records = [json.loads(line) for each in (path, sink.path) for line in each.read_text("utf-8").splitlines()]
    assert {record["kind"] for record in records} == {"layer", "screened", "summary", "alert"}
    measures = {measure.name for measure in WatchOptions().chosen_measures}
    varying = {f"layers_{phase.value}" for phase in Phase} | {"alert_always"} | {f"{name}_null" for name in measures}
    for record in records:
        part = page.partition(f'## `"kind": "{record["kind"]}"`')[2].partition("\n## ")[0]
        named = set(re.findall(r"\w+", of_all + part)) | measures | varying
        assert [key for key in record if key not in named] == [], record["kind"]
