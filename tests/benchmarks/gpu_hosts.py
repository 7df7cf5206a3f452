"""Train under each host on a GPU, with the monitor and without: `python -m tests.benchmarks.gpu_hosts` needs CUDA.

The sharded strategies of Lightning and of the Trainer refuse to run on a CPU, so that no test reaches them. Each host
trains in a job of one rank in a process of its own, and reports whether the last reading has the norm of the whole
weight, whether anything
failed, and whether the weights are equal to the last bit to those of a training without a monitor.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor

_STEPS, _EVERY = 20, 4
_SECONDS = 200.0

Weights = dict[str, Tensor]


def whole(model: nn.Module) -> Weights:
    """Return copies of all weights on the CPU, put together by torch's own collectives where they are sharded."""
    wrapped = any(isinstance(module, FullyShardedDataParallel) for module in model.modules())
    with FullyShardedDataParallel.summon_full_params(model) if wrapped else contextlib.nullcontext():
        return {
            name.replace("_fsdp_wrapped_module.", ""): (
                weight.full_tensor() if isinstance(weight, DTensor) else weight.detach()
            )
            .cpu()
            .clone()
            for name, weight in model.named_parameters()
        }


def lightning(strategy: str, folder: str, *, watched: bool) -> tuple[Weights, list[str]]:
    """Train by Lightning."""
    import lightning.pytorch as pl
    from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
    from torch.utils.data import DataLoader, TensorDataset

    from esdmon_lightning import SpectralMonitor

    kept: Weights = {}

    class Small(pl.LightningModule):
        def configure_model(self) -> None:
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(64, 97), nn.Tanh(), nn.Linear(97, 64))
            if strategy == "model_parallel":
                mesh: Any = self.device_mesh["data_parallel"]  # type: ignore[index]  # set by the strategy
                for layer in (self.net[0], self.net[2]):
                    fully_shard(layer, mesh=mesh)
                fully_shard(self.net, mesh=mesh)

        def training_step(self, batch: list[Tensor], _index: int) -> Tensor:
            loss: Tensor = (self.net(batch[0]) - 1).square().mean()
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def on_train_end(self) -> None:
            kept.update({name.removeprefix("net."): weight for name, weight in whole(self.net).items()})

    strategies: dict[str, Callable[[], Any]] = {
        "fsdp": lambda: FSDPStrategy(auto_wrap_policy={nn.Linear}),
        "model_parallel": lambda: ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1),
        "auto": lambda: "auto",
    }
    monitor = SpectralMonitor(every=_EVERY, budget=None, sinks=f"jsonl:{folder}/a.jsonl")
    torch.manual_seed(0)
    data = DataLoader(TensorDataset(torch.randn(320, 64)), batch_size=8)
    pl.Trainer(
        max_steps=_STEPS,
        callbacks=[monitor] if watched else [],
        logger=False,
        default_root_dir=folder,
        accelerator="gpu",
        devices=1,
        strategy=strategies[strategy](),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    ).fit(Small(), data)
    return kept, [fault.message for fault in monitor.monitor.errors] if monitor.monitor else []


def trainer(fsdp_version: int, folder: str, *, watched: bool) -> tuple[Weights, list[str]]:
    """Train by the Trainer of Hugging Face; version 0 is without FSDP."""
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

    from esdmon_transformers import SpectralMonitor

    kept: Weights = {}

    class Keep(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
        def on_train_end(self, *_: Any, model: Any = None, **__: Any) -> None:
            kept.update(whole(model))

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=96, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    ids = torch.arange(16)
    data: Any = [{"input_ids": ids, "labels": ids}] * 64
    sharded: dict[str, Any] = {}
    if fsdp_version:
        sharded = {
            "fsdp": "full_shard auto_wrap" if fsdp_version == 1 else True,
            "fsdp_config": {"version": fsdp_version, "transformer_layer_cls_to_wrap": ["GPT2Block"]},
        }
    arguments = TrainingArguments(
        folder, max_steps=_STEPS, per_device_train_batch_size=2, disable_tqdm=True, save_strategy="no", **sharded
    )
    monitor = SpectralMonitor(every=_EVERY, budget=None, sinks=f"jsonl:{folder}/a.jsonl")
    callbacks = [Keep(), monitor] if watched else [Keep()]
    Trainer(GPT2LMHeadModel(config), arguments, train_dataset=data, callbacks=callbacks).train()
    return kept, [fault.message for fault in monitor.monitor.errors] if monitor.monitor else []


Host = Callable[..., tuple[Weights, list[str]]]
_HOSTS: dict[str, tuple[Host, Any]] = {
    "lightning": (lightning, "auto"),
    "lightning FSDPStrategy": (lightning, "fsdp"),
    "lightning ModelParallelStrategy": (lightning, "model_parallel"),
    "Trainer": (trainer, 0),
    "Trainer fsdp 1": (trainer, 1),
    "Trainer fsdp 2": (trainer, 2),
}


def check(name: str) -> tuple[bool, str]:
    """Train under one host without a monitor and with it, and return whether all is well, and what was seen."""
    train, option = _HOSTS[name]
    with tempfile.TemporaryDirectory() as folder:
        plain, _ = train(option, folder, watched=False)
        weights, errors = train(option, folder, watched=True)
        lines = (Path(folder) / "a.jsonl").read_text(encoding="utf-8").splitlines()
    layers = [each for each in map(json.loads, lines) if each["kind"] == "layer"]
    wrong = [*errors, *(f"{each['name']}: {each['reason']}" for each in layers if each["status"] != "ok")][:3]
    if not all(torch.equal(weights[key], plain[key]) for key in plain):
        wrong.append("weights differ from those of a training without a monitor")
    norms = {key.removesuffix(".weight"): float(weight.double().norm()) for key, weight in weights.items()}
    # A part of a fused projection (c_attn/q) has no weight of its own.
    last = [each for each in layers if each["step"] == _STEPS and each["name"].removeprefix("net.") in norms]
    off = 0.0
    for each in last:
        norm = norms[each["name"].removeprefix("net.")]
        off = max(off, abs(each["frobenius_norm"] - norm) / norm)
    if not last or off > 1e-4:
        wrong.append(f"{len(last)} readings of the last step, norms within {off:.1e}")
    text = f"{len(layers)} readings of {len({each['name'] for each in layers})} layers, norms within {off:.1e}"
    return not wrong, "; ".join(dict.fromkeys(wrong)) or f"{text}, weights equal to the last bit"


def _apart(name: str, port: int) -> str:
    job = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_PORT": str(port)}
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), str(root / "integrations"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | job | {"MASTER_ADDR": "127.0.0.1", "PYTHONPATH": path}
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.gpu_hosts", "--host", name]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=False, env=environment, cwd=root
        )
    except subprocess.TimeoutExpired:
        return f"FAIL   | no end in {_SECONDS:g} s"
    lines = [line for line in done.stdout.splitlines() if line.startswith(("PASS", "FAIL"))]
    return lines[-1] if lines else f"FAIL   | status {done.returncode}: {' / '.join(done.stderr.splitlines()[-6:])}"


def main() -> int:
    """Print a table of all hosts, and return 1 if any has failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", choices=list(_HOSTS), help="one host, in this process")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} finds no CUDA device")
    if given.host:
        passed, text = check(given.host)
        print(f"{'PASS' if passed else 'FAIL'}   | {text}", flush=True)
        return int(not passed)
    with ThreadPoolExecutor(len(_HOSTS)) as pool:
        lines = list(pool.map(_apart, _HOSTS, range(29611, 29611 + len(_HOSTS))))
    for name, line in zip(_HOSTS, lines, strict=True):
        print(f"{name:<32} | {line}")
    return int(any(line.startswith("FAIL") for line in lines))


if __name__ == "__main__":
    sys.exit(main())
