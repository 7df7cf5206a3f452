"""The sink in real runs of Weights & Biases, offline, whose files are read back."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from esdmon.errors import InputError
from esdmon_wandb import WandbSink
from tests.integrations import wandb_files
from tests.integrations.wandb_cases import CASES, wandb_table
from tests.integrations.wandb_runs import numbers, ours, run
from tests.integrations.wandb_ways import WAYS
from tests.summaries import without_summary


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which all ways and cases were run."""
    folder = tmp_path_factory.mktemp("ways")
    run(["-m", "tests.integrations.wandb_ways", str(folder)], folder)
    return folder


def result(ways: Path, name: str) -> Any:
    """Return the result of a way or a case."""
    results = json.loads((ways / "results.json").read_text())
    assert name not in results["failed"], results["failed"][name]
    return results["done"][name]


def beside_summary(lines: list[str]) -> list[str]:
    """Return what was logged, without the summary of the run."""
    return without_summary("".join(f"{line}\n" for line in lines)).splitlines()


@pytest.mark.parametrize("way", WAYS)
def test_rows_of_the_users_are_as_without_esdmon(way: str, ways: Path) -> None:
    """Rows and summary are equal; each reading that is not overwritten is in one row."""
    written, overwritten = result(ways, way)
    without, place = ways / f"{way}-without", ways / f"{way}-with"
    assert wandb_files.users(place) == wandb_files.users(without)
    assert own(wandb_files.summary(place)) == own(wandb_files.summary(without))
    assert wandb_files.alerts(without) == []
    assert written >= 4
    assert len({row["esdmon/step"] for row in ours(place)}) == written - overwritten


def own(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in summary.items() if not key.startswith(("_", "esdmon"))}


@pytest.mark.parametrize("way", ["plain", "step_is_step", "committed_at_a_step"])
def test_who_logs_often_enough_has_every_reading_in_the_charts(way: str, ways: Path) -> None:
    written, overwritten = result(ways, way)
    assert overwritten == 0
    assert "esdmon_readings" not in wandb_files.summary(ways / f"{way}-with")
    assert [row["esdmon/step"] for row in ours(ways / f"{way}-with")] == [2 * k + 2 for k in range(written)]


def test_numbers_and_histograms_stand_over_an_axis_of_their_own(ways: Path) -> None:
    """Each key is defined by its name; the table of phases is in the summary, which takes no row."""
    result(ways, "plain")
    place = ways / "plain-with"
    axes = wandb_files.axes(place)
    rows = ours(place)
    assert len(numbers(rows)) > 50
    assert {axes[key] for key in numbers(rows)} == {"esdmon/step"}
    assert rows[0]["esdmon_esd/0/_type"] == "histogram"
    assert sum(rows[0]["esdmon_esd/0/values"]) == 64
    assert axes["esdmon_esd/0"] == "esdmon/step"
    assert wandb_files.summary(place)["esdmon_phases"]["nrows"] == 2
    assert len(wandb_files.rows(place)) == 12


@pytest.mark.parametrize("way", ["never", "at_the_end_only", "step_is_epoch"])
def test_readings_that_found_no_row_are_in_a_table(way: str, ways: Path) -> None:
    written, overwritten = result(ways, way)
    assert overwritten > 0
    assert wandb_files.summary(ways / f"{way}-with")["esdmon_readings"]["nrows"] == written
    (path,) = (ways / f"{way}-with").glob("wandb/offline-run-*/files/media/table/esdmon_readings*.json")
    assert wandb_table(path)["esdmon/step"] == [2 * k + 2 for k in range(written)]


def test_an_active_run_is_where_auto_writes(ways: Path) -> None:
    """There is a JSONL beside it, and no TensorBoard, which nobody would look at."""
    assert result(ways, "auto") == ["esdmon.jsonl"]
    assert [row["esdmon/step"] for row in ours(ways / "auto")] == [1]


def test_an_alert_is_an_alert_of_the_run(ways: Path) -> None:
    """Its title has the rule, and its text the layer."""
    result(ways, "alert")
    ((title, text, level, milliseconds),) = wandb_files.alerts(ways / "alert")
    assert title == "esdmon: non_finite firing"
    assert "1 of 12288 elements are NaN or infinite (all finite at step 1), at step 2" in text
    assert level == "ERROR"
    assert milliseconds == 1000  # in which W&B would drop a second one of that title; by default a minute


def test_the_page_of_views_is_in_the_summary(ways: Path) -> None:
    """Byte for byte as `esdmon report` writes it, since W&B's own style would break its policy."""
    result(ways, "alert")
    value = wandb_files.summary(ways / "alert")["esdmon_report"]
    assert value["_type"] == "html-file"
    (page,) = (ways / "alert").rglob(Path(value["path"]).name)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>\n<html")
    assert "1 problem now, at step 2" in text
    assert "non finite since step 2" in text


def test_a_run_that_ends_early_loses_that_sink_and_nothing_else(ways: Path) -> None:
    """The other sinks continue; one log line says what to do, and closing does not repeat it."""
    reports, faults, lines = result(ways, "finished_in_training")
    assert reports == 5
    ((who, message),) = faults
    assert who == "sink wandb"
    assert "was finished before the monitor was closed: this reading is not in it. Close the monitor before" in message
    assert len([line for line in lines if "was finished" in line]) == 1


def test_a_table_that_comes_after_the_end_of_the_run_is_one_line(ways: Path) -> None:
    """It is not a fault: nothing failed while the model was trained."""
    faults, lines = result(ways, "finished_before_the_monitor_was_closed")
    assert faults == 0
    (line,) = beside_summary(lines)
    assert "the table of phases, and of 2 readings that have no row, is not in it. Close the monitor before" in line


def test_a_disabled_run_is_no_fault(ways: Path) -> None:
    """Nothing is written, nothing fails, nothing is logged."""
    lines, *others = result(ways, "disabled")
    assert (beside_summary(lines), others) == ([], [0, True])
    assert not list((ways / "disabled").rglob("run-*.wandb"))


def test_two_models_in_a_run_do_not_share_keys(ways: Path) -> None:
    """The keys of the second have a number, which one log line says; closing a sink releases its number."""
    (line,) = result(ways, "two_models")
    assert "another monitor writes to the W&B run" in line
    assert "tags of this one begin with esdmon2_" in line
    rows = wandb_files.rows(ways / "two_models")
    first = {row["esdmon/step"]: row["esdmon_frobenius_norm/0"] for row in rows if "esdmon/step" in row}
    second = {row["esdmon2/step"]: row["esdmon2_frobenius_norm/0"] for row in rows if "esdmon2/step" in row}
    assert first.keys() == {2, 4, 1}  # 1 is the third monitor's
    assert first[1] == second[2] == second[4] != first[2] == first[4]
    assert wandb_files.axes(ways / "two_models")["esdmon2_frobenius_norm/0"] == "esdmon2/step"
    assert {"esdmon_phases", "esdmon2_phases"} <= wandb_files.summary(ways / "two_models").keys()


def test_a_run_that_is_begun_after_watch_gets_what_is_read_from_then_on(ways: Path) -> None:
    (line,) = result(ways, "begun_after_watch")
    assert re.fullmatch(
        r"esdmon: the W&B run \w+ was begun after watch\(\): readings go there too, from step 2 on\.", line
    )
    assert [row["esdmon/step"] for row in ours(ways / "begun_after_watch")] == [2, 3]


def test_a_run_that_is_begun_later_says_where_it_is(ways: Path) -> None:
    """As other sinks do in the lines at the end, after closing too."""
    *places, run = result(ways, "where_a_run_is_that_is_begun_later")
    assert places == ["", f"the W&B run {run}", f"the W&B run {run}"]


def test_each_run_that_is_begun_has_the_readings_of_its_time(ways: Path) -> None:
    """A second run after the first, as in a sweep, causes no fault between them."""
    assert result(ways, "begun_twice_after_watch") == [[2, 2], []]


def test_closing_does_not_raise_the_runs_step(ways: Path) -> None:
    """A row that the user logs afterwards with their next step is not dropped."""
    assert result(ways, "closed_before_tests") == [2, 2]
    assert [row.get("test") for row in wandb_files.users(ways / "closed_before_tests")] == [None, None, 1.0]


def test_what_is_overwritten_is_counted_logged_and_live_in_the_summary(ways: Path) -> None:
    """The row has the last known values of each layer, and NaN for those that are undefined by now."""
    first, live, counts, lines = result(ways, "overwritten")
    assert first is None
    assert live == [4.0, 2]
    assert counts == [4, 2]
    (line,) = lines
    assert line.startswith("esdmon: 2 of 4 readings are in no chart of the W&B run ")
    assert (
        "Its table esdmon_readings contains all of them. Call run.log() at least as often as readings are taken" in line
    )
    rows = ours(ways / "overwritten")
    assert [row["esdmon/step"] for row in rows] == [3, 4]
    assert rows[0]["esdmon_alpha/a"] == 4.0
    assert math.isnan(rows[0]["esdmon_alpha/b"])
    assert rows[1]["esdmon_alpha/b"] == 5.0


def test_where_rows_come_from_tensorboard_the_summary_has_all_readings(ways: Path) -> None:
    """W&B makes the rows in a process of its own, so it is not known which readings are in one; the user's all are."""
    (line,) = result(ways, "rows_of_tensorboard")
    assert line.startswith("esdmon: up to 2 of 3 readings are in no chart of the W&B run ")
    assert line.endswith("Its table esdmon_readings contains all of them.")
    rows = wandb_files.rows(ways / "rows_of_tensorboard")
    assert [row["global_step"] for row in rows if "loss" in row] == [1, 2, 3]
    assert ours(ways / "rows_of_tensorboard")[-1]["esdmon/step"] == 3


def test_pictures_are_drawn_one_at_a_time_and_the_rest_at_the_end(ways: Path) -> None:
    """At the end a picture is drawn only if it does not begin a row behind the user's last."""
    assert result(ways, "pictures") == [True, True]
    rows = wandb_files.rows(ways / "pictures")
    drawn = [{key for key in row if key.endswith("/path")} for row in rows]
    assert drawn == [set(), set(), {"esdmon_picture/a.b/path", "esdmon_picture/c/path"}]
    axes = wandb_files.axes(ways / "pictures")
    assert axes["esdmon_picture/a.b.sha256"] == "esdmon/step"


def test_an_alert_of_a_run_that_has_ended_says_what_to_do(ways: Path) -> None:
    assert "was finished before the monitor was closed: this alert is not in it" in result(
        ways, "alerts_of_a_finished_run"
    )


def test_a_run_that_is_rewound_has_each_step_once_in_its_table(ways: Path) -> None:
    assert result(ways, "rewound") == [1.0, 20.0, 30.0]


def test_a_run_that_is_resumed_lists_the_alerts_of_before(ways: Path) -> None:
    """On the page of views, which a process makes that has not seen them."""
    result(ways, "resumed")
    value = wandb_files.summary(ways / "resumed")["esdmon_report"]
    (page,) = (ways / "resumed").rglob(Path(value["path"]).name)
    assert "rule since step 1" in page.read_text(encoding="utf-8")


def test_every_case_is_tested() -> None:
    """The name of each case occurs in this file."""
    text = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in CASES if f'"{name}"' not in text] == []


def test_without_a_run_it_fails_before_training() -> None:
    """The message says what to do."""
    with pytest.raises(InputError, match=r"wandb has no active run: call wandb.init\(\) before"):
        WandbSink.open("")
    with pytest.raises(InputError, match="unknown target 'wandb:here'"):
        WandbSink.open("here")
