"""Read the files of DeepSpeed: of a model, of its experts, and of the layers of a pipeline.

Experts are in separate files, under their full names. A pipeline writes a file for each layer, with names relative to
the layer; in the module, `deepspeed.pipe.PipelineModule`, the names have the layer's number in front.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from esdmon.errors import InputError
from esdmon.records.table import natural_key
from esdmon.weights.checkpoint.mapping import Checkpoint, join_checkpoints
from esdmon.weights.checkpoint.torch_file import open_torch_file

_STATES = re.compile(r"(?P<shard>zero_pp_rank_\d+_)?(bf16_)?mp_rank_(?P<rank>\d+)_model_states\.pt")
_EXPERT = re.compile(r"(layer_\d+_)?expert_\d+_mp_rank_(?P<rank>\d+)_model_states\.pt")
_LAYER = re.compile(r"layer_(?P<layer>\d+)(-model_(?P<rank>\d+))?-model_states\.pt")


def has_states(files: Iterable[str]) -> bool:
    """Return whether a folder with these files is a checkpoint of DeepSpeed."""
    return any(_STATES.fullmatch(name) or _LAYER.fullmatch(name) for name in files)


def open_states(folder: Path, files: Sequence[str]) -> Checkpoint:
    """Open the model in a folder with files of DeepSpeed.

    Raises:
        InputError: for one that is sharded by ZeRO-3, or split over ranks of tensor parallel.
    """
    states, experts, layers = (_matching(pattern, files) for pattern in (_STATES, _EXPERT, _LAYER))
    if any(match["shard"] for match in states):
        raise InputError(
            f"{folder} is sharded by ZeRO-3: join it with DeepSpeed's zero_to_fp32.py, and pass the result"
        )
    ranks = {int(match["rank"] or 0) for match in layers or (*states, *experts)}  # stages of a pipeline count as ranks
    if len(ranks) > 1:
        raise InputError(
            f"{folder} is split over {len(ranks)} ranks (tensor parallel), which is not read: "
            "join it with DeepSpeed first"
        )
    if layers:
        return _joined(folder, [(match[0], f"{int(match['layer'])}.") for match in layers])
    return _joined(folder, [(match[0], "") for match in (*states, *experts)])


def _matching(pattern: re.Pattern[str], files: Iterable[str]) -> list[re.Match[str]]:
    return [match for name in sorted(files, key=natural_key) if (match := pattern.fullmatch(name))]


def _joined(folder: Path, files: Sequence[tuple[str, str]]) -> Checkpoint:
    """Return the tensors of several files, each with the prefix of its file before its name."""
    parts: dict[str, tuple[Checkpoint, str]] = {}
    for file, prefix in files:
        part = open_torch_file(folder / file, may_be_empty=len(files) > 1)
        twice = next((name for name in part if f"{prefix}{name}" in parts), None)
        if twice is not None:
            raise InputError(
                f"{folder} contains {prefix}{twice} in two of its files, one of them {file}, as AutoEP writes "
                "experts, which is not read: join it with DeepSpeed first"
            )
        parts |= {f"{prefix}{name}": (part, name) for name in part}
    return replace(join_checkpoints(parts), files=tuple(folder / file for file, _ in files))
