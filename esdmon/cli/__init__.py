"""The command line `esdmon`: `entry` runs a command, `parser` defines the arguments, the others are a command each."""

from esdmon.cli.entry import main as main
