"""Recognise a file that holds the part of one rank, by its name and by those beside it.

Such a file opens like any other, and its matrices are slices of those that were trained: read as wholes, they would
have wrong shapes and spectra.
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from esdmon.errors import InputError


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a library names the parts of a model."""

    name: re.Pattern[str]
    """Of the file, or of the folder around it; `rank` is its number, `ranks` how many there are if the name says so."""
    remedy: str
    is_folder: bool = False


_LAYOUTS = (
    _Layout(re.compile(r"(bf16_)?mp_rank_(?P<rank>\d+)_model_states\.pt"), "DeepSpeed"),
    _Layout(re.compile(r"zero_pp_rank_(?P<rank>\d+)_mp_rank_\d+_model_states\.pt"), "DeepSpeed's zero_to_fp32.py"),
    _Layout(re.compile(r"consolidated\.(?P<rank>\d+)\.pth"), "the script that converts it for transformers"),
    _Layout(re.compile(r"\w+_world_size_(?P<ranks>\d+)_rank_(?P<rank>\d+)\.\w+"), "the library that wrote them"),
    _Layout(re.compile(r".+-(shard|model_part-)(?P<rank>\d+)\.pt"), "the library that wrote them"),
    _Layout(
        re.compile(r"(mp|tp)_rank_(?P<rank>\d+(_\w*\d+)*)"), "Megatron's tools/checkpoint/convert.py", is_folder=True
    ),
)


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
        ranks = int(match.groupdict().get("ranks") or 0) or len(_ranks_beside(own, layout, path.name))
        if ranks > 1:
            raise InputError(
                f"{path} is one of {ranks} parts of a model that is split over ranks, which is not read: "
                f"join them first, with {layout.remedy}"
            )


def _ranks_beside(own: Path, layout: _Layout, name: str) -> set[str]:
    """Return the numbers of the parts beside one, itself included."""
    found = set()
    with suppress(OSError):  # its folder cannot be listed
        for path in own.parent.iterdir():
            match = layout.name.fullmatch(path.name)
            if match and (path / name if layout.is_folder else path).is_file():
                found.add(match["rank"])
    return found
