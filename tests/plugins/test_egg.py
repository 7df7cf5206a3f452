"""The example plugin, installed as a third party's would be; and broken in each way that a plugin can be."""

import csv
import importlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import esdmon
from esdmon import isolation
from esdmon.cli.digits import batches, digits
from esdmon.plugins import registry
from esdmon.sinks import Sink
from esdmon.testing import check_measure, check_rule, check_sink
from tests.clocks import FakeClock
from tests.jsonl import records_in
from tests.limits import set_limits

EGG = Path(__file__).parents[2] / "examples" / "plugin_egg"
STEPS = 12
Use = Callable[[Callable[[str], str]], None]


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install it with pip in a folder, and leave the project's own environment alone."""
    source, target = tmp_path_factory.mktemp("source") / "egg", tmp_path_factory.mktemp("site")
    shutil.copytree(EGG, source)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True, timeout=120)
    return target


@pytest.fixture
def use(installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Use]:
    """Return `use(change)`, which lets it be found with its code as `change` makes it."""
    monkeypatch.delenv("ESDMON_DISABLE_PLUGINS", raising=False)

    def put(change: Callable[[str], str]) -> None:
        folder = shutil.copytree(installed, tmp_path / "site")
        module = folder / "esdmon_egg.py"
        before = module.read_text(encoding="utf-8")
        after = change(before)
        module.write_text(after, encoding="utf-8")
        monkeypatch.syspath_prepend(folder)
        importlib.invalidate_caches()

    yield put
    sys.modules.pop("esdmon_egg", None)


def train(*, sinks: Sequence[str | Sink] | None = None) -> tuple[list[float], esdmon.Monitor | None]:
    """Two layers on digits, the first with a strong mean; watched where sinks are given."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"fc1": nn.Linear(256, 96), "fc2": nn.Linear(96, 10)})
    with torch.no_grad():
        model.get_parameter("fc1.weight").add_(0.2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    monitor = None if sinks is None else esdmon.watch(model, optimizer, every=2, budget=None, mode="sync", sinks=sinks)
    images, labels = digits()
    order = batches(len(images), 32, seed=0)
    losses = []
    for _ in range(STEPS):
        index = next(order)
        hidden = functional.relu(model["fc1"](images[index].flatten(1)))
        loss = functional.cross_entropy(model["fc2"](hidden), labels[index])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        losses.append(loss.item())
    if monitor is not None:
        monitor.close()
    return losses, monitor


def test_its_measure_its_rule_and_its_sink_are_there(use: Use, tmp_path: Path) -> None:
    """Without a line in the script, except for the sink's name."""
    use(lambda code: code)
    losses, monitor = train(sinks=[f"jsonl:{tmp_path / 'a.jsonl'}", f"egg:{tmp_path / 'a.csv'}"])
    assert losses == train()[0]
    assert monitor is not None
    assert monitor.errors == ()
    records = records_in(tmp_path / "a.jsonl")
    shares = [record["top_share"] for record in records if record.get("name") == "fc1"]
    assert len(shares) == STEPS / 2
    assert all(0.5 < share < 1 for share in shares)
    assert [(alert.rule, alert.layers, alert.step) for alert in monitor.alerts] == [("top_heavy", ("fc1",), 6)]
    lines = list(csv.reader((tmp_path / "a.csv").read_text().splitlines()))
    assert lines[0][:2] == ["2", "fc1"]
    assert float(lines[0][2]) == pytest.approx(shares[0], rel=1e-4)  # the JSONL has five digits
    assert ["6", "fc1", "top_heavy firing"] in lines


def test_it_passes_what_esdmon_holds_itself_to(use: Use, tmp_path: Path) -> None:
    """As its own tests would."""
    use(lambda code: code)
    egg = importlib.import_module("esdmon_egg")
    check_measure(egg.esdmon_register_measures()[0])
    check_rule(egg.esdmon_register_alert_rules()[0])
    check_sink(partial(egg.EggSink, str(tmp_path / "a.csv")))


def test_the_command_lists_it(installed: Path) -> None:
    """With its version and its hooks; its rule is explained, and can be left out."""
    path = [str(installed), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    environment.pop("ESDMON_DISABLE_PLUGINS", None)

    def command(*arguments: str, **more: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "esdmon", *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
            env=environment | more,
        )
        return done.stdout

    listed = command("plugins")
    hooks = "esdmon_register_alert_rules, esdmon_register_measures, esdmon_register_sinks"
    assert f"egg (esdmon-egg 0.1.0) esdmon_egg {hooks}" in " ".join(listed.split())
    assert all(len(line) <= 80 for line in listed.splitlines())
    assert "Thresholds: share = 0.5" in command("alerts", "explain", "top_heavy")
    disabled = command("plugins", "--json", ESDMON_DISABLE_PLUGINS="egg")
    (egg,) = [each for each in map(json.loads, disabled.splitlines()) if each["name"] == "egg"]
    assert egg["fault"] == "disabled by ESDMON_DISABLE_PLUGINS"


def inside(function: str, line: str) -> Callable[[str], str]:
    """Put a line at the beginning of a function's body."""

    def change(code: str) -> str:
        head, start, rest = code.partition(f"def {function}(")
        assert start, f"the egg has no function {function}"
        signature, quotes, body = rest.partition('"""')
        text, end, rest = body.partition('"""\n')
        indent = " " * (len(signature) - len(signature.rstrip(" ")))
        return head + start + signature + quotes + text + end + f"{indent}{line}\n" + rest

    return change


def added(hook: str) -> Callable[[str], str]:
    return lambda code: f"{code}\n\n@esdmon.hookimpl\n{hook}\n"


RAISE = "raise RuntimeError('the egg is broken')"
SLEEP = "import esdmon.isolation; esdmon.isolation.time.passes(0.1)"
MEASURE = "measure top_share (plugin 'egg', esdmon_register_measures)"
RULE = "rule top_heavy (plugin 'egg', esdmon_register_alert_rules)"
SINK = "sink egg:{csv} (plugin 'egg', esdmon_register_sinks)"
BROKEN = "RuntimeError: the egg is broken"
BREAKS: dict[str, tuple[Callable[[str], str], str]] = {
    "cannot be imported": (
        lambda code: code.replace("import csv\n", "import a_module_that_is_not_there\n"),
        "plugin 'egg' (esdmon_egg) is not loaded: ModuleNotFoundError: No module named 'a_module_that_is_not_there'",
    ),
    "is no python": (lambda code: f"{code}\ndef", "plugin 'egg' (esdmon_egg) is not loaded: SyntaxError"),
    "exits": (lambda code: f"{code}\nraise SystemExit(3)", "plugin 'egg' (esdmon_egg) is not loaded: SystemExit: 3"),
    "wrong signature": (
        added("def esdmon_on_alert(alert, colour): ..."),
        "plugin 'egg' (esdmon_egg) is not used: PluginValidationError: Plugin 'egg' for hook 'esdmon_on_alert'",
    ),
    "misspelt hook": (
        lambda code: code.replace("def esdmon_register_measures", "def esdmon_register_measure"),
        "plugin 'egg' (esdmon_egg) is not used: PluginValidationError: unknown hook 'esdmon_register_measure'",
    ),
    "raises when it registers": (
        inside("esdmon_register_measures", RAISE),
        f"plugin 'egg' failed in esdmon_register_measures: {BROKEN}",
    ),
    "registers rubbish": (
        inside("esdmon_register_measures", "return [3]"),
        "plugin 'egg' failed in esdmon_register_measures: what it returned cannot be used: TypeError: 3 is not a Meas",
    ),
    "its measure raises": (inside("top_share", RAISE), f"{MEASURE} failed at step 2: {BROKEN}"),
    "its measure is no number": (inside("top_share", "return 'much'"), f"{MEASURE} failed at step 2: ValueError"),
    "its rule raises": (inside("top_heavy", RAISE), f"{RULE} failed at step 2: {BROKEN}"),
    "its rule gives rubbish": (
        inside("top_heavy", "yield 'it is heavy'"),
        f"{RULE} failed at step 2: TypeError: a rule must return Finding objects; got 'it is heavy'",
    ),
    "its sink raises": (inside("write", RAISE), f"{SINK} failed at step 2: {BROKEN}"),
    "its sink raises on an alert": (inside("alert", RAISE), f"{SINK} failed at step 6: {BROKEN}"),
    "it raises on an alert": (
        added(f"def esdmon_on_alert(alert):\n    {RAISE}"),
        f"hook esdmon_on_alert (plugin 'egg') failed at step 6: {BROKEN}",
    ),
    "it raises when asked to stop": (
        added(f"def esdmon_request_stop(alert):\n    {RAISE}"),
        f"hook esdmon_request_stop (plugin 'egg') failed at step 6: {BROKEN}",
    ),
    "its schedule raises": (
        added(f"def esdmon_schedule(step):\n    {RAISE}"),
        f"hook esdmon_schedule (plugin 'egg') failed at step 1: {BROKEN}",
    ),
    "its extractor raises": (
        added(f"def esdmon_extract_matrices(name, module):\n    {RAISE}"),
        f"plugin 'egg' failed in esdmon_extract_matrices: {BROKEN}",
    ),
    "its extractor gives rubbish": (
        added("def esdmon_extract_matrices(name, module):\n    return [name]"),
        "plugin 'egg' failed in esdmon_extract_matrices: returned ['",
    ),
    "its measure is slow": (inside("top_share", SLEEP), f"{MEASURE} took 0.1 s at step 2"),
    "its rule is slow": (inside("top_heavy", SLEEP), f"{RULE} took 0.1 s at step 2"),
    "its sink is slow": (inside("write", SLEEP), f"{SINK} took 0.1 s at step 2"),
    "it is slow on an alert": (
        added(f"def esdmon_on_alert(alert):\n    {SLEEP}"),
        "hook esdmon_on_alert (plugin 'egg') took 0.1 s at step 6",
    ),
}


@pytest.mark.parametrize("case", BREAKS)
def test_however_it_is_broken_the_run_goes_on_and_the_message_names_plugin_hook_and_fault(
    case: str, use: Use, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once; losses are the same to the last bit, and all other parts have done their work."""
    change, message = BREAKS[case]
    set_limits(monkeypatch, slow_seconds=0.04)
    clock = FakeClock()
    for module in (isolation, registry):
        monkeypatch.setattr(module, "time", clock)
    use(change)
    path = tmp_path / "a.csv"
    sinks = [f"jsonl:{tmp_path / 'a.jsonl'}"]
    # A plugin that is not there has no sink either, and an unknown sink is an error before training.
    if "not loaded" not in message and "not used" not in message:
        sinks.append(f"egg:{path}")
    with caplog.at_level(logging.WARNING, "esdmon"):
        losses, monitor = train(sinks=sinks)
    assert losses == train()[0]
    lines = [record.getMessage() for record in caplog.records if message.format(csv=path) in record.getMessage()]
    assert len(lines) == 1, caplog.text
    assert monitor is not None
    steps = [record["step"] for record in records_in(tmp_path / "a.jsonl") if record["kind"] == "summary"]
    assert steps == list(range(2, STEPS + 1, 2))
    assert [layer.name for layer in monitor.report or ()] == ["fc1", "fc2"]


def test_a_plugin_can_ask_to_stop(use: Use) -> None:
    """One True is enough; hosts end the training, and a loop of one's own looks at it."""
    use(added("def esdmon_request_stop(alert):\n    return alert.rule == 'top_heavy'"))
    _, monitor = train(sinks=[])
    assert monitor is not None
    assert monitor.should_stop


def test_a_plugin_can_add_steps_to_the_schedule(use: Use, tmp_path: Path) -> None:
    """Besides those of `every=`."""
    use(added("def esdmon_schedule(step):\n    return step == 5"))
    train(sinks=[f"jsonl:{tmp_path / 'a.jsonl'}"])
    steps = {record["step"] for record in records_in(tmp_path / "a.jsonl")}
    assert steps == {2, 4, 5, 6, 8, 10, 12}


class Packed(Tensor):
    """A weight of some library: its numbers are halved, and it says so nowhere."""


class Unpacks:
    """A plugin that knows it."""

    def __init__(self, fault: bool = False) -> None:  # noqa: FBT001, FBT002
        self.fault = fault

    @esdmon.hookimpl
    def esdmon_materialize(self, parameter: Tensor) -> Callable[[Tensor], Tensor] | None:
        if not isinstance(parameter, Packed):
            return None

        def unpack(packed: Tensor) -> Tensor:
            if self.fault:
                raise RuntimeError("the key is lost")
            return packed.detach().as_subclass(Tensor) * 2

        return unpack


def packed() -> tuple[nn.Module, Tensor]:
    layer = nn.Linear(80, 64)
    weight = layer.weight.detach().clone()
    layer.weight = nn.Parameter((weight / 2).as_subclass(Packed), requires_grad=False)
    return nn.Sequential(layer), weight


def test_a_plugin_can_materialise_a_weight() -> None:
    """It is read as the numbers that it stands for."""
    model, weight = packed()
    report = esdmon.analyze(model, plugins=[Unpacks()])
    norm = float(torch.linalg.matrix_norm(weight))
    assert report["0"].measures["frobenius_norm"] == pytest.approx(norm, rel=1e-5)
    assert report.coverage.watched == weight.numel()
    assert esdmon.analyze(model)["0"].measures["frobenius_norm"] == pytest.approx(norm / 2, rel=1e-5)


def test_a_weight_that_cannot_be_materialised_is_named_with_its_plugin(caplog: pytest.LogCaptureFixture) -> None:
    """The layer has a status and a reason; the log says whose fault it is."""
    report = esdmon.analyze(packed()[0], plugins=[Unpacks(fault=True)])
    assert (report["0"].status, report["0"].reason) == ("failed", "RuntimeError: the key is lost")
    assert "plugin 'Unpacks' failed in esdmon_materialize: RuntimeError: the key is lost" in caplog.text
