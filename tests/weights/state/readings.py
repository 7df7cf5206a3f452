"""Compare what is read of a file with what is read of the module that it is from."""

import pytest

from esdmon.records import Report


def assert_same_reading(report: Report, expected: Report) -> None:
    """Check that names, shapes, statuses and measures are equal."""
    assert {layer.name for layer in report} == {layer.name for layer in expected}
    for layer in report:
        other = expected[layer.name]
        assert (layer.N, layer.M, layer.slices, layer.status) == (other.N, other.M, other.slices, other.status)
        assert layer.measures == pytest.approx(other.measures, rel=1e-4, nan_ok=True)
