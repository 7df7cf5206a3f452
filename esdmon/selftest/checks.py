"""List the checks, in the order in which they run: correctness first, then costs."""

from esdmon.selftest import correctness, costs, graphs, precision_switches, waiting
from esdmon.selftest.harness import Check

CHECKS = (
    Check("environment", costs.environment),
    Check("reading", correctness.reading),
    Check("screening", correctness.screening),
    Check("precision", precision_switches.precision),
    Check("identical", correctness.identical),
    Check("on_device", correctness.on_device, needs_cuda="eigenvalues on a GPU"),
    Check("torn", correctness.torn),
    Check("streams", correctness.streams),
    Check("no_wait", waiting.no_wait, needs_cuda="a CPU has no queue to wait for"),
    Check("graph", graphs.capture, needs_cuda="graphs", apart=True),
    Check("graphed_callables", graphs.graphed_callables, needs_cuda="graphs", apart=True),
    Check("compiled", graphs.compiled, needs_cuda="graphs", apart=True),
    Check("step_times", costs.step_times),
    Check("memory", waiting.memory, needs_cuda="the memory of a GPU", apart=True),  # apart: it fills the memory
    Check("estimates", costs.estimates),
    Check("leaving", waiting.leaving),
)
"""The checks; their names are the values of `--only`."""
