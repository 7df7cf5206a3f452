"""Products of attention's projections, against SVDs in float64 of what `forward` multiplies."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import esdmon
from esdmon.sinks import MemorySink
from tests import transformers_models as models

VIEWS = ["*/qk", "*/ov"]


def largest(left: Tensor, right: Tensor) -> float:
    """Return σmax of left @ right, of the head with the largest: (heads, a, d) and (heads, d, b)."""
    return float(torch.linalg.matrix_norm(left.double() @ right.double(), 2).max())


def heads(weight: Tensor, size: int) -> Tensor:
    """Return (heads, size, inputs) of (outputs, inputs)."""
    return weight.detach().reshape(-1, size, weight.shape[1])


def expected(q: Tensor, k: Tensor, v: Tensor, o: Tensor, *, size: int) -> dict[str, float]:
    """From weights as nn.Linear has them."""
    q, k, v = (heads(weight, size) for weight in (q, k, v))
    shared = q.shape[0] // k.shape[0]
    k, v = (weight.repeat_interleave(shared, dim=0) for weight in (k, v))
    return {"qk": largest(q.mT, k), "ov": largest(o.detach().reshape(o.shape[0], -1, size).transpose(0, 1), v)}


def norms(model: nn.Module, name: str) -> dict[str, float]:
    report = esdmon.analyze(model, layers=VIEWS)
    return {layer.view: layer.measures["spectral_norm"] for layer in report if layer.name.rpartition("/")[0] == name}


def test_torchs_attention() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(48, 4)
    q, k, v = attention.in_proj_weight.chunk(3)
    wanted = expected(q, k, v, attention.out_proj.weight, size=12)
    assert norms(nn.ModuleDict({"a": attention}), "a") == pytest.approx(wanted, rel=1e-9)


def test_a_key_of_another_width() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(48, 4, kdim=20, vdim=28)
    projections = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
    wanted = expected(*projections, attention.out_proj.weight, size=12)
    assert norms(nn.ModuleDict({"a": attention}), "a") == pytest.approx(wanted, rel=1e-9)


def test_heads_that_share_keys_and_values() -> None:
    net = models.of("Llama", **models.LLAMA)()
    attention: Any = net.get_submodule("model.layers.0.self_attn")
    projections = [getattr(attention, f"{letter}_proj").weight for letter in "qkvo"]
    assert projections[0].shape[0] == 2 * projections[1].shape[0]
    wanted = expected(*projections, size=attention.head_dim)
    assert norms(net, "model.layers.0.self_attn") == pytest.approx(wanted, rel=1e-9)


def test_gpt2_stores_inputs_by_outputs() -> None:
    net = models.of("GPT2", "LMHeadModel", **models.GPT2)()
    attention: Any = net.get_submodule("transformer.h.0.attn")
    q, k, v = attention.c_attn.weight.T.chunk(3)
    wanted = expected(q, k, v, attention.c_proj.weight.T, size=attention.head_dim)
    assert norms(net, "transformer.h.0.attn") == pytest.approx(wanted, rel=1e-9)


def test_an_output_beside_the_attention() -> None:
    net = models.of("Bert", "ForMaskedLM", **models.BERT)()
    name = "bert.encoder.layer.0.attention.self"
    attention: Any = net.get_submodule(name)
    q, k, v = (getattr(attention, each).weight for each in ("query", "key", "value"))
    output = net.get_parameter("bert.encoder.layer.0.attention.output.dense.weight")
    wanted = expected(q, k, v, output, size=attention.attention_head_size)
    assert norms(net, name) == pytest.approx(wanted, rel=1e-9)


def test_the_bound_holds_for_the_logits_of_real_inputs() -> None:
    net = models.of("GPT2", "LMHeadModel", **models.GPT2)()
    attention: Any = net.get_submodule("transformer.h.0.attn")
    (layer,) = [layer for layer in esdmon.analyze(net, layers=["*.0.attn/qk"]) if layer.view == "qk"]
    q, k, _ = attention.c_attn.weight.detach().T.chunk(3)
    size = attention.head_dim
    inputs = torch.nn.functional.normalize(torch.randn(500, q.shape[1]), dim=1)
    logits = (heads(q, size) @ inputs.T).mT @ (heads(k, size) @ inputs.T) / size**0.5
    assert float(logits.abs().max()) < layer.measures["logit_bound"]
    assert layer.measures["logit_bound"] == pytest.approx(layer.measures["spectral_norm"] / size**0.5)
    assert layer.kind == "attention"
    assert layer.phase is esdmon.Phase.UNCLASSIFIED
    assert not layer.nulls
    assert math.isnan(layer.measures["mp_soft_rank"])  # the law of noise is that of one matrix


def test_norms_of_q_and_k_leave_no_product_for_the_logits() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head_dim = 12
            for attribute in ("q_proj", "k_proj", "v_proj", "o_proj"):
                self.add_module(attribute, nn.Linear(48, 48))
            self.q_norm = nn.LayerNorm(12)

    report = esdmon.analyze(nn.ModuleDict({"a": Attention()}), layers=["*", *VIEWS])
    assert report["a/qk"].status == "skipped"
    assert "normalised" in report["a/qk"].reason
    assert report["a/ov"].status == "ok"
    assert report.coverage == esdmon.analyze(nn.ModuleDict({"a": Attention()})).coverage


def test_the_weights_are_still_read_and_counted_once() -> None:
    net = models.of("GPT2", "LMHeadModel", **models.GPT2)()
    plain, both = esdmon.analyze(net), esdmon.analyze(net, layers=["*", *VIEWS], exclude=["*wte*", "*wpe*", "lm_head"])
    assert [layer.name for layer in both if layer.is_followed] == [layer.name for layer in plain]
    assert "transformer.h.0.attn.c_proj" in [layer.name for layer in plain]
    assert both.coverage.parameters_read == plain.coverage.parameters_read


def test_a_rank_that_is_lost_is_seen() -> None:
    attention = nn.MultiheadAttention(48, 4)
    with torch.no_grad():
        attention.in_proj_weight[:12][-3:] = 0  # three directions of the first head's q
    layer = esdmon.analyze(nn.ModuleDict({"a": attention}), layers=["a/qk"])["a/qk"]
    assert layer.measures["hard_rank"] == 4 * 12 - 3
    assert layer.dead_rows == layer.dead_columns == 0


def test_a_nan_is_reported() -> None:
    attention = nn.MultiheadAttention(48, 4)
    with torch.no_grad():
        attention.out_proj.weight[0, 0] = float("nan")
    report = esdmon.analyze(nn.ModuleDict({"a": attention}), layers=VIEWS)
    assert report["a/ov"].status == "nonfinite"
    assert report["a/qk"].status == "ok"


@pytest.mark.parametrize("mode", ["sync", "thread"])
def test_a_watched_training(mode: Any) -> None:
    """Each reading is that of its step, and the loss that of a run without a monitor to the last bit."""
    losses = []
    for watched in (False, True):
        torch.manual_seed(0)
        attention = nn.MultiheadAttention(32, 2)
        net = nn.ModuleDict({"a": attention})
        optimizer = torch.optim.Adam(net.parameters())
        sink = MemorySink()
        options: dict[str, Any] = {"every": 1, "sinks": [sink], "mode": mode, "budget": None}
        monitor = esdmon.watch(net, optimizer, layers=["*", *VIEWS], **options) if watched else None
        wanted = []
        for _ in range(4):
            inputs = torch.randn(5, 3, 32)
            loss = attention(inputs, inputs, inputs)[0].square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            q, k, v = attention.in_proj_weight.detach().clone().chunk(3)
            wanted.append(expected(q, k, v, attention.out_proj.weight.detach().clone(), size=16))
        if monitor is not None:
            monitor.close()
            for step, values in enumerate(wanted, start=1):
                found = {layer.view: layer for report in sink.reports for layer in report if layer.step == step}
                for view, value in values.items():
                    assert found[view].measures["spectral_norm"] == pytest.approx(value, rel=1e-9)
                    assert found[view].update_ratio > 0
    assert losses[:4] == losses[4:]
