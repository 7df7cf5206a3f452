"""A training that is watched with the sink of a tracker, in a process of its own: trackers hook into all of a process.

    python tests/esdmon_trackers/tracked_run.py TRACKER FOLDER

It prints one JSON object: what the real package reads back from its files.
"""

import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import esdmon
from tests.rules import ALWAYS

STEPS = 20
Log = Callable[[int], object]


def train(folder: Path, tracker: str, log_loss: Log, state: Any = None, *, first: int = 0, last: int = STEPS) -> Any:
    """Train and watch, with a JSONL beside the tracker; return the state at the end."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = esdmon.watch(
        model, optimizer, every=5, budget=None, sinks=[tracker, f"jsonl:{folder}/a.jsonl"], alerts=[ALWAYS]
    )
    if state is not None:
        monitor.load_state_dict(state)
    for step in range(first, last):
        optimizer.zero_grad()
        model(torch.randn(8, 64)).square().mean().backward()
        optimizer.step()
        log_loss(step)
    state = monitor.state_dict()
    monitor.close()
    assert monitor.errors == (), monitor.errors
    return state


def of_mlflow(folder: Path) -> dict[str, Any]:
    """Two runs of the process, of which the second resumes the first."""
    import mlflow

    def log_loss(step: int) -> None:
        mlflow.log_metric("loss", step, step=step)

    mlflow.set_tracking_uri((folder / "mlruns").as_uri())  # files, since mlflow-skinny has no database
    with mlflow.start_run() as run:
        state = train(folder, "mlflow", log_loss, last=10)
    with mlflow.start_run(run_id=run.info.run_id):
        train(folder, "mlflow", log_loss, state, first=10)
    return read_mlflow(run.info.run_id)


def read_mlflow(run_id: str) -> dict[str, Any]:
    import mlflow

    client = mlflow.MlflowClient()
    found = client.get_run(run_id).data
    numbers = {
        name: [(point.step, point.value) for point in client.get_metric_history(run_id, name)] for name in found.metrics
    }
    artifact = mlflow.artifacts.load_text(f"runs:/{run_id}/esdmon/esdmon_phases.csv")
    return {
        "numbers": numbers,
        "texts": [text for name, text in found.tags.items() if name == "esdmon_alert/always"],
        "tables": [artifact.splitlines()[0]],
    }


def of_trackio(folder: Path) -> dict[str, Any]:
    """The user logs without steps, which trackio counts."""
    import trackio

    def log_loss(step: int) -> None:
        trackio.log({"loss": step})

    trackio.init(project="p", name="r")
    state = train(folder, "trackio", log_loss, last=10)
    trackio.finish()
    trackio.init(project="p", name="r", resume="must")
    train(folder, "trackio", log_loss, state, first=10)
    trackio.finish()
    return read_trackio("p", "r")


def read_trackio(project: str, run: str) -> dict[str, Any]:
    from trackio.sqlite_storage import SQLiteStorage

    rows = SQLiteStorage.get_logs(project, run)
    alerts = SQLiteStorage.get_alerts(project)
    return {
        "numbers": _by_name(rows, float | int),
        "histograms": sorted({name for row in rows for name, value in row.items() if _type(value).endswith("gram")}),
        "tables": [
            value["_value"][0]["layer"] for row in rows for value in row.values() if _type(value) == "trackio.table"
        ],
        "texts": [f"{alert['level']} {alert['step']} {alert['title']}: {alert['text']}" for alert in alerts],
    }


def of_swanlab(folder: Path) -> dict[str, Any]:
    """The user logs without steps, which SwanLab counts; offline there is no resuming."""
    import swanlab

    swanlab.init(project="p", mode="offline", logdir=str(folder / "swanlab"))
    train(folder, "swanlab", lambda step: swanlab.log({"loss": step}))
    swanlab.finish()
    return read_swanlab(folder)


def read_swanlab(folder: Path) -> dict[str, Any]:
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    (file,) = folder.glob("swanlab/run-*/*.swanlab")
    reader = DataStoreReader()
    reader.open(file)
    numbers: dict[str, list[tuple[int, float]]] = {}
    media: list[str] = []
    while (data := reader.scan()) is not None:
        record = Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "scalar":
            numbers.setdefault(record.scalar.key, []).append((record.scalar.step, record.scalar.value.number))
        elif record.WhichOneof("record_type") == "media":
            media.append(record.media.key)
    texts = [path.read_text() for path in folder.glob("swanlab/run-*/media/text/*")]
    return {"numbers": numbers, "histograms": sorted(name for name in media if "_esd/" in name), "texts": texts}


def of_comet(folder: Path) -> dict[str, Any]:
    """An offline experiment; the user logs at the step that Comet keeps."""
    import comet_ml

    experiment = comet_ml.start(
        api_key="x" * 20,
        workspace="w",
        project_name="p",
        online=False,
        experiment_config=comet_ml.ExperimentConfig(offline_directory=str(folder)),
    )
    experiment.set_step(3)
    train(folder, "comet", lambda step: experiment.log_metric("loss", step))
    experiment.end()
    (archive,) = folder.glob("*.zip")
    with zipfile.ZipFile(archive) as opened:
        messages = [json.loads(line)["payload"] for line in opened.read("messages.json").splitlines()]
        uploads = [each for each in messages if "upload_type" in each]
        names = {each["upload_type"]: Path(each["file_path"]).name for each in uploads}
        text, table = (opened.read(names[kind]).decode() for kind in ("text-sample", "asset"))
    numbers: dict[str, list[tuple[int, float]]] = {}
    for metric in (each["metric"] for each in messages if "metric" in each):
        numbers.setdefault(metric["metricName"], []).append((metric["step"], float(metric["metricValue"])))
    return {
        "numbers": numbers,
        "texts": [text],
        "histograms": [each["upload_type"] for each in uploads if each["upload_type"] == "histogram3d"],
        "tables": [table.splitlines()[0]],
    }


def of_clearml(folder: Path) -> dict[str, Any]:
    """An offline task."""
    from clearml import Task

    Task.set_offline(offline_mode=True)
    Task.force_store_standalone_script()  # else it looks for the repository of this file, for minutes
    task = Task.init("p", "t", auto_connect_frameworks=False, auto_resource_monitoring=False)
    logger = task.get_logger()
    train(folder, "clearml", lambda step: logger.report_scalar("loss", "loss", step, step))
    session = Path(task.get_offline_mode_folder())
    task.flush(wait_for_uploads=True)
    task.close()
    events = [event for line in (session / "metrics.jsonl").read_text().splitlines() for event in json.loads(line)]
    numbers: dict[str, list[tuple[int, float]]] = {}
    for event in events:
        if event["type"] == "training_stats_scalar":
            name = "loss" if event["metric"] == "loss" else f"{event['metric']}/{event['variant']}"
            numbers.setdefault(name, []).append((event["iter"], event["value"]))
    plots = [f"{event['metric']}/{event['variant']}" for event in events if event["type"] == "plot"]
    words = [event["msg"] for line in (session / "log.jsonl").read_text().splitlines() for event in json.loads(line)]
    return {
        "numbers": numbers,
        "texts": [word for word in words if word.startswith("esdmon: always firing")],
        "histograms": sorted({plot for plot in plots if "_esd/" in plot}),
        "tables": [plot for plot in plots if plot.startswith("esdmon_phases/")],
    }


def _type(value: object) -> str:
    return str(value.get("_type", "")) if isinstance(value, dict) else ""


def _by_name(rows: list[dict[str, Any]], kind: Any) -> dict[str, list[tuple[int, float]]]:
    numbers: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step" and isinstance(value, kind):
                numbers.setdefault(name, []).append((row["step"], value))
    return numbers


if __name__ == "__main__":
    found = globals()[f"of_{sys.argv[1]}"](Path(sys.argv[2]))
    print("FOUND", json.dumps(found))  # noqa: T201
