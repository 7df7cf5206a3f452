"""Lines of a run whose fields have values of a wrong type: one clear error, or what is valid, and nothing else."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from esdmon.errors import InputError
from esdmon.records import Record, Report
from esdmon.replay.events import events_by_run
from esdmon.webpage.report import html
from esdmon.webpage.run_data import RunData
from tests.webpage.made import alert_at, made_reports, write

WRONG: list[Any] = [None, [], [None], {}, {"a": 1}, "x", -1e308, 10**400, True]


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Each layer's first line, the summary behind them, and an alert."""
    folder = tmp_path_factory.mktemp("run")
    reports = made_reports()[:1]
    write(folder, reports, [alert_at(reports[0].step, "blocks.1.fc")], events=False)
    return [json.loads(line) for line in (folder / "esdmon.jsonl").read_text().splitlines()]


def damaged(record: Record) -> Iterator[Record]:
    """Yield the record with each of its values, and of those inside them, replaced by each wrong one, or removed."""
    for key, value in record.items():
        yield {other: kept for other, kept in record.items() if other != key}
        yield from (record | {key: wrong} for wrong in WRONG)
        inner = value[0] if isinstance(value, list) and value else value
        if isinstance(inner, dict):
            wrong_inside = damaged(inner)
            yield from (record | {key: [each] if isinstance(value, list) else each} for each in wrong_inside)
        elif isinstance(value, list):
            yield from (record | {key: [wrong]} for wrong in WRONG)


@pytest.mark.parametrize("kind", ["layer", "summary", "alert"])
def test_a_value_of_a_wrong_type_is_one_error_or_no_matter(kind: str, lines: list[Record], tmp_path: Path) -> None:
    """Never another exception, in the reports or in the views of `esdmon report`."""
    place = next(place for place, line in enumerate(lines) if line["kind"] == kind)
    path, read = tmp_path / "esdmon.jsonl", 0
    for changed in damaged(lines[place]):
        text = [*lines[:place], changed, *lines[place + 1 :]]
        path.write_text("".join(f"{json.dumps(line)}\n" for line in text))
        data = RunData("a")
        try:
            for _, event in events_by_run(path):
                if isinstance(event, Report):
                    str(event)
                    data.add(event)
                else:
                    str(event)
                    data.add_alert(event)
        except InputError:
            continue
        data.overview()
        read += 1
    assert read > 0
    assert html([data])
