"""The sink for Prometheus: the file and the endpoint, parsed by the grammar of the text format."""

import re
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import torch
from torch import nn

import esdmon
from esdmon.errors import InputError
from esdmon.records import Alert
from esdmon.sinks import PrometheusSink
from esdmon.testing import check_sink, reports
from tests.rules import ALWAYS

LABEL = r'(\w+)="((?:[^"\\\n]|\\\\|\\"|\\n)*)"'
SAMPLE = re.compile(rf"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{{((?:{LABEL},?)*)\}})? (\S+)")

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parse(text: str) -> Samples:
    """By the grammar of the exposition format: one type for each family, before its samples, which stand together."""
    samples: Samples = {}
    family = ""
    seen = set()
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, family, kind = line.split(" ")
            assert kind == "gauge"
            assert family not in seen
            seen.add(family)
            continue
        found = SAMPLE.fullmatch(line)
        assert found, line
        assert found[1] == family
        key = (found[1], frozenset(re.findall(LABEL, found[2] or "")))
        assert key not in samples
        samples[key] = float(found[5])
    return samples


def only(samples: Samples, name: str, **labels: str) -> float:
    (value,) = [value for (each, given), value in samples.items() if each == name and labels.items() <= set(given)]
    return value


def test_a_file_has_the_last_value_of_every_number_and_what_fires(tmp_path: Path) -> None:
    path = tmp_path / "new" / "esdmon.prom"
    torch.manual_seed(0)
    with esdmon.watch(nn.Linear(40, 20), every=1, budget=None, sinks=f"prometheus:{path}", alerts=[ALWAYS]) as monitor:
        monitor.step()
        monitor.step()
        report = monitor.report
    assert monitor.errors == ()
    assert report is not None
    samples = parse(path.read_text())
    assert only(samples, "esdmon_step") == 2
    assert only(samples, "esdmon_stable_rank", layer="Linear") == report["Linear"].measures["stable_rank"]
    assert only(samples, "esdmon_summary_layers_not_ok") == 0
    assert only(samples, "esdmon_alert_firing", rule="always", severity="warning") == 1
    assert only(samples, "esdmon_last_reading_timestamp_seconds") > 1.7e9
    assert len({dict(labels)["run"] for _, labels in samples}) == 1
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_an_endpoint_serves_it_and_ends_with_the_monitor() -> None:
    sink = PrometheusSink("127.0.0.1:0")
    for report in reports():
        sink.write(report)
    with urlopen(sink.address) as answer:  # noqa: S310 -- http
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert parse(answer.read().decode()) == parse(sink.text)
    with pytest.raises(HTTPError, match="404"):
        urlopen(sink.address.removesuffix("metrics"))  # noqa: S310 -- http
    address = sink.address
    sink.close()
    with pytest.raises(OSError, match="refused"):
        urlopen(address)  # noqa: S310 -- http


def test_names_of_layers_and_alerts_may_hold_any_character(tmp_path: Path) -> None:
    sink = PrometheusSink(str(tmp_path / "a.prom"))
    layer = 'a"b\\c\nd'
    firing = Alert("1", "my-rule", "error", "firing", layer, (layer,), 3, 3, "m")
    sink.alert(firing)
    samples = parse(sink.text)
    assert only(samples, "esdmon_alert_firing", layer=r"a\"b\\c\nd") == 1
    sink.alert(Alert("1", "my-rule", "error", "resolved", layer, (layer,), 4, 3, "m"))
    assert not [name for name, _ in parse(sink.text) if name == "esdmon_alert_firing"]


@pytest.mark.parametrize("target", ["", "a.txt", "host", "127.0.0.1:99999", "no.such.host.invalid:0"])
def test_what_is_no_target_is_an_error(target: str) -> None:
    with pytest.raises(InputError, match=r"unknown target 'prometheus:|cannot be served: ") as raised:
        PrometheusSink(target)
    assert ".. " not in str(raised.value)  # the system's message may end with a full stop of its own


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(InputError, match="cannot be written: a file, or a link to nothing, is in the way"):
        PrometheusSink(f"{tmp_path}/f/a.prom")


@pytest.mark.parametrize("text", ["# TYPE node_load1 gauge\nnode_load1 0.5\n", "notes", "\x00\xff"])
def test_a_file_of_another_program_is_left_unchanged(text: str, tmp_path: Path) -> None:
    """As of another exporter in the folder of the collector; our own is replaced."""
    path = tmp_path / "a.prom"
    path.write_text(text)
    with pytest.raises(InputError, match=r"contains something else: .* It is left unchanged; choose another path"):
        PrometheusSink(str(path))
    assert path.read_text() == text
    for old in ("", PrometheusSink(str(tmp_path / "b.prom")).text):
        path.write_text(old)
        PrometheusSink(str(path))
        assert "esdmon_step" in path.read_text()


def test_it_is_a_sink(tmp_path: Path) -> None:
    check_sink(lambda: PrometheusSink(str(tmp_path / "a.prom")))
