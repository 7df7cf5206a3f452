"""Real architectures: nearly all of their matrices are watched, and the rest is skipped for a reason.

What the matrices of a model are is counted here without esdmon, from parameters, types of modules and two tables.
"""

import math
import re

import pytest
import torch
import transformers
from torch import nn
from torch.nn.modules.conv import _ConvNd

import esdmon
from esdmon.weights import Selection, discover
from tests.transformers_models import ARCHITECTURES

HEADS = {"Wav2Vec2": "lm_head.weight", "LSTM language model": "decoder.weight", "experts apart": "lm_head.weight"}
"""Of models that do not name their output head."""
ROUTERS = re.compile(r"\.(gate|router|router\.classifier)\.weight$")
NO_MATRIX = re.compile(r"bias|pos_embed|position_embedding|(cls|mask)_token|A_log")
"""Parameters of two dimensions or more that are tables, or vectors for each of some heads, experts or states."""
REASONS = {"embedding": "embeddings are", "head": "output heads are", "router": "routers are"}


def eigenvalues_of(module: nn.Module, parameter: nn.Parameter) -> int:
    """Of all the matrices in a parameter: experts, or groups and kernel positions."""
    if isinstance(module, _ConvNd):
        outputs, inputs, *kernel = parameter.shape
        return min(outputs // module.groups, inputs) * module.groups * math.prod(kernel)
    return min(parameter.shape[-2:]) * math.prod(parameter.shape[:-2])


def kinds_of(model: nn.Module, head: str | None) -> dict[str, str]:
    """Name -> embedding, head, router, small, other or matrix, for each parameter of two or more dimensions."""
    output = model.get_output_embeddings() if isinstance(model, transformers.PreTrainedModel) else None
    kinds = {}
    for name, parameter in model.named_parameters():
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        if parameter.ndim < 2:
            continue
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            kinds[name] = "embedding"
        elif name == head or module is output:
            kinds[name] = "head"
        elif ROUTERS.search(name):
            kinds[name] = "router"
        elif eigenvalues_of(module, parameter) < 10:
            kinds[name] = "small"
        else:
            kinds[name] = "other" if NO_MATRIX.search(attribute) else "matrix"
    return kinds


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")  # torch's own, of any nn.Transformer of its default layout
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nearly_all_matrices_of_an_architecture_are_watched(architecture: str) -> None:
    """95 % of their elements, no other parameter's, each name once; what is skipped has a reason; all can be read."""
    torch.manual_seed(0)
    model = ARCHITECTURES[architecture]()
    kinds = kinds_of(model, HEADS.get(architecture))
    parameters = {name: model.get_parameter(name) for name in kinds}
    watched = discover(model)
    skipped = {skip.name: skip for skip in watched.coverage.skipped}

    matrices = [name for name, kind in kinds.items() if kind == "matrix"]
    total = sum(parameters[name].numel() for name in matrices)
    left = sum(skipped[name].n_parameters for name in matrices if name in skipped)
    assert total > 0
    assert left <= 0.05 * total
    assert all(skip.reason for skip in skipped.values())

    read = {id(parameter) for matrix in watched.matrices for parameter in matrix.parameters()}
    assert {kinds[name] for name, parameter in parameters.items() if id(parameter) in read} <= {"matrix", "small"}
    for name, kind in kinds.items():
        if kind in REASONS:
            assert skipped[name].reason.startswith(REASONS[kind])

    # A convolution is added to the model, since a pattern that matches nothing, such as '*/*' may, raises.
    both = nn.ModuleDict({"model": model, "beside": nn.Conv2d(4, 4, 3)})
    names = [matrix.name for matrix in discover(both, selection=Selection(layers=["*", "*/*"])).matrices]
    assert len(set(names)) == len(names) > len(watched.matrices)

    if not next(model.parameters()).is_meta:
        statuses = {(layer.status, layer.reason) for layer in esdmon.analyze(model).layers}
        assert {why for status, why in statuses if status == "skipped"} <= {
            f"{count} eigenvalue{'s' * (count != 1)}; at least 10 are needed" for count in range(10)
        }
        assert {status for status, _ in statuses} <= {"ok", "skipped"}
