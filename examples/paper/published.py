"""Published measures of pretrained layers, in the units of Martin & Mahoney.

From "Implicit self-regularization in deep neural networks", JMLR 22 (2021) 165, as printed in the authors' notebooks
(github.com/CalculatedContent/ImplicitSelfRegularization). A number that is not printed there is None, or empty.

They define X = WᵀW without 1/N, so their σ is √N times the standard deviation of the elements that make the bulk,
N being the longer side of W. Here X = WᵀW/N: `paper_sigma` converts it. Alpha, D and the soft rank are dimensionless.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Published:
    """The published measures of one layer."""

    model: str
    label: str
    """The paper's name for the layer."""
    weight: str
    """torchvision's name for it."""
    shape: tuple[int, int]
    """(outputs, inputs), as torch stores it."""
    alpha: float
    ks_distance: float | None = None
    """D of the power law."""
    soft_rank: float | None = None
    """λ⁺/λmax of the Marchenko-Pastur law that was fitted to a smoothed spectrum, by least squares in σ."""
    sigma: float | None = None
    """σ of that same fit, in units of WᵀW."""
    spikes: tuple[int, ...] = ()
    """Eigenvalues that the authors set apart by hand; several where they tried several cuts."""
    note: str = ""
    """Further remarks of the authors."""


LAYERS = (
    Published(
        model="alexnet",
        label="FC1",
        weight="classifier.1.weight",
        shape=(4096, 9216),
        alpha=2.288,
        ks_distance=0.0527,
        soft_rank=0.0370,
        sigma=0.6852,
        spikes=(400,),
        note="400 spikes after a cut at λ < 5, and with them σ .6057",
    ),
    Published(
        model="alexnet",
        label="FC2",
        weight="classifier.4.weight",
        shape=(4096, 4096),
        alpha=2.245,
        ks_distance=0.0372,
        soft_rank=0.0123,
        sigma=0.5159,
        note="σ is also given as .4625, not from the smoothed spectrum",
    ),
    Published(
        model="alexnet",
        label="FC3",
        weight="classifier.6.weight",
        shape=(1000, 4096),
        alpha=3.020,
        ks_distance=0.0186,
        soft_rank=0.0487,
        sigma=0.9866,
        note="σ is also given as .9517, not from the smoothed spectrum",
    ),
    Published(
        model="inception_v3",
        label="L226",
        weight="AuxLogits.fc.weight",
        shape=(1000, 768),
        alpha=5.257,
        sigma=1.133,
        spikes=(118, 15),
        note="σ 1.199 without 118 spikes, 1.704 without 15; tests against other laws undecided (p ≥ .28)",
    ),
    Published(
        model="inception_v3",
        label="L302",
        weight="fc.weight",
        shape=(1000, 2048),
        alpha=4.484,
        sigma=1.024,
        spikes=(100,),
        note="σ 1.518 without 100 spikes; tests against other laws undecided (p ≥ .28)",
    ),
)


def paper_sigma(bulk_sigma: float, *, n: int) -> float:
    """Return √N·σ: the measure `bulk_sigma` (of WᵀW/N) in the paper's unit; `n` is the longer side."""
    return math.sqrt(n) * bulk_sigma
