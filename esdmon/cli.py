"""The command `esdmon`: the edge where errors become one line and an exit status."""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import TypeVar

from esdmon.errors import EsdmonError

Number = TypeVar("Number", int, float)
FAILURE = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, 2 for what the user can put right, 130 for Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except EsdmonError as error:
        print(f"esdmon {options.command}: {error}", file=sys.stderr)
        return FAILURE
    except KeyboardInterrupt:
        print(f"\nesdmon {options.command}: stopped.", file=sys.stderr)
        return INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="esdmon", description="Watch the spectra of a network's weights.")
    parser.add_argument("--version", action="version", version=version("esdmon"))
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_demo(commands.add_parser("demo", help="train a small network on digits and watch its spectra live"))
    return parser


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.description = "Train MiniAlexNet on scikit-learn's digits with esdmon.watch attached."
    default = "(default: %(default)s)"
    parser.add_argument("--batch-size", type=_number(int, 1, 1797), default=8, metavar="N", help=f"1 to 1797 {default}")
    parser.add_argument("--lr", type=_number(float, 0, 10), default=0.004, help=f"learning rate of SGD {default}")
    parser.add_argument("--epochs", type=_number(int, 1, 10_000), default=20, metavar="N", help=f"passes {default}")
    parser.add_argument("--seed", type=_number(int, 0, 2**32 - 1), default=0, metavar="N", help=default)
    parser.add_argument("--out", default="runs/demo", metavar="DIR", help=f"where the data goes {default}")
    parser.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> None:
    from esdmon import demo  # noqa: PLC0415 -- loads torch; `esdmon --help` should not

    settings = demo.Settings(
        batch_size=options.batch_size, lr=options.lr, epochs=options.epochs, seed=options.seed, out=options.out
    )
    demo.run(settings)


def _number(kind: type[Number], low: Number, high: Number) -> Callable[[str], Number]:
    """A parser of numbers in [low, high], whose complaint argparse prints; for floats low is excluded."""

    def parse(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError as error:
            msg = f"{text!r} is not {'a whole number' if kind is int else 'a number'}"
            raise argparse.ArgumentTypeError(msg) from error
        inside = low <= value <= high if kind is int else math.isfinite(value) and low < value <= high
        if not inside:
            bounds = f"from {low} to {high}" if kind is int else f"above {low} and at most {high}"
            msg = f"{text} is out of range: give a number {bounds}"
            raise argparse.ArgumentTypeError(msg)
        return value

    return parse


if __name__ == "__main__":
    sys.exit(main())
