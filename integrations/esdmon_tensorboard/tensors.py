"""Write and read the tensors from which the tab is drawn.

All tensors are in the run of the sink, with the plugin name `esdmon` and the constant content `{"schema": 1}`.
TensorBoard keeps only the metadata of the first value of a tag, so data that may change, such as the names of layers,
is in values.

| tag | value at a step |
|---|---|
| `esdmon/layers` | JSON `[[name, kind, M, N, slices], …]`, when a file is begun and when that has changed |
| `esdmon/phase` | int8, the code of each layer (`esdmon.webpage.codes`), in the order of the latest `esdmon/layers` |
| `esdmon/measures` | float32, a row for each layer read: its index in `esdmon/layers`, then `contract.MEASURES` |
| `esdmon/esd/<layer>` | JSON of `contract.frame_of`, where a histogram of the layer is due |
| `esdmon/alerts` | JSON list of `contract.alert_of`, the alerts of this step |

TensorBoard keeps a random sample of each tag, so tags are joined by step, and data that belongs together is in one
value. Numbers are written as raw bytes, since lists of numbers take ten times as long to read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np
from numpy.typing import NDArray

from esdmon.present.scalars import portable
from esdmon.records import SCHEMA, Record
from esdmon.webpage import contract
from esdmon.webpage.codes import column_of

if TYPE_CHECKING:
    from esdmon import Alert, LayerReport, Report

PLUGIN: Final = "esdmon"
LAYERS: Final = "esdmon/layers"
PHASE: Final = "esdmon/phase"
MEASURES: Final = "esdmon/measures"
ALERTS: Final = "esdmon/alerts"
_CONTENT: Final = json.dumps({"schema": SCHEMA}).encode()


def esd_tag(layer: str) -> str:
    """Return the tag of the spectra of a layer."""
    return f"esdmon/esd/{portable(layer)}"


@final
class TensorLog:
    """Converts reports to values of these tensors."""

    def __init__(self) -> None:
        self._layers: dict[str, contract.Layer] = {}
        self._alerts: list[Record] = []  # at one x-coordinate

    def restart(self) -> None:
        """Write the names of layers again with the next reading, for a new file or after a rewind.

        TensorBoard's data server drops data after a rewind only when the tag gets a new value, so the tag of alerts
        gets an empty one.
        """
        self._layers, self._alerts = {}, []

    def reading(self, report: Report, due: Iterable[LayerReport]) -> list[Any]:
        """Return the values of a report: `Summary.Value` of TensorBoard.

        Args:
            report: the report to write.
            due: layers for which a histogram is due.
        """
        values = [] if self._layers else [_json_value(ALERTS, [])]
        layers = contract.with_layers_of(report, self._layers)
        if layers != self._layers:
            self._layers = layers
            rows = [[layer.name, layer.kind, layer.M, layer.N, layer.slices] for layer in layers.values()]
            values.append(_json_value(LAYERS, rows))
        if not layers:
            return []
        values.append(_array_value(PHASE, column_of(layers, report)))
        index = {name: number for number, name in enumerate(layers)}
        rows_read = [[index[layer.name], *contract.measures_of(layer)] for layer in report.new]
        if rows_read:
            values.append(_array_value(MEASURES, np.array(rows_read, dtype=np.float32)))
        return values + [_json_value(esd_tag(layer.name), contract.frame_of(layer)) for layer in due]

    def alert(self, alert: Alert, x: int) -> list[Any]:
        """Return a value with all alerts at `x` so far: TensorBoard keeps one value of a tag at a step."""
        earlier = [record for record in self._alerts if record["step"] == x]
        self._alerts = [*earlier, contract.alert_of(alert, x)]
        return [_json_value(ALERTS, self._alerts)]


def _array_value(tag: str, array: NDArray[Any]) -> Any:
    from tensorboard.compat.proto.tensor_pb2 import TensorProto  # noqa: PLC0415 -- optional
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto  # noqa: PLC0415 -- optional
    from tensorboard.compat.tensorflow_stub.dtypes import as_dtype  # noqa: PLC0415 -- optional

    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in array.shape])
    little = array.astype(array.dtype.newbyteorder("<"))
    dtype = as_dtype(array.dtype).as_datatype_enum
    return _value(tag, TensorProto(dtype=dtype, tensor_shape=shape, tensor_content=little.tobytes()))


def _json_value(tag: str, content: Any) -> Any:
    from tensorboard.compat.proto.tensor_pb2 import TensorProto  # noqa: PLC0415 -- optional
    from tensorboard.compat.proto.types_pb2 import DT_STRING  # noqa: PLC0415 -- optional

    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return _value(tag, TensorProto(dtype=DT_STRING, string_val=[text.encode()]))


def _value(tag: str, tensor: Any) -> Any:
    from tensorboard.compat.proto.summary_pb2 import (  # noqa: PLC0415 -- optional
        DATA_CLASS_TENSOR,
        Summary,
        SummaryMetadata,
    )

    plugin = SummaryMetadata.PluginData(plugin_name=PLUGIN, content=_CONTENT)
    metadata = SummaryMetadata(plugin_data=plugin, data_class=DATA_CLASS_TENSOR)
    return Summary.Value(tag=tag, metadata=metadata, tensor=tensor)
