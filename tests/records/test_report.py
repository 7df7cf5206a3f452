"""Records: frozen, printed in 80 columns, and strict JSON whatever they hold."""

import json
import math
from dataclasses import FrozenInstanceError, replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esdmon.records import Alert, Coverage, LayerReport, Report, Skipped, Status, show
from esdmon.spectrum import Phase

NUMBERS = st.dictionaries(st.text(min_size=1), st.floats(), max_size=5)
LAYERS = st.builds(
    LayerReport,
    name=st.text(),
    status=st.sampled_from(get_args(Status)),
    step=st.integers(min_value=0),
    reason=st.text(),
    N=st.integers(min_value=0),
    M=st.integers(0, 10_000),
    slices=st.integers(1, 49),
    host_step=st.none() | st.integers(min_value=0),
    emitted_step=st.none() | st.integers(min_value=0),
    in_optimizer=st.none() | st.booleans(),
    update_ratio=st.floats(),
    phase=st.sampled_from(Phase),
    phase_confidence=st.floats(),
    explanation=st.text(),
    measures=NUMBERS,
    nulls=NUMBERS,
)
ALERTS = st.builds(
    Alert,
    id=st.text(),
    rule=st.text(),
    severity=st.sampled_from(["info", "warning", "error", "critical"]),
    state=st.sampled_from(["pending", "firing", "resolved"]),
    layer=st.text(),
    layers=st.lists(st.text(), max_size=3).map(tuple),
    step=st.integers(),
    since=st.integers(),
    message=st.text(),
    time=st.floats(),
    evidence=NUMBERS,
)
GOOD = LayerReport(
    name="fc1",
    status="ok",
    step=200,
    N=1024,
    M=384,
    phase=Phase.HEAVY_TAILED,
    alpha_is_meaningful=True,
    measures={"alpha": 2.5, "alpha_stderr": 0.25, "mp_soft_rank": 0.25, "n_spikes": 30.0},
)
NOISE = replace(GOOD, name="fc2", phase=Phase.RANDOM_LIKE, alpha_is_meaningful=False)
BROKEN = LayerReport("fc3", "nonfinite", 200, "5 of 6 elements are NaN or infinite")


def report_of(*layers: LayerReport) -> Report:
    """Return a report on a model of these layers."""
    return Report(200, layers, Coverage(watched=3, total=4, skipped=(Skipped("fc1.bias", 1, "vectors"),)))


def strict_round_trip(record: dict[str, Any]) -> Any:
    """Write and read a record as strict JSON, which knows neither NaN nor infinity."""
    return json.loads(json.dumps(record, allow_nan=False))


@given(LAYERS)
def test_a_layers_record_is_strict_json(layer: LayerReport) -> None:
    """A round trip changes nothing; what is not finite is null."""
    record = layer.to_record()
    assert strict_round_trip(record) == record


@given(ALERTS)
def test_an_alerts_record_is_strict_json(alert: Alert) -> None:
    """A round trip changes nothing; what is not finite is null."""
    record = alert.to_record()
    assert strict_round_trip(record) == record


@given(st.lists(LAYERS, max_size=3), st.floats())
def test_a_summary_is_strict_json(layers: list[LayerReport], seconds: float) -> None:
    """A model may have no layer, or no number."""
    record = Report(0, tuple(layers), Coverage(0, 0), seconds).to_summary_record()
    assert strict_round_trip(record) == record


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_what_is_undefined_is_none(value: float) -> None:
    """This holds for a layer's own fields, its measures and their nulls."""
    record = replace(GOOD, update_ratio=value, measures={"alpha": value}, nulls={"alpha": value}).to_record()
    assert (record["update_ratio"], record["alpha"], record["alpha_null"]) == (None, None, None)


def test_measures_and_nulls_lie_flat_in_a_record() -> None:
    """A measure has its own name as its key, and its null that name with `_null`."""
    record = replace(GOOD, measures={"stable_rank": 3.0}, nulls={"stable_rank": 60.0}).to_record()
    assert (record["stable_rank"], record["stable_rank_null"]) == (3.0, 60.0)


@pytest.mark.parametrize(
    ("layer", "q", "n_eigenvalues"),
    [
        pytest.param(GOOD, 1024 / 384, 384, id="linear"),
        pytest.param(replace(GOOD, slices=9), 1024 / 384, 9 * 384, id="convolution"),
        pytest.param(BROKEN, math.nan, 0, id="not-read"),
    ],
)
def test_what_follows_from_the_shape(layer: LayerReport, q: float, n_eigenvalues: int) -> None:
    """Q = N/M, and there are M eigenvalues in a slice; without a shape neither is defined."""
    assert pytest.approx(q, nan_ok=True) == layer.Q
    assert layer.n_eigenvalues == n_eigenvalues


@pytest.mark.parametrize(
    ("emitted", "record"),
    [
        pytest.param(None, {"emitted_step": 200, "age": 0}, id="at-once"),
        pytest.param(800, {"emitted_step": 800, "age": 600}, id="later"),
    ],
)
def test_a_reading_has_an_age(emitted: int | None, record: dict[str, int]) -> None:
    """A reading that is written again later says from which step it is."""
    layer = replace(GOOD, emitted_step=emitted)
    assert record.items() <= layer.to_record().items()
    assert (layer.step, layer.age) == (200, record["age"])


def test_records_are_frozen() -> None:
    """Sinks and rules share them, so none may change them."""
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'step'"):
        GOOD.step = 1  # type: ignore[misc]  # that it is refused is what is tested


def test_a_report_finds_its_layers() -> None:
    """Layers are found by name, iterated in order, and counted."""
    report = report_of(GOOD, NOISE)
    assert report["fc2"] is NOISE
    assert list(report) == [GOOD, NOISE]
    assert len(report) == 2
    assert [record["name"] for record in report.to_records()] == ["fc1", "fc2"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("fc", r"unknown layer 'fc'\. Did you mean '.+'\?", id="close"),
        pytest.param("encoder", r"unknown layer 'encoder'\. The layers are: fc1, fc2\.", id="far"),
        pytest.param(0, r"unknown layer 0\. The layers are: fc1, fc2\.", id="a-number"),
    ],
)
def test_an_unknown_layer_is_a_key_error(name: Any, message: str) -> None:
    """Its message has the nearest names, or the first."""
    with pytest.raises(KeyError, match=message):
        report_of(GOOD, NOISE)[name]


def test_a_name_is_in_the_report_that_has_it() -> None:
    """`"fc1" in report` agrees with `report["fc1"]`."""
    report: Any = report_of(GOOD)
    assert "fc1" in report
    assert "fc9" not in report


def test_a_summary_holds_medians_of_what_is_defined() -> None:
    """Layers that are not ok, numbers that are NaN and an alpha that means nothing are left out."""
    undefined = replace(GOOD, measures={"alpha": math.nan, "mp_soft_rank": 0.375})
    noise = replace(NOISE, measures={"alpha": 9.0, "mp_soft_rank": 1.0})
    summary = report_of(GOOD, undefined, noise, replace(BROKEN, measures={"alpha": 0.0})).summary
    assert (summary["alpha_median"], summary["mp_soft_rank_median"]) == (2.5, 0.375)
    assert "stable_rank_median" not in summary


def test_a_summary_counts_the_layers_in_each_phase() -> None:
    """Every phase has a count, and a layer that is not ok is in none."""
    summary = report_of(GOOD, GOOD, NOISE, BROKEN).summary
    counts = {phase: summary[f"layers_{phase.value}"] for phase in Phase}
    assert {phase: count for phase, count in counts.items() if count} == {Phase.HEAVY_TAILED: 2, Phase.RANDOM_LIKE: 1}
    assert summary["layers_not_ok"] == 1


def test_a_summary_of_nothing_has_no_medians() -> None:
    """A model of which nothing could be read has counts, and the step it was read at."""
    record = report_of(BROKEN).to_summary_record()
    assert (record["step"], record["layers_not_ok"], record["seconds"]) == (200, 1, None)
    assert not [key for key in record if key.endswith("_median")]


def test_a_report_prints_as_a_table() -> None:
    """Alpha is in brackets where it means nothing, and what was not read has its reason below."""
    assert str(report_of(GOOD, NOISE, BROKEN)).split("\n") == [
        "layer       N × M  phase                 alpha  soft rank  spikes",
        "fc1    1024 × 384  heavy-tailed   2.50 ± 0.25        0.25      30",
        "fc2    1024 × 384  random-like   (2.50 ± 0.25)       0.25      30",
        "fc3                nonfinite",
        "fc3: 5 of 6 elements are NaN or infinite",
        "(alpha) in parentheses: no power-law tail that can be distinguished from noise",
        "step 200, watching 75.0% of 4 parameters",
        "  not watched: fc1.bias (vectors)",
    ]


def test_readings_from_before_are_counted_by_their_reason() -> None:
    """Each once: a layer of zeros that has not moved counts as unchanged, also where its drift was not written."""
    report = report_of(
        LayerReport("new", "ok", 200),
        LayerReport("late", "ok", 100, drift=0.1),
        LayerReport("small", "skipped", 100, drift=0.1),
        LayerReport("still", "ok", 100, drift=0.0, unchanged=True),
        LayerReport("zeros", "degenerate", 100, unchanged=True),
        LayerReport("nan", "nonfinite", 100),
    )
    counts = "2 unchanged since then, 1 still without a spectrum, 2 postponed by budget="
    assert f"5 of 6 read earlier, the oldest at step 100: {counts}" in str(report)


def test_brackets_are_explained_only_where_there_are_any() -> None:
    """A table without brackets does not speak of them."""
    assert "noise" not in str(report_of(GOOD))


@given(st.text(alphabet=st.characters(exclude_categories=["C", "Z"]), max_size=200))
def test_a_table_fits_a_terminal_whatever_the_name(name: str) -> None:
    """The other cells are the widest in practice: a wide convolution with a meaningless alpha."""
    measures = {"alpha": 123.45, "alpha_stderr": 12.34, "mp_soft_rank": 1.0, "n_spikes": 1234.0}
    layer = replace(NOISE, name=name, N=16384, M=4096, slices=9, measures=measures)
    header, row, *_ = str(report_of(layer)).split("\n")
    assert max(len(header), len(row)) <= 80
    assert "16384 × 4096 × 9" in row


@pytest.mark.parametrize(
    ("measures", "shown"),
    [({"alpha": 2.345}, "2.35"), ({"alpha": math.nan}, "–"), ({}, "–")],
    ids=["defined", "undefined", "not-taken"],
)
def test_a_measure_is_shown_or_a_dash(measures: dict[str, float], shown: str) -> None:
    """A number has two decimals; a missing one is a dash."""
    assert show(replace(GOOD, measures=measures), "alpha", ".2f") == shown


def test_coverage_groups_what_is_skipped_by_reason() -> None:
    """At most two names are listed for each reason."""
    skipped = [Skipped(f"fc{i}.bias", 1, "vectors") for i in range(5)] + [Skipped("emb", 2, "left out by layers=")]
    assert str(Coverage(9_993, 10_000, tuple(skipped))).split("\n") == [
        "watching 99.9% of 10,000 parameters",
        "  not watched: fc0.bias, fc1.bias and 3 more (vectors)",
        "  not watched: emb (left out by layers=)",
    ]


@pytest.mark.parametrize(("watched", "total", "share"), [(3, 4, 0.75), (0, 4, 0.0), (0, 0, 0.0)])
def test_the_share_of_a_model_that_is_watched(watched: int, total: int, share: float) -> None:
    """The share is in [0, 1], also for a model without parameters."""
    assert Coverage(watched, total).share == share


def test_coverage_counts_the_matrices_and_parameters_with_a_phase() -> None:
    """Layers that were not read, or have no phase, count for nothing."""
    read = [
        LayerReport("large", "ok", 0, n_parameters=900, phase=Phase.BULK_SPIKES),
        LayerReport("small", "ok", 0, n_parameters=100),
        LayerReport("broken", "nonfinite", 0, "NaN", n_parameters=50),
    ]
    report = Report(0, tuple(read), Coverage(1050, 1050))
    coverage = report.coverage
    assert (coverage.matrices_read, coverage.matrices_with_phase) == (2, 1)
    assert (coverage.parameters_read, coverage.parameters_with_phase) == (1000, 900)
    assert "  1 of 2 matrices have a phase: 90.0% by parameters" in str(report)
    assert "have a phase" not in str(Coverage(10, 10))
