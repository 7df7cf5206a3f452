"""Replaying finished runs."""

import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import esdmon
from esdmon.alerts import BUILT_IN_RULES, AlertRule, Finding, History
from esdmon.cli import main
from esdmon.errors import InputError
from esdmon.records import Alert, LayerReport, severity_word
from esdmon.records.serialization import layer_from_record
from esdmon.replay import replay, reports
from esdmon.sinks import MemorySink, Sink
from tests.jsonl import records_in


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, esdmon.Monitor, MemorySink]:
    """Train layers that lose their rank for a while, die, are frozen, or become NaN."""
    folder, sink = tmp_path_factory.mktemp("run"), MemorySink()
    torch.manual_seed(0)
    model = nn.ModuleDict({name: nn.Linear(96, 80, bias=False) for name in ("falls", "dies", "frozen", "lives", "nan")})
    weights = {name: model.get_parameter(f"{name}.weight") for name in model}
    weights["frozen"].requires_grad = False
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    sinks: list[str | Sink] = [f"jsonl:{folder / 'esdmon.jsonl'}", sink]
    with esdmon.watch(model, optimizer, every=1, sinks=sinks, mode="sync") as monitor:
        for step in range(1, 41):
            for name, weight in weights.items():
                weight.grad = None if name == "frozen" or (name == "dies" and step > 15) else torch.randn(80, 96) / 50
            if 10 < step <= 20:
                for tensor in (weights["falls"].data, weights["falls"].grad):
                    assert tensor is not None
                    tensor[:40] = tensor[40:]
            optimizer.step()
            if step == 30:
                weights["nan"].data[0, 0] = math.nan
    return folder, monitor, sink


def same(alerts: tuple[Alert, ...] | list[Alert]) -> list[Alert]:
    """Return the alerts without their time, and with the digits that a file holds."""
    return [
        replace(alert, time=0.0, evidence={key: float(f"{value:.3g}") for key, value in alert.evidence.items()})
        for alert in alerts
    ]


def assert_same(layer: LayerReport, before: LayerReport) -> None:
    """Compare numbers in the digits that a file holds, and the explanation without its numbers, which may be older.

    Nulls are written again where they have moved by 2 %.
    """
    now, then = layer.to_record(), before.to_record()
    assert words(now.pop("explanation")) == words(then.pop("explanation"))
    numbers = {key for key, value in then.items() if isinstance(value, float)}
    nulls = {key for key in numbers if key.endswith("_null")}
    for keys, tolerance in ((numbers - nulls, 1e-3), (nulls, 0.021)):
        assert {key: now[key] for key in keys} == pytest.approx({key: then[key] for key in keys}, rel=tolerance)
    assert {key: now[key] for key in now.keys() - numbers} == {key: then[key] for key in then.keys() - numbers}


def words(text: str) -> str:
    """Return a text without its numbers."""
    return re.sub(r"[-+\d.e]*\d", "#", text)


def test_the_same_rules_say_the_same_again(run: tuple[Path, esdmon.Monitor, MemorySink]) -> None:
    """Alerts are equal to the digits in the file, also with a budget, which skips readings."""
    folder, monitor, _ = run
    assert same(replay(folder, BUILT_IN_RULES)) == same(monitor.alerts)
    assert {alert.rule for alert in monitor.alerts} >= {"rank_collapse", "dead_layer", "non_finite"}


def test_the_reports_are_those_that_were(run: tuple[Path, esdmon.Monitor, MemorySink]) -> None:
    """What was left out of lines is restored; explanations may have the numbers of an earlier reading."""
    folder, _, sink = run
    again = list(reports(folder / "esdmon.jsonl"))
    assert [report.step for report in again] == [report.step for report in sink.reports]
    for report, before in zip(again, sink.reports, strict=True):
        assert [layer.name for layer in report] == [layer.name for layer in before]
        for layer in report:
            assert_same(layer, before[layer.name])


def test_spectra_are_read_back_where_a_layer_was_read_first_fifth_or_changed(
    run: tuple[Path, esdmon.Monitor, MemorySink],
) -> None:
    """Counts are exact; λ is rounded to four digits."""
    folder, _, sink = run
    before = {(layer.name, layer.step): layer for report in sink.reports for layer in report.new}
    found: dict[str, list[LayerReport]] = {}
    for report in reports(folder):
        for layer in report.new:
            found.setdefault(layer.name, []).append(layer)
            if layer.esd is not None:
                original = before[layer.name, layer.step].esd
                assert original is not None
                assert (layer.esd.counts, layer.esd.zeros) == (original.counts, original.zeros)
                assert layer.esd.edges == pytest.approx(original.edges, abs=1e-4)
                assert layer.esd.top == pytest.approx(original.top, rel=1e-3)
    since_esd: dict[str, int] = {}
    phase: dict[str, esdmon.Phase] = {}
    for name, layers in found.items():
        for layer in layers:
            since_esd[name] = since_esd.get(name, 4) + 1
            if layer.status == "ok":
                is_due = since_esd[name] >= 5 or layer.phase is not phase.get(name)
                assert (layer.esd is not None) == is_due, (name, layer.step)
                if is_due:
                    since_esd[name], phase[name] = 0, layer.phase
    assert len({layer.phase for layer in found["falls"]}) > 1


def test_the_largest_eigenvalues_of_a_line_are_those_of_the_weight(tmp_path: Path) -> None:
    """They are descending, in units of WᵀW/N, and at most sixteen."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 64), nn.Linear(64, 10))
    with esdmon.watch(model, every=1, sinks=f"jsonl:{tmp_path / 'esdmon.jsonl'}") as monitor:
        monitor.step()
    (report,) = reports(tmp_path)
    for layer in report:
        weight = model.get_parameter(f"{layer.name}.weight").detach().double()
        lam = np.linalg.svd(weight.numpy(), compute_uv=False) ** 2 / layer.N
        assert layer.esd is not None
        assert layer.esd.top == pytest.approx(lam[:16], rel=1e-3)
        assert sum(layer.esd.counts) == len(lam)


def test_a_spectrum_of_another_form_is_refused(tmp_path: Path) -> None:
    line = {"schema": 1, "kind": "layer", "step": 1, "name": "a", "status": "ok", "esd": {"low": 1}}
    (tmp_path / "esdmon.jsonl").write_text(json.dumps(line))
    with pytest.raises(InputError, match="a line of step 1 is not a valid reading of a layer"):
        list(reports(tmp_path))


def test_a_record_of_a_layer_is_read_back(run: tuple[Path, esdmon.Monitor, MemorySink]) -> None:
    layer = run[2].reports[-1].layers[0]
    assert layer_from_record(layer.to_record()).to_record() == layer.to_record()


def test_other_thresholds_are_tried(
    run: tuple[Path, esdmon.Monitor, MemorySink], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`esdmon alerts replay RUN --alerts FILE`: a line for each alert, in 80 columns, and the status."""
    folder, _, _ = run
    assert main(["alerts", "replay", str(folder)]) == 1
    text = capsys.readouterr().out
    assert "error, firing: falls: rank_collapse: rank 40 of 80 (50%), from 80 at step 1" in " ".join(text.split())
    assert all(len(line) <= 80 for line in text.splitlines())
    assert text.splitlines()[-1].startswith(f"{len(BUILT_IN_RULES)} rules: ")
    file = tmp_path / "a.toml"
    off = [f"[rules.{rule.name}]\nenabled = false" for rule in BUILT_IN_RULES if rule.name != "rank_collapse"]
    file.write_text("\n".join([*off, "[rules.rank_collapse]", "for = 30"]))
    assert main(["alerts", "replay", str(folder), "--alerts", str(file)]) == 0
    assert capsys.readouterr().out == "1 rule: no alert\n"


def test_a_rule_that_fails_says_what_that_means_for_the_replay(
    run: tuple[Path, esdmon.Monitor, MemorySink], caplog: pytest.LogCaptureFixture
) -> None:
    """One line at its first failure, one where it is no longer checked; other rules go on."""

    def broken(_history: History) -> list[Finding]:
        raise ZeroDivisionError("in a rule")

    folder, monitor, _ = run
    assert same(replay(folder, [AlertRule("broken", broken), *BUILT_IN_RULES])) == same(monitor.alerts)
    first, last = caplog.messages
    assert re.fullmatch(
        r"esdmon: rule broken failed at step \d+: ZeroDivisionError: in a rule. The replay continues .*", first
    )
    assert last.startswith(
        "esdmon: rule broken has failed 3 times in a row and is not checked in the rest of this run, so"
    )


def test_alerts_as_json(run: tuple[Path, esdmon.Monitor, MemorySink], capsys: pytest.CaptureFixture[str]) -> None:
    """Each line is an object as in the JSONL of the run."""
    folder, _, _ = run
    main(["alerts", "replay", str(folder), "--json"])
    replayed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    lines = map(json.loads, (folder / "esdmon.jsonl").read_text().splitlines())
    alerts = [record for record in lines if record["kind"] == "alert"]
    assert len({record.pop("run") for record in alerts}) == 1
    assert [record | {"time": 0, "evidence": 0} for record in replayed] == [
        record | {"time": 0, "evidence": 0} for record in alerts
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"no run in the folder .*: esdmon\.jsonl not found in it\. It is empty\. Pass the JSONL of a run"),
        ("", r"esdmon\.jsonl is empty\. The first readings are written at the first due step"),
        ('{"schema": 1, "kind": "la', "contains no whole line"),
        ('{"schema": 1, "kind": "note", "step": 0}\n' * 2, "contains no report of readings, only 2 note lines"),
        ('{"schema": 1, "kind": "alert", "step": 0}\n', "a line of step 0 is not a valid alert"),
        (
            (
                '{"schema": 1, "kind": "alert", "id": "a:fc", "rule": "a", "severity": "fatal", "state": "firing", '
                '"layer": "fc", "layers": ["fc"], "step": 5, "since": 3, "message": "it holds"}\n'
            ),
            "a line of step 5 is not a valid alert: .*severity is 'fatal'",
        ),
        ("epoch,loss\n1,2\n", "line 1: not JSON: 'epoch,loss'. Pass the JSONL of a run"),
        ("epoch,loss", "line 1: not JSON: 'epoch,loss'"),
        ("\x89PNG\r\n\x1a\n\0", "line 1: not JSON but binary data"),
        ("[1]\n", "line 1: not a line of esdmon, but a list"),
        ('{"step": 1, "loss": 2}\n', "it has no schema and no kind; its keys are: step, loss"),
        ("{}\n", "it has no schema and no kind and no step; its keys are: none"),
        ('{"schema": 1, "kind": "summary", "step": null}\n', "step None is not a whole number"),
        ('{"schema": 1, "kind": "layer", "step": 1}\n', "a line of step 1 is not a valid reading of a layer"),
        (
            '{"schema": 1, "kind": "layer", "step": 1, "name": [], "status": "ok"}\n',
            "a line of step 1 is not a valid reading of a layer: TypeError: name is .*",
        ),
        ('{"schema": 1, "kind": "screened", "step": 1}\n', "not valid norms of a layer: KeyError: 'frobenius_norm'"),
        ('{"schema": 1, "kind": "summary", "step": 1, "still": 5}\n', "a line of step 1 is not a valid summary"),
        ('{"schema": 9, "kind": "summary", "step": 1}\n', "line 1: unknown schema 9; this version reads 1"),
    ],
)
def test_what_is_not_a_run_is_refused(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "esdmon.jsonl").write_text(text)
    with pytest.raises(InputError, match=message):
        list(reports(tmp_path))


def test_a_folder_without_a_run_names_what_may_be_one(tmp_path: Path) -> None:
    """Under another name than that of the JSONL of a run."""
    (tmp_path / "metrics.txt").touch()
    with pytest.raises(InputError, match=r"esdmon\.jsonl not found in it\. Nothing in it is a JSONL\."):
        list(reports(tmp_path))
    for name in ("b.jsonl", "a.jsonl.gz"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"if a run of esdmon wrote it: \S*/a\.jsonl\.gz, \S*/b\.jsonl\."):
        list(reports(tmp_path))


def test_a_folder_with_event_files_alone_says_what_shows_them(tmp_path: Path) -> None:
    """As a Trainer's output folder with its default sinks: there `esdmon tail` finds nothing to read."""
    folder = tmp_path / "runs" / "Nov28_vm" / "esdmon"
    folder.mkdir(parents=True)
    (folder / "events.out.tfevents.1.vm.2.0").touch()
    for path in (tmp_path, folder):
        with pytest.raises(InputError, match=r"`tensorboard --logdir \S+` shows them\. .* add one to sinks="):
            list(reports(path))


def test_a_folder_of_runs_names_them(tmp_path: Path) -> None:
    """As `runs`, where runs go by default: the last written first, and how many more there are."""
    for age, name in enumerate("cedab"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "esdmon.jsonl").touch()
        os.utime(tmp_path / name / "esdmon.jsonl", (100 - age, 100 - age))
    with pytest.raises(InputError, match=r"Pass one of the runs in it, .*: \S*/c, \S*/e, \S*/d and 2 more\."):
        list(reports(tmp_path))


def test_a_line_that_a_kill_cut_short_is_the_end(run: tuple[Path, esdmon.Monitor, MemorySink], tmp_path: Path) -> None:
    text = (run[0] / "esdmon.jsonl").read_text()
    (tmp_path / "esdmon.jsonl").write_text(text[:-30])
    assert len(list(reports(tmp_path))) == len(list(reports(run[0]))) - 1


def test_two_runs_in_one_file_are_two_runs(run: tuple[Path, esdmon.Monitor, MemorySink], tmp_path: Path) -> None:
    """The second starts from the beginning."""
    text = (run[0] / "esdmon.jsonl").read_text()
    (tmp_path / "esdmon.jsonl").write_text(text + text)
    assert same(replay(tmp_path, BUILT_IN_RULES)) == 2 * same(replay(run[0], BUILT_IN_RULES))


def test_runs_whose_lines_are_mixed_are_separated(run: tuple[Path, esdmon.Monitor, MemorySink], tmp_path: Path) -> None:
    """Lines of two simultaneous runs are separated by their ids."""
    lines = (run[0] / "esdmon.jsonl").read_text().splitlines()
    name = json.loads(lines[0])["run"]
    mixed = [text for line in lines for text in (line, line.replace(name, "another"))]
    (tmp_path / "esdmon.jsonl").write_text("\n".join([*mixed, ""]))
    expected = [alert for alert in same(replay(run[0], BUILT_IN_RULES)) for _ in range(2)]
    assert sorted(same(replay(tmp_path, BUILT_IN_RULES)), key=str) == sorted(expected, key=str)


def test_two_runs_of_an_older_version_have_no_ids(run: tuple[Path, esdmon.Monitor, MemorySink], tmp_path: Path) -> None:
    """The second begins where the steps start again. Every line has all fields, with all digits."""
    old = [
        {"schema": 1, "kind": kind, **record}
        for report in run[2].reports
        for kind, record in [
            *(("layer", layer.to_record()) for layer in report.new),
            ("summary", report.to_summary_record()),
        ]
    ]
    (tmp_path / "esdmon.jsonl").write_text(2 * "".join(f"{json.dumps(record)}\n" for record in old))
    for report, before in zip(reports(tmp_path), 2 * run[2].reports, strict=True):
        assert [layer.to_record() for layer in report] == [layer.to_record() for layer in before]
    assert same(replay(tmp_path, BUILT_IN_RULES)) == 2 * same(replay(run[0], BUILT_IN_RULES))


def test_what_another_version_or_an_editor_has_added_is_left_out(
    run: tuple[Path, esdmon.Monitor, MemorySink], tmp_path: Path
) -> None:
    """Unknown fields, kinds of lines and phases are ignored, and a byte order mark."""
    lines = records_in(run[0] / "esdmon.jsonl")
    added = {"text": "x", "list": [1], "object": {"a": 1}, "flag": True, "nothing": None, "number": 3}
    lines = [{"schema": 1, "kind": "note", "step": 0, "text": "x"}, *({**line, **added} for line in lines)]
    text = "".join(f"{json.dumps(line)}\n" for line in lines).replace('"bulk-decay"', '"a-new-phase"')
    (tmp_path / "esdmon.jsonl").write_text(text, "utf-8-sig")
    assert same(replay(tmp_path, BUILT_IN_RULES)) == same(replay(run[0], BUILT_IN_RULES))
    assert next(iter(reports(tmp_path))).layers[0].measures["number"] == 3


def test_a_torn_line_in_the_middle_is_left_out(
    run: tuple[Path, esdmon.Monitor, MemorySink], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A log line counts it; the readings around it are kept."""
    lines = (run[0] / "esdmon.jsonl").read_text().splitlines(keepends=True)
    torn = next(k for k, line in enumerate(lines) if '"summary"' in line)
    lines[torn] = f"{lines[torn][:50]}\n"
    (tmp_path / "esdmon.jsonl").write_text("".join(lines))
    assert len(list(reports(tmp_path))) == len(list(reports(run[0]))) - 1
    assert "skipped 1 incomplete line," in caplog.text


def test_a_file_of_rules_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The effective rules are printed; for an invalid file the error, with status 2."""
    file = tmp_path / "a.toml"
    file.write_text('[rules.over_regularized]\nfor = 7\nalpha = 1.8\n[actions]\nstop_training = ["non_finite"]')
    assert main(["alerts", "check", str(file)]) == 0
    text = capsys.readouterr().out
    assert " ".join(text.split()).count("over_regularized warning 7 3 alpha = 1.8, erg_ratio = 0.5, back = 2.1") == 1
    assert "stops the training: non_finite" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    file.write_text("[rules.over_regularized]\nalhpa = 1.8")
    assert main(["alerts", "check", str(file)]) == 2
    assert "Did you mean 'alpha'?" in capsys.readouterr().err


def test_rules_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    """Each rule is explained in 80 columns."""
    assert main(["alerts", "explain"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n{rule.name}: {severity_word(rule.severity)}, " in f"\n{text}" for rule in BUILT_IN_RULES)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert main(["alerts", "explain", "dead_layer"]) == 0
    _, first, remedy, *_ = capsys.readouterr().out.split("\n\n")
    assert first.strip() == "A layer in the optimizer does not move."
    assert remedy.strip().startswith("What to do: ")
    assert main(["alerts", "explain", "over_regularised"]) == 2
    assert "Did you mean 'over_regularized'" in capsys.readouterr().err


def test_watch_takes_a_file(tmp_path: Path) -> None:
    """The file is given as a text or a path; errors in it are raised before training."""
    file = tmp_path / "alerts.toml"
    file.write_text('[rules.non_finite]\nseverity = "critical"\n[actions]\nstop_training = "non_finite"')
    for given in (file, str(file)):
        layer = nn.Linear(64, 64)
        with esdmon.watch(layer, every=1, sinks=None, alerts=given) as monitor:
            layer.weight.data[0] = math.inf
            monitor.step()
        assert [(alert.rule, alert.severity) for alert in monitor.alerts] == [("non_finite", "critical")]
        assert monitor.should_stop
    file.write_text("[rules.x]")
    with pytest.raises(InputError, match=r"alerts\.toml: unknown key 'rules\.x'"):
        esdmon.watch(nn.Linear(64, 64), sinks=None, alerts=file)
