"""Each tracker with its real package, in a process of its own; what it wrote is read back by the package itself.

They are skipped where the package is not installed: `pip install -c constraints.txt -e ".[dev,trackers]"`.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "mlflow": "mlflow",
    "trackio": "trackio",
    "swanlab": "swanlab",
    "comet": "comet_ml",
    "clearml": "clearml",
}
LOSSES = {
    "mlflow": range(20),
    "trackio": [*range(10), *range(11, 21)],  # resumed behind the largest step, as trackio counts
    "swanlab": range(20),
    "comet": [3] * 20,
    "clearml": range(20),
}
HISTOGRAMS = {"mlflow": None, "comet": ["histogram3d", "histogram3d"]}
TABLES = {"swanlab": None, "trackio": ["0", "0"], "clearml": ["esdmon_phases/layers"]}


def run(folder: Path, script: str, *arguments: str) -> dict[str, Any]:
    own = {"MLFLOW_ALLOW_FILE_STORE": "true", "TRACKIO_DIR": f"{folder}/trackio", "CLEARML_CACHE_DIR": f"{folder}/c"}
    paths = os.pathsep.join([str(ROOT), str(ROOT / "integrations")])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__).with_name(script)), *arguments, str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=folder,
        env=os.environ | own | {"PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    found: dict[str, Any] = json.loads(line.removeprefix("FOUND "))
    return found


@pytest.mark.parametrize("tracker", PACKAGES)
def test_what_a_tracker_has_is_what_the_jsonl_has(tracker: str, tmp_path: Path) -> None:
    """Numbers at their steps, the words of the alert once, histograms and tables; the user's own rows are untouched."""
    skip_without(tracker)
    found = run(tmp_path, "tracked_run.py", tracker)
    numbers = found["numbers"]
    assert [point[0] for point in numbers["loss"]] == list(LOSSES[tracker])
    assert [point[1] for point in numbers["loss"]] == list(range(20))
    for layer in ("0", "2"):
        for measure in ("stable_rank", "lambda_max"):
            expected = [(line["step"], line[measure]) for line in layers(tmp_path / "a.jsonl") if line["name"] == layer]
            written = [tuple(point) for point in numbers[f"esdmon_{measure}/{layer}"]]
            assert [step for step, _ in written] == [step for step, _ in expected] == [5, 10, 15, 20]
            assert [value for _, value in written] == pytest.approx([value for _, value in expected], rel=1e-4)
    (text,) = found["texts"]
    assert "always: it holds, at step 5." in text
    esds = HISTOGRAMS.get(tracker, ["esdmon_esd/0", "esdmon_esd/2"])
    assert found.get("histograms") == esds
    columns = ["layer,phase,alpha,alpha is meaningful,MP soft rank,step,explanation"]
    assert found.get("tables") == TABLES.get(tracker, columns)


@pytest.mark.parametrize(
    ("host", "tracker", "layer", "steps"),
    [
        ("transformers", "mlflow", "transformer.h.0.mlp.c_fc", [4, 8, 12]),
        (
            "transformers",
            "trackio",
            "transformer.h.0.mlp.c_fc",
            [0, 2, 4],
        ),  # the rows of the Trainer, as trackio counts
        ("transformers", "swanlab", "transformer.h.0.mlp.c_fc", [4, 8, 12]),
        ("lightning", "mlflow", "net.0", [3, 7, 11, 15, 19]),
        ("accelerate", "mlflow", "0", [4, 8, 12]),
        ("accelerate", "trackio", "0", [4, 8, 12]),
    ],
)
def test_a_host_hands_over_its_run_with_the_words(
    host: str, tracker: str, layer: str, steps: list[int], tmp_path: Path
) -> None:
    """At the x of the host's own rows, of which none is lost and none is in the Trainer's history."""
    skip_without(tracker)
    found = run(tmp_path, "hosted_run.py", host, tracker)
    assert [step for step, _ in found["numbers"][f"esdmon_stable_rank/{layer}"]] == steps
    (text,) = found["texts"]
    assert "always: it holds" in text
    (loss,) = [name for name in ("loss", "train/loss") if name in found["numbers"]]
    rows = [step for step, _ in found["numbers"][loss]]
    theirs = {"lightning": [*range(20)], "accelerate": [*range(12)], "transformers": [2, 4, 6, 8, 10, 12]}[host]
    assert rows == ([*range(6)] if (host, tracker) == ("transformers", "trackio") else theirs)
    assert found.get("ours", []) == []


def skip_without(tracker: str) -> None:
    if find_spec(PACKAGES[tracker]) is None:
        pytest.skip(f"{PACKAGES[tracker]} is not installed")


def layers(path: Path) -> list[dict[str, Any]]:
    return [record for record in map(json.loads, path.read_text().splitlines()) if record["kind"] == "layer"]
