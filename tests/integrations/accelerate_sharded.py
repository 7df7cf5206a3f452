"""A loop of two ranks whose weights Accelerate shards by FSDP2: python accelerate_sharded.py FOLDER.

Accelerate chooses FSDP on accelerators only, so its state is set here; what shards the model and gives the optimizer
its parameters is its own. Each rank writes what it has read, and is a fork of this process. Run by
test_transformers_ranks.py.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn

import esdmon
from tests.ranks import fork


def main(folder: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="size_based_wrap", min_num_params=1000, state_dict_type="SHARDED_STATE_DICT"
    )
    accelerator.state.fsdp_plugin = plugin
    accelerator.state.distributed_type = DistributedType.FSDP
    model: Any = nn.Sequential(nn.Linear(64, 97), nn.Tanh(), nn.Linear(97, 64))
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    with esdmon.watch(model, optimizer, every=4, budget=None, sinks=f"jsonl:{folder}/a.jsonl") as monitor:
        for _ in range(20):
            accelerator.backward(model(torch.randn(8, 64)).square().mean())
            optimizer.step()
            optimizer.zero_grad()
    result = {
        "steps": monitor.steps,
        "norm": float(model[0].weight.detach().full_tensor().norm()),
        "errors": [fault.message for fault in monitor.errors],
    }
    Path(f"{folder}/rank-{accelerator.process_index}.json").write_text(json.dumps(result))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    fork(main, *sys.argv[1:])
