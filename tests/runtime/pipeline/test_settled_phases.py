"""The phase that is shown changes with the second reading that agrees on it."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import esdmon
from esdmon import Phase
from esdmon.records import LayerReport
from esdmon.records.serialization import layer_from_plain, to_plain

NOISE, SPIKES, DECAY = Phase.RANDOM_LIKE, Phase.BULK_SPIKES, Phase.BULK_DECAY


@pytest.mark.parametrize(
    ("read", "shown"),
    [
        ([NOISE, SPIKES, SPIKES], [NOISE, NOISE, SPIKES]),
        ([NOISE, SPIKES, NOISE, SPIKES], [NOISE, NOISE, NOISE, NOISE]),
        ([NOISE, SPIKES, DECAY, DECAY, SPIKES], [NOISE, NOISE, NOISE, DECAY, DECAY]),
    ],
)
def test_two_readings_must_agree(read: list[Phase], shown: list[Phase]) -> None:
    before: LayerReport | None = None
    found = []
    for step, phase in enumerate(read):
        now = LayerReport("fc", "ok", step, phase=phase).settle(before)
        found.append(now.shown_phase)
        assert now.to_record()["phase"] == phase.value
        before = layer_from_plain(to_plain(now))  # as a resumed run does
    assert found == shown


def test_a_layer_that_could_not_be_read_confirms_nothing() -> None:
    failed = LayerReport("fc", "failed", 1, phase=Phase.UNCLASSIFIED)
    assert replace(failed, step=2, status="ok", phase=SPIKES).settle(failed).shown_phase is SPIKES


def test_a_watched_run_shows_what_is_settled() -> None:
    torch.manual_seed(0)
    model = nn.Linear(128, 128)
    shown, raw = [], []
    with esdmon.watch(model, every=1, budget=None, sinks=[], alerts=None, mode="sync") as monitor:
        for step in range(3):
            if step == 1:
                with torch.no_grad():
                    model.weight.add_(torch.outer(torch.randn(128), torch.randn(128)) * 0.1)
            monitor.step()
            assert monitor.report is not None
            (layer,) = monitor.report
            shown.append(layer.shown_phase)
            raw.append(layer.phase)
    assert raw == [NOISE, SPIKES, SPIKES]
    assert shown[:2] == [NOISE, NOISE]
