"""Check that readings are correct under each precision switch of torch."""

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch

from esdmon.analysis import analyze
from esdmon.selftest.correctness import compared
from esdmon.selftest.harness import Machine, Row, python, side_by_side
from esdmon.selftest.models import zoo


def _assign(owner: Callable[[], Any], name: str, value: Any) -> str:
    """Set a switch; return the reason if that is not possible in this version of torch, else an empty text."""
    try:
        if not hasattr(owner(), name):  # setting it would only create a new attribute
            return f"torch {torch.__version__} has no such switch"
        setattr(owner(), name, value)
    except AttributeError as error:
        return f"torch {torch.__version__} has no such switch: {error}"
    return ""


def _set_precision(value: str) -> str:
    torch.set_float32_matmul_precision(value)
    return ""


_SWITCHES: Mapping[str, Callable[[], str]] = {
    "untouched": lambda: "",
    "allow_tf32": partial(_assign, lambda: torch.backends.cuda.matmul, "allow_tf32", value=True),
    "high": partial(_set_precision, "high"),
    "medium": partial(_set_precision, "medium"),
    "cuda_fp32_precision": partial(_assign, lambda: torch.backends.cuda.matmul, "fp32_precision", value="tf32"),
    "fp32_precision": partial(_assign, lambda: torch.backends, "fp32_precision", value="tf32"),
}
_GETTERS: Mapping[str, Callable[[], Any]] = {
    "get_float32_matmul_precision": torch.get_float32_matmul_precision,
    "cuda.matmul.allow_tf32": lambda: torch.backends.cuda.matmul.allow_tf32,
    "cudnn.allow_tf32": lambda: torch.backends.cudnn.allow_tf32,
    "cuda.matmul.fp32_precision": lambda: torch.backends.cuda.matmul.fp32_precision,
    "mkldnn.matmul.fp32_precision": lambda: getattr(torch.backends, "mkldnn").matmul.fp32_precision,  # noqa: B009 -- mypy
    "fp32_precision": lambda: getattr(torch.backends, "fp32_precision"),  # noqa: B009 -- since torch 2.9
    "allow_bf16_reduced_precision_reduction": lambda: torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
}


def _switches() -> dict[str, str]:
    """Return the current values of all switches; for a switch that torch cannot read, the type of the error."""
    found = {}
    for name, get in _GETTERS.items():
        try:
            found[name] = str(get())
        except Exception as error:  # noqa: BLE001 -- torch raises if old and new switches were mixed
            found[name] = type(error).__name__
    return found


def precision(machine: Machine) -> Iterator[Row]:
    """Compare readings under each precision switch of torch, each in a process of its own."""

    def child(switch: str) -> Row:
        code = f"from {__name__} import read_under; read_under({switch!r}, {str(machine.device)!r})"
        ended = python("-c", code, timeout=90)
        try:
            return Row(**json.loads(ended.out.strip().splitlines()[-1]))
        except (ValueError, IndexError, TypeError):
            return Row("FAIL", f"its process ended with {ended.describe()}", switch)

    yield from side_by_side(child, _SWITCHES, cores=2)


def read_under(switch: str, device: str) -> None:
    """Set one switch, compare readings before and after, and print the row as JSON. It runs in a separate process."""
    machine = Machine(torch.device(device))
    model = zoo(torch.float32, large=False)
    model["in_16_bits"] = zoo(torch.bfloat16, large=False)["power_law"]
    expected = analyze(model)
    on_device = copy.deepcopy(model).to(machine.device)
    refused = _SWITCHES[switch]()
    if refused:
        row = Row("SKIP", refused, switch)
    else:
        before = _switches()
        report = analyze(on_device)
        after = _switches()
        weight = on_device["power_law"].get_parameter("weight").detach()
        exact = weight.double().mT @ weight.double()
        rounding = float(((weight.mT @ weight).double() - exact).norm() / exact.norm())
        note = f"; a plain product is off by {rounding:.1e} under it"
        row = compared(report, expected, switch, 1e-4, note)
        if before != after:
            row = Row("FAIL", f"switches changed from {before} to {after}; {row.detail}", switch)
    print(json.dumps({"result": row.result, "detail": row.detail, "part": row.part, "figures": dict(row.figures)}))
