"""Short records for lines of a file, and whole ones again."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

import esdmon
from esdmon.records import LayerReport
from esdmon.records.serialization import layer_from_record
from esdmon.records.shortening import POWERS, Restorer, Shortener
from esdmon.spectrum import Phase

LAYER = LayerReport(
    "fc",
    "ok",
    1,
    N=96,
    M=64,
    explanation="λmax is 2.5 × the edge.",
    measures={"alpha": 2.5, "frobenius_norm": 8.0, "lambda_max": 1 / 3, "bulk_sigma": math.nan},
    nulls={"alpha": 4.25, "lambda_max": 0.5, "bulk_sigma": 0.125},
)


def lines(*layers: LayerReport) -> list[dict[str, object]]:
    """Return what stands in the lines of a file."""
    shortener = Shortener()
    short = [shortener.shorten(layer.to_record(), explained=False) for layer in layers]
    return [json.loads(json.dumps({"kind": "layer", "run": "a"} | record, allow_nan=False)) for record in short]


def restored(*layers: LayerReport) -> list[LayerReport]:
    restorer = Restorer()
    return [layer_from_record(restorer.restore(line)) for line in lines(*layers)]


FLOATS = st.one_of(st.just(math.nan), st.floats(-1e6, 1e6))
LAYERS = st.builds(
    replace,
    st.just(LAYER),
    name=st.sampled_from(["fc", "gc"]),
    step=st.integers(0, 100),
    N=st.integers(64, 66),
    status=st.sampled_from(["ok", "failed"]),
    reason=st.sampled_from(["", "no reason"]),
    host_step=st.sampled_from([None, 5]),
    in_optimizer=st.sampled_from([None, False, True]),
    learning_rate=st.sampled_from([math.nan, 0.1, 0.01]),
    extra=st.booleans(),
    phase=st.sampled_from(Phase),
    explanation=st.sampled_from(["", "α is 2.5.", "α is 3.5.", "λ is 1."]),
    measures=st.dictionaries(st.sampled_from(["alpha", "frobenius_norm", "lambda_max"]), FLOATS),
).map(lambda layer: replace(layer, nulls={name: 2.5 for name in layer.measures}))  # noqa: C420 -- no shared view


@given(st.lists(LAYERS, max_size=12))
@example(
    [replace(LAYER, measures={"frobenius_norm": f, "lambda_max": 1.0}, nulls={"lambda_max": 2.5}) for f in (8.0, 8.05)]
)
def test_whatever_changes_in_whatever_order_is_restored(layers: list[LayerReport]) -> None:
    """Numbers to 4 digits or more, nulls that stay in proportion to the norm to 2 %, explanations but their numbers."""
    for layer, before in zip(restored(*layers), layers, strict=True):
        now, then = layer.to_record(), before.to_record()
        assert (now.pop("explanation")[:1], now.pop("emitted_step")) == (then.pop("explanation")[:1], before.step)
        then.pop("emitted_step")
        assert list(now) == list(then) or now.keys() == then.keys()
        for key, value in then.items():
            digits = 0.021 if key in POWERS else 5e-4
            expected = pytest.approx(value, rel=digits) if isinstance(value, float) else value
            assert now[key] == expected, key


NAMED = {"effective_rank": 40.5, "nuclear_norm": 33.25, "sigma_min": 0.5, "condition_number": 7.0, "spectral_gap": 1.5}


@pytest.mark.parametrize(
    ("measures", "is_packed"),
    [
        (NAMED | {"snr": 0.25, "spectral_norm": 3.5}, True),
        (NAMED | {"snr": math.nan, "spectral_norm": 3.5}, True),
        (NAMED | {"snr": 0.25, "spectral_norm": 3.5, "spectral_distance": 1e-4}, True),
        (NAMED | {"snr": 0.25, "spectral_norm": 3.5, "sigma_min": 0.0, "condition_number": math.nan}, True),
        (NAMED | {"snr": 0.25, "spectral_norm": 3.6}, False),  # a measure of a plugin, say
        (NAMED | {"snr": 0.25}, False),
        (NAMED | {"spectral_norm": 3.5}, False),
    ],
)
def test_measures_of_singular_values_stand_in_one_list(measures: dict[str, float], *, is_packed: bool) -> None:
    """They come back by their names, the condition number to 4 digits, with their nulls."""
    layer = replace(LAYER, measures={**LAYER.measures, **measures}, nulls={**LAYER.nulls, "snr": 0.0})
    (line,) = lines(layer)
    assert ("singular" in line) == is_packed
    assert ("effective_rank" in line) == ("condition_number" in line) == (not is_packed)
    (back,) = restored(layer)
    assert back.measures == pytest.approx(layer.measures, rel=1e-3, nan_ok=True)
    assert back.nulls == layer.nulls


TRAP = {"trap_is_local": 1.0, "trap_mean": 0.125, "trap_count": 2.0, "trap_row": 150_001.0, "trap_column": 12_347.0}


@pytest.mark.parametrize("share", [0.25, None])
def test_what_takes_a_trap_apart_stands_in_one_list(share: float | None) -> None:
    """Places are exact, whatever the size of the matrix; where a part is missing, all have their names."""
    parts = TRAP | {"trap_value": -9.5} | ({} if share is None else {"trap_share": share})
    trapped = replace(LAYER, step=2, measures={**LAYER.measures, **parts})
    assert ["trap_parts" in line for line in lines(LAYER, trapped, LAYER)] == [False, share is not None, False]
    first, back, last = restored(LAYER, trapped, LAYER)
    assert {name: back.measures[name] for name in parts} == parts
    assert not (first.measures.keys() | last.measures.keys()) & parts.keys()


def test_measures_of_single_experts_stand_in_one_list() -> None:
    names = [
        f"{name}_{end}"
        for name in ("hill_alpha", "stable_rank", "spectral_norm", "frobenius_norm")
        for end in ("min", "max")
    ]
    experts = replace(LAYER, measures={**LAYER.measures, **{name: 0.25 * k for k, name in enumerate(names)}})
    (line,) = lines(experts)
    assert line["experts"] == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75]
    assert restored(experts)[0].measures == pytest.approx(experts.measures, rel=1e-4, nan_ok=True)


def linear() -> nn.Sequential:
    return nn.Sequential(nn.Linear(96, 48))


def convolutions() -> nn.Sequential:
    """A network with dead units in one layer, and a correlation trap in another."""
    dying, trapped = nn.Conv2d(32, 64, 3), nn.Conv2d(64, 64, 3)
    with torch.no_grad():
        dying.weight[:5] = 0
        trapped.weight[7, 11, 1, 2] = 9
    return nn.Sequential(nn.Conv2d(3, 32, 5), dying, trapped, nn.Linear(256, 64))


@pytest.mark.parametrize(("make", "readings", "limit"), [(linear, 50, 900), (convolutions, 25, 918)])
def test_a_line_of_a_layer_takes_at_most_half_of_what_it_once_took(
    make: Callable[[], nn.Sequential], readings: int, limit: int, tmp_path: Path
) -> None:
    """In bytes, with its share of spectra, on average over the layers."""
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.AdamW(model.parameters())
    with esdmon.watch(
        model, optimizer, every=1, budget=None, sinks=f"jsonl:{tmp_path}/a.jsonl", alerts=None
    ) as monitor:
        for _ in range(readings):
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter) * (parameter != 0)
            optimizer.step()
    assert monitor.errors == ()
    sizes = [len(line) for line in (tmp_path / "a.jsonl").read_bytes().splitlines() if b'"kind":"layer"' in line]
    assert len(sizes) == readings * len(model)
    assert sum(sizes) / len(sizes) <= limit


def test_nulls_of_the_same_variance_are_computed_from_the_norm() -> None:
    """They are written once for a shape, though they change with the norm."""
    grown = [
        replace(
            LAYER,
            step=step,
            measures={**LAYER.measures, "frobenius_norm": 8.0 * factor},
            nulls={"alpha": 4.25, "lambda_max": 0.5 * factor**2, "bulk_sigma": 0.125 * factor},
        )
        for step, factor in enumerate((1.0, 1.7, 0.3, 1e-9))
    ]
    assert [[key for key in POWERS if key in line] for line in lines(*grown)] == [
        ["lambda_max_null", "bulk_sigma_null"],
        *[[]] * 3,
    ]
    for layer, before in zip(restored(*grown), grown, strict=True):
        assert layer.nulls == pytest.approx(before.nulls, rel=1e-4)


@pytest.mark.parametrize("norm", [0.0, math.nan, 1e200, 1e-200])
def test_a_norm_that_cannot_be_squared_leaves_nulls_as_they_were(norm: float) -> None:
    layers = [replace(LAYER, step=k, measures={**LAYER.measures, "frobenius_norm": norm}) for k in range(2)]
    for layer in restored(*layers):
        assert layer.nulls == LAYER.nulls


def test_nulls_follow_their_measures() -> None:
    """A reading that failed has none, and the next one has them again; of measures that are not repeated too."""
    steady = {"hard_rank": 64.0, "sparsity": 0.0}
    layer = replace(LAYER, measures={**LAYER.measures, **steady}, nulls={**LAYER.nulls, **steady})
    failed = replace(layer, status="failed", step=2, measures={}, nulls={})
    assert "hard_rank" not in lines(layer, layer)[1]
    for back, before in zip(restored(layer, layer, failed, layer), (layer, layer, failed, layer), strict=True):
        assert back.nulls == before.nulls
        assert back.measures.keys() == before.measures.keys()


def test_an_explanation_is_written_where_its_words_change() -> None:
    texts = ["λmax is 2.5 × the edge.", "λmax is 2.75 × the edge.", "The rank is 3.", "The rank is 4."]
    layers = [replace(LAYER, step=step, explanation=text) for step, text in enumerate(texts)]
    assert [line.get("explanation") for line in lines(*layers)] == [texts[0], None, texts[2], None]
    shortener = Shortener()
    whole = [shortener.shorten(layer.to_record(), explained=True)["explanation"] for layer in layers]
    assert whole == texts


def test_lines_that_another_program_has_changed_raise_nothing() -> None:
    """What is wrong in them is found where the record is read."""
    restorer = Restorer()
    first = {"kind": "layer", "run": ["a"], "name": {}, "step": 1, "frobenius_norm": "x", "lambda_max_null": "y"}
    assert restorer.restore(first | {"age": "z"}) == first | {"age": "z"}
    assert restorer.restore(first | {"frobenius_norm": True})["lambda_max_null"] == "y"
