"""The CSV sink, read back by pandas."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

import esdmon
from esdmon.errors import InputError
from esdmon.present.scalars import scalars
from esdmon.records import Alert
from esdmon.sinks import CsvSink
from esdmon.sinks.lines import new_run
from esdmon.testing import check_sink
from tests.rules import ALWAYS


def train(path: Path, state: Any = None, *, steps: int = 2) -> dict[str, Any]:
    torch.manual_seed(0)
    monitor = esdmon.watch(nn.Linear(40, 20), every=1, budget=None, sinks=f"csv:{path}", alerts=[ALWAYS])
    if state is not None:
        monitor.load_state_dict(state)
    saved: dict[str, Any] = {}
    for step in range(steps):
        monitor.step()
        saved = saved or (monitor.state_dict() if step == 0 else {})
    monitor.close()
    assert monitor.errors == ()
    return saved


def test_pandas_reads_numbers_and_words(tmp_path: Path) -> None:
    """A number by tag and step, as every tracker gets it; the message of an alert once."""
    path = tmp_path / "new" / "a.csv"
    train(path)
    frame = pd.read_csv(path)
    wide = frame.pivot_table(index="step", columns="tag", values="value")
    torch.manual_seed(0)
    report = esdmon.analyze(nn.Linear(40, 20))
    expected = {name: value for name, value in scalars(report).items() if "summary" not in name}
    assert expected
    assert {name: wide.loc[1, name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert wide.loc[2, "esdmon_summary/alerts_firing"] == 1
    (words,) = frame.text.dropna()
    assert words.startswith("firing: always: it holds")
    assert frame[frame.text.notna()].tag.tolist() == ["esdmon_alert/always"]


def test_a_resumed_run_drops_what_it_wrote_after_its_checkpoint_and_no_line_of_another(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    train(path)
    other = pd.read_csv(path).run.iloc[0]
    saved = train(path, steps=3)
    with path.open("a") as file:
        file.write("torn,2,")  # by a kill
    train(path, saved, steps=1)
    frame = pd.read_csv(path)
    ranks = frame[frame.tag == "esdmon_stable_rank/Linear"]
    assert ranks[ranks.run == other].step.tolist() == [1, 2]
    assert ranks[ranks.run != other].step.tolist() == [1, 2]


def test_it_is_utf_8_where_the_system_is_not(tmp_path: Path) -> None:
    """As on Windows: messages of alerts have characters that its encodings lack."""
    program = """
import sys
from esdmon.records import Alert
from esdmon.sinks import CsvSink
sink = CsvSink(sys.argv[1])
for step in (1, 2):
    sink.alert(Alert("id", "rule", "warning", "firing", "a", ("a",), step, step, chr(0x2016) + "W" + chr(0x2016)))
    sink.rewind(1)
"""
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    path = tmp_path / "a.csv"
    subprocess.run([sys.executable, "-c", program, str(path)], check=True, env=os.environ | ascii_only)
    assert path.read_bytes().decode("utf-8").endswith(",firing: ‖W‖\n")


def test_a_line_that_was_torn_within_a_character_stays(tmp_path: Path) -> None:
    """By a kill, or in a file that was written in another encoding; the next line begins after it."""
    path = tmp_path / "a.csv"
    sink = CsvSink(path)
    torn = "torn,2,,,‖".encode()[:-1]
    for _ in range(2):
        sink.alert(Alert("id", "rule", "warning", "firing", "a", ("a",), 1, 1, "it holds"))
        with path.open("ab") as file:
            file.write(torn)
    assert path.read_bytes().count(b"\n") == 4
    sink.rewind(1)
    assert path.read_bytes().count(torn + b"\n") == 2


def test_a_file_with_other_columns_is_left_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("epoch,loss\n1,0.5\n")
    with pytest.raises(InputError, match="contains something else: its first line is 'epoch,loss'"):
        CsvSink(path)
    assert path.read_text() == "epoch,loss\n1,0.5\n"


@pytest.mark.parametrize(
    ("sink", "message"),
    [
        ("csv", "csv needs a path"),
        ("csv:{folder}", "cannot be written"),
        ("csv:{folder}/f/a.csv", "a file, or a link to nothing, is in the"),
    ],
)
def test_what_cannot_be_a_path_is_an_error(sink: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(InputError, match=message):
        esdmon.watch(nn.Linear(40, 20), sinks=sink.format(folder=tmp_path))


def test_it_is_a_sink(path: Path) -> None:
    check_sink(lambda: CsvSink(path))
    assert path.stat().st_size


def test_the_id_of_a_run_is_never_a_number() -> None:
    """As 12345678 and 1e234567 are, which pandas would read as such: two of a hundred ids without a letter in front."""
    assert not any(new_run()[0].isdecimal() for _ in range(200))
    assert len({new_run() for _ in range(200)}) > 190
