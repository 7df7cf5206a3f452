"""Find the JSONL of a run, and describe a file or folder that holds none."""

from collections.abc import Mapping
from pathlib import Path

from esdmon.errors import InputError, expand_home
from esdmon.records.table import shorten
from esdmon.records.text import count, named

FILE_NAMES = ("esdmon.jsonl", "esdmon.jsonl.gz")
"""Names that the JSONL in the folder of a run may have."""
_REMEDY = "Pass the JSONL of a run, or its folder."
_EVENT_FILES = [f"{'*/' * depth}events.out.tfevents.*" for depth in range(4)]  # a Trainer's lie three folders down
_SHOWN = 40  # characters of a line, and names of keys, that an error quotes; our choice
KEYS = ("schema", "kind", "step")
"""Keys that each line has."""


def find_file(run: str | Path) -> Path:
    """Return the path of the JSONL of a run, given that or its folder.

    Raises:
        InputError: without such a file, with what the folder contains.
    """
    path = expand_home(run)
    if not path.is_dir():
        if not path.is_file():
            raise InputError(f"file {path} not found. {_REMEDY}")
        return path
    found = [path / name for name in FILE_NAMES if (path / name).is_file()]
    if not found:
        raise InputError(f"no run in the folder {path}: {FILE_NAMES[0]} not found in it. {_what_to_pass(path)}")
    return found[0]


def _what_to_pass(folder: Path) -> str:
    below = {each.parent: each.stat().st_mtime_ns for name in FILE_NAMES for each in folder.glob(f"*/{name}")}
    if below:
        latest = sorted(below, key=lambda path: (-below[path], path))
        return f"Pass one of the runs in it, the latest first: {named(map(str, latest))}."
    others = sorted(str(path) for path in (*folder.glob("*.jsonl"), *folder.glob("*.jsonl.gz")))
    if others:
        return f"Pass the file itself if a run of esdmon wrote it: {named(others)}."
    if any(any(folder.glob(pattern)) for pattern in _EVENT_FILES):
        return (
            f"It has event files of TensorBoard: `tensorboard --logdir {folder}` shows them. For a JSONL beside them, "
            "add one to sinks= of the next run: ['auto', 'jsonl:runs/a/esdmon.jsonl'] in a Trainer."
        )
    return f"{'It is empty' if not any(folder.iterdir()) else 'Nothing in it is a JSONL'}. {_REMEDY}"


def nothing_read(path: Path, lines: Mapping[str, int]) -> str:
    """Return what a JSONL without a report contains: `a.jsonl is empty`.

    Args:
        path: the file.
        lines: number of its lines by their kind.
    """
    if not lines:
        return f"{path} contains no whole line" if path.stat().st_size else f"{path} is empty"
    kinds = (count(number, f"{kind} line") for kind, number in lines.items())
    return f"{path} contains no report of readings, only {', '.join(kinds)}"


def not_json(line: str, where: str) -> InputError:
    """Return the error for a line that is not JSON, with its beginning."""
    text = line.strip()
    if not text.isprintable() or "\N{REPLACEMENT CHARACTER}" in text:
        return InputError(f"{where}: not JSON but binary data. {_REMEDY} esdmon scan reads checkpoints.")
    return InputError(f"{where}: not JSON: {shorten(text, _SHOWN)!r}. {_REMEDY}")


def not_ours(record: object, where: str) -> InputError:
    """Return the error for a line of another program, with what it has in the place of the keys of esdmon."""
    if not isinstance(record, Mapping):
        return InputError(f"{where}: not a line of esdmon, but a {type(record).__name__}. {_REMEDY}")
    missing = " and ".join(f"no {key}" for key in KEYS if key not in record)
    keys = shorten(", ".join(map(str, record)), _SHOWN) or "none"
    return InputError(f"{where}: not a line of esdmon: it has {missing}; its keys are: {keys}. {_REMEDY}")


def unreadable(path: Path, error: OSError) -> InputError:
    """Return the error for a file that cannot be read."""
    return InputError(f"{path} cannot be read: {error.strerror or error}")
