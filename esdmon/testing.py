"""Check your own measures, rules, sinks and trainer integrations; the built-in ones pass the same checks.

    from esdmon.testing import check_measure, check_sink
    check_measure(Measure("flatness", flatness))

If a check fails, it raises `AssertionError` with the input and the wrong result.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import nn

from esdmon.alerts import AlertRule, History
from esdmon.analysis import analyze
from esdmon.calls import explain_wrong_calls
from esdmon.errors import InputError
from esdmon.records import Alert, LayerReport, Report
from esdmon.sinks import Sink
from esdmon.sinks.protocol import missing_method
from esdmon.spectrum import Measure, Spectrum

__all__ = ["check_host", "check_measure", "check_rule", "check_sink", "reports", "spectra"]


def spectra() -> dict[str, Spectrum]:
    """Return test spectra by name: noise, spikes, a power law; few, equal, zero, tiny and huge eigenvalues."""
    rng = np.random.default_rng(0)
    noise = np.linalg.svd(rng.standard_normal((256, 128)), compute_uv=False) ** 2 / 256
    slices = np.stack([np.linalg.svd(rng.standard_normal((64, 16)), compute_uv=False) ** 2 / 64 for _ in range(9)])
    given = {
        "noise": (noise, (256, 128)),
        "noise with spikes": (np.r_[noise[:-3], 20.0, 40.0, 90.0], (256, 128)),
        "a power law": ((1 - rng.random(128)) ** -0.8, (256, 128)),
        "pooled slices": (slices, (64, 16)),
        "few": (noise[:10], (12, 10)),
        "equal": (np.ones(64), (64, 64)),
        "half of them zero": (np.r_[np.zeros(64), noise[64:]], (256, 128)),
        "tiny": (noise * 1e-30, (256, 128)),
        "huge": (noise * 1e30, (256, 128)),
    }
    return {name: Spectrum.from_eigenvalues(lam, shape=shape) for name, (lam, shape) in given.items()}


@explain_wrong_calls
def check_measure(measure: Measure) -> None:
    """Check that a measure returns one number for each of `spectra()`, the same in a second call.

    An undefined value must be NaN. Measures with `needs` (eigenvectors, a shuffled spectrum) are not called.

    Raises:
        AssertionError: if the measure raises, returns no number or another one in a second call, or changes the
            eigenvalues.
    """
    for name, spectrum in spectra().items():
        before = spectrum.eigenvalues.copy()
        for what, quantity in (("value", measure.compute), ("null", measure.null)):
            if quantity is None or measure.needs:
                continue
            try:
                first, second = quantity(spectrum), quantity(spectrum)
            except Exception as error:
                raise AssertionError(
                    f"the {what} of {measure.name} raises on {name}: {error!r}; undefined is NaN"
                ) from error
            if not isinstance(first, float | int | np.floating | np.integer):
                raise AssertionError(f"the {what} of {measure.name} on {name} is {first!r}, which is not a number")  # noqa: TRY004 -- of a test
            if first != second and not (math.isnan(first) and math.isnan(second)):
                raise AssertionError(
                    f"the {what} of {measure.name} on {name} is {first!r}, and {second!r} the second time"
                )
        if not np.array_equal(before, spectrum.eigenvalues):
            raise AssertionError(f"{measure.name} changes the eigenvalues of {name}")


def reports() -> list[Report]:
    """Return three reports of a model with a non-ASCII layer name, a layer of zeros, and one that becomes NaN."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"fc": nn.Linear(96, 64), "слой/層": nn.Linear(80, 64), "zero": nn.Linear(64, 64)})
    nn.init.zeros_(model.get_parameter("zero.weight"))
    found: list[Report] = []
    for step in (10, 20, 30):
        if step == 30:
            model.get_parameter("fc.weight").data[0, 0] = math.nan
        report = analyze(model)
        layers = tuple(replace(layer, step=step) for layer in report)
        if step == 20:  # one that was not read again
            layers = (replace(found[0].layers[0], emitted_step=20, unchanged=True), *layers[1:])
        found.append(replace(report, step=step, layers=layers, seconds=0.01, waiting=("later",)))
    return found


@explain_wrong_calls
def check_rule(rule: AlertRule) -> None:
    """Check that a rule yields findings for layers of its history only, the same in a second call, and has a docstring.

    The rule is evaluated on `reports()` with all measures in its `needs`, and again with every measure NaN.

    Raises:
        AssertionError: if the rule raises, yields anything else, or has no docstring.
    """
    for report in reports():
        counted = [layer for layer in report if layer.status == "ok" or rule.counts != "moves"]
        for what, measures in (("readings", None), ("readings of which nothing is defined", math.nan)):
            layers = {layer.name: _with(layer, rule.needs, measures) for layer in counted}
            twice = {name: (layer, layer) for name, layer in layers.items()}
            history = History(report, twice, layers, dict.fromkeys(layers, ()))
            try:
                first, second = list(rule.find(history)), list(rule.find(history))
            except Exception as error:
                raise AssertionError(f"the rule {rule.name} raises on {what}: {error!r}") from error
            if first != second:
                raise AssertionError(f"the rule {rule.name} finds {first!r} on {what}, and {second!r} the second time")
            for finding in first:
                if getattr(finding, "layer", None) not in {"", *layers}:
                    raise AssertionError(
                        f"the rule {rule.name} gives {finding!r} on {what}, which is not a finding in one of its layers"
                    )
    if not rule.is_explained:
        raise AssertionError(
            f"the rule {rule.name} has no page: give its function a docstring that says what, why and by which source"
        )


def _with(layer: LayerReport, needs: Iterable[str], value: float | None) -> LayerReport:
    """Return a reading with the measures that are needed, or with all measures set to one value."""
    taken = dict.fromkeys(needs, 1.0) | dict(layer.measures)
    return replace(layer, measures=taken if value is None else dict.fromkeys(taken, value))


@explain_wrong_calls
def check_sink(make: Callable[[], Sink]) -> None:
    """Check that the methods of a sink can be called in the order in which a monitor calls them.

    The calls are `write` for each of `reports()`, `alert` twice, `flush` and `close`. Check the written data yourself.

    Args:
        make: a function that opens the sink.

    Raises:
        AssertionError: if a method is missing or raises.
    """
    sink = make()
    missing = missing_method(sink)
    if missing is not None:
        raise AssertionError(f"{sink!r} has no {missing}")
    alert = Alert("non_finite:fc", "non_finite", "error", "firing", "fc", ("fc",), 30, 30, "fc: NaN — stop.")
    calls: list[tuple[str, Callable[[], object]]] = [
        *((f"write, at step {report.step}", partial(sink.write, report)) for report in reports()),
        ("alert", lambda: sink.alert(alert)),
        ("alert, resolved", lambda: sink.alert(replace(alert, state="resolved", severity="info"))),
        ("flush", sink.flush),
        ("close", sink.close),
    ]
    for name, call in calls:
        try:
            call()
        except Exception as error:
            raise AssertionError(f"{type(sink).__name__} raises in {name}: {error!r}") from error


@explain_wrong_calls
def check_host(train: Callable[[bool], tuple[Sequence[float], nn.Module]]) -> None:
    """Check that losses, weights and the random state are bit-identical with and without a monitor.

    Args:
        train: a function that trains from a fixed seed, with a monitor if its argument is True, and returns the losses
            and the model.

    Raises:
        AssertionError: if losses, weights or the random state differ.
        InputError: if `train` returns no losses.
    """
    results = []
    for watched in (False, True):
        losses, model = train(watched)
        results.append(
            (list(losses), [weight.detach().clone() for weight in model.parameters()], torch.get_rng_state())
        )
    (plain, weights, random), (losses, weights_2, random_2) = results
    if not plain:
        raise InputError("train() returned no losses: there is nothing to compare with and without a monitor")
    _expect_equal(plain, losses)
    if not all(torch.equal(a, b) for a, b in zip(weights, weights_2, strict=True)):
        raise AssertionError("the weights differ with a monitor")
    if not torch.equal(random, random_2):
        raise AssertionError("the random state differs with a monitor")


def _expect_equal(plain: Iterable[float], watched: Iterable[float]) -> None:
    """Check that losses with and without a monitor are the same; NaN counts as equal to NaN."""
    for k, (a, b) in enumerate(zip(plain, watched, strict=True)):
        if a != b and not (math.isnan(a) and math.isnan(b)):
            raise AssertionError(f"the losses differ with a monitor, first at {k}: {a!r} without, {b!r} with")
