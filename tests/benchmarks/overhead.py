"""Measure the overhead of a monitor: time of a training with esdmon over time without, and that of other loggers.

    python -m tests.benchmarks.overhead                  # three networks, and three of ten times the layers
    python -m tests.benchmarks.overhead --rounds 4 --networks cnn
    python -m tests.benchmarks.overhead --loaders 2      # beside two busy workers of a DataLoader

Twins of one network, from the same weights, train the same batches: one plain, the others each with one tool that logs
every 200 steps. They take turns of a few steps, in an order that is drawn each time, so that what else the machine
does meets all alike; a round is 200 steps of each, with one reading. Printed are the sums over the rounds of a twin's
wall time, and of its CPU time, over those of the plain one, with an interval of 95 % (bootstrap over rounds); the CPU
seconds of the tool itself over those of its twin; and the steps since the oldest reading at the end.

esdmon has its default budget, except for the seconds that are free at first; its clock runs while its own twin trains,
and stands still while another does.
"""

import argparse
import io
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import esdmon
from esdmon.cli.digits import MiniAlexNet, digits
from esdmon.runtime.workers import worker as worker_module
from esdmon.schedule.budget import Budget

EVERY = 200
TURN = 2
FREE = 0.1  # seconds, of 2 by default: so that a run of half a minute shows what a long one costs
Step = Callable[[], None]


@dataclass
class Task:
    """A network and what it trains on."""

    make: Callable[[], nn.Module]
    batch: Callable[[int], tuple[Tensor, Tensor]]
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer]


def cnn(times: int) -> Task:
    """MiniAlexNet on digits of 28 × 28, batch 64; the long one has 3 × 3 convolutions of 16 channels before it."""
    images, labels = digits()
    size = 64 if times == 1 else 16

    def make() -> nn.Module:
        if times == 1:
            return MiniAlexNet()
        more = [nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()) for _ in range(5 * (times - 1) - 2)]
        return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), *more, nn.Conv2d(16, 1, 3, padding=1), MiniAlexNet())

    def batch(k: int) -> tuple[Tensor, Tensor]:
        index = torch.arange(k * size, (k + 1) * size) % len(images)
        return images[index], labels[index]

    return Task(make, batch, lambda model: torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9))


class Language(nn.Module):
    """Blocks of a decoder, of width 256, over bytes."""

    def __init__(self, blocks: int, width: int = 256) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(blocks)
        )
        self.head = nn.Linear(width, 256)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits."""
        x = self.embedding(tokens)
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        logits: Tensor = self.head(x)
        return logits.transpose(1, 2)


def gpt(times: int) -> Task:
    """Three blocks of GPT-2's kind, next byte of English text, 4 windows of 64; of the long one 1 of 32."""
    from pydoc_data.topics import topics

    text = torch.tensor(list("".join(topics.values()).encode()), dtype=torch.long)
    count, size = (4, 64) if times == 1 else (1, 32)

    def batch(k: int) -> tuple[Tensor, Tensor]:
        starts = [(9973 * (count * k + i)) % (len(text) - size - 1) for i in range(count)]
        windows = torch.stack([text[start : start + size + 1] for start in starts])
        return windows[:, :-1], windows[:, 1:]

    return Task(lambda: Language(3 * times), batch, lambda model: torch.optim.AdamW(model.parameters(), lr=3e-4))


def mlp(times: int) -> Task:
    """Three layers of 1024 on noise, batch 256; the long one has layers of 512."""
    width = 1024 if times == 1 else 512

    def make() -> nn.Module:
        hidden = [nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(3 * times - 2)]
        return nn.Sequential(nn.Linear(256, width), nn.ReLU(), *hidden, nn.Linear(width, 256))

    def batch(k: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(k % 64)
        return torch.randn(256, 256, generator=generator), torch.randint(256, (256,), generator=generator)

    return Task(make, batch, lambda model: torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9))


TASKS = {"cnn": cnn, "gpt": gpt, "mlp": mlp}


class Augmented(IterableDataset[Tensor]):
    """Batches of digits, each turned and blurred by a worker, without end."""

    def __iter__(self) -> Iterator[Tensor]:
        torch.set_num_threads(1)
        images, _ = digits()
        while True:
            batch = images[torch.randint(len(images), (64,))]
            for _ in range(8):
                angle = torch.rand(64) - 0.5
                turn = torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos()), dim=1).reshape(64, 2, 2)
                grid = nn.functional.affine_grid(
                    torch.cat((turn, torch.zeros(64, 2, 1)), dim=2), list(batch.shape), align_corners=False
                )
                batch = nn.functional.grid_sample(batch, grid, align_corners=False)
            yield batch


class Stopwatch:
    """Wall and CPU seconds while it is on."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        self._since: tuple[float, float] | None = None

    @contextmanager
    def on(self) -> Iterator[None]:
        self._since = (time.perf_counter(), time.process_time())
        try:
            yield
        finally:
            self.wall, self.cpu, self._since = self.read_wall(), self.read_cpu(), None

    def read_wall(self) -> float:
        return self.wall + (0.0 if self._since is None else time.perf_counter() - self._since[0])

    def read_cpu(self) -> float:
        return self.cpu + (0.0 if self._since is None else time.process_time() - self._since[1])


@dataclass
class Tool:
    """What is done besides training: after each step, and at the end of a round."""

    after_step: Callable[[int], None] = lambda _step: None
    settle: Callable[[], None] = lambda: None
    close: Callable[[], None] = lambda: None
    oldest: Callable[[], str] = lambda: ""
    threads: set[str] = field(default_factory=set)


def with_esdmon(model: nn.Module, _folder: Path, watch: Stopwatch, *, mode: str, out: str) -> Tool:
    own = {"clock": watch.read_wall, "cpu_clock": watch.read_cpu, "advance": FREE}

    def budget(share: float | None, **options: Any) -> Budget:
        return Budget(share, **options | own)

    with mock.patch("esdmon.watching.Budget", budget):
        monitor = esdmon.watch(model, every=EVERY, mode=mode, sinks=[f"tensorboard:{out}", f"jsonl:{out}/e.jsonl"])
    tool = Tool(settle=monitor.flush, close=monitor.close)

    def step(_step: int) -> None:
        first = mode != "sync" and monitor.steps == EVERY - 1
        before = _threads() if first else set()
        monitor.step()
        if first:
            monitor.flush()
            tool.threads |= _threads() - before

    def oldest() -> str:
        report = monitor.report
        assert report is not None
        unread = f", {len(report.waiting)} unread" if report.waiting else ""
        return f"{report.summary['age_max']:.0f} of {len(report) + len(report.waiting)} matrices{unread}"

    tool.after_step, tool.oldest = step, oldest
    return tool


def with_wandb(model: nn.Module, folder: Path, _watch: Stopwatch) -> Tool:
    import wandb

    run = wandb.init(mode="offline", dir=str(folder), settings=wandb.Settings(silent=True, console="off"))
    run.watch(model, log="all", log_freq=EVERY)

    def step(k: int) -> None:
        if k % EVERY == 0:
            run.log({"step": k})

    return Tool(step, close=run.finish)


def with_histograms(model: nn.Module, folder: Path, _watch: Stopwatch) -> Tool:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "histograms"))

    def step(k: int) -> None:
        if k % EVERY == 0:
            for name, parameter in model.named_parameters():
                writer.add_histogram(name, parameter, k)
            writer.flush()

    return Tool(step, close=writer.close)


def with_weightwatcher(model: nn.Module, _folder: Path, _watch: Stopwatch) -> Tool:
    import weightwatcher

    def step(k: int) -> None:
        if k % EVERY == 0:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                weightwatcher.WeightWatcher(model=model).analyze()

    return Tool(step)


def _threads() -> set[str]:
    """What the system counts the time of: threads of this process, and its worker processes."""
    tasks = Path("/proc/self/task")
    threads = {f"/proc/self/task/{task.name}" for task in tasks.iterdir()} if tasks.exists() else set()
    return threads | {f"/proc/{worker.pid}" for worker in tuple(worker_module._alive)}


def _cpu_of(threads: set[str]) -> float:
    """CPU seconds that the system counts for these."""
    ticks = 0
    for thread in threads:
        fields = Path(f"{thread}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


class Twin:
    """One copy of the network, its tool, and the time that both took."""

    def __init__(
        self,
        task: Task,
        make_tool: Callable[[nn.Module, Path, Stopwatch], Tool] | None,
        folder: Path,
        loaded: Iterator[Tensor] | None,
    ) -> None:
        torch.manual_seed(0)
        self.task = task
        self.loaded = loaded
        self.model = task.make()
        self.optimizer = task.make_optimizer(self.model)
        self.clock = Stopwatch()
        self.tool = Tool() if make_tool is None else make_tool(self.model, folder, self.clock)
        self.own_cpu = 0.0
        self.walls: list[float] = []
        self.cpus: list[float] = []
        self._steps = 0

    def train(self, steps: int) -> None:
        with self.clock.on():
            for _ in range(steps):
                self._step()
            self.tool.settle()
        if self._steps % EVERY == 0:
            self.walls.append(self.clock.wall - sum(self.walls))
            self.cpus.append(self.clock.cpu - sum(self.cpus))

    def _step(self) -> None:
        if self.loaded is not None:
            next(self.loaded)  # waits where the workers have not kept up
        inputs, targets = self.task.batch(self._steps)
        loss = nn.functional.cross_entropy(self.model(inputs), targets)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self._steps += 1
        clock = time.thread_time if self.tool.threads else time.process_time
        start = clock()
        self.tool.after_step(self._steps)
        self.own_cpu += clock() - start

    @property
    def cpu_share(self) -> float:
        return (self.own_cpu + _cpu_of(self.tool.threads)) / self.clock.cpu


def interval(walls: list[float], plain: list[float]) -> tuple[float, float, float]:
    """Ratio of sums, and the middle 95 % of those of rounds drawn with replacement."""
    a, b = np.array(walls), np.array(plain[: len(walls)])
    draws = np.random.default_rng(0).integers(len(a), size=(4000, len(a)))
    low, high = np.quantile(a[draws].sum(axis=1) / b[draws].sum(axis=1), (0.025, 0.975))
    return float(a.sum() / b.sum()), float(low), float(high)


def measure(name: str, times: int, rounds: int, peer_rounds: int, *, loaders: int) -> None:
    """All tools on one network, and a line for each."""
    task = TASKS[name](times)
    loaded = iter(DataLoader(Augmented(), batch_size=None, num_workers=loaders)) if loaders else None
    with tempfile.TemporaryDirectory() as folder:
        makers: dict[str, Any] = {
            "plain": None,
            "esdmon, sync": partial(with_esdmon, mode="sync", out=f"{folder}/sync"),
            "esdmon, thread": partial(with_esdmon, mode="thread", out=f"{folder}/thread"),
            "esdmon, process": partial(with_esdmon, mode="process", out=f"{folder}/process"),
        }
        if peer_rounds:
            makers |= {
                "wandb.watch": with_wandb,
                "add_histogram": with_histograms,
                "WeightWatcher": with_weightwatcher,
            }
        twins = {tool: Twin(task, maker, Path(folder), loaded) for tool, maker in makers.items()}
        order = random.Random(0)  # noqa: S311 -- an order
        for k in range(rounds):
            now = [tool for tool in twins if tool.startswith(("plain", "esdmon")) or k < peer_rounds]
            for _ in range(EVERY // TURN):
                for tool in order.sample(now, len(now)):
                    twins[tool].train(TURN)
        plain = twins.pop("plain")
        milliseconds = 1e3 * sum(plain.walls) / len(plain.walls) / EVERY
        weights = sum(parameter.numel() for parameter in plain.model.parameters())
        print(f"\n{name} × {times}: {weights:,} parameters, {milliseconds:.1f} ms a step, {rounds} rounds", flush=True)
        for tool, twin in twins.items():
            ratios = [
                "{:.3f} [{:.3f}, {:.3f}]".format(*interval(one, other))
                for one, other in ((twin.walls, plain.walls), (twin.cpus, plain.cpus))
            ]
            own = "" if tool == "wandb.watch" else f"{twin.cpu_share:.2%}"
            print(f"  {tool:15} wall {ratios[0]}  CPU {ratios[1]}  own CPU {own:6} {twin.tool.oldest()}", flush=True)
            twin.tool.close()


def main() -> None:
    """Print a block for each network."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--peer-rounds", type=int, default=4)
    parser.add_argument("--long-rounds", type=int, default=6, help="rounds of the networks of ten times the layers")
    parser.add_argument("--networks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument(
        "--loaders", type=int, default=0, help="workers of a DataLoader that each step takes a batch of"
    )
    options = parser.parse_args()
    print(
        f"wall time with / without [95 %], every={EVERY}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    for name in options.networks:
        measure(name, 1, options.rounds, options.peer_rounds, loaders=options.loaders)
    for name in options.networks if options.long_rounds else ():
        measure(name, 10, options.long_rounds, 0, loaders=options.loaders)


if __name__ == "__main__":
    main()
