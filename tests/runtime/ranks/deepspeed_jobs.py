"""Jobs of DeepSpeed on two ranks of a CPU, where `pip install deepspeed==0.19.8` has been run beside this torch."""

import json
import logging
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn

MARKS = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed"),
    pytest.mark.filterwarnings("ignore"),
]


def engine_of(model: nn.Module, **config: Any) -> tuple[Any, Any]:
    """Return the engine of a model that SGD trains, and its optimizer."""
    import deepspeed  # type: ignore[import-not-found,unused-ignore]

    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]  # a build of minutes
    config |= {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    engine, optimizer, *_ = deepspeed.initialize(model=model, optimizer=inner, config=config, dist_init_required=False)
    return engine, optimizer


def run(folder: str, job: Callable[[], object]) -> None:
    """Write what a job returns as this rank's result, and its log, and end the process."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    logging.basicConfig(filename=f"{folder}/log-{rank}")
    torch.set_num_threads(1)
    Path(f"{folder}/result-{rank}.json").write_text(json.dumps(job()))
    distributed.barrier()
    os._exit(0)  # DeepSpeed's own threads and finalizers do not end on a CPU
