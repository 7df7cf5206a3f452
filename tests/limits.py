"""Limits of the monitors that a test makes through the public `esdmon.watch`, which takes none."""

from functools import partial

import pytest

from esdmon import watching
from esdmon.limits import Limits


def set_limits(monkeypatch: pytest.MonkeyPatch, **limits: float) -> None:
    """Have every `watch()` of a test use these limits."""
    monkeypatch.setattr(watching, "Limits", partial(Limits, **limits))  # type: ignore[arg-type]
