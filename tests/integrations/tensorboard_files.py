"""Writers of event files, and what TensorBoard's readers find in them."""

import subprocess
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing import plugin_event_accumulator
from torch import nn

import esdmon
from esdmon.records import Coverage, Report
from esdmon.spectrum import Phase
from esdmon_tensorboard import TensorBoardSink
from tests.esdmon_tensorboard.server import until
from tests.event_files import events_of
from tests.webpage.made import a_layer

TAG = "esdmon_stable_rank/a"


def report_of(names: str, step: int, phase: Phase = Phase.RANDOM_LIKE, host_step: int | None = None) -> Report:
    """Return a report with a layer for each letter, all read at that step."""
    layers = tuple(replace(a_layer(), name=name, step=step, phase=phase, host_step=host_step) for name in names)
    return Report(step, layers, Coverage(0, 0), host_step=host_step)


def pictures(folder: Path) -> dict[str, list[int]]:
    """Return the steps of the pictures of each layer."""
    events = events_of(folder)
    tags = [tag for tag in events.Tags()["images"] if tag.startswith("esdmon_picture/")]
    return {tag.rpartition("/")[2]: [image.step for image in events.Images(tag)] for tag in tags}


def steps_of_python(folder: Path, tag: str) -> list[int]:
    """Return the steps that TensorBoard shows with --load_fast=false."""
    events = plugin_event_accumulator.EventAccumulator(str(folder), tensor_size_guidance={"scalars": 0})
    events.Reload()
    return [point.step for point in events.Tensors(tag)]


def steps_of_rust(folder: Path, tag: str, last: int) -> list[int]:
    """Return the steps that TensorBoard's data server, its default, has once it has read as far as `last`."""
    import grpc
    from tensorboard.context import RequestContext
    from tensorboard.data import grpc_provider, server_ingester

    try:
        binary = server_ingester.get_server_binary().path
    except server_ingester.NoDataServerError:
        pytest.skip("TensorBoard's data server is not made for this system")
    port = folder.parent / f"{folder.name}.port"
    flags = ["--reload=once", "--samples-per-plugin=scalars=all", "--port=0", "--die-after-stdin"]
    command = [binary, f"--logdir={folder}", f"--port-file={port}", *flags]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        until(lambda: port.exists() and port.read_text().endswith("\n"))
        address = f"localhost:{int(port.read_text())}"
        with grpc.insecure_channel(address) as channel:
            provider = grpc_provider.GrpcDataProvider(address, grpc_provider.make_stub(channel))

            def steps() -> list[int]:
                options = {"experiment_id": "", "plugin_name": "scalars", "downsample": 1000}
                runs = provider.read_scalars(RequestContext(), **options)
                return [point.step for point in runs.get(".", {}).get(tag, [])]

            until(lambda: steps()[-1:] == [last])
            found = steps()
        assert server.stdin is not None
        server.stdin.close()
    port.unlink()
    return found


def write_run(folder: Path, steps: Iterable[int], *, run: str = "aa", rewound: int | None = None) -> TensorBoardSink:
    """Write one process of a run, as a monitor does."""
    sink = TensorBoardSink.open(str(folder))
    sink.start("ffffffff")
    if rewound is not None:
        sink.start(run)
        sink.rewind(rewound)
    else:
        sink.start(run)
    for step in steps:
        sink.write(report_of("a", step))
    sink.close()
    return sink


def watch_for(steps: int, sinks: list[str | TensorBoardSink], *, max_tags: int | None = 200) -> esdmon.Monitor:
    torch.manual_seed(0)
    model = nn.ModuleDict({"fc1": nn.Linear(128, 96), "fc2": nn.Linear(96, 20)})
    with esdmon.watch(model, every=10, budget=None, sinks=sinks, max_tags=max_tags) as monitor:
        for _ in range(steps):
            monitor.step()
    return monitor
