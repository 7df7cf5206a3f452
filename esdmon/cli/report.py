"""`esdmon report`: one HTML file of runs, from their JSONL."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from esdmon.errors import check_content, expand_home, local_path, unwritable
from esdmon.records import Report
from esdmon.records.text import count
from esdmon.replay.events import RunState, events_by_run
from esdmon.replay.files import FILE_NAMES
from esdmon.webpage.report import html
from esdmon.webpage.run_data import RunData


def write(runs: Sequence[str], out: str) -> None:
    """Write a report of runs, and print where it is.

    Args:
        runs: JSONL files of runs, or their folders; a file may contain several.
        out: path of the HTML file, which is replaced if it exists.

    Raises:
        InputError: if a run cannot be read, if the file cannot be written, and if `out` exists and is not HTML, such as
            the JSONL of the run itself.
    """
    found = _with_different_names([data for run in runs for data in read(run)])
    path = local_path(f"-o {out}", out)
    check_content(f"-o {out}", path, lambda first: first.startswith("<"))
    text = html(found).encode(errors="replace")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    except OSError as error:
        raise unwritable(f"-o {out}", error) from error
    layers = sum(len(data.layers) for data in found)
    print(f"{path}: {count(len(found), 'run')}, {layers} layers, {len(text) / 1e6:.1f} MB")


def read(run: str) -> list[RunData]:
    """Return what the views need of the runs in a JSONL.

    Raises:
        InputError: without such a file, and if it has no reading.
    """
    path = expand_home(run)
    name = _name_of(path)
    by_run: dict[RunState, RunData] = {}
    for each, event in events_by_run(path):
        data = by_run.setdefault(each, RunData(name))
        if isinstance(event, Report):
            data.add(event)
        else:
            data.add_alert(event)
    return [data for data in by_run.values() if data.readings]


def _name_of(path: Path) -> str:
    """Return a name for the runs in a path: that of the folder, or of a file that is not called `esdmon.jsonl`."""
    if path.is_dir():
        return path.absolute().name
    own = path.name.removesuffix(".gz").removesuffix(".jsonl")
    return path.absolute().parent.name if path.name in FILE_NAMES else own


def _with_different_names(runs: list[RunData]) -> list[RunData]:
    """Return the runs with a number behind names that occur again."""
    seen: Counter[str] = Counter()
    for data in runs:
        seen[data.name] += 1
        if seen[data.name] > 1:
            data.name = f"{data.name} ({seen[data.name]})"
    return runs
