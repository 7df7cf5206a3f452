from typing import Any

import pytest
import torch
from torch import nn

import esdmon
from esdmon.errors import InputError
from esdmon.weights import Selection, discover


def network() -> nn.Module:
    return nn.ModuleDict(
        {
            "embed": nn.Embedding(500, 32),
            "block": nn.ModuleDict({"attn": nn.MultiheadAttention(32, 4), "conv": nn.Conv2d(16, 24, 3)}),
            "wide": nn.Linear(32, 300),
            "lm_head": nn.Linear(32, 500, bias=False),
        }
    )


def names(**options: Any) -> list[str]:
    return [matrix.name for matrix in discover(network(), selection=Selection(**options)).matrices]


QKV = [f"block.attn.in_proj_weight/{label}" for label in "qkv"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [*QKV, "block.attn.out_proj", "block.conv", "wide"]),
        ({"layers": ["*"]}, ["embed", *QKV, "block.attn.out_proj", "block.conv", "wide", "lm_head"]),
        ({"layers": ["*.attn.*"]}, [*QKV, "block.attn.out_proj"]),
        ({"layers": ["*/q"]}, QKV[:1]),
        ({"layers": ["*/q/head.3"]}, ["block.attn.in_proj_weight/q/head.3"]),
        ({"layers": ["*/head.3"]}, [f"{name}/head.3" for name in QKV]),
        ({"layers": ["wide", "*/flattened"]}, ["block.conv/flattened", "wide"]),
        ({"exclude": ["block.attn.*"]}, ["block.conv", "wide"]),
        ({"layers": ["block.*"], "exclude": ["*.conv"]}, [*QKV, "block.attn.out_proj"]),
        ({"min_eigenvalues": 33}, ["block.conv"]),
        ({"max_eigenvalues": 100}, [*QKV, "block.attn.out_proj", "wide"]),
    ],
    ids=str,
)
def test_selection(options: dict[str, Any], expected: list[str]) -> None:
    """By pattern and by size; a star names no detail."""
    assert names(**options) == expected


def test_a_name_with_brackets_selects_itself() -> None:
    """Though brackets are characters to choose from in a pattern."""
    weights = {f"blocks[{k}].w": torch.ones(40, 30) for k in range(2)}
    watched = discover(weights, selection=Selection(layers=["blocks[0].w"]))
    assert [matrix.name for matrix in watched.matrices] == ["blocks[0].w"]


def test_what_is_left_out_says_why() -> None:
    """Each parameter with its own reason, and how many of its elements."""
    watched = discover(network(), selection=Selection(exclude=["*.conv", "*/k"], min_eigenvalues=32))
    assert {
        skip.name: (skip.n_parameters, skip.reason) for skip in watched.coverage.skipped if skip.name[-4:] != "bias"
    } == {
        "embed.weight": (16000, "embeddings are read on request: name them in layers="),
        "block.attn.in_proj_weight": (1024, "left out by exclude="),
        "block.conv.weight": (3456, "left out by exclude="),
        "lm_head.weight": (16000, "output heads are read on request: name them in layers="),
    }


def test_a_hidden_layer_as_wide_as_there_are_categories_is_read() -> None:
    """As in forecasters and recommenders: another layer reads its outputs, so it is not an output head."""
    layers = {"embed": nn.Embedding(64, 12), "fc1": nn.Linear(20, 64), "fc2": nn.Linear(64, 30)}
    model = nn.ModuleDict(layers)
    for weights in (model, model.state_dict()):
        assert [layer.name for layer in esdmon.analyze(weights)] == ["fc1", "fc2"]
    for width in (12, 64):  # 64 inputs may be those of an embedding
        head = nn.ModuleDict({"embed": nn.Embedding(64, width), "in": nn.Linear(width, 30), "out": nn.Linear(30, 64)})
        assert [layer.name for layer in esdmon.analyze(head)] == ["in"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": []}, "layers= is empty: leave it out"),
        ({"layers": ["wid"]}, r"layers='wid' matches no layer. Did you mean 'wide'\?"),
        ({"layers": ["*.cnov"]}, r"layers='\*.cnov' matches no layer. Did you mean 'block.conv'\?"),
        ({"exclude": ["zzz"]}, "exclude='zzz' matches no layer. The layers are: embed, block.attn.in_proj_weight/q"),
        ({"layers": ["wide"], "exclude": ["wide"]}, "no matrix is left to read: .*left out by exclude="),
        ({"min_eigenvalues": 0}, "min_eigenvalues= must be a positive integer; got 0"),
        ({"max_eigenvalues": "9"}, "max_eigenvalues= must be a positive integer; got '9'"),
        ({"max_eigenvalues": 5}, "max_eigenvalues=5 must not be below min_eigenvalues=10"),
    ],
    ids=str,
)
def test_what_cannot_be_selected_raises(options: dict[str, Any], message: str) -> None:
    """One sentence, with what was got."""
    with pytest.raises(InputError, match=message):
        names(**options)


def test_a_model_of_embeddings_alone_says_what_to_do() -> None:
    """Nothing is read by default there."""
    with pytest.raises(InputError, match="no matrix is left to read: embeddings are read on request: name them in"):
        esdmon.analyze(nn.Embedding(50, 20))


def test_tied_weights_are_read_once_with_their_aliases() -> None:
    """A head tied to the embedding is the embedding; either name selects it."""
    model = network()
    model.get_submodule("lm_head").weight = model.get_parameter("embed.weight")
    report = esdmon.analyze(model, layers=["lm_head"])
    (layer,) = report
    assert (layer.name, layer.aliases) == ("embed", ("lm_head",))
    assert report.coverage.total == sum(parameter.numel() for parameter in model.parameters())
    assert "lm_head" not in [matrix.name for matrix in discover(model).matrices]
    (of_mapping,) = esdmon.analyze(dict(model.state_dict()), layers=["embed"])
    assert of_mapping.aliases == ("lm_head",)


def test_a_layer_with_an_output_for_each_token_is_a_head_whatever_it_is_called() -> None:
    """Unless several have as many outputs, when none is taken for one by its shape."""
    one = nn.ModuleDict({"table": nn.Embedding(500, 32), "out": nn.Linear(32, 500), "fc": nn.Linear(32, 64)})
    assert [matrix.name for matrix in discover(one).matrices] == ["fc"]
    several = nn.ModuleDict({"table": nn.Embedding(64, 32), "a": nn.Linear(32, 64), "b": nn.Linear(32, 64)})
    assert [matrix.name for matrix in discover(several).matrices] == ["a", "b"]


def test_routers_stand_beside_their_experts() -> None:
    """Known by their place and by one output to an expert, also among the names of a mapping."""
    moe = nn.ModuleDict(
        {
            "gate": nn.Linear(32, 12),
            "mix": nn.Linear(32, 32),
            "experts": nn.ModuleList(nn.Linear(32, 32) for _ in range(12)),
        }
    )
    model = nn.ModuleDict({"moe": moe})
    for form in (model, model.state_dict()):
        watched = discover(form)
        assert "moe.gate" not in [matrix.name for matrix in watched.matrices]
        assert "moe.mix" in [matrix.name for matrix in watched.matrices]
        reasons = {skip.name: skip.reason for skip in watched.coverage.skipped}
        assert reasons["moe.gate.weight"].startswith("routers are read on request")


def test_small_matrices_count_as_not_watched() -> None:
    """They keep their row, and a reason in the coverage."""
    report = esdmon.analyze({"tiny": torch.randn(9, 20), "w": torch.randn(20, 20)})
    assert report["tiny"].status == "skipped"
    assert report.coverage.watched == 400
    assert report.coverage.skipped[0].reason == "fewer than 10 eigenvalues"
