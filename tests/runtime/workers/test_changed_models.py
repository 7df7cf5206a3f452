"""Models that change while they are watched: a layer or a parametrisation is replaced, weights are frozen or lost."""

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import esdmon
from esdmon.sinks import MemorySink
from tests.runtime.workers.training import MODES, Training


def changed_after(change: Callable[[Training], None]) -> list[dict[str, int]]:
    """The steps of each layer's reading, at due steps before and after a change to the model."""
    run = Training(mode="sync", budget=None, every=2).train(4)
    change(run)
    run.train(4)
    run.watched.close()
    return [{layer.name: layer.step for layer in report} for report in run.sink.reports]


def test_a_layer_that_is_replaced_is_read_as_it_is_now(caplog: pytest.LogCaptureFixture) -> None:
    """The model is what the user's loop trains, and not what it was at the start."""
    caplog.set_level(logging.INFO, logger="esdmon")

    def replace(run: Training) -> None:
        run.model[2] = nn.Linear(96, 80, bias=False)
        run.model.add_module("5", nn.Linear(64, 64))

    steps = changed_after(replace)
    assert steps[-1] == {"0": 8, "2": 8, "4": 8, "5": 8}
    (line,) = [each for each in caplog.messages if "parameters of the model have changed" in each]
    assert "(5: read from now on): watching" in line


def test_each_change_is_logged_with_what_it_changes(caplog: pytest.LogCaptureFixture) -> None:
    """Some at INFO, others at DEBUG; so are weights that are frozen or trained again."""
    caplog.set_level(logging.DEBUG, logger="esdmon")
    run = Training(mode="sync", budget=None, every=1).train(1)

    def logged(what: str) -> list[tuple[str, str]]:
        run.train(1)
        found = [(each.levelname, each.getMessage()) for each in caplog.records if what in each.getMessage()]
        caplog.clear()
        return found

    run.model.add_module("5", nn.Linear(64, 64))
    ((level, text),) = logged("have changed (")
    assert (level, text.partition("(")[2][:24]) == ("INFO", "5: read from now on): wa")
    for expected in ["INFO"] * 4 + ["DEBUG"] * 2:
        run.model.add_module("5", nn.Linear(64, 64))
        ((level, text),) = logged("have changed (")
        assert (level, text.partition("(")[2].partition(")")[0]) == (
            expected,
            "the same matrices, of other parameters",
        )
    run.model.get_submodule("2").requires_grad_(requires_grad=False)
    ((level, text),) = logged("requires_grad of weights has changed")
    assert (level, "now trainable: none; now frozen: 2." in text) == ("INFO", True)
    run.model.get_submodule("2").requires_grad_(requires_grad=True)
    ((level, text),) = logged("requires_grad of weights has changed")
    assert (level, "now trainable: 2; now frozen: none." in text) == ("INFO", True)
    assert logged("has changed") == []


def test_a_weight_that_is_tied_again_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """It is read once, under its first name."""
    run = Training(mode="sync", budget=None, every=1)
    run.model.add_module("5", nn.Linear(64, 64))
    run.model.add_module("6", nn.Linear(64, 64))
    run.train(1)
    caplog.clear()
    caplog.set_level(logging.INFO, logger="esdmon")
    run.model.get_submodule("6").weight = run.model.get_submodule("5").weight
    run.train(1)
    ((level, text),) = [
        (each.levelname, each.getMessage()) for each in caplog.records if "have changed (" in each.getMessage()
    ]
    assert (level, "6: not read any more" in text) == ("WARNING", True)
    assert run.watched.errors == ()


def test_layers_that_a_script_prunes_in_mid_run_are_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Nor a parametrisation: the same matrices are read."""
    caplog.set_level(logging.INFO, logger="esdmon")
    run = Training(mode="sync", budget=None, every=1).train(1)
    prune.l1_unstructured(run.model[2], "weight", 0.2)  # type: ignore[no-untyped-call]
    run.train(1)
    parametrize.register_parametrization(run.model[4], "weight", nn.Identity())
    run.train(1)
    logged = [each for each in caplog.records if "have changed (" in each.getMessage()]
    assert [each.levelname for each in logged] == ["INFO", "INFO"]
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []


def test_a_model_that_loses_all_its_weights_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """The last that is known stays."""

    def strip(run: Training) -> None:
        for name in ("0", "2", "4"):
            run.model.set_submodule(name, nn.Identity())

    run = Training(mode="sync", budget=None, every=1).train(1)
    strip(run)
    for _ in range(6):
        run.watched.hooked_step()
    run.watched.close()
    assert run.watched.report is not None
    assert "Sequential has no weight matrix to read" in run.watched.errors[0].message
    assert caplog.text.count("no weight matrix to read") == 1


def test_frozen_weights_are_read_once_and_show_their_age() -> None:
    """Repeated, they keep the step of their reading and are unchanged; moved by hand, they are read again."""
    model = nn.Sequential(nn.Linear(64, 96)).requires_grad_(requires_grad=False)
    sink = MemorySink()
    with esdmon.watch(model, every=1, budget=None, sinks=[sink]) as monitor:
        for _ in range(3):
            monitor.step()
        with torch.no_grad():
            model.get_parameter("0.weight").mul_(2)
        monitor.step()
    first, _, third, moved = (report["0"] for report in sink.reports)
    assert (third.step, third.emitted_step, third.age, third.unchanged) == (1, 3, 2, True)
    assert third.measures is first.measures
    assert [len(report.new) for report in sink.reports] == [1, 0, 0, 1]
    assert (moved.step, moved.age, moved.unchanged) == (4, 0, False)
    assert moved.update_ratio == pytest.approx(1)
    assert moved.measures["lambda_max"] == pytest.approx(4 * first.measures["lambda_max"])


class Noisy(nn.Module):
    """A parametrisation that draws at random."""

    def forward(self, weight: Tensor) -> Tensor:
        """Other numbers at each look."""
        return weight + 0.01 * torch.randn_like(weight)


@pytest.mark.parametrize("mode", MODES)
def test_a_parametrisation_that_draws_takes_nothing_from_the_random_state(mode: str) -> None:
    """The user's next random number is the same."""
    model = nn.Sequential(nn.Linear(64, 64))
    parametrize.register_parametrization(model[0], "weight", Noisy())
    with esdmon.watch(model, every=1, budget=None, mode=mode, sinks=None) as monitor:
        state = torch.get_rng_state()
        monitor.step()
        monitor.flush()
        assert torch.equal(state, torch.get_rng_state())


def test_a_weight_that_is_computed_otherwise_from_now_on_is_found() -> None:
    """Pruning that is made permanent takes away what the weight was computed from; a norm that is added is at rest."""
    model = nn.Sequential(nn.Linear(64, 64, bias=False))
    prune.random_unstructured(model[0], "weight", 0.5)  # type: ignore[no-untyped-call]
    sink = MemorySink()
    with esdmon.watch(model, every=1, budget=None, mode="sync", sinks=[sink]) as monitor:
        monitor.step()
        prune.remove(model[0], "weight")  # type: ignore[no-untyped-call]
        monitor.step()
        nn.utils.parametrizations.spectral_norm(model[0])
        state = {name: value.clone() for name, value in model.state_dict().items()}
        monitor.step()
    assert [report["0"].status for report in sink.reports] == ["ok"] * 3
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert sink.reports[-1]["0"].measures["spectral_norm"] == pytest.approx(1, rel=0.1)
    assert monitor.errors == ()


def test_a_reference_stays_what_it_was_when_the_model_is_searched_again() -> None:
    """W₀ was copied at the start, and not again."""
    model = nn.Sequential(nn.Linear(64, 64))
    sink = MemorySink()
    with esdmon.watch(model, every=1, budget=None, sinks=[sink], reference=model.state_dict()) as monitor:
        for _ in range(2):
            with torch.no_grad():
                model.get_parameter("0.weight").add_(torch.randn(64, 64) * 0.01)
            monitor.step()
            model.add_module("more", nn.Linear(64, 64))
    first, second = (report["0"].measures["frobenius_norm"] for report in sink.reports)
    assert 1.2 * first < second < 1.7 * first
