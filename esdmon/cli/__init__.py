"""The command `esdmon`."""

from esdmon.cli.parser import main as main
