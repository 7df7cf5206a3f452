"""`esdmon.load`, and what it returns: reports, alerts, tables and plots of a run."""

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import pytest
import torch
from matplotlib import pyplot as plt
from torch import nn

import esdmon
from esdmon.errors import InputError, MissingExtraError
from esdmon.records import LayerReport, Report
from esdmon.sinks import JsonlSink, MemorySink, Sink

COLLAPSE = range(13, 25)
STEPS = 34


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, esdmon.Monitor, MemorySink]:
    """Train a layer that loses half of its rank for a while, beside one that does not."""
    folder, sink = tmp_path_factory.mktemp("run"), MemorySink()
    torch.manual_seed(0)
    model = nn.ModuleDict({name: nn.Linear(96, 80, bias=False) for name in ("falls", "lives")})
    falls = model.get_parameter("falls.weight").data
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    sinks: list[str | Sink] = [f"jsonl:{folder / 'esdmon.jsonl'}", f"jsonl:{folder / 'packed.jsonl.gz'}", sink]
    with esdmon.watch(model, optimizer, every=1, sinks=sinks, mode="sync", budget=None) as monitor:
        for step in range(1, STEPS + 1):
            if step == COLLAPSE.start:
                kept = falls[40:].clone()
                falls[40:] = falls[:40]
            if step == COLLAPSE.stop:
                falls[40:] = kept
            for weight in model.parameters():
                weight.grad = torch.randn(80, 96) / 200
                if step in COLLAPSE and weight is model.get_parameter("falls.weight"):
                    weight.grad[40:] = weight.grad[:40]
            optimizer.step()
    return folder, monitor, sink


@pytest.fixture(scope="module")
def run(watched: tuple[Path, esdmon.Monitor, MemorySink]) -> esdmon.Run:
    return esdmon.load(watched[0])


@pytest.fixture(autouse=True)
def _figures() -> Iterator[None]:
    """Draw without a display, and close all figures."""
    with mpl.rc_context({"backend": "Agg"}):
        yield
        plt.close("all")


@pytest.mark.parametrize("name", ["", "esdmon.jsonl", "packed.jsonl.gz"])
def test_a_run_is_read_back(name: str, watched: tuple[Path, esdmon.Monitor, MemorySink]) -> None:
    """From its folder or a file, packed or not: the reports, with the phases that were shown, and the alerts."""
    folder, monitor, sink = watched
    run = esdmon.load(folder / name)
    assert [report.step for report in run.reports] == [report.step for report in sink.reports]
    for report, before in zip(run.reports, sink.reports, strict=True):
        assert {layer.name: layer.shown_phase for layer in report} == {
            layer.name: layer.shown_phase for layer in before
        }
    assert [str(alert) for alert in run.alerts] == [str(alert) for alert in monitor.alerts]
    assert [(alert.rule, alert.state) for alert in run.alerts if alert.rule == "rank_collapse"] == [
        ("rank_collapse", "firing"),
        ("rank_collapse", "resolved"),
    ]
    assert run.last["falls"].measures["alpha"] == pytest.approx(sink.reports[-1]["falls"].measures["alpha"], rel=1e-4)
    assert dict(run.last.firing) == dict(sink.reports[-1].firing)


def test_a_run_says_what_happened(run: esdmon.Run) -> None:
    """In print, and escaped in a notebook; the last report does not claim to know what was not watched."""
    lines = str(run).splitlines()
    assert lines[0] == f"{run.path}: {len(run.reports)} reports"
    assert any(line.startswith("falls: ") and "rank-collapse" in line for line in lines)
    assert "rank_collapse in falls from step" in lines[-1]
    assert repr(run) == str(run)
    assert "rank-collapse" in run._repr_html_()
    assert "watching" not in str(run.last) + run.last._repr_html_()


def test_the_readings_of_a_layer(run: esdmon.Run) -> None:
    """Each once; a spectrum is found where the last reading has none."""
    readings = run.readings("falls")
    assert [layer.step for layer in readings] == sorted({layer.step for layer in readings})
    assert run.last["falls"].esd is None
    assert run.spectrum("falls").esd is not None
    assert run.spectrum("falls").step > run.spectrum("falls", 10).step
    with pytest.raises(KeyError, match=r"unknown layer 'fall'\. Did you mean 'falls'\?"):
        run.readings("fall")
    with pytest.raises(InputError, match="no spectrum of falls up to step 0"):
        run.spectrum("falls", 0)


def test_a_table_of_all_readings(run: esdmon.Run, watched: tuple[Path, esdmon.Monitor, MemorySink]) -> None:
    """A row for each layer and reading, no value left out."""
    frame = run.to_dataframe()
    assert len(frame) == sum(len(report.new) for report in watched[2].reports)
    assert frame["alpha_null"].notna().all()
    assert frame.groupby("name")["step"].is_monotonic_increasing.all()


def test_a_torn_line_and_a_second_run(run: esdmon.Run, tmp_path: Path) -> None:
    """A file that is being written ends with half a line; of several runs the last is read, or any by its number."""
    text = run.path.read_text()
    other = text.replace(json.loads(text.splitlines()[0])["run"], "another0")
    (tmp_path / "esdmon.jsonl").write_text(text + other[:-40])
    last = esdmon.load(tmp_path)
    assert (last.number, last.count, len(last.reports)) == (2, 2, len(run.reports) - 1)
    assert "run 2 of 2" in repr(last)
    assert len(esdmon.load(tmp_path, number=1).reports) == len(run.reports)
    with pytest.raises(InputError, match=r"number=3 is out of range: .* contains 2 runs"):
        esdmon.load(tmp_path, number=3)
    with pytest.raises(InputError, match=r"file .* not found"):
        esdmon.load(tmp_path / "none")


def layers_at(step: int, layers: tuple[LayerReport, ...]) -> tuple[LayerReport, ...]:
    return tuple(replace(layer, step=step) for layer in layers)


def test_a_run_that_was_resumed(watched: tuple[Path, esdmon.Monitor, MemorySink], tmp_path: Path) -> None:
    """Where what followed the checkpoint is still in the file, the later lines count; layers not read yet are kept."""
    first: Report = watched[2].reports[0]
    sink = JsonlSink(tmp_path / "esdmon.jsonl")
    sink.start("00000000")
    for step, count in ((1, 2), (2, 2), (3, 2), (2, 1), (4, 1)):
        sink.write(replace(first, step=step, layers=layers_at(step, first.layers[:count])))
    sink.close()
    run = esdmon.load(tmp_path)
    assert [report.step for report in run.reports] == [1, 2, 4]
    assert [{layer.name: layer.step for layer in report} for report in run.reports] == [
        {"falls": 1, "lives": 1},
        {"falls": 2, "lives": 1},
        {"falls": 4, "lives": 1},
    ]


def test_a_run_is_plotted(run: esdmon.Run) -> None:
    """Phases of all layers over the steps, the alerts on them, and alpha."""
    figure = run.plot()
    phases, alphas = figure.axes
    assert [label.get_text() for label in phases.get_yticklabels()] == ["falls", "lives"]
    (mesh,) = phases.collections
    codes = mesh.get_array()
    assert codes is not None
    assert codes.shape == (2, len(run.reports))
    assert len(phases.lines) == 1
    assert alphas.get_xlabel() == "step"
    figure.canvas.draw()


def test_layers_of_a_kind_are_neighbours_on_the_map(run: esdmon.Run) -> None:
    """In order of depth; otherwise the map of a transformer is a rug of stripes."""
    names = ["in", *(f"h.{k}.{part}" for k in range(11) for part in ("attn", "mlp")), "out"]
    layer = run.spectrum("lives")
    report = replace(run.last, layers=tuple(replace(layer, name=name) for name in names))
    phases, _ = esdmon.Run(run.path, (report,), ()).plot().axes
    labels = [label.get_text() for label in phases.get_yticklabels()]
    assert labels == ["in", *(f"h.{k}.attn" for k in range(11)), *(f"h.{k}.mlp" for k in range(11)), "out"]


def test_long_names_leave_room_for_the_map(run: esdmon.Run) -> None:
    """They are shortened, also in the legend, which names the layers that have a line."""
    layer = run.spectrum("lives")
    names = ["a." + "long_" * 60, "b." + "long_" * 60]
    is_seen = (True, False)
    layers = [replace(layer, name=name, alpha_is_meaningful=seen) for name, seen in zip(names, is_seen, strict=True)]
    figure = esdmon.Run(run.path, (replace(run.last, layers=tuple(layers)),), ()).plot()
    phases, alphas = figure.axes
    figure.canvas.draw()
    assert phases.get_position().width > 0.5
    labels = [label.get_text() for label in phases.get_yticklabels()]
    assert max(map(len, labels)) <= 40
    assert len(set(labels)) == 2
    legend = alphas.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [labels[0], "below: over-regularised"]


def test_a_layer_is_plotted(run: esdmon.Run) -> None:
    """In axes of the user's, or new ones; the power law is dashed where alpha is not meaningful."""
    layer = run.spectrum("lives")
    _, axes = plt.subplots()
    assert layer.plot(axes) is axes
    styles = {str(line.get_label()).partition(",")[0]: line.get_linestyle() for line in axes.lines}
    assert styles["power law"] == ("-" if layer.alpha_is_meaningful else "--")
    assert styles["its edge λ⁺"] == ":"
    meaningful = replace(layer, alpha_is_meaningful=not layer.alpha_is_meaningful).plot()
    assert {"-", "--"} == {styles["power law"], *(
        line.get_linestyle() for line in meaningful.lines if "power law" in str(line.get_label())
    )}  # fmt: skip
    assert meaningful is not axes
    with pytest.raises(InputError, match=r"lives has no spectrum at step .*esdmon\.load\(run\)\.spectrum\(name\)"):
        run.last["lives"].plot()


def test_a_layer_that_was_not_read_says_why_there_is_no_spectrum(run: esdmon.Run) -> None:
    """And not that older versions wrote none."""
    skipped = LayerReport("small", "skipped", run.last.step, "9 eigenvalues; at least 10 are needed")
    with pytest.raises(InputError, match=r"^small has no spectrum at step \d+: 9 eigenvalues; at least 10 are needed$"):
        skipped.plot()
    report = replace(run.last, layers=(*run.last.layers, skipped))
    with pytest.raises(InputError, match=r"has no spectrum of small: 9 eigenvalues; at least 10 are needed$"):
        replace(run, reports=(*run.reports[:-1], report)).spectrum("small")


@pytest.mark.parametrize("name", ["a$b$c", "x" * 300, "new\nline", "слой", "%s{}"])
def test_any_name_and_spectrum_is_plotted(name: str, run: esdmon.Run) -> None:
    """Nothing is taken for a formula; warnings would be errors."""
    layer = replace(run.spectrum("falls", COLLAPSE.stop - 1), name=name)
    layer.plot().figure.canvas.draw()
    bare = replace(layer, measures={})
    report = replace(run.last, layers=(layer, bare, replace(layer, measures=dict.fromkeys(layer.measures, math.nan))))
    report.plot().canvas.draw()


def test_a_report_of_a_large_model_is_plotted_in_part(run: esdmon.Run) -> None:
    layer = run.spectrum("lives")
    report = replace(run.last, layers=tuple(replace(layer, name=f"h.{k}.fc") for k in range(30)))
    figure = report.plot()
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert len(titles) == 24
    assert titles[0] == "h.0.fc"
    assert titles[-1] == "h.29.fc"
    assert figure.legends[0].get_title().get_text() == "24 of 30 layers"
    assert len(report.plot(["h.2.*", "h.1?.*"]).axes) == 12
    with pytest.raises(InputError, match=r"layers='h.2.f' matches no layer. Did you mean 'h.2.fc'"):
        report.plot("h.2.f")
    without = replace(report, layers=tuple(replace(layer, esd=None) for layer in report))
    with pytest.raises(InputError, match="No layer has a spectrum to plot"):
        without.plot("h.2.*")


def test_matplotlib_is_optional(run: esdmon.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for plot in (run.plot, run.spectrum("lives").plot):
        with pytest.raises(MissingExtraError, match=r'plot\(\) needs the package matplotlib: .*"esdmon\[notebook\]"'):
            plot()
