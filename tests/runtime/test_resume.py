"""Runs that were killed and resumed: their series are those of a run that was not."""

import copy
import io
import json
import math
import operator
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import esdmon
from esdmon.records.shortening import POWERS
from esdmon.replay import records
from esdmon.sinks import MemorySink
from tests.event_files import events_of
from tests.jsonl import records_in

STEPS, SAVED, KILLED = 20, 9, 13


class Run:
    """A small network that trains on noise, with a layer that is frozen, watched every other step."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(80, 70), nn.ReLU(), nn.Linear(70, 64))
        self.model[0].requires_grad_(requires_grad=False)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.sink = MemorySink()
        self.monitor = esdmon.watch(
            self.model,
            self.optimizer,
            every=2,
            budget=None,
            sinks=[f"jsonl:{folder / 'esdmon.jsonl'}", f"tensorboard:{folder}", self.sink],
        )

    def train(self, first: int, last: int) -> None:
        for step in range(first, last):
            inputs = torch.randn(16, 80, generator=torch.Generator().manual_seed(step))
            loss = self.model(inputs).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    def state(self) -> dict[str, Any]:
        return {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "monitor")}

    def load(self, state: dict[str, Any]) -> None:
        for name, part in state.items():
            getattr(self, name).load_state_dict(part)


def lines(folder: Path) -> list[dict[str, Any]]:
    """Without what the clock decides, the id, of which there is one, spectra and explanations, which a resumed run
    writes again, and nulls that are computed from those of an earlier line, to the last digit or so."""
    found = list(records(folder / "esdmon.jsonl"))
    assert len({record["run"] for record in found}) == 1
    return [
        {
            key: value
            for key, value in record.items()
            if key not in ("seconds", "overhead", "time", "run", "esd", "explanation", *POWERS)
        }
        for record in found
    ]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = events_of(folder)
    return {
        tag: [(point.step, point.value) for point in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if not tag.endswith(("seconds", "overhead"))
    }


def killed_and_resumed(folder: Path) -> Run:
    """Saved at step 9, killed at 13, begun again from the checkpoint."""
    first = Run(folder)
    first.train(0, SAVED)
    file = io.BytesIO()
    torch.save(first.state(), file)
    first.train(SAVED, KILLED)
    first.monitor.close()  # which writes nothing: a kill leaves the same files
    file.seek(0)
    second = Run(folder)
    second.load(torch.load(file, weights_only=True))
    second.train(SAVED, STEPS)
    return second


def test_the_series_go_on_without_gap_doubling_or_a_step_back(tmp_path: Path) -> None:
    """In the JSONL, in what TensorBoard shows, and in the monitor; the frozen layer is announced once."""
    whole, resumed = Run(tmp_path / "whole"), killed_and_resumed(tmp_path / "parts")
    whole.train(0, STEPS)
    for run in (whole, resumed):
        run.monitor.close()
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    assert [record["step"] for record in lines(tmp_path / "parts") if record.get("name") == "0"] == [2]
    expected = scalars(tmp_path / "whole")
    assert scalars(tmp_path / "parts") == expected
    assert [step for step, _ in expected["esdmon_stable_rank/2"]] == list(range(2, STEPS + 1, 2))
    assert [report.step for report in resumed.sink.reports] == list(range(10, STEPS + 1, 2))
    last, other = resumed.monitor.report, whole.monitor.report
    assert last is not None
    assert other is not None
    assert last["2"].to_record() == other["2"].to_record()


LOOP = """
import json, os, shutil, signal, sys
import torch
from torch import nn
import esdmon, esdmon.sinks, esdmon.watching
import torch._dynamo  # which an optimizer imports: once here, and not in each fork

def train(folder, stop):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 96), nn.ReLU(), nn.Linear(96, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    monitor = esdmon.watch(model, optimizer, every=1, budget=None, sinks=f"jsonl:{folder}/esdmon.jsonl")
    first = 0
    if os.path.exists(f"{folder}/run.pt"):
        state = torch.load(f"{folder}/run.pt", weights_only=True)
        first = state["step"]
        model.load_state_dict(state["model"])
        monitor.load_state_dict(state["monitor"])
    for step in range(first + 1, 13):
        inputs = torch.randn(16, 128, generator=torch.Generator().manual_seed(step))
        loss = model(inputs).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if step > 5:  # from here on the first layer is cut to 40 directions, by mistake
            left, strengths, right = torch.linalg.svd(model[0].weight.data, full_matrices=False)
            model[0].weight.data = left[:, :40] * strengths[:40] @ right[:40]
            model[0].weight.grad = left[:, :40] @ (left[:, :40].T @ model[0].weight.grad)
        optimizer.step()
        state = {"step": step, "model": model.state_dict(), "monitor": monitor.state_dict()}
        torch.save(state, f"{folder}/run.pt.new")
        os.replace(f"{folder}/run.pt.new", f"{folder}/run.pt")
        if step == stop:
            os.kill(os.getpid(), signal.SIGKILL)
    monitor.close()

def in_a_process(folder, stop):
    child = os.fork()
    if child == 0:
        log = os.open(f"{folder}/log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 2)
        status = 1
        try:
            train(folder, stop)
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

for killed in json.loads(sys.argv[2]):
    folder = f"{sys.argv[1]}/{killed}"
    os.mkdir(folder)
    codes = [in_a_process(folder, killed)]
    shutil.copy(f"{folder}/esdmon.jsonl", f"{folder}/before.jsonl")
    codes.append(in_a_process(folder, 0))
    with open(f"{folder}/codes", "w") as file:
        json.dump(codes, file)
"""
KILLS = {"pending": 7, "just-fired": 8, "firing": 10}


@pytest.fixture(scope="module")
def killed_and_run_again(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each kill; one process that has imported torch forks off all runs."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-W", "ignore", "-c", LOOP, str(folder), json.dumps([*KILLS.values()])]
    subprocess.run(command, timeout=240, check=True)
    return folder


@pytest.mark.parametrize("killed", KILLS.values(), ids=KILLS)
def test_an_alert_fires_once_though_the_process_is_killed(killed: int, killed_and_run_again: Path) -> None:
    """Between pending and firing, in the step in which it fires, and after it."""
    folder = killed_and_run_again / str(killed)
    first, second = json.loads((folder / "codes").read_text())
    assert first == -signal.SIGKILL
    records = records_in(folder / "before.jsonl")
    assert ("alert" in {record["kind"] for record in records}) == (killed > 7)
    log = (folder / "log").read_text()
    assert log.count("alerts: error rank_collapse in 0 since step 6\n") == 1
    assert log.count("0: random-like → rank-collapse (7)") == 1
    assert (second, log.count("rank_collapse: rank")) == (0, int(killed == 7)), log
    records = records_in(folder / "esdmon.jsonl")
    shown = [(record["rule"], record["state"], record["step"]) for record in records if record["kind"] == "alert"]
    assert shown == [("rank_collapse", "firing", 8)]
    assert [record["step"] for record in records if record["kind"] == "summary"] == list(range(1, 13))


def test_a_resumed_monitor_can_have_other_layers() -> None:
    """A layer that is new has no history; one that is gone raises nothing."""
    old = esdmon.watch(
        nn.ModuleDict({"a": nn.Linear(64, 64), "b": nn.Linear(64, 64)}), every=1, budget=None, sinks=None
    )
    old.step()
    new = esdmon.watch(
        nn.ModuleDict({"b": nn.Linear(64, 64), "c": nn.Linear(64, 64)}), every=1, budget=None, sinks=None
    )
    new.load_state_dict(old.state_dict())
    new.step()
    assert new.errors == ()
    assert new.report is not None
    assert [layer.name for layer in new.report] == ["b", "c"]


def stack(*sides: int, **others: nn.Module) -> nn.ModuleDict:
    """Linear layers of those sides, and others."""
    return nn.ModuleDict({f"layer{k}": nn.Linear(side, 64) for k, side in enumerate(sides)} | others)


def read_once(model: nn.Module, **options: Any) -> esdmon.Monitor:
    monitor = esdmon.watch(model, every=1, budget=None, sinks=None, **options)
    monitor.step()
    monitor.flush()
    return monitor


def test_the_state_of_layers_with_dead_units_is_that_of_their_model(caplog: pytest.LogCaptureFixture) -> None:
    model = stack(64, 64, 64, kernel=nn.Conv2d(64, 64, 3))
    for weight in (parameter for parameter in model.parameters() if parameter.ndim > 1):
        weight.data[:5] = 0
    model.get_parameter("kernel.weight").data[:, :, 2] = 0
    caplog.set_level("INFO", logger="esdmon")
    read_once(model).load_state_dict(read_once(model).state_dict())
    assert "match this model" not in caplog.text


@pytest.mark.parametrize(
    ("model", "options", "level"),
    [
        pytest.param(stack(64, 64, 64), {}, None, id="the same"),
        pytest.param(torch.compile(stack(64, 64, 64), backend="eager"), {}, None, id="compiled"),
        pytest.param(nn.DataParallel(stack(64, 64, 64)), {}, None, id="wrapped"),
        pytest.param(stack(64, 64, 64).requires_grad_(requires_grad=False), {}, None, id="frozen"),
        pytest.param(stack(64, 64, 64, adapter=nn.Linear(64, 16), more=nn.Linear(64, 16)), {}, None, id="extended"),
        pytest.param(stack(64, 64, 64), {"layers": ["layer1"]}, None, id="narrower"),
        pytest.param(stack(64, 64, head=nn.Linear(64, 64)), {}, "INFO", id="renamed in part"),
        pytest.param(stack(64, 64, 96), {}, "INFO", id="resized in part"),
        pytest.param(stack(96, 96, 96), {}, "WARNING", id="other shapes"),
        pytest.param(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)), {}, "WARNING", id="other names"),
    ],
)
def test_the_state_of_another_model_is_logged(
    model: nn.Module, options: dict[str, Any], level: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """How many of its layers match, and what follows; nothing of a model that has other layers besides."""
    state = read_once(stack(64, 64, 64)).state_dict()
    monitor = esdmon.watch(model, every=1, budget=None, sinks=None, **options)
    caplog.set_level("INFO", logger="esdmon")
    caplog.clear()
    monitor.load_state_dict(state)
    monitor.step()
    monitor.flush()
    found = [each for each in caplog.records if "match this model" in each.getMessage()]
    assert [each.levelname for each in found] == ([] if level is None else [level])
    if level == "INFO":
        assert "2 of 3 layers in the loaded state match this model by name and shape; not layer2." in caplog.text
    if level == "WARNING":
        assert "another model: 0 of its 3 layers match this model by name and shape; not layer0, layer1" in caplog.text
    assert monitor.errors == ()
    assert monitor.steps == 2


def test_a_state_without_readings_is_of_any_model(caplog: pytest.LogCaptureFixture) -> None:
    """As one that was saved before the first due step."""
    state = esdmon.watch(stack(64), every=9, sinks=None).state_dict()
    esdmon.watch(nn.Sequential(nn.Linear(64, 64)), every=9, sinks=None).load_state_dict(state)
    assert "match this model" not in caplog.text


NAMES_ARE_KEYS = {"stages", "measures", "nulls", "evidence", "begun", "start", "before", "after", "counts"}


def dictionaries(value: object, *path: Any) -> Iterator[tuple[Any, ...]]:
    """The path of each dictionary in a state."""
    items: Iterable[tuple[object, object]] = ()
    if isinstance(value, dict):
        yield path
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, each in items:
        yield from dictionaries(each, *path, key)


def two_layers() -> esdmon.Monitor:
    torch.manual_seed(0)
    return esdmon.watch(
        nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)), every=1, sinks=None, mode="sync", budget=None
    )


@pytest.fixture(scope="module")
def saved() -> dict[str, Any]:
    """A state with readings, their spectra, samples and an open alert on two layers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    with esdmon.watch(model, every=1, sinks=None, mode="sync", budget=None) as monitor:
        for step in range(5):
            for weight in model.parameters():
                weight.data += 0.01 * torch.randn_like(weight) + (math.nan if step == 3 else 0)
            monitor.step()
        assert [alert.rule for alert in monitor.alerts] == ["non_finite"]
        return monitor.state_dict() | {"esdmon": "99.1"}


def test_what_a_newer_version_adds_is_left_out_or_refused(
    saved: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Wherever it is, with both versions; nothing has changed where a state is refused."""
    for path in dictionaries(saved):
        state = copy.deepcopy(saved)
        reduce(operator.getitem, path, state)["colour"] = 3
        monitor = two_layers()
        caplog.clear()
        refused = ""
        try:
            monitor.load_state_dict(state)
        except ValueError as error:
            refused = str(error)
        if refused:
            versions = rf"written by esdmon 99\.1, and this is esdmon {re.escape(esdmon.__version__)}\. Install "
            assert re.search(versions, refused), path
            assert (monitor.steps, monitor.alerts) == (0, ())
        else:
            warning = f"by esdmon 99.1, and holds what esdmon {esdmon.__version__} does not know: colour. That is "
            assert (warning in caplog.text) is (not path or path[-1] not in NAMES_ARE_KEYS), path
            assert (monitor.steps, len(monitor.alerts)) == (5, 1)
        monitor.close()


def test_a_state_of_this_version_may_have_more_beside_it(
    saved: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """What a user's loop has put there is the user's."""
    monitor = two_layers()
    monitor.load_state_dict(saved | {"esdmon": esdmon.__version__, "epoch": 3})
    assert caplog.messages == []
    assert monitor.steps == 5
    monitor.close()


@pytest.mark.parametrize("step", [0, 3, 10])
def test_a_memory_sink_forgets_what_came_after(step: int) -> None:
    """As the others do."""
    sink = MemorySink()
    monitor = esdmon.watch(nn.Linear(64, 64), every=1, budget=None, sinks=[sink])
    for _ in range(6):
        monitor.step()
    sink.rewind(step)
    assert [report.step for report in sink.reports] == list(range(1, min(step, 6) + 1))
