import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import esdmon
from esdmon.errors import InputError
from esdmon.sinks import MemorySink
from tests.loops import network, train


def test_the_optimizers_steps_are_the_clock() -> None:
    """Readings carry the step of their own weights."""
    model, sink = network(), MemorySink()
    optimizer = torch.optim.Adam(model.parameters())
    with esdmon.watch(model, optimizer, every=2, budget=None, sinks=[sink]) as monitor:
        train(model, optimizer, 5)
    assert [report.step for report in sink.reports] == [2, 4]
    assert monitor.steps == 5
    assert all(layer.in_optimizer for layer in sink.reports[-1])
    assert 0 < sink.reports[-1]["0"].update_ratio < 1


def test_weights_on_a_cpu_do_not_start_the_cuda_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """After `is_available()` a process that is forked off cannot use CUDA, where torch is built with it."""
    asked: list[str] = []

    def note() -> int:
        asked.append("CUDA")
        return 0

    for name in ("is_available", "device_count"):
        monkeypatch.setattr(torch.cuda, name, note)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with esdmon.watch(model, optimizer, every=1, budget=None, sinks=[]) as monitor:
        for _ in range(3):
            model(torch.randn(8, 40)).square().mean().backward()
            optimizer.step()
    assert monitor.report is not None
    esdmon.analyze(model)
    assert asked == []


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW], ids=lambda kind: kind.__name__)
def test_training_is_the_same_to_the_last_bit(kind: type[torch.optim.SGD | torch.optim.AdamW]) -> None:
    """Losses, weights, optimizer state and random state, with and without."""

    def run(*, watched: bool) -> tuple[list[float], list[Tensor], Tensor]:
        model = network()
        optimizer = kind(model.parameters(), lr=0.01)
        monitor = esdmon.watch(model, optimizer, every=1, budget=None, sinks=[MemorySink()]) if watched else None
        losses = train(model, optimizer, 12)
        if monitor is not None:
            monitor.close()
        state = [x for entry in optimizer.state.values() for x in entry.values() if isinstance(x, Tensor)]
        return losses, [*model.parameters(), *state], torch.get_rng_state()

    (losses, tensors, random), (losses_2, tensors_2, random_2) = run(watched=True), run(watched=False)
    assert losses == losses_2
    assert all(torch.equal(a, b) for a, b in zip(tensors, tensors_2, strict=True))
    assert torch.equal(random, random_2)


def test_close_leaves_no_hook() -> None:
    """The optimizer is as it was."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = esdmon.watch(model, optimizer, every=1, budget=None, sinks=[])
    assert len(optimizer._optimizer_step_post_hooks) == 1
    monitor.close()
    assert not optimizer._optimizer_step_post_hooks
    assert not optimizer._optimizer_step_pre_hooks
    train(model, optimizer, 1)
    assert monitor.steps == 0


def test_an_optimizer_of_another_model_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """It would count the steps of the wrong training."""
    optimizer = torch.optim.SGD(network().parameters(), lr=0.1)
    esdmon.watch(network(), optimizer, every=1, budget=None, sinks=None).close()
    assert "the optimizer holds none of the weights that are watched" in caplog.text
    assert "Give watch() the optimizer of this model" in caplog.text


@pytest.mark.parametrize("part", ["head", "bias"])
@pytest.mark.parametrize("as_mapping", [False, True])
def test_an_optimizer_of_what_is_not_watched_is_named(
    part: str, as_mapping: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """An output head, as in linear probing, or biases. It is the optimizer of the model: there is no other."""
    model = nn.ModuleDict({"body": nn.Linear(64, 64), "head": nn.Linear(64, 32)})
    trained = {name: parameter for name, parameter in model.named_parameters() if part in name}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    watched = dict(model.named_parameters()) if as_mapping else model
    esdmon.watch(watched, optimizer, exclude=["head"], every=1, budget=None, sinks=None).close()
    names = ", ".join(trained)
    assert f"It trains {names}. Name these in layers= if they can be read" in caplog.text
    assert "Give watch() the optimizer of this model" not in caplog.text


def test_a_model_of_which_no_weight_can_be_read_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """As that of a Gaussian process, whose parameters are vectors: at the start, and not only at the end of the run."""
    esdmon.watch(nn.Sequential(nn.Linear(4, 4)), every=1, budget=None, sinks=None).close()
    assert "no matrix can be read; training continues without readings: watching 0.0% of 20 parameters" in caplog.text


def test_without_an_optimizer_the_loop_calls_step() -> None:
    """The same monitor, driven by hand."""
    with esdmon.watch(network(), every=2, budget=None, sinks=[]) as monitor:
        for _ in range(4):
            monitor.step()
    assert monitor.report is not None
    assert monitor.report.step == 4


def test_a_nan_in_a_weight_is_reported_and_training_goes_on() -> None:
    """The run ends as it would have ended."""
    model, sink = network(), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with esdmon.watch(model, optimizer, every=1, budget=None, sinks=[sink]) as monitor:
        train(model, optimizer, 1)
        with torch.no_grad():
            model.get_parameter("0.weight")[3, 3] = float("nan")
        train(model, optimizer, 2)
    assert [report["0"].status for report in sink.reports] == ["ok", "nonfinite", "nonfinite"]
    assert {alert.rule for alert in monitor.alerts} == {"non_finite"}


def test_auto_writes_tensorboard_and_jsonl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new folder under runs/, with both in it."""
    monkeypatch.chdir(tmp_path)
    with esdmon.watch(network(), every=1) as monitor:
        monitor.step()
    (folder,) = (tmp_path / "runs").iterdir()
    names = sorted(path.name for path in folder.iterdir())
    assert names[0] == "esdmon.jsonl"
    assert names[1].startswith("events.out.tfevents.")


def test_two_runs_in_one_second_get_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their curves must not mix."""
    monkeypatch.chdir(tmp_path)
    for _ in range(3):
        with esdmon.watch(network(), every=1, budget=None, sinks=["auto"]) as monitor:
            monitor.step()
    folders = list((tmp_path / "runs").iterdir())
    assert len(folders) == 3
    assert all(len(list(folder.iterdir())) == 2 for folder in folders)


@pytest.mark.parametrize("kind", ["file", "link to nothing"])
def test_auto_is_refused_before_training_where_runs_cannot_be_made(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below a link to a disk that is not mounted no folder can be made, whatever its name."""
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "runs"
    runs.touch() if kind == "file" else runs.symlink_to(tmp_path / "absent" / "runs")
    with pytest.raises(
        InputError, match=r"runs cannot be written: a file, or a link to nothing, is in the way\. .* or give sinks="
    ):
        esdmon.watch(network())


def test_coverage_is_logged_once_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    """What is watched and what is not."""
    with caplog.at_level(logging.INFO, "esdmon"), esdmon.watch(network(), every=1, budget=None, sinks=[]) as monitor:
        monitor.step()
        monitor.step()
    assert caplog.text.count("watching 98.1% of 6,784 parameters") == 1


@pytest.mark.parametrize("alerts", [None, "rank_collapse", ["rank_collapse"], "default"], ids=str)
def test_rank_collapse_is_found_in_training(alerts: str | list[str] | None) -> None:
    """Weight decay far too strong takes the rank of a layer; the alert names it, once."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 128, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=1.0)
    targets = torch.randn(128, 4) @ torch.randn(4, 128)
    sink = MemorySink()
    with esdmon.watch(model, optimizer, every=10, budget=None, sinks=[sink], alerts=alerts) as monitor:
        for _ in range(120):
            x = torch.randn(64, 128)
            optimizer.zero_grad()
            (model(x) - x @ targets).square().mean().backward()
            optimizer.step()
    fired = [alert.rule for alert in monitor.alerts]
    assert fired == ([] if alerts is None else ["rank_collapse"])
    assert list(monitor.alerts) == sink.alerts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, r"every= must be a number of steps, 1 or more, or a function of the step; got 0"),
        ({"every": 2.5}, "got 2.5"),
        ({"sinks": "tensorbord:x"}, "unknown sink scheme 'tensorbord' .*Did you mean 'tensorboard'"),
        ({"sinks": [3]}, "a sink is 'scheme:target' or has write, alert, flush and close; 3 has no write"),
        ({"sinks": ["jsonl"]}, "jsonl needs a path"),
        ({"layers": ["nope*"]}, r"layers='nope\*' matches no layer"),
        ({"alerts": ["rank_colapse"]}, "unknown rule 'rank_colapse' in alerts=.*Did you mean 'rank_collapse'"),
        ({"optimizer": 3}, "optimizer is of type int, not a torch.optim.Optimizer"),
        ({"every": lambda: True}, "every= as a function takes the step"),
        ({"layers": []}, "layers= is empty"),
        ({"layers": 5}, "layers= must be a list of patterns of names, or None for all; got 5"),
        ({"layers": [3]}, r"layers= must be a list of patterns of names, or None for all; got \[3\]"),
        ({"measures": None}, "measures= must be a list of names of measures; got None"),
        ({"alerts": 5}, "alerts= must be a list of the names of rules, or rules; got 5"),
        ({"alerts": [None]}, "unknown rule None in alerts="),
        ({"model": nn.LazyLinear(4)}, "LazyLinear has lazy layers without weights"),
        ({"model": nn.ReLU()}, "ReLU has no weight matrix to read"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_wrong_arguments_are_refused_before_training(options: dict[str, object], message: str) -> None:
    """A ValueError of one sentence."""
    arguments: dict[str, object] = {"model": network(), "sinks": []} | options
    with pytest.raises(ValueError, match=message) as caught:
        esdmon.watch(**arguments)  # type: ignore[arg-type]
    assert isinstance(caught.value, InputError)


def test_a_sink_that_cannot_be_opened_leaves_no_hook_and_no_file_open(tmp_path: Path) -> None:
    """The sinks before it are closed again: an open file would be a ResourceWarning, which is an error here."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InputError, match="unknown sink scheme 'nope'"):
        esdmon.watch(model, optimizer, sinks=[f"jsonl:{tmp_path / 'a.jsonl'}", "nope:x"])
    assert not optimizer._optimizer_step_post_hooks


def test_a_rule_whose_measures_are_not_taken_is_left_out_and_may_not_act(caplog: pytest.LogCaptureFixture) -> None:
    """Silently it would never stop a run."""
    with caplog.at_level(logging.INFO, "esdmon"):
        esdmon.watch(nn.Linear(64, 64), sinks=None, measures=["stable_rank"]).close()
    assert "the rule rank_collapse is not checked, since it needs hard_rank: add it to measures=" in caplog.text
    with pytest.raises(
        InputError, match="the rule rank_collapse has an action, but needs hard_rank, which is not computed: add it"
    ):
        esdmon.watch(nn.Linear(64, 64), sinks=None, measures=["stable_rank"], stop_on="rank_collapse")


@pytest.mark.parametrize("name", ["stop_on", "save_on"])
def test_what_acts_is_a_rule_that_is_asked(name: str) -> None:
    options: dict[str, Any] = {name: "rank_colapse"}
    with pytest.raises(InputError, match=f"{name}='rank_colapse' names no rule in use.*Did you mean 'rank_coll"):
        esdmon.watch(nn.Linear(64, 64), sinks=None, **options)


def test_what_is_called_on_an_alert_is_a_function() -> None:
    with pytest.raises(InputError, match="on_alert= must be a function that takes an Alert; got 'page me'"):
        esdmon.watch(nn.Linear(64, 64), sinks=None, on_alert="page me")  # type: ignore[arg-type]


def test_a_monitor_is_shown_as_one_line() -> None:
    """As at the end of a cell of a notebook: what it has counted and found."""
    model = nn.Linear(64, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = esdmon.watch(model, optimizer, every=2, sinks=[])
    assert repr(monitor) == "<Monitor, 0 steps, no report yet>"
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.ones(4, 64)).sum().backward()
        optimizer.step()
    monitor.close()
    assert re.fullmatch(
        r"<Monitor \(closed\), 2 steps, report of step 2: 1 [a-z+-]+, 0 alert rules firing>", repr(monitor)
    )
