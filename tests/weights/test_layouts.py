"""Fused projections and experts against what their modules do with them, and the details that are read on request.

A module is fed the identity, in place of its inputs, so that what it computes is its matrix (inputs × outputs). Where
its own `forward` hands a part on to a function, it is caught there; elsewhere the code of that `forward` is repeated.
"""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from esdmon.weights import (
    discover,
)
from tests.weights.layouts import (
    CONFIG,
    GROUPED,
    INPUTS,
    SIZE,
    UNTURNED,
    WIDTH,
    Heads,
    assert_same,
    details,
    handed_on,
    part,
)

GPT: dict[str, Any] = {"vocab_size": 320, "n_embd": WIDTH, "n_layer": 1, "n_head": WIDTH // SIZE, "n_positions": 64}


def given_to_attn(attention: Any) -> Heads:
    """What attention of the older kind gives to its own method `_attn`."""
    with patch.object(attention, "_attn", wraps=attention._attn) as method:
        attention(INPUTS)
    q, k, v = method.call_args.args[:3]
    return {"q": q[0], "k": k[0] if k.shape == q.shape else k[0].mT, "v": v[0]}


def activated(mlp: Any, activation: nn.Module) -> Tensor:
    """What an MLP gives to its activation."""
    caught: list[Tensor] = []
    with activation.register_forward_pre_hook(lambda _, args: caught.append(args[0])):
        mlp(INPUTS)
    return caught[0]


def gpt2_beside_an_encoder() -> tuple[nn.Module, dict[str, Heads]]:
    attention = part("GPT2", "h.0.crossattention", GPT | {"add_cross_attention": True})
    q_k_v = handed_on(attention, encoder_hidden_states=INPUTS)
    return attention, {"c_attn": {label: q_k_v[label] for label in "kv"}}


def bloom() -> tuple[nn.Module, dict[str, Heads]]:
    attention = part("Bloom", "h.0.self_attention", {"hidden_size": WIDTH, "n_layer": 1, "n_head": WIDTH // SIZE})
    q_k_v = attention._reshape(attention.query_key_value(INPUTS))
    return attention, {"query_key_value": {label: each[0] for label, each in zip("qkv", q_k_v, strict=True)}}


def mpt() -> tuple[nn.Module, dict[str, Heads]]:
    attention = part("Mpt", "blocks.0.attn", {"d_model": WIDTH, "n_layers": 1, "n_heads": WIDTH // SIZE})
    q_k_v = attention.Wqkv(INPUTS).chunk(3, dim=2)
    heads = [each.reshape(1, WIDTH, attention.n_heads, attention.head_dim).transpose(1, 2)[0] for each in q_k_v]
    return attention, {"Wqkv": dict(zip("qkv", heads, strict=True))}


def attention_of(fused: str, name: str, path: str, config: dict[str, Any], **kwargs: Any) -> Any:
    attention = part(name, path, config)
    return attention, {fused: handed_on(attention, attention_mask=None, **kwargs)}


def old_attention_of(fused: str, name: str, path: str, config: dict[str, Any]) -> Any:
    attention = part(name, path, config)
    return attention, {fused: given_to_attn(attention)}


ATTENTION: dict[str, Callable[[], tuple[nn.Module, dict[str, Heads]]]] = {
    "GPT-2": lambda: attention_of("c_attn", "GPT2", "h.0.attn", GPT),
    "GPT-2 beside an encoder": gpt2_beside_an_encoder,
    "ImageGPT": lambda: old_attention_of("c_attn", "ImageGPT", "h.0.attn", GPT),
    "Bark": lambda: old_attention_of(
        "att_proj",
        "BarkSemantic",
        "layers.0.attn",
        {"hidden_size": WIDTH, "num_layers": 1, "num_heads": WIDTH // SIZE, "block_size": WIDTH},
    ),
    "GPT-NeoX": lambda: attention_of(
        "query_key_value", "GPTNeoX", "layers.0.attention", CONFIG, position_embeddings=UNTURNED
    ),
    "Phi-3": lambda: attention_of("qkv_proj", "Phi3", "layers.0.self_attn", GROUPED, position_embeddings=UNTURNED),
    "ModernBERT": lambda: attention_of("Wqkv", "ModernBert", "layers.0.attn", CONFIG, position_embeddings=UNTURNED),
    "Bloom": bloom,
    "MPT": mpt,
}


@pytest.mark.parametrize("kind", ATTENTION)
def test_fused_projections_are_taken_apart_as_attention_does(kind: str) -> None:
    """q, k and v, and each of their heads on request; nothing of a fused weight is left over."""
    torch.manual_seed(0)
    attention, fused = ATTENTION[kind]()
    watched = discover(attention)
    matrices = {matrix.name.partition(".")[2]: matrix for matrix in watched.matrices}
    assert {name for name in matrices if "/" in name} == {f"{a}/{label}" for a in fused for label in fused[a]}
    asked = {name.partition(".")[2]: matrix for name, matrix in details(attention, "*/head.*").items()}
    for attribute, parts in fused.items():
        for label, heads in parts.items():
            assert_same(matrices[f"{attribute}/{label}"], [torch.cat(list(heads), dim=-1)])
            for number, head in enumerate(heads):
                assert_same(asked.pop(f"{attribute}/{label}/head.{number}"), [head])
    assert not asked
    assert {skip.reason for skip in watched.coverage.skipped} <= {"vectors"}


def gated(name: str, path: str, fused: str, activation: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """An MLP, and the two halves of a projection: what it activates, and the other."""
    mlp = part(name, path, CONFIG)
    halves = getattr(mlp, fused)(INPUTS).chunk(2, dim=-1)
    first = activated(mlp, getattr(mlp, activation))
    assert torch.equal(first, halves[0])
    return mlp, {fused: torch.cat([first, halves[1]])}


def mamba() -> tuple[nn.Module, dict[str, Tensor]]:
    mixer = part("Mamba", "layers.0.mixer", CONFIG)
    return mixer, {"in_proj": torch.cat(mixer.in_proj(INPUTS).transpose(1, 2).chunk(2, dim=1))}


GATED: dict[str, tuple[str, str, Callable[[], tuple[nn.Module, dict[str, Tensor]]]]] = {
    "Phi-3": ("gate", "up", lambda: gated("Phi3", "layers.0.mlp", "gate_up_proj", "activation_fn")),
    "GLM": ("gate", "up", lambda: gated("Glm", "layers.0.mlp", "gate_up_proj", "activation_fn")),
    "GLM-4": ("gate", "up", lambda: gated("Glm4", "layers.0.mlp", "gate_up_proj", "activation_fn")),
    "ModernBERT": ("input", "gate", lambda: gated("ModernBert", "layers.0.mlp", "Wi", "act")),
    "Mamba": ("x", "gate", mamba),
}


@pytest.mark.parametrize("kind", GATED)
def test_gated_projections_are_taken_apart_as_the_module_does(kind: str) -> None:
    """Two halves, by the names that they have there."""
    torch.manual_seed(0)
    *labels, build = GATED[kind]
    module, fused = build()
    matrices = {matrix.name.partition(".")[2]: matrix for matrix in discover(module).matrices}
    for attribute, halves in fused.items():
        assert {name for name in matrices if "/" in name} == {f"{attribute}/{label}" for label in labels}
        for label, half in zip(labels, halves, strict=True):
            assert_same(matrices[f"{attribute}/{label}"], [half])


def mixtral() -> tuple[nn.Module, Heads]:
    """Experts as linear layers, gate above up; what one gives to its activation is the gate."""
    experts = part("Mixtral", "layers.0.mlp.experts", GROUPED)
    gate_up = [functional.linear(INPUTS[0], weight).chunk(2, dim=-1) for weight in experts.gate_up_proj]
    down = torch.stack([functional.linear(torch.eye(96), weight) for weight in experts.down_proj])
    gate, up = (torch.stack(each) for each in zip(*gate_up, strict=True))
    experts.config._experts_implementation = "eager"
    for number in range(3):
        chosen = torch.full((WIDTH, 1), number)
        one = activated(lambda x, chosen=chosen: experts(x[0], chosen, torch.ones(WIDTH, 1)), experts.act_fn)
        assert torch.equal(one, gate[number])
    return experts, {"gate_up_proj/gate": gate, "gate_up_proj/up": up, "down_proj": down}


def gpt_oss() -> tuple[nn.Module, Heads]:
    """Experts stored transposed, gate and up in turn."""
    experts = part("GptOss", "layers.0.mlp.experts", GROUPED | {"head_dim": SIZE})
    gate_up = INPUTS[0] @ experts.gate_up_proj
    gate, up = gate_up[..., ::2], gate_up[..., 1::2]
    assert torch.equal(experts._apply_gate(gate_up), (up + 1) * (gate * torch.sigmoid(gate * experts.alpha)))
    return experts, {"gate_up_proj/gate": gate, "gate_up_proj/up": up, "down_proj": torch.eye(96) @ experts.down_proj}


def llama4() -> tuple[nn.Module, Heads]:
    """Experts that do not say where the gate lies: their shapes do; it comes first."""
    experts = part("Llama4Text", "layers.0.feed_forward.experts", GROUPED)
    gate, up = torch.bmm(INPUTS.expand(3, -1, -1), experts.gate_up_proj).chunk(2, dim=-1)
    return experts, {
        "gate_up_proj/gate": gate,
        "gate_up_proj/up": up,
        "down_proj": torch.bmm(torch.eye(96).expand(3, -1, -1), experts.down_proj),
    }


@pytest.mark.parametrize("build", [mixtral, gpt_oss, llama4])
def test_experts_are_pooled_and_read_one_by_one_on_request(build: Callable[[], tuple[nn.Module, Heads]]) -> None:
    """One slice to an expert; `expert.1` is all that the parameter holds of it."""
    torch.manual_seed(0)
    experts, expected = build()
    kind = type(experts).__name__
    matrices = {matrix.name: matrix for matrix in discover(experts).matrices}
    assert set(matrices) == {f"{kind}.{name}" for name in expected}
    for name, pieces in expected.items():
        assert_same(matrices[f"{kind}.{name}"], pieces)
    asked = details(experts, "*/expert.1")
    assert_same(asked.pop(f"{kind}.down_proj/expert.1"), expected["down_proj"][1:2])
    gate_and_up = torch.cat([pieces[1] for name, pieces in expected.items() if "gate_up" in name], dim=-1)
    assert_same(asked.pop(f"{kind}.gate_up_proj/expert.1"), [gate_and_up])
    assert not asked


@pytest.mark.parametrize(("attribute", "n_matrices"), [("head_dim", 3), ("key_dim", 1)])
def test_qkv_of_timm_that_alternates_by_head_is_read_whole(attribute: str, n_matrices: int) -> None:
    """TinyViT and EfficientFormer call their module as the vision transformer does, and declare a `key_dim`."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            setattr(self, attribute, SIZE)
            self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    Attention.__module__ = "timm.models.of_the_test"
    assert len(discover(Attention()).matrices) == n_matrices


@pytest.mark.parametrize(("kind", "outputs", "labels"), [("EvaAttention", 3, "qkv"), ("WindowAttentionGlobal", 2, "")])
def test_other_attention_of_timm_has_thirds_where_its_output_fits(kind: str, outputs: int, labels: str) -> None:
    """GCViT's has k and v alone where q is given from outside."""
    attention = type(kind, (nn.Module,), {"__module__": "timm.models.of_the_test"})()
    attention.qkv, attention.proj = nn.Linear(WIDTH, outputs * WIDTH), nn.Linear(WIDTH, WIDTH)
    names = [f"{kind}.qkv/{label}" for label in labels] or ["qkv"]
    assert [matrix.name for matrix in discover(attention).matrices] == [*names, "proj"]
