"""Records as plain data, and back."""

import io
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import esdmon
from esdmon.records import Alert, LayerReport
from esdmon.records.serialization import alert_from_plain, layer_from_plain, to_plain

ALERT = Alert("a:fc", "a", "warning", "firing", "fc", ("fc", "gc"), 5, 3, "it holds", 1.5, {"alpha": 1.5})


def layers() -> list[LayerReport]:
    """One that is read, one tied, one too small, and one with what a reading leaves out filled in."""
    tied = nn.Linear(80, 80)
    model = nn.ModuleDict({"a": tied, "b": tied, "small": nn.Linear(3, 3)})
    read = list(esdmon.analyze(model))
    return [*read, replace(read[0], host_step=3, emitted_step=9, in_optimizer=True, update_ratio=math.inf)]


def through_a_file(plain: dict[str, object]) -> dict[str, object]:
    file = io.BytesIO()
    torch.save(plain, file)
    file.seek(0)
    loaded: dict[str, object] = torch.load(file, weights_only=True)
    return loaded


@pytest.mark.parametrize("number", range(3))
def test_layers_come_back_from_a_checkpoint(number: int) -> None:
    """Field by field, and of their own types; NaN is itself here."""
    layer = layers()[number]
    back = layer_from_plain(through_a_file(to_plain(layer)))
    assert repr(back) == repr(layer)
    assert back.to_record() == layer.to_record()


def test_alerts_come_back_from_a_checkpoint() -> None:
    """With their layers as a tuple."""
    assert alert_from_plain(through_a_file(to_plain(ALERT))) == ALERT
