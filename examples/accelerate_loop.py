"""A loop with Accelerate: `watch()` takes prepared objects, logs to its trackers and is saved in its checkpoints.

python examples/accelerate_loop.py && tensorboard --logdir runs/accelerate
"""

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import esdmon
from esdmon_transformers import tracker_sinks


def train(out: str = "runs/accelerate", epochs: int = 5) -> esdmon.Monitor:
    """Train on digits and return the monitor."""
    torch.manual_seed(0)
    data = load_digits()
    images, labels = torch.as_tensor(data.data / 16, dtype=torch.float32), torch.as_tensor(data.target)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = DataLoader(TensorDataset(images, labels), batch_size=16, shuffle=True)

    accelerator = Accelerator(log_with="tensorboard", project_dir=out, gradient_accumulation_steps=2)
    accelerator.init_trackers("digits")
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    monitor = esdmon.watch(model, optimizer, every=50, sinks=tracker_sinks(accelerator))  # the one line
    accelerator.register_for_checkpointing(monitor)

    for _ in range(epochs):
        for inputs, targets in loader:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(inputs), targets)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
    accelerator.save_state(f"{out}/checkpoint")
    monitor.close()
    accelerator.end_training()
    return monitor


if __name__ == "__main__":
    print(train().report)
