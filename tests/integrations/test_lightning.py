"""The callback in the real Trainer of Lightning: options, steps, and what it leaves alone."""

import copy
import inspect
import pickle
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn

import esdmon
import esdmon.schedule
from esdmon.errors import InputError
from esdmon.options import WatchKeywords
from esdmon.sinks import MemorySink
from esdmon_lightning import SpectralMonitor
from tests.integrations.lightning_runs import Adversarial, Small, batches, trainer
from tests.integrations.runs import monitor_of

# Lightning warns of much: few workers, small batches, its own dependencies.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_training_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    """Weights and random numbers are unchanged by the callback, with validation in between."""

    def weights(*callbacks: Any) -> list[Tensor]:
        model = Small()
        trainer(tmp_path, *callbacks, max_epochs=2).fit(model, batches(), batches())
        return [*model.parameters(), torch.get_rng_state()]

    plain = weights()
    for mode in ("sync", "thread"):
        watched = weights(SpectralMonitor(every=1, budget=None, mode=mode))
        assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))


def test_a_callback_is_copied_and_pickled(tmp_path: Path) -> None:
    """Before and after training, with any schedule; a copy has the options and no monitor."""
    every = esdmon.schedule.union(esdmon.schedule.per_decade(3), 7)
    callback = SpectralMonitor(every=every, budget=None, sinks=[f"jsonl:{tmp_path / 'a.jsonl'}"])
    for _ in range(2):
        for again in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):  # noqa: S301 -- our own
            assert again.monitor is None
            assert again.state_dict() == {}
            assert again.options == {"every": every, "budget": None}
        trainer(tmp_path, callback, max_steps=2).fit(Small(), batches())


def test_the_options_are_those_of_watch() -> None:
    """The keywords have the names and types of the parameters of `watch`."""
    watched = inspect.signature(esdmon.watch, eval_str=True).parameters
    own = {"model", "optimizer", "every", "sinks", "hook", "first_step"}
    expected = {name: parameter.annotation for name, parameter in watched.items() if name not in own}
    assert get_type_hints(WatchKeywords) == expected


def test_a_config_of_lightning_cli_can_set_the_options(tmp_path: Path) -> None:
    """jsonargparse finds the options in the signature."""
    cli = pytest.importorskip("lightning.pytorch.cli")
    pytest.importorskip("jsonargparse.typing")
    config = {
        "callbacks": [
            {
                "class_path": "esdmon_lightning.SpectralMonitor",
                "init_args": {"every": 5, "budget": None, "layers": ["net.*"], "sinks": [f"jsonl:{tmp_path}/a.jsonl"]},
            }
        ],
        "accelerator": "cpu",
        "logger": False,
    }
    made = cli.LightningCLI(Small, run=False, args={"trainer": config}, save_config_callback=None)
    (callback,) = [each for each in made.trainer.callbacks if isinstance(each, SpectralMonitor)]
    assert callback.options == {"every": 5, "budget": None, "layers": ["net.*"]}


def test_several_optimizers_and_steps_by_hand(tmp_path: Path) -> None:
    """A due step between two counts of `global_step` is not missed."""
    sink = MemorySink()
    trainer(tmp_path, SpectralMonitor(every=5, budget=None, sinks=[sink])).fit(Adversarial(), batches())
    assert [report.step for report in sink.reports] == [6, 10, 16, 20, 26, 30, 36, 40]
    assert all(layer.in_optimizer for layer in sink.reports[-1])


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    """Twenty batches, five steps."""
    sink = MemorySink()
    trainer(tmp_path, SpectralMonitor(every=2, budget=None, sinks=[sink]), accumulate_grad_batches=4).fit(
        Small(), batches()
    )
    assert [report.step for report in sink.reports] == [2, 4]


def test_weights_that_are_averaged_for_validation_are_not_read(tmp_path: Path) -> None:
    """The weights that train are read, while validation sees their average."""
    sink = MemorySink()
    averaging = WeightAveraging(avg_fn=lambda averaged, _now, _count: averaged)
    monitor = SpectralMonitor(every=10, budget=None, sinks=[sink])
    model = Small()
    trainer(tmp_path, monitor, averaging, max_epochs=1).fit(model, batches(), batches())
    plain = MemorySink()
    trainer(tmp_path, SpectralMonitor(every=10, budget=None, sinks=[plain])).fit(Small(), batches(), batches())
    norms = [[report["net.0"].measures["frobenius_norm"] for report in s.reports] for s in (sink, plain)]
    assert norms[0] == norms[1]


def test_an_exception_closes_the_monitor_and_is_raised(tmp_path: Path) -> None:
    """The readings so far are written."""

    class Failing(Small):
        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            if index == 7:
                raise RuntimeError("the user's own")
            return super().training_step(batch, index)

    callback = SpectralMonitor(every=1, budget=None, mode="thread", sinks=[f"jsonl:{tmp_path / 'a.jsonl'}"])
    with pytest.raises(RuntimeError, match="the user's own"):
        trainer(tmp_path, callback).fit(Failing(), batches())
    steps = [line.partition('"step": ')[2] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert steps
    monitor_of(callback).step()
    assert monitor_of(callback).steps == 7


def test_lazy_layers_do_not_end_the_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They have no weights before the first batch: one line says what to do, and the Trainer trains."""

    class Lazy(Small):
        def __init__(self) -> None:
            super().__init__()
            self.net[2] = nn.LazyLinear(64)

    callback = SpectralMonitor(every=2, sinks=f"jsonl:{tmp_path / 'a.jsonl'}")
    fit = trainer(tmp_path, callback, num_sanity_val_steps=0)
    fit.fit(Lazy(), batches())
    assert fit.global_step == 20
    assert callback.monitor is None
    assert caplog.text.count("has lazy layers without weights: run one batch through it first. Training continues") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every= must be a number of steps, 1 or more"),
        ({"budget": -0.1}, "budget= must be a share of the run, above 0 and at most 1"),
        ({"sinks": "tensorbord:x"}, "unknown sink scheme 'tensorbord'.*Did you mean 'tensorboard'"),
        ({"measures": ["alhpa"]}, "unknown measure 'alhpa' in measures=. Did you mean 'alpha"),
        ({"mode": "fast"}, "mode= must be one of auto, sync, thread, process, device; got 'fast'"),
        ({"stop_on": "rank_colapse"}, "stop_on='rank_colapse' names no rule in use.*Did you mean 'rank_collapse'"),
        ({"evry": 10}, "unknown option evry=. Did you mean 'every'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_option_raises_when_the_callback_is_constructed(options: dict[str, Any], message: str) -> None:
    """Long before training, with what is allowed or was meant."""
    with pytest.raises(InputError, match=message.replace("()", r"\(\)")):
        SpectralMonitor(**options)


def test_options_by_position_are_refused() -> None:
    """With the names of the others."""
    with pytest.raises(InputError, match=r"^SpectralMonitor\(\) takes only every by position; .* budget=, .*sinks="):
        SpectralMonitor(200, "console")  # type: ignore[call-arg]


def test_two_on_one_trainer_are_refused(tmp_path: Path) -> None:
    """Before training: both would write the same series."""
    with pytest.raises((InputError, RuntimeError), match=r"two SpectralMonitors|callback"):
        trainer(tmp_path, SpectralMonitor(sinks=None), SpectralMonitor(sinks=None)).fit(Small(), batches())
