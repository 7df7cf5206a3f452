"""Recognise a file with the part of one rank, by its name and the names of files beside it, or by its content.

Such a file opens like any other, but its matrices are slices of the trained matrices. Their shapes and spectra would be
wrong.
"""

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from esdmon.errors import InputError
from esdmon.weights.checkpoint.pickled import Call


@dataclass(frozen=True, slots=True)
class _Layout:
    """The names that a library gives to the parts of a model."""

    name: re.Pattern[str]
    """Name of the file, or of its folder, with the group `rank`, and `ranks` if it has the number of ranks."""
    remedy: str
    is_folder: bool = False
    first: int = 0
    """Number of the first rank."""


_REFUSED = "is one of {} parts of a model that is split over ranks, which is not read: join them first, with {}"
_OF_MEGATRON = "Megatron's tools/checkpoint/convert.py"
_PARALLEL = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "expert_model_parallel_size")
"""Arguments of Megatron: over how many ranks each layer, all layers, and experts are split."""
_LAYOUTS = (
    _Layout(re.compile(r"(bf16_)?mp_rank_(?P<rank>\d+)_model_states\.pt"), "DeepSpeed"),
    _Layout(re.compile(r"zero_pp_rank_(?P<rank>\d+)_mp_rank_\d+_model_states\.pt"), "DeepSpeed's zero_to_fp32.py"),
    _Layout(re.compile(r"consolidated\.(?P<rank>\d+)\.pth"), "the script that converts it for transformers"),
    _Layout(re.compile(r"\w+_world_size_(?P<ranks>\d+)_rank_(?P<rank>\d+)\.\w+"), "the library that wrote them"),
    _Layout(
        re.compile(r"shard-(?P<rank>\d+)-.+-\d+-of-\d+\.safetensors"),
        "torch's consolidate_safetensors_files",
        first=1,
    ),
    _Layout(re.compile(r"pytorch_model_fsdp(_\d+)?_rank(?P<rank>\d+)\.bin"), "the library that wrote them"),
    _Layout(re.compile(r".+-(shard|model_part-)(?P<rank>\d+)\.pt"), "the library that wrote them"),
    _Layout(re.compile(r"(mp|tp)_rank_(?P<rank>\d+(_\w*\d+)*)"), _OF_MEGATRON, is_folder=True),
)


def check_arguments(content: object) -> None:
    """Raise for the training state of one rank of Megatron, recognised by its arguments, in any folder.

    Raises:
        InputError: without the path, with the number of parts.
    """
    arguments = content.get("args") if isinstance(content, Mapping) else None
    said = arguments.state if isinstance(arguments, Call) else arguments
    sizes = [said.get(key) for key in _PARALLEL] if isinstance(said, Mapping) else []
    parts = math.prod(size for size in sizes if isinstance(size, int) and size > 0)
    if parts > 1:
        raise InputError(_REFUSED.format(parts, _OF_MEGATRON))


def check_whole(path: Path) -> None:
    """Raise for a file that is one of several parts of a model.

    Raises:
        InputError: with the number of parts.
    """
    for layout in _LAYOUTS:
        own = path.absolute().parent if layout.is_folder else path.absolute()
        match = layout.name.fullmatch(own.name)
        if match is None:
            continue
        last = max(map(int, re.findall(r"\d+", match["rank"]))) - layout.first  # one behind the first is never alone
        ranks = int(match.groupdict().get("ranks") or 0) or max(len(_ranks_beside(own, layout, path.name)), last + 1)
        if ranks > 1:
            raise InputError(f"{path} {_REFUSED.format(ranks, layout.remedy)}")


def _ranks_beside(own: Path, layout: _Layout, name: str) -> set[str]:
    """Return the numbers of the parts beside one, itself included."""
    found = set()
    with suppress(OSError):  # its folder cannot be listed
        for path in own.parent.iterdir():
            match = layout.name.fullmatch(path.name)
            if match and (path / name if layout.is_folder else path).is_file():
                found.add(match["rank"])
    return found
