"""Compute `base_ratio` of an adapter: compare its ΔW with the weight that it is added to, from both readings."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace

from esdmon.records.layer import LayerReport

BASE_RATIO = "base_ratio"
"""Name of the measure."""
_ADAPTER = re.compile(r"(?P<base>.+)/lora(\.[^@]*)?(?P<rank>(@.*)?)")  # a rank if names are ambiguous


def base_of(name: str) -> str:
    """Return the name of the base of an adapter's ΔW, `fc1` of `fc1/lora.default` and `fc1/lora`; empty for others."""
    found = _ADAPTER.fullmatch(name)
    return "" if found is None else f"{found['base']}{found['rank']}"


def beside_base(layer: LayerReport, layers: Mapping[str, LayerReport]) -> LayerReport:
    """Return a reading of an adapter's ΔW with `base_ratio`, ‖ΔW‖₂/‖W‖₂; any other reading unchanged.

    It is NaN if the base is not read, or is not a single matrix: the positions of a convolution are read one by one,
    while ΔW is read as a whole.

    Args:
        layer: a reading.
        layers: the latest reading of each matrix by name.
    """
    if BASE_RATIO not in layer.measures:
        return layer
    base = layers.get(base_of(layer.name))
    ratio = math.nan
    if base is not None and base.slices == 1 and base.measures.get("spectral_norm", 0.0) > 0:
        ratio = layer.measures.get("spectral_norm", math.nan) / base.measures["spectral_norm"]
    return replace(layer, measures={**layer.measures, BASE_RATIO: ratio})
