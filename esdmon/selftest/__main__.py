"""Run the self-test: `python -m esdmon.selftest`, or on a cluster `torchrun … -m esdmon.selftest`."""

import argparse
import faulthandler
import os
import sys
from collections.abc import Sequence
from pathlib import Path

# Before CUDA is used: trainings are compared bit by bit, for which cuBLAS needs a fixed workspace.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch

from esdmon.selftest.checks import CHECKS
from esdmon.selftest.harness import Check, Machine, run

_END_SECONDS = 30


def main(arguments: Sequence[str] | None = None, checks: Sequence[Check] = CHECKS) -> int:
    """Run the checks that the arguments name, and return the exit status: 1 if any has failed."""
    parser = argparse.ArgumentParser(prog="python -m esdmon.selftest", description=__doc__)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help="cuda or cpu; on cpu sizes are small, and times mean nothing")
    known = ", ".join(check.name for check in checks)
    parser.add_argument("--only", default="", metavar="NAMES", help=f"run these checks only, as a,b; all are: {known}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to a file")
    parser.add_argument("--in-process", action="store_true", help="start no further process for a check")
    parser.add_argument(
        "--seconds", type=int, default=540, metavar="N", help="print the stacks of all threads and end after N seconds"
    )
    given = parser.parse_args(arguments)
    if given.seconds < 1:
        parser.error(f"--seconds must be 1 or more; got {given.seconds}")
    # If a check deadlocks, its stack shows why. 2 is standard error, also if `sys.stderr` was replaced.
    faulthandler.dump_traceback_later(given.seconds, exit=True, file=2)
    try:
        return _run(parser, given, checks)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _run(parser: argparse.ArgumentParser, given: argparse.Namespace, checks: Sequence[Check]) -> int:
    names = [name for name in given.only.split(",") if name] or [check.name for check in checks]
    unknown = set(names) - {check.name for check in checks}
    if unknown:
        parser.error(f"unknown checks: {', '.join(sorted(unknown))}")
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("this torch finds no CUDA device: --device cpu is a dry run")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from esdmon.selftest import cluster  # noqa: PLC0415 -- some builds of torch have no distributed package

        return cluster.check_all(device)
    chosen = [check for check in checks if check.name in names]
    return run(chosen, Machine(device), json_path=given.json, in_process=given.in_process)


if __name__ == "__main__":
    status = main()
    faulthandler.dump_traceback_later(_END_SECONDS, exit=True, file=2)  # a thread or CUDA may block the exit
    sys.exit(status)
