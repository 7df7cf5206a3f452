"""A loop whose weights are sharded by FSDP2, watched by the same line on every rank.

torchrun --nproc-per-node 2 examples/fsdp2_loop.py && tensorboard --logdir runs/fsdp2
"""

import os

import torch
from sklearn.datasets import load_digits
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import esdmon


def train(out: str = "runs/fsdp2", epochs: int = 5) -> esdmon.Monitor:
    """Train on digits on this rank, and return its monitor: that of rank 0 has the report of the whole model."""
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    torch.manual_seed(0)
    data = load_digits()
    images, labels = torch.as_tensor(data.data / 16, dtype=torch.float32), torch.as_tensor(data.target)
    dataset = TensorDataset(images, labels)
    loader = DataLoader(dataset, batch_size=16, sampler=DistributedSampler(dataset))
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)).to(device)
    for layer in (model[0], model[2], model[4], model):
        fully_shard(layer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    # The one line, on every rank: rank 0 writes one report of the whole model.
    with esdmon.watch(model, optimizer, every=50, sinks=f"tensorboard:{out}", stop_on=["non_finite"]) as monitor:
        for _ in range(epochs):
            for inputs, targets in loader:
                loss = nn.functional.cross_entropy(model(inputs.to(device)), targets.to(device))
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                optimizer.step()
                if monitor.should_stop:  # turns True at the same step on all ranks
                    return monitor
    return monitor


if __name__ == "__main__":
    report = train().report
    if distributed.get_rank() == 0:
        print(report)
    distributed.destroy_process_group()
