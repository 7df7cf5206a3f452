"""Define `Found`: the matrices and parameters of a model or a state dict, before selection."""

from dataclasses import dataclass, field

from torch import Tensor

from esdmon.weights.matrix import Matrix


@dataclass(slots=True)
class Found:
    """The matrices of a model, and all its parameters."""

    matrices: list[Matrix] = field(default_factory=list)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    """By canonical name; a parameter that has several names is listed under the first. Of a file: outlines."""
    heads: set[int] = field(default_factory=set)
    """Ids of the parameters that the model itself names as its output."""
    left_out: dict[int, str] = field(default_factory=dict)
    """Reason why a parameter is not a matrix, or the error in the search of its module, by id of the parameter."""
    failures: dict[str, str] = field(default_factory=dict)
    """The error in the search of a module, by name of the module."""
