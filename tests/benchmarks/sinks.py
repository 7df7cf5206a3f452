"""Measure the time of each sink to write the report of a model of 200 layers, all of them read.

    python -m tests.benchmarks.sinks

In readings of one 256 × 256 matrix, medians of several writes in turn; once with 200 series of layers at most, as by
default, and once with all; then the first report, one in which the phases of all layers change, a picture, which is
drawn between reports, and closing.
"""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import esdmon
from esdmon.records import Report
from esdmon.sinks import ConsoleSink, JsonlSink, MemorySink, Sink
from esdmon.spectrum import Phase

LAYERS = 200


def report_of(step: int, whole: Report, max_tags: int | None) -> Report:
    layers = tuple(replace(layer, step=step) for layer in whole)
    return replace(whole, step=step, layers=layers, max_tags=max_tags)


def sinks(folder: Path) -> dict[str, Sink]:
    """One of each."""
    import wandb
    from lightning.pytorch.loggers import CSVLogger

    from esdmon_lightning.loggers import sink_for
    from esdmon_tensorboard import TensorBoardSink
    from esdmon_wandb import WandbSink

    run = wandb.init(mode="offline", dir=str(folder), settings=wandb.Settings(silent=True, console="off"))
    return {
        "memory": MemorySink(),
        "jsonl": JsonlSink(folder / "a.jsonl"),
        "console": ConsoleSink(io.StringIO()),
        "tensorboard": TensorBoardSink.open(str(folder / "run")),
        "wandb, offline": WandbSink(run),
        "Lightning's CSVLogger": sink_for(CSVLogger(folder)),
    }


def odd_ones(name: str, sink: Sink, whole: Report, seconds: float) -> str:
    """What a sink costs at its most expensive reports, and for what it does between them."""
    layers = tuple(replace(layer, phase=Phase.BULK_DECAY, step=2) for layer in whole)
    first = timed(lambda: sink.write(report_of(1, whole, 200))) / seconds
    changed = timed(lambda: sink.write(replace(whole, step=2, layers=layers, max_tags=200))) / seconds
    catch_up: Callable[[], object] = getattr(sink, "catch_up", lambda: None)
    picture = statistics.median(timed(catch_up) for _ in range(5)) / seconds
    close = timed(sink.close) / seconds
    return f"  {name:22} {first:7.1f}   {changed:7.1f}   {picture:7.1f}   {close:7.1f}"


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """Print a line for each sink."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--writes", type=int, default=11)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = nn.ModuleDict({f"h{k}": nn.Sequential(nn.Linear(256, 256)) for k in range(LAYERS)})
    seconds = timed(lambda: esdmon.analyze(model)) / LAYERS
    whole = esdmon.analyze(model)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        made = sinks(Path(folder))
        times: dict[tuple[str, int | None], list[float]] = {}
        for k in range(options.writes):
            for name, sink in made.items():
                for place, max_tags in enumerate((200, None)):
                    report = report_of(2 * k + place + 1, whole, max_tags)
                    times.setdefault((name, max_tags), []).append(timed(lambda s=sink, r=report: s.write(r)))  # type: ignore[misc]
        for sink in made.values():
            sink.close()
        (Path(folder) / "odd").mkdir()
        odd = [odd_ones(name, sink, whole, seconds) for name, sink in sinks(Path(folder) / "odd").items()]
    print(f"a report of {LAYERS} layers, in readings of one 256 x 256 matrix; reading them all: {LAYERS}")
    for name in made:
        few, all_of_them = (statistics.median(times[name, max_tags]) / seconds for max_tags in (200, None))
        print(f"  {name:22} {few:7.1f}   with all series {all_of_them:7.1f}", flush=True)
    print("the first report, one in which all phases change, a picture, closing")
    print("\n".join(odd), flush=True)


if __name__ == "__main__":
    main()
