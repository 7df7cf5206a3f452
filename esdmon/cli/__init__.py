"""The command line `esdmon`: `parser` reads the arguments, the other modules are a command each."""

from esdmon.cli.parser import main as main
