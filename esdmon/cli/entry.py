"""Run a command, and turn errors into one line and an exit status."""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

from esdmon.cli.arguments import with_flags
from esdmon.cli.parser import make_parser
from esdmon.encoding import PLAIN
from esdmon.errors import EsdmonError, printable

FAILURE = 2
INTERRUPTED = 130
BROKEN_PIPE = 141
"""Exit status if the reader of the output has left, as `head` does: 128 + SIGPIPE, as a shell reports it of `cat`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status, 2 for an error of the user, 130 for Ctrl-C, or 141 for a closed pipe."""
    with ExitStack() as stack:
        for stream, redirect in ((sys.stdout, redirect_stdout), (sys.stderr, redirect_stderr)):
            if stream is None:  # the shell has closed it: `>&-`
                null = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
                stack.enter_context(redirect(null))
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=PLAIN)  # an ASCII terminal gets an x for a ×
    name = "esdmon"
    try:
        options = _parsed(arguments)
        name = f"esdmon {options.command or ''}".rstrip()
        status: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        return BROKEN_PIPE
    except OSError as error:
        _drop_output()
        _complain(f"{name}: cannot write: {error.strerror or error}")
        return FAILURE
    except EsdmonError as error:
        _complain(f"{name}: {printable(with_flags(str(error)))}")
        return FAILURE
    except KeyboardInterrupt:
        _complain(f"\n{name}: stopped.")
        return INTERRUPTED
    return status


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of a command.

    Raises:
        SystemExit: after the help, the version or a wrong usage was printed.
        OSError: where they cannot be printed.
    """
    try:
        return make_parser().parse_args(arguments)
    except SystemExit:
        sys.stdout.flush()  # here, since an error of the flush at exit would not be explained
        raise


def _complain(text: str) -> None:
    with suppress(OSError, ValueError):  # a full disk, or a reader that has gone: the exit status says it too
        print(text, file=sys.stderr)


def _drop_output() -> None:
    """Redirect standard output to null, so that flushing its buffer at exit raises nothing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
