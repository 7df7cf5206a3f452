"""`python -m examples.paper --quick | --full`: run or resume the experiments, and write a report."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from examples.paper.experiments import Experiment, experiments
from examples.paper.report import write_report
from examples.paper.training import Result, run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run or resume the experiments and write the report; return 130 if interrupted."""
    parser = argparse.ArgumentParser(prog="python -m examples.paper", description=__doc__)
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--quick", action="store_true", help="the main finding, within 15 minutes on two cores")
    how.add_argument("--full", action="store_true", help="all experiments, three seeds; hours without a GPU")
    parser.add_argument("--out", type=Path, default=Path("runs/paper"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="run only these experiments")
    parser.add_argument(
        "--cifar10", type=Path, metavar="DIR", help="folder with the binary version of CIFAR-10; adds an experiment"
    )
    parser.add_argument(
        "--mnist", type=Path, metavar="DIR", help="folder with the four files of MNIST; adds an experiment"
    )
    options = parser.parse_args(arguments)
    chosen = experiments(full=options.full, cifar10=options.cifar10, mnist=options.mnist)
    names = [experiment.name for experiment in chosen]
    unknown = sorted(set(options.only or ()) - set(names))
    if unknown:
        parser.error(f"unknown experiment {unknown[0]!r} in --only. Available: {', '.join(names)}")
    chosen = [experiment for experiment in chosen if not options.only or experiment.name in options.only]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        results = run_all(chosen, options.out, device)
    except KeyboardInterrupt:
        print("\nInterrupted. Run the same command again to resume.", file=sys.stderr)
        return 130
    print(write_report(results, options.out))
    return 0


def run_all(chosen: Sequence[Experiment], out: Path, device: torch.device) -> dict[str, list[Result]]:
    """Return the results of each experiment by its name; a run that several experiments share is trained once."""
    recipes = {recipe.name: recipe for experiment in chosen for recipe in experiment.recipes}
    done: dict[str, Result] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        every = progress.add_task("runs", total=len(recipes))
        one = progress.add_task("", total=100)
        for name, recipe in recipes.items():
            progress.update(one, description=name, completed=0)
            done[name] = run(
                recipe,
                out / "runs",
                device=device,
                progress=lambda share: progress.update(one, completed=round(100 * share)),
            )
            progress.advance(every)
    return {experiment.name: [done[recipe.name] for recipe in experiment.recipes] for experiment in chosen}


if __name__ == "__main__":
    sys.exit(main())
