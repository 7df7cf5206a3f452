"""The callback in the real Trainer of Hugging Face: options, steps, optimizers, alerts, and what it leaves alone."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

import esdmon
import esdmon.schedule
from esdmon.errors import InputError
from esdmon.sinks import MemorySink
from esdmon_transformers import SpectralMonitor, attach, tracker_sinks
from tests.integrations.runs import monitor_of, summary_steps
from tests.integrations.transformers_runs import Tokens, network, trainer
from tests.rules import ALWAYS

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers and its dependencies warn of themselves


def test_training_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    """Weights, losses and random numbers are unchanged by the callback."""

    def run(*callbacks: Any) -> tuple[list[Tensor], list[Any]]:
        fit = trainer(tmp_path, *callbacks)
        fit.train()
        losses = [row.get("loss") for row in fit.state.log_history]
        return [*fit.model.parameters(), torch.get_rng_state()], losses

    plain, losses = run()
    assert len([loss for loss in losses if loss is not None]) == 12
    for mode in ("sync", "thread"):
        watched, watched_losses = run(SpectralMonitor(every=1, budget=None, sinks=None, mode=mode))
        assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
        assert watched_losses == losses


class TooLarge(Trainer):  # type: ignore[misc]  # transformers is half typed
    """Runs out of memory at its fifth step, with a batch of more than four."""

    def training_step(self, model: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
        if inputs["input_ids"].shape[0] > 4 and self.state.global_step == 4:
            raise RuntimeError("CUDA out of memory. Tried to allocate")
        return super().training_step(model, inputs, *rest, **options)


@pytest.mark.slow
def test_an_attempt_that_was_broken_off_is_closed(tmp_path: Path) -> None:
    """The next attempt has a monitor and a file of its own, and counts from the Trainer's steps."""
    monitors: list[esdmon.Monitor] = []

    class Keep(TrainerCallback):  # type: ignore[misc]  # transformers is half typed
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            monitors.append(monitor_of(callback))

    callback = SpectralMonitor(every=2, budget=None, layers=["*.0.mlp.c_fc"])
    arguments = trainer(tmp_path, max_steps=8, auto_find_batch_size=True).args
    TooLarge(network(), arguments, train_dataset=Tokens(), callbacks=[callback, Keep()]).train()
    assert len(monitors) > 1
    assert all(monitor.closed for monitor in monitors)
    files = [tmp_path / f"esdmon-{run}" / "esdmon.jsonl" for run in range(1, len(monitors) + 1)]
    assert [summary_steps(file) for file in files] == [[2, 4]] * (len(monitors) - 1) + [[2, 4, 6, 8]]


class Duck:
    """An optimizer that is not a subclass of torch's, with or without its parameters in `param_groups`."""

    def __init__(self, model: nn.Module, *, says: bool) -> None:
        self.inner_one = torch.optim.SGD(model.parameters(), lr=0.01)
        self.step, self.zero_grad = self.inner_one.step, self.inner_one.zero_grad
        self.state_dict, self.defaults = self.inner_one.state_dict, self.inner_one.defaults
        self.param_groups: Any = self.inner_one.param_groups if says else [{"lr": 0.01}]


@pytest.mark.parametrize("says", [True, False], ids=["with-parameters", "without"])
def test_an_optimizer_of_another_kind_trains(says: Any, tmp_path: Path) -> None:
    """Only its `param_groups` are used."""
    model = network()
    duck = Duck(model, says=says)
    callback = SpectralMonitor(every=2, budget=None, sinks=None)
    arguments = trainer(tmp_path, max_steps=4).args
    schedule = torch.optim.lr_scheduler.ConstantLR(duck.inner_one)
    Trainer(model, arguments, train_dataset=Tokens(), callbacks=[callback], optimizers=(duck, schedule)).train()
    report = monitor_of(callback).report
    assert report is not None
    assert report.step == 4
    assert {layer.in_optimizer for layer in report} == ({True} if says else {None})


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    """Twelve batches, three steps."""
    sink = MemorySink()
    callback = SpectralMonitor(every=1, budget=None, sinks=[sink])
    trainer(tmp_path, callback, gradient_accumulation_steps=4).train()
    assert [report.step for report in sink.reports] == [1, 2, 3]


def test_adapters_are_watched(tmp_path: Path) -> None:
    """PEFT: the frozen base is read once, the adapters' delta each time."""
    model = get_peft_model(network(), LoraConfig(r=16, target_modules=["c_attn"], fan_in_fan_out=True))
    sink = MemorySink()
    callback = SpectralMonitor(every=4, budget=None, sinks=[sink])
    trainer(tmp_path, callback, model=model).train()
    new = [{layer.view for layer in report.new} for report in sink.reports]
    assert new[0] >= {"base", "lora-delta"}
    assert new[1] == new[2] == {"lora-delta"}


@pytest.mark.parametrize(("stop_on", "steps"), [((), 12), ("always", 4)], ids=["not-asked", "asked"])
def test_an_alert_of_stop_on_ends_the_training(stop_on: Any, steps: int, tmp_path: Path) -> None:
    """At the due step of the alert; without `stop_on` the training runs to its end."""
    callback = SpectralMonitor(every=4, budget=None, sinks=None, alerts=[ALWAYS], stop_on=stop_on)
    fit = trainer(tmp_path, callback)
    fit.train()
    assert fit.state.global_step == steps


@pytest.mark.parametrize("save_on", [(), ("always",)], ids=["not-asked", "asked"])
def test_an_alert_of_save_on_saves_a_checkpoint(save_on: Any, tmp_path: Path) -> None:
    """Once for an alert: a checkpoint of the Trainer, with the monitor's state in it."""
    callback = SpectralMonitor(every=4, budget=None, sinks=None, alerts=[ALWAYS], save_on=save_on)
    trainer(tmp_path, callback).train()
    saved = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("esdmon.pt"))
    assert saved == (["checkpoint-4/esdmon.pt"] if save_on else [])


def test_attach_adds_it_to_an_existing_trainer(tmp_path: Path) -> None:
    """Such as one of TRL, which makes its own callbacks; a second call raises."""

    class Subclass(Trainer):  # type: ignore[misc]  # transformers is half typed
        pass

    arguments = TrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True, max_steps=4, save_strategy="no")
    fit = Subclass(network(), arguments, train_dataset=Tokens())
    callback = attach(fit, every=2, budget=None, sinks=None)
    with pytest.raises(InputError, match="there is a SpectralMonitor on this Trainer already"):
        attach(fit)
    fit.train()
    assert monitor_of(callback).steps == 4


def test_attach_takes_a_trainer_that_wraps_another() -> None:
    """It has `add_callback` and no list of callbacks, as SetFit's. Another kind of Trainer is refused with a remedy."""
    added: list[Any] = []
    callback = attach(SimpleNamespace(add_callback=added.append), every=2, sinks=None)
    assert added == [callback]
    message = r"SimpleNamespace has no add_callback\(\)\. Of Lightning, construct the Trainer with callbacks="
    with pytest.raises(InputError, match=message):
        attach(SimpleNamespace(callbacks=[]))


@pytest.mark.parametrize(
    ("target", "given", "named", "message"),
    [
        pytest.param(attach, (), {"trainr": None}, "unknown option trainr=. Did you mean 'trainer'?", id="misspelt"),
        pytest.param(attach, (None, 200), {}, "attach() takes only trainer by position; arguments given: 2.", id="two"),
        pytest.param(
            tracker_sinks, (), {"acclerator": None}, "unknown option acclerator=. Did you", id="tracker-sinks"
        ),
        pytest.param(
            SpectralMonitor, (200, "console"), {}, "SpectralMonitor() takes only every by position;", id="callback"
        ),
    ],
)
def test_a_wrong_call_has_a_remedy(
    target: Callable[..., object], given: tuple[object, ...], named: dict[str, object], message: str
) -> None:
    """As those of `watch()`."""
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        target(*given, **named)


def test_two_on_one_trainer_are_refused(tmp_path: Path) -> None:
    """Both would write the same series."""
    fit = trainer(tmp_path, SpectralMonitor(every=4, sinks=None), SpectralMonitor(every=2, sinks=None))
    with pytest.raises(InputError, match="there are two SpectralMonitors on this Trainer"):
        fit.train()


def test_a_wrong_option_raises_when_the_callback_is_constructed() -> None:
    """As in the callback of Lightning, which tests more of them."""
    with pytest.raises(InputError, match="every= must be a number of steps"):
        SpectralMonitor(every=0)


def test_a_fault_of_ours_before_training_does_not_stop_the_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """There is no monitor then, one line says why, and the Trainer trains."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("inside")

    monkeypatch.setattr("esdmon.trainers.base.attach", broken)
    callback = SpectralMonitor(every=2)
    fit = trainer(tmp_path, callback)
    fit.train()
    assert fit.state.global_step > 0
    assert callback.monitor is None
    assert "the model cannot be watched: RuntimeError: inside. Training continues without esdmon." in caplog.text


def test_a_trainer_that_hands_over_its_own_kind_of_model_is_watched(tmp_path: Path) -> None:
    """As SetFit's does: callbacks get an object around the module that the Trainer trains."""
    sink = MemorySink()
    fit = trainer(tmp_path, SpectralMonitor(every=4, budget=None, sinks=[sink]))
    handler = fit.callback_handler

    def call_event(event: str, args: Any, state: Any, control: Any, **others: Any) -> Any:
        for callback in handler.callbacks:
            getattr(callback, event)(
                args, state, control, model=Around(fit.model), optimizer=handler.optimizer, **others
            )
        return control

    handler.call_event = call_event
    fit.train()
    assert [report.step for report in sink.reports] == [4, 8, 12]
    assert sink.reports[-1]["transformer.h.0.mlp.c_fc"].in_optimizer


class Around:
    """The model of a library, not a module."""

    def __init__(self, module: Any) -> None:
        self.model_body = module


def test_a_model_that_cannot_be_watched_is_trained(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without a matrix to read, as with lazy layers: one line says so."""

    class Vectors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(16))

        def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
            return {"loss": (self.scale * input_ids - labels).square().mean()}

    callback = SpectralMonitor(every=2)
    fit = trainer(tmp_path, callback, model=Vectors())
    fit.train()
    assert fit.state.global_step == 12
    assert callback.monitor is None
    assert "the model cannot be watched: Vectors has no weight matrix to read" in caplog.text


def test_a_trial_that_is_pruned_may_be_too_short_for_a_reading(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The Trainer ends it as it does in a search, by `on_train_end` and an exception."""

    class Prune(TrainerCallback):  # type: ignore[misc]  # transformers is half typed
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 3:
                fit.callback_handler.on_train_end(args, state, control)
                raise RuntimeError("pruned")

    callback = SpectralMonitor()
    fit = trainer(tmp_path, callback, Prune())
    with pytest.raises(RuntimeError, match="pruned"):
        fit.train()
    assert monitor_of(callback).closed
    assert "nothing was read" not in caplog.text
