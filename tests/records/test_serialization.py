"""Records as plain data, and back."""

import io
import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import esdmon
from esdmon.records import Alert, Coverage, Esd, LayerFinding, LayerReport, Report
from esdmon.records.layer import RECORD_KEYS
from esdmon.records.serialization import (
    alert_from_plain,
    alert_from_record,
    layer_from_plain,
    layer_from_record,
    to_plain,
)
from esdmon.spectrum import Phase

PARTS = (LayerFinding("fc", 3, "alpha 1.5"), LayerFinding("gc", 4, "alpha 1.4", 2))
ALERT = Alert("a:fc", "a", "warning", "firing", "fc", ("fc", "gc"), 5, 3, "it holds", 1.5, {"alpha": 1.5})
GROUPED = replace(ALERT, by_layer=PARTS, after=1)


def layers() -> list[LayerReport]:
    """Return a layer that is read and tied, one too small, and one with the optional fields set."""
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
    """All fields keep their values and types; NaN stays NaN here."""
    layer = layers()[number]
    back = layer_from_plain(through_a_file(to_plain(layer)))
    assert repr(back) == repr(layer)
    assert back.to_record() == layer.to_record()
    assert (back.aliases, back.spectral_shape) == (layer.aliases, layer.spectral_shape)


def test_alerts_come_back_from_a_checkpoint() -> None:
    """Their layers are a tuple again; those of an older version have nothing by layer."""
    plain = through_a_file(to_plain(GROUPED))
    assert alert_from_plain(plain) == GROUPED
    del plain["by_layer"], plain["after"]
    assert alert_from_plain(plain) == ALERT


def test_alerts_come_back_from_a_line() -> None:
    """With what was found in each layer, unless an older version wrote it."""
    record = json.loads(json.dumps(GROUPED.to_record()))
    assert alert_from_record(record) == GROUPED
    del record["by_layer"], record["after"]
    assert alert_from_record(record) == ALERT


SAMPLE = LayerReport(
    "h.0/q",
    "ok",
    200,
    aliases=("tied",),
    N=1024,
    M=384,
    slices=2,
    n_parameters=786432,
    dtype="bfloat16",
    precision="float32",
    host_step=100,
    emitted_step=250,
    trainable=False,
    in_optimizer=True,
    update_ratio=1e-3,
    learning_rate=0.1,
    drift=1e-9,
    extra=True,
    unchanged=True,
    phase=Phase.BULK_SPIKES,
    phase_confidence=0.5,
    explanation="spikes",
    alpha_is_meaningful=True,
    over_regularized=True,
    measures={"alpha": 2.5, "xmin": math.nan},
    nulls={"alpha": math.inf},
    esd=Esd(-2.0, 1.0, (1, 2, 3), zeros=1, noise=(0.5, 2.0, 3.5), top=(9.0, 3.0)),
)
SAMPLE_JSON = (
    '{"name": "h.0/q", "status": "ok", "reason": "", "view": "weight", "aliases": ["tied"], '
    '"computed": false, "N": 1024, "M": 384, '
    '"Q": 2.6666666666666665, "slices": 2, "n_eigenvalues": 768, "n_parameters": 786432, "dtype": "bfloat16", '
    '"precision": "float32", "step": 200, "host_step": 100, "emitted_step": 250, "age": 50, "trainable": false, '
    '"in_optimizer": true, "update_ratio": 0.001, "step_ratio": null, "step_growth": null, "start_ratio": null, '
    '"zero_gradient": null, "learning_rate": 0.1, "weight_decay": null, '
    '"extra": true, "unchanged": true, '
    '"dead_rows": 0, "dead_columns": 0, "dead_slices": 0, "phase": "bulk+spikes", "phase_code": 2, '
    '"phase_confidence": 0.5, "explanation": "spikes", "alpha_is_meaningful": true, "over_regularized": true, '
    '"alpha": 2.5, "xmin": null, "alpha_null": null}'
)
FAILED_JSON = (
    '{"name": "fc", "status": "failed", "reason": "no reason", "view": "weight", "aliases": [], '
    '"computed": false, "N": 0, "M": 0, '
    '"Q": null, "slices": 1, "n_eigenvalues": 0, "n_parameters": 0, "dtype": "", "precision": "", "step": 3, '
    '"host_step": null, "emitted_step": 3, "age": 0, "trainable": true, "in_optimizer": null, "update_ratio": null, '
    '"step_ratio": null, "step_growth": null, "start_ratio": null, "zero_gradient": null, "learning_rate": null, '
    '"weight_decay": null, '
    '"extra": false, "unchanged": false, "dead_rows": 0, "dead_columns": 0, "dead_slices": 0, '
    '"phase": "unclassified", "phase_code": -1, "phase_confidence": 0.0, "explanation": "", '
    '"alpha_is_meaningful": false, "over_regularized": false}'
)
SUMMARY_JSON = (
    '{"step": 200, "host_step": 100, "alpha_median": 2.5, "layers_random-like": 0.0, "layers_bleeding-out": 0.0, '
    '"layers_bulk+spikes": 1.0, "layers_bulk-decay": 0.0, "layers_heavy-tailed": 0.0, "layers_rank-collapse": 0.0, '
    '"layers_unclassified": 0.0, "layers_not_ok": 1.0, "layers_new": 1.0, "layers_extra": 1.0, '
    '"layers_unchanged": 1.0, "layers_waiting": 1.0, "alerts_firing": 2.0, "alert_rank_collapse": 2.0, '
    '"age_max": 197.0, "seconds": 0.5, '
    '"overhead": null, "still": [], "frozen": ["h.0/q"], "unchanged": ["h.0/q"], "waiting": ["w"], "extra": true}'
)
ALERT_JSON = (
    '{"id": "a:fc", "rule": "a", "severity": "warning", "state": "firing", "layer": "fc", "layers": ["fc", "gc"], '
    '"step": 5, "since": 3, "time": 1.5, "message": "it holds", "evidence": {"alpha": 1.5}}'
)


def test_the_json_of_records_is_pinned_to_the_byte() -> None:
    """Scripts read these keys in files of years ago; a change of them needs a new `SCHEMA`."""
    failed = LayerReport("fc", "failed", 3, "no reason")
    report = Report(
        200,
        (SAMPLE, failed),
        Coverage(3, 4),
        seconds=0.5,
        waiting=("w",),
        host_step=100,
        firing={"rank_collapse": 2},
        extra=True,
    )
    assert [json.dumps(record) for record in report.to_records()] == [SAMPLE_JSON, FAILED_JSON]
    assert json.dumps(report.to_summary_record()) == SUMMARY_JSON
    assert json.dumps(ALERT.to_record()) == ALERT_JSON


def test_a_layer_read_back_from_json_has_all_that_was_written() -> None:
    """Only the two fields that a JSON record does not hold are missing."""
    back = layer_from_record(json.loads(SAMPLE_JSON))
    written = replace(SAMPLE, drift=math.nan, esd=None, nulls={"alpha": math.nan})
    assert repr(back) == repr(written)


def test_the_keys_of_a_record_are_those_of_its_list() -> None:
    """One list of fields serves writing and reading."""
    assert list(json.loads(SAMPLE_JSON))[: len(RECORD_KEYS)] == list(RECORD_KEYS)
    assert list(json.loads(FAILED_JSON)) == list(RECORD_KEYS)
