import json
import math
import re
from collections.abc import Iterable

import pytest
import torch
from torch import nn

import esdmon
from esdmon.errors import InputError
from esdmon.options import choose_measures
from esdmon.plugins import Plugins
from esdmon.runtime.reading.options import ReadingOptions
from esdmon.runtime.reading.reader import Reader
from esdmon.runtime.reading.watched_model import WatchedModel
from esdmon.spectrum import Measure, Spectrum
from esdmon.weights import Watched, discover

DEFAULT = choose_measures("default", Plugins().measures)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 256), nn.Linear(256, 80))


def test_a_fresh_network_is_random_like() -> None:
    """Layers large enough for a phase show noise, and no alpha that means anything."""
    report = esdmon.analyze(network())
    assert [layer.name for layer in report] == ["0", "3", "4"]
    assert {layer.status for layer in report} == {"ok"}
    assert report["3"].phase is report["4"].phase is esdmon.Phase.RANDOM_LIKE
    assert report["0"].phase is esdmon.Phase.UNCLASSIFIED
    assert not any(layer.alpha_is_meaningful for layer in report)
    assert (report["3"].N, report["3"].M, report["3"].Q) == (512, 256, 2.0)
    assert (report["0"].slices, report["0"].n_eigenvalues) == (9, 27)


def test_records_are_json_with_nulls() -> None:
    """Every measure with a null carries it; what is undefined is null."""
    record = esdmon.analyze(network()).to_records()[1]
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["stable_rank"] == pytest.approx(record["stable_rank_null"], rel=0.1)
    assert record["update_ratio"] is None


def parameter(weight: torch.Tensor) -> nn.Module:
    module = nn.Module()
    module.weight = nn.Parameter(weight)
    return module


def bad_weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    square = torch.randn(96, 96)
    half_dead = square.clone()
    half_dead[::2] = 0
    return {
        "zero": torch.zeros(96, 96),
        "rank_1": torch.outer(torch.randn(96), torch.randn(96)),
        "nan": square.index_fill(0, torch.tensor([3]), float("nan")),
        "inf": square.index_fill(1, torch.tensor([3]), float("inf")),
        "row": torch.randn(1, 96),
        "empty": torch.empty(0, 96),
        "huge": square * 1e30,
        "orthogonal": torch.linalg.qr(square).Q,
        "half_dead": half_dead,
        "overflowed": (square * 1e5).half(),
        "nearly_overflowing": (square * 1e4).half(),
    }


BAD = {
    "zero": ("degenerate", "all weights are zero"),
    "rank_1": ("ok", "eigenvalues are zero: the rank has collapsed to 1% of full."),
    "nan": ("nonfinite", "96 of 9216 elements are NaN or infinite"),
    "inf": ("nonfinite", "96 of 9216 elements are NaN or infinite"),
    "row": ("skipped", "1 eigenvalue; at least 10 are needed"),
    "empty": ("skipped", "an empty weight"),
    "huge": ("ok", "No eigenvalue is above the bulk"),
    "orthogonal": ("ok", "No eigenvalue is above the bulk, yet the bulk is not random"),
    "half_dead": ("ok", "48 of 96 rows are dead and left out."),
    "overflowed": ("nonfinite", "elements are NaN or infinite"),
    "nearly_overflowing": ("ok", "No eigenvalue is above the bulk"),
}


def test_bad_weights_leave_the_others_unchanged() -> None:
    """Each says what it is, and the readings beside them are the same to the last bit."""
    good = network()
    before = esdmon.analyze(good)
    bad = nn.ModuleDict({name: parameter(weight) for name, weight in bad_weights().items()})
    report = esdmon.analyze(nn.ModuleDict({"good": good, "bad": bad}))
    for layer in before:
        name = f"good.{layer.name}"
        assert report[name].to_record() == layer.to_record() | {"name": name}
    for name, (status, reason) in BAD.items():
        layer = report[f"bad.{name}"]
        assert layer.status == status, name
        assert reason in (layer.reason or layer.explanation), name
        assert status == "ok" or not layer.measures
    assert report["bad.huge"].measures["spectral_norm"] > 1e30
    assert re.search(r"\nbad\.nan.*: 96 of 9216 elements are NaN or infinite\n", str(report))
    unresolved = ("sigma_min", "condition_number")  # by float32
    huge = report["bad.huge"].measures
    assert all(math.isfinite(value) for name, value in huge.items() if name not in unresolved)


def test_the_model_is_untouched() -> None:
    """No attribute, no hook, no gradient, no change of mode, no random number."""
    model = network()
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    esdmon.analyze(model)
    assert torch.equal(state, torch.get_rng_state())
    assert attributes == {name: set(vars(module)) for name, module in model.named_modules()}
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_update_ratio_and_optimizer_membership() -> None:
    """A layer that the optimizer was not given is marked."""
    model = network()
    optimizer = torch.optim.SGD(model.get_submodule("3").parameters(), lr=0.1)
    reader = Reader(model, Plugins(), ReadingOptions(DEFAULT), optimizers=[optimizer])
    assert [reader.read_one(name, 0).in_optimizer for name in ("3", "4")] == [True, False]
    assert esdmon.analyze(model)["3"].in_optimizer is None


class Extra:
    """A plugin whose one measure works and whose other does not."""

    @esdmon.hookimpl
    def esdmon_register_measures(self) -> Iterable[Measure]:
        return [Measure("trace", lambda s: float(s.eigenvalues.sum())), Measure("broken", self._broken)]

    @staticmethod
    def _broken(_spectrum: Spectrum) -> float:
        raise RuntimeError("no")


def test_a_measure_of_the_users_own_joins(caplog: pytest.LogCaptureFixture) -> None:
    """It stands beside the built-in ones; one that raises is NaN, logged once, and paused."""
    report = esdmon.analyze(network(), plugins=[Extra()])
    assert report["3"].measures["trace"] == pytest.approx(
        report["3"].measures["frobenius_norm"] ** 2 / report["3"].N, rel=1e-6
    )
    assert all(math.isnan(layer.measures["broken"]) for layer in report)
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0] == (
        "esdmon: measure broken (plugin 'Extra', esdmon_register_measures) failed: RuntimeError: no. Reading continues "
        "without it."
    )
    assert len([message for message in messages if "broken" in message]) == 2


def test_all_measures_are_taken_on_request() -> None:
    """Those that need eigenvectors, a shuffled copy or windows too; by default they are not even listed."""
    model = network()
    everything, default = esdmon.analyze(model, measures="all")["3"], esdmon.analyze(model)["3"]
    extra = everything.measures.keys() - default.measures.keys()
    assert extra == {
        "trap_spikes",
        "farms_alpha",
        "equalised_spikes",
        "equalised_alpha",
        "equalised_soft_rank",
        *(
            f"{name}_{part}"
            for name in ("localization", "participation", "vector_entropy")
            for part in ("bulk", "spikes")
        ),
    }
    assert everything.measures["trap_spikes"] == 0
    assert everything.measures["localization_bulk"] == pytest.approx(everything.nulls["localization_bulk"], rel=0.05)
    assert math.isnan(everything.measures["localization_spikes"])
    assert everything.phase is default.phase
    assert 0 < default.measures["trap"] < 1


def test_noise_is_near_its_nulls() -> None:
    """Every measure that has one, on a fresh layer."""
    layer = esdmon.analyze(network())["3"]
    for name, null in layer.nulls.items():
        if name not in ("alpha", "n_spikes"):
            assert layer.measures[name] == pytest.approx(null, rel=0.12), name
    assert layer.measures["n_spikes"] == layer.nulls["n_spikes"] == 0


def test_measures_can_be_chosen() -> None:
    """Only those; the table shows a dash for the others."""
    report = esdmon.analyze(network(), measures=["stable_rank"])
    assert set(report["3"].measures) == {"stable_rank"}
    assert "–" in str(report)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measures": ["stabel_rank"]}, r"unknown measure 'stabel_rank' in measures=. Did you mean 'stable_rank'"),
        ({"precision": "half"}, "precision= must be one of auto, exact; got 'half'"),
        ({"layers": ["fc9"]}, "layers='fc9' matches no layer"),
    ],
    ids=["measure", "precision", "layers"],
)
def test_wrong_arguments_are_refused(options: dict[str, object], message: str) -> None:
    """One sentence with what was got."""
    with pytest.raises(InputError, match=message):
        esdmon.analyze(network(), **options)  # type: ignore[arg-type]


def test_a_missing_layer_names_the_nearest() -> None:
    """A KeyError that helps."""
    report = esdmon.analyze(nn.ModuleDict({"encoder": nn.Linear(20, 20)}))
    with pytest.raises(KeyError, match=r"unknown layer 'encodr'\. Did you mean 'encoder'"):
        report["encodr"]


def test_failing_readings_are_faults_and_few_lines(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three by name, the others as one; counted while they last, and over when they are."""

    def broken(*_args: object, **_options: object) -> Spectrum:
        raise ZeroDivisionError("in the numerics")

    model = nn.Sequential(*(nn.Linear(32, 32) for _ in range(12)))
    with esdmon.watch(model, every=1, budget=None, mode="sync", sinks=None) as monitor:
        with monkeypatch.context() as patch:
            patch.setattr("esdmon.runtime.reading.computing.read_spectrum", broken)
            for _ in range(2):
                monitor.step()
        failed = monitor.errors
        monitor.step()
    lines = [record.getMessage() for record in caplog.records if "reading " in record.getMessage()]
    whos = ["reading 5", "reading 0", "reading 11", "reading more layers (ZeroDivisionError)"]
    assert [line.split(" failed at step 1: ZeroDivisionError: in the num")[0] for line in lines] == [
        f"esdmon: {who}" for who in whos
    ]
    assert [(fault.who, fault.count) for fault in failed] == list(zip(whos, (2, 2, 2, 18), strict=True))
    assert [fault.in_a_row for fault in monitor.errors] == [0, 0, 0, 0]
    assert monitor.report is not None
    assert {layer.status for layer in monitor.report} == {"ok"}


def test_what_failed_for_a_moment_is_looked_for_again() -> None:
    """A model that has changed is found at the next due step, if not at this one."""
    model = nn.Sequential(nn.Linear(32, 32))
    fails: list[OSError] = []

    def find() -> Watched:
        if fails:
            raise fails.pop()
        return discover(model)

    watched = WatchedModel(model, find)
    model.add_module("more", nn.Linear(32, 32))
    fails.append(OSError("for the moment"))
    with pytest.raises(OSError, match="for the moment"):
        watched.refresh()
    assert watched.refresh()
    assert list(watched.matrices) == ["0", "more"]
    assert not watched.refresh()
