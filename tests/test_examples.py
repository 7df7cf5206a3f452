import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
import torch
from matplotlib import pyplot as plt
from torch import distributed

from tests.event_files import events_of
from tests.limits import set_limits
from tests.ranks import torchrun

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_plain_loop_is_the_same_with_and_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses, weights and random state, to the last bit; the watched one prints its table."""
    monkeypatch.delenv("CI", raising=False)
    train = runpy.run_path(str(EXAMPLES / "plain_loop.py"))["train"]
    losses, model = train(out=str(tmp_path / "run"), epochs=2)
    random = torch.get_rng_state()
    table = capsys.readouterr().out
    plain_losses, plain_model = train(watched=False, epochs=2)
    assert losses == plain_losses
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain_model.parameters(), strict=True))
    assert torch.equal(random, torch.get_rng_state())
    assert "watching 99.2% of 50,826 parameters" in table
    assert max(map(len, table.splitlines())) <= 80
    assert capsys.readouterr().out == ""


def test_plain_loop_is_short_and_in_the_readme() -> None:
    """Under 60 lines; its one line is the README's."""
    text = (EXAMPLES / "plain_loop.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60
    readme = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    assert "esdmon.watch(model, optimizer" in text
    assert "esdmon.watch(model, optimizer" in readme


@pytest.mark.filterwarnings("ignore")  # the hosts warn of themselves and of each other
@pytest.mark.parametrize(
    ("name", "options"),
    [("lightning_digits", {"epochs": 1}), ("transformers_text", {"steps": 60}), ("accelerate_loop", {"epochs": 1})],
)
def test_the_hosts_examples_run(
    name: str, options: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is short, writes to the host's own TensorBoard, and its monitor has read every layer without a fault."""
    set_limits(monkeypatch, advance_seconds=1e6)  # a busy machine has no time for all layers of so short a run
    path = EXAMPLES / f"{name}.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) < 75
    result = runpy.run_path(str(path))["train"](out=str(tmp_path), **options)
    monitor = getattr(result, "monitor", result)
    assert monitor.errors == ()
    assert monitor.report.waiting == ()
    tags = set()
    for folder in {event.parent for event in tmp_path.rglob("events.out.tfevents.*")}:
        tags |= set(events_of(folder).Tags()["scalars"])
    assert {f"esdmon_stable_rank/{layer.name}" for layer in monitor.report} <= tags


def example_on_a_rank(out: str) -> None:
    """What torchrun starts; the result of rank 0 is left in a file."""
    monitor = runpy.run_path(str(EXAMPLES / "fsdp2_loop.py"))["train"](out=out, epochs=1)
    assert (monitor.report is None) == (distributed.get_rank() > 0)
    if monitor.report is not None:
        statuses = {layer.name: layer.status for layer in monitor.report}
        result = {"statuses": statuses, "errors": len(monitor.errors), "coverage": str(monitor.report.coverage)}
        Path(out, "result.json").write_text(json.dumps(result), encoding="utf-8")
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:multiprocessing")
def test_the_sharded_example_runs(tmp_path: Path) -> None:
    """On two ranks, of which one writes the report of the whole model."""
    assert len((EXAMPLES / "fsdp2_loop.py").read_text(encoding="utf-8").splitlines()) < 60
    torchrun(example_on_a_rank, str(tmp_path))
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert result["statuses"] == {"0": "ok", "2": "ok", "4": "ok"}
    assert result["errors"] == 0
    assert result["coverage"].startswith("watching 99.2% of 50,826 parameters")
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1


def test_batch_size_sweep_draws_its_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two sizes and one epoch: a line for each, and a picture."""
    options = ["--sizes", "512", "256", "--epochs", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["batch_size_sweep.py", *options])
    runpy.run_path(str(EXAMPLES / "batch_size_sweep.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["512", "256"]
    assert all("random-like" in line for line in lines[1:3])
    assert (tmp_path / "sweep.png").stat().st_size > 10_000


def test_the_notebook_is_that_of_its_script() -> None:
    """Its cells are those of the script, which runs; what they showed is kept, small and without an error."""
    cells = runpy.run_path(str(EXAMPLES / "make_notebook.py"))["cells"]
    path = EXAMPLES / "notebook.ipynb"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    script = cells((EXAMPLES / "notebook.py").read_text(encoding="utf-8"))
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]] == script
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    assert {output["output_type"] for output in outputs} == {"stream", "execute_result", "display_data"}
    assert path.stat().st_size < 300_000
    with mpl.rc_context({"backend": "Agg"}):
        names = runpy.run_path(str(EXAMPLES / "notebook.py"))
        plt.close("all")
    run, layer = names["run"], names["run"].spectrum("fc2")
    assert run.alerts[0].rule == "norm_decay"
    shown = "".join(text_of(output) for output in outputs)
    assert form(str(run.alerts[0].message)) in form(shown)
    assert form(repr(run.alerts[0])) in form(shown)
    (line,) = [part for part in str(run).splitlines()[-1].split("; ") if "norm_decay" in part]
    assert form(line.removeprefix("alerts: ")) in form(shown)
    assert re.findall(r"<tr><td[^>]*>(\w+)</td>", layer._repr_html_()) == re.findall(r"<tr><td[^>]*>(\w+)</td>", shown)


def text_of(output: dict[str, Any]) -> str:
    """What an output of a notebook shows, as text and as HTML."""
    data = output.get("data", {})
    return "".join(
        line for part in (output.get("text"), data.get("text/plain"), data.get("text/html")) for line in part or ""
    )


def form(text: str) -> str:
    """A text without its numbers and which layers it names, which are others on another processor."""
    return re.sub(r"fcN(, fcN)*", "layers", re.sub(r"\d+(\.\d+)?(e-?\d+)?", "N", text))


def test_the_form_of_a_message_is_what_is_not_measured() -> None:
    """Another word is another form, another number is not."""
    assert form("fc1, fc2: norm 5.62 of 7.33 since step 260") == form("fc3: norm 5.6 of 7e-3 since step 280")
    assert form("fc1: since step 260 (not yet at step 240)") != form("fc1: since step 260")
