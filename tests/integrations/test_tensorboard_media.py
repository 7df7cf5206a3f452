"""Histograms and pictures in TensorBoard."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as PluginEventAccumulator
from torch import nn

import esdmon
from esdmon.present.media import MAX_HISTOGRAMS
from esdmon.records import Alert, LayerReport
from esdmon.spectrum import Phase
from esdmon_tensorboard import TensorBoardSink
from esdmon_tensorboard.events import RunFiles
from tests.event_files import events_of
from tests.fakes import timeline_of
from tests.integrations.tensorboard_files import pictures, report_of, steps_of_python, steps_of_rust, watch_for
from tests.webpage.made import a_layer

ALERT = Alert("r:a", "r", "warning", "firing", "a", ("a",), 20, 10, "what to do")


def test_spectra_are_shown(tmp_path: Path) -> None:
    """There is a layout, a histogram of all eigenvalues, pictures at the end, and the last table."""
    folder = tmp_path / "run"
    watch_for(30, [f"tensorboard:{folder}"])
    tags = events_of(folder).Tags()
    assert {"esdmon_esd/fc1", "esdmon_esd/fc2"} == set(tags["histograms"])
    histogram = events_of(folder).Histograms("esdmon_esd/fc1")[0].histogram_value
    assert histogram.num == sum(histogram.bucket) == 96
    assert {"esdmon/overview", "esdmon_picture/fc1", "esdmon_picture/fc2"} == set(tags["images"])
    image = events_of(folder).Images("esdmon_picture/fc1")[-1]
    assert (image.step, image.width, image.height) == (30, 640, 400)
    assert {"custom_scalars__config__", "esdmon_report/text_summary"} <= set(tags["tensors"])


def test_a_phase_that_changes_is_drawn_between_reports(tmp_path: Path) -> None:
    """`write` draws nothing, `catch_up` one picture, and `close` the last state of each layer."""
    sink = TensorBoardSink.open(str(tmp_path))
    sink.write(report_of("abc", 10))
    assert sink.catch_up() is False
    sink.write(report_of("abc", 20, Phase.BULK_SPIKES))
    assert pictures(tmp_path) == {}
    assert [sink.catch_up() for _ in range(3)] == [True, True, True]  # the overview in turn with the layers
    assert pictures(tmp_path) == {"a": [20], "b": [20]}
    sink.write(report_of("abc", 30, Phase.BULK_SPIKES))
    sink.close()
    assert pictures(tmp_path) == {"a": [20, 30], "b": [20, 30], "c": [30]}


def test_a_layer_with_an_alert_is_drawn_first(tmp_path: Path) -> None:
    """Its picture is drawn over the host's steps."""
    sink = TensorBoardSink.open(str(tmp_path))
    sink.write(report_of("abcd", 10, host_step=5))
    sink.write(report_of("abcd", 20, Phase.BULK_SPIKES, host_step=10))
    sink.alert(Alert("r:d", "r", "warning", "firing", "d", ("d", "b", "gone"), 20, 10, "what to do"))
    for _ in range(3):
        sink.catch_up()
    assert pictures(tmp_path) == {"d": [10], "b": [10]}
    sink.close()


def test_a_watched_run_draws_while_it_trains(tmp_path: Path) -> None:
    """It draws at the step after a second reading confirms a change of phase, and at the end."""
    torch.manual_seed(0)
    model = nn.Linear(128, 128)
    with esdmon.watch(
        model, every=2, budget=None, sinks=f"tensorboard:{tmp_path}", alerts=None, mode="sync"
    ) as monitor:
        for step in range(1, 11):
            if step == 3:
                with torch.no_grad():
                    model.weight.add_(torch.outer(torch.ones(128), torch.ones(128)) * 0.05)
            monitor.step()
            if step == 5:
                assert pictures(tmp_path) == {}
            if step == 7:
                assert pictures(tmp_path) == {"Linear": [6]}
    assert pictures(tmp_path) == {"Linear": [6, 10]}


def test_an_overview_and_the_alerts_stand_before_all_else(tmp_path: Path) -> None:
    """The picture is drawn again as readings come, in the host's steps; the text says what fires and what has ended."""
    sink = TensorBoardSink.open(str(tmp_path))
    for step in (10, 20, 30):
        sink.write(report_of("ab", step, host_step=step // 10))
        sink.alert(ALERT if step == 20 else replace(ALERT, state="resolved", step=step))
        while sink.catch_up():
            pass
    sink.close()
    events = events_of(tmp_path)
    assert [image.step for image in events.Images("esdmon/overview")] == [1, 2, 3]
    texts = [point.tensor_proto.string_val[0].decode() for point in events.Tensors("esdmon/alerts/text_summary")]
    assert texts[0].split() == ["**No", "alert", "fires", "now**"]
    assert texts[-2].splitlines()[0] == "**1 alert fires now**"
    assert texts[-2].splitlines()[-1] == "- **warning**, since step 10: what to do"
    assert texts[-1].splitlines()[0] == "**No alert fires now**"
    assert texts[-1].splitlines()[-1] == "- steps 20 to 30: what to do"
    tags = events.Tags()
    assert min(tags["images"] + tags["scalars"] + tags["histograms"]) == "esdmon/overview"


def test_a_resumed_run_lists_the_alerts_that_fired_before(tmp_path: Path) -> None:
    """From the first text on, in a process that has not seen them."""
    before = timeline_of(report_of("ab", 20), ALERT)
    sink = TensorBoardSink.open(str(tmp_path))
    sink.rewind(20)
    sink.resume(before)
    sink.write(report_of("ab", 30))
    sink.alert(replace(ALERT, state="resolved", step=40))
    sink.close()
    texts = [point.tensor_proto.string_val[0] for point in events_of(tmp_path).Tensors("esdmon/alerts/text_summary")]
    first, *_, last = (text.decode().splitlines() for text in texts)
    assert (first[0], first[-1]) == ("**1 alert fires now**", "- **warning**, since step 10: what to do")
    assert (last[0], last[-1]) == ("**No alert fires now**", "- steps 20 to 40: what to do")


def test_an_alpha_that_means_nothing_is_drawn_elsewhere(tmp_path: Path) -> None:
    """And the tab of scalars says what a number is."""
    sink = TensorBoardSink.open(str(tmp_path))
    for step, is_meaningful in ((10, False), (20, True), (30, False)):
        layers = (replace(a_layer(), name="a", step=step, alpha_is_meaningful=is_meaningful),)
        sink.write(replace(report_of("a", step), layers=layers, max_tags=200))
    sink.close()
    for tag, steps in {"esdmon_alpha/a": [20], "esdmon_alpha_noise/a": [10, 30]}.items():
        assert [point.step for point in events_of(tmp_path).Scalars(tag)] == steps
        assert steps_of_python(tmp_path, tag) == steps
        assert steps_of_rust(tmp_path, tag, steps[-1]) == steps
    described = PluginEventAccumulator(str(tmp_path)).Reload().SummaryMetadata("esdmon_phase/a")
    assert "4 heavy-tailed" in described.summary_description


def test_closing_takes_only_so_long(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By this clock a picture takes a second, of which two are allowed; changed layers are drawn first."""
    caplog.set_level("INFO")
    sink = TensorBoardSink(RunFiles(str(tmp_path)), clock=itertools.count().__next__)
    sink.write(report_of("abcdef", 10))
    sink.write(
        replace(
            report_of("ef", 20, Phase.BULK_SPIKES),
            layers=(*report_of("abcd", 10), *report_of("ef", 20, Phase.BULK_SPIKES)),
        )
    )
    sink.close()
    assert pictures(tmp_path) == {"e": [20]}
    assert "5 of 6 layers have no last picture in TensorBoard" in caplog.text


def test_what_cannot_be_drawn_does_not_keep_the_files_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception while drawing still closes the files."""

    def broken(layer: LayerReport) -> None:
        raise FloatingPointError(layer.name)

    monkeypatch.setattr("esdmon_tensorboard.sink.draw_esd", broken)
    sink = TensorBoardSink.open(str(tmp_path))
    sink.write(report_of("a", 10))
    with pytest.raises(FloatingPointError, match="a"):
        sink.close()
    assert "esdmon_stable_rank/a" in events_of(tmp_path).Tags()["scalars"]


def test_few_measures_are_enough_for_a_picture(tmp_path: Path) -> None:
    """Measures that a picture shows may be missing."""
    model = nn.Linear(256, 128)
    sinks = f"tensorboard:{tmp_path}"
    with esdmon.watch(model, every=1, budget=None, measures=["alpha", "xmin"], sinks=sinks) as monitor:
        monitor.step()
    assert monitor.errors == ()
    assert pictures(tmp_path) == {"Linear": [1]}


def test_a_report_of_many_layers_has_few_histograms(tmp_path: Path) -> None:
    """The others follow at the next readings, so that every layer has one."""
    sink = TensorBoardSink.open(str(tmp_path))
    names = "".join(chr(ord("a") + k) for k in range(26)) + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    for step in (10, 20, 30):
        sink.write(report_of(names, step))
        assert len(events_of(tmp_path).Tags()["histograms"]) == min(step // 10 * MAX_HISTOGRAMS, len(names))
    sink.close()
