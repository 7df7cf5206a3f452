import math
from dataclasses import replace

import pytest

from esdmon.records import Coverage, LayerReport, Report
from esdmon.spectrum import Phase
from esdmon.tags import CHIEF, scalars

MEASURES = dict.fromkeys((*CHIEF, "xmin", "alpha_low", "trap"), 2.0)


def layer(name: str, step: int = 10, alpha: float = 2.0) -> LayerReport:
    measures = MEASURES | {"alpha": alpha}
    return LayerReport(name, "ok", step, N=64, M=64, phase=Phase.BULK_DECAY, measures=measures)


def report(names: list[str], max_tags: int | None, **changes: object) -> Report:
    layers = tuple(layer(name, alpha=2.0 + k) for k, name in enumerate(names))
    whole = Report(10, layers, Coverage(1, 1), 0.1, max_tags=max_tags)
    return replace(whole, **changes)  # type: ignore[arg-type]


def of_layers(numbers: dict[str, float]) -> set[str]:
    return {tag for tag in numbers if not tag.startswith("esdmon_summary/")}


@pytest.mark.parametrize(("max_tags", "each"), [(None, 10), (200, 10), (30, 10), (29, 7), (21, 7)])
def test_each_layer_has_as_much_as_there_is_room_for(max_tags: int | None, each: int) -> None:
    """All measures, or the chief ones; and the phase."""
    tags = of_layers(scalars(report(["a", "b", "c"], max_tags)))
    assert len(tags) == 3 * each
    assert {"esdmon_alpha/a", "esdmon_phase/c", "esdmon_lambda_max/b"} <= tags


def test_of_many_layers_there_are_kinds_and_a_few() -> None:
    """Medians by kind, and single ones from the first to the last; never more than was said."""
    names = [f"h.{k}.{part}" for k in range(60) for part in ("attn/q", "mlp2.fc")]
    numbers = scalars(report(names, 200))
    tags = of_layers(numbers)
    assert 190 <= len(tags) <= 200
    assert {"esdmon_alpha/h.*.attn/q", "esdmon_phase/h.*.mlp2.fc"} <= tags
    assert numbers["esdmon_alpha/h.*.attn/q"] == 2.0 + 59
    assert {"esdmon_alpha/h.0.attn/q", "esdmon_alpha/h.59.mlp2.fc"} <= tags


def test_which_they_are_depends_on_the_model_alone() -> None:
    """Not on what was read at a step, or has not been read yet."""
    names = [f"h.{k}" for k in range(80)]
    whole = report(names, 70)
    later = replace(whole, layers=tuple(replace(each, step=5) for each in whole.layers[:40]), waiting=tuple(names[40:]))
    first = replace(later, layers=(layer("h.0"), *later.layers[1:]))
    assert of_layers(scalars(first)) <= of_layers(scalars(whole))
    assert of_layers(scalars(later)) == {tag for tag in of_layers(scalars(whole)) if tag.endswith("/h.*")}


def test_numbers_that_are_undefined_and_layers_that_are_not_ok_are_left_out() -> None:
    """And the summary is always there."""
    bad = replace(layer("bad"), status="nonfinite", reason="NaN", measures={})
    numbers = scalars(Report(10, (layer("good", alpha=math.nan), bad), Coverage(1, 1), 0.1))
    assert "esdmon_alpha/good" not in numbers
    assert "esdmon_xmin/good" in numbers
    assert not [tag for tag in numbers if tag.endswith("/bad")]
    assert numbers["esdmon_summary/layers_not_ok"] == 1
