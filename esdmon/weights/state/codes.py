"""Unpack codes of a few bits, which several formats store in larger numbers."""

import torch
from torch import Tensor

BITS = (2, 4, 8)
"""Widths of the codes that are read: others run over the ends of words."""
UNKNOWN = "packed numbers of an unknown layout: not read"
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""What the 16 codes of E2M1 stand for (OCP Microscaling Formats, 1.0)."""
_EXPONENT_BIAS = 127  # of E8M0 in the same standard


def unpack_columns(packed: Tensor, bits: int) -> Tensor:
    """Return the codes in each int32, the lowest bits first: (rows, columns) to (rows, columns · 32/bits)."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    codes: Tensor = (packed[:, :, None] >> shifts) & (2**bits - 1)
    return codes.reshape(packed.shape[0], -1)


def unpack_fp4(packed: Tensor) -> Tensor:
    """Return the two floats of 4 bits in each byte, the lower bits first: (…, columns) to (…, 2 · columns)."""
    codes = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)
    return torch.tensor(_FP4)[codes.long()]


def powers_of_two(exponents: Tensor) -> Tensor:
    """Return the scales that are powers of two in one byte."""
    return torch.ldexp(torch.ones(exponents.shape), exponents.int() - _EXPONENT_BIAS)
