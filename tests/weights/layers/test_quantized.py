"""Packed weights are read as the numbers that they represent, with the libraries that pack them."""

import copy
import logging
import warnings

import numpy as np
import peft
import pytest
import torch
from torch import nn

import esdmon
from esdmon.weights import discover, read_spectrum


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(128, 64, bias=False)


def by_hand(weight: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.sort(torch.linalg.svdvals(weight.detach().double()).numpy() ** 2) / 128


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_torchs_own() -> None:
    """A quantised tensor in a mapping."""
    packed = torch.quantize_per_tensor(linear().weight.detach(), 0.001, 0, torch.qint8)
    (matrix,) = discover({"w": packed}).matrices
    assert np.allclose(read_spectrum(matrix, precision="exact").eigenvalues, by_hand(packed.dequantize()), rtol=1e-9)


@pytest.mark.filterwarnings("ignore:TorchaoLoraLinear")
@pytest.mark.parametrize("config", ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig"])
def test_torchao(config: str) -> None:
    """A tensor class with a `dequantize` of its own, also below an adapter."""
    logging.disable(logging.WARNING)  # its loader warns of accelerators that this machine lacks
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao import quantization
    logging.disable(logging.NOTSET)
    model = nn.Sequential(linear().bfloat16())
    quantization.quantize_(model, getattr(quantization, config)())
    weight = model.get_parameter("0.weight")
    adapted = peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["0"]), copy.deepcopy(model))
    base = esdmon.analyze(adapted)["0"]
    assert (base.view, base.measures["lambda_max"]) == ("base", esdmon.analyze(model)["0"].measures["lambda_max"])
    watched = discover(model)
    assert watched.coverage.share == 1
    assert np.allclose(
        read_spectrum(watched.matrices[0], precision="exact").eigenvalues, by_hand(weight.dequantize()), rtol=1e-9
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_bitsandbytes() -> None:
    """4-bit and 8-bit layers, whose parameters have neither the shape nor the numbers of the weight."""
    import bitsandbytes

    four, eight = (
        bitsandbytes.nn.Linear4bit(128, 64, bias=False),
        bitsandbytes.nn.Linear8bitLt(128, 64, bias=False, has_fp16_weights=False),
    )
    model = nn.Sequential(four, nn.Linear(64, 128, bias=False), eight)
    for layer in (four, eight):
        layer.load_state_dict(linear().state_dict())
    report = esdmon.analyze(model.to("cpu"), precision="exact")
    assert [(layer.status, layer.N, layer.M) for layer in report] == [("ok", 128, 64)] * 3
    assert report.coverage.share == 1
    exact = esdmon.analyze(nn.Sequential(copy.deepcopy(linear())))["0"].measures["spectral_norm"]
    assert report["0"].measures["spectral_norm"] == pytest.approx(exact, rel=0.05)
    assert report["2"].measures["spectral_norm"] == pytest.approx(exact, rel=0.01)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bits", [4, 8])
def test_adapters_on_packed_attention(bits: int) -> None:
    """Base and sum are read before and after the first forward, and heads are not looked for in packed numbers."""
    import bitsandbytes
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=50, num_hidden_layers=1, **sizes))
    attention, plain = model.model.layers[0].self_attn, copy.deepcopy(model.model.layers[0].self_attn)
    for name in ("q_proj", "k_proj"):
        weight = getattr(attention, name).weight.data
        four = bitsandbytes.nn.Linear4bit(64, len(weight), bias=False)
        eight = bitsandbytes.nn.Linear8bitLt(64, len(weight), bias=False, has_fp16_weights=False)
        layer = four if bits == 4 else eight
        layer.load_state_dict({"weight": weight})
        setattr(attention, name, layer)
    adapted = peft.get_peft_model(model.to("cpu"), peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    for _ in range(2):
        report = esdmon.analyze(adapted, layers=["*_proj", "*/merged"])
        assert {layer.status for layer in report} == {"ok"}
        for name in ("q_proj", "k_proj", "v_proj"):
            norm = report[f"model.layers.0.self_attn.{name}"].measures["frobenius_norm"]
            assert norm == pytest.approx(float(getattr(plain, name).weight.norm()), rel=0.02)
        assert report["model.layers.0.self_attn.q_proj/merged"].N == 64
        adapted(input_ids=torch.arange(16)[None])


def test_packed_numbers_of_an_unknown_kind_are_skipped() -> None:
    """With a reason, in the report and in the coverage."""
    report = esdmon.analyze({"w": torch.ones(20, 20, dtype=torch.int8), "v": torch.randn(20, 20)})
    assert (report["w"].status, report["w"].reason) == (
        "skipped",
        "packed as torch.int8, in a layout that is not known; a plugin's esdmon_materialize can convert it",
    )
    assert [(skip.name, skip.reason) for skip in report.coverage.skipped] == [("w", report["w"].reason)]
