"""Test esdmon on a machine with a GPU: `python -m esdmon.selftest`."""
