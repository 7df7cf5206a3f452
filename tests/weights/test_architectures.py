"""Real architectures: nearly all of their matrices are watched, and the rest is skipped for a reason.

What the matrices of a model are is counted here without esdmon, from parameters, types of modules and two tables.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.nn.modules.conv import _ConvNd

import esdmon
from esdmon.weights import Selection, discover
from tests import architectures as plain

Model = Callable[[], nn.Module]

BERT: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
LLAMA = BERT | {"num_key_value_heads": 2, "pad_token_id": 0}
EXPERTS = LLAMA | {"moe_intermediate_size": 48, "num_experts": 12, "num_local_experts": 12, "num_experts_per_tok": 2}
GPT2: dict[str, Any] = {"vocab_size": 320, "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4}
T5: dict[str, Any] = {"vocab_size": 320, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
BART: dict[str, Any] = {
    "vocab_size": 320,
    "d_model": 64,
    **{f"{side}_layers": 2 for side in ("encoder", "decoder")},
    **{f"{side}_attention_heads": 4 for side in ("encoder", "decoder")},
    **{f"{side}_ffn_dim": 128 for side in ("encoder", "decoder")},
}
VIT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 100,
}
LATENT_ATTENTION = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": 16,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
}


def of(name: str, head: str = "ForCausalLM", **config: Any) -> Model:
    """A model of transformers with random weights."""

    def build() -> nn.Module:
        model = getattr(transformers, name + head)(getattr(transformers, f"{name}Config")(**config))
        assert isinstance(model, nn.Module)
        return model

    return build


def whisper() -> nn.Module:
    tokens = {f"{kind}_token_id": i for i, kind in enumerate(("pad", "bos", "eos", "decoder_start"))}
    sizes = {"num_mel_bins": 20, "max_source_positions": 50, "max_target_positions": 40}
    return of("Whisper", "ForConditionalGeneration", **BART, **tokens, **sizes)()


def clip() -> nn.Module:
    text = {**BERT, "max_position_embeddings": 32}
    return of("CLIP", "Model", text_config=text, vision_config=VIT, projection_dim=32)()


def llama4() -> nn.Module:
    config = transformers.Llama4TextConfig(**EXPERTS, intermediate_size_mlp=96, head_dim=16)
    model = transformers.Llama4ForCausalLM(config)
    assert isinstance(model, nn.Module)
    return model


def without_numbers(build: Model) -> Model:
    """Shapes alone, for models of up to 133 million parameters."""

    def on_meta() -> nn.Module:
        with torch.device("meta"):
            return build()

    return on_meta


ARCHITECTURES: dict[str, Model] = {
    "layers of torch": plain.TorchLayers,
    "LeNet5": plain.lenet5,
    "AlexNet": without_numbers(plain.alexnet),
    "VGG11": without_numbers(plain.vgg11),
    "InceptionV3": without_numbers(plain.inception_v3),
    "UNet": plain.UNet,
    "LSTM language model": lambda: plain.LSTMLanguageModel(tied=False),
    "LSTM language model, tied": lambda: plain.LSTMLanguageModel(tied=True),
    "experts apart": plain.MixtureOfModules,
    "GPT-2": of("GPT2", "LMHeadModel", **GPT2, add_cross_attention=True),
    "GPT-NeoX": of("GPTNeoX", **BERT),
    "GPT-J": of("GPTJ", **GPT2, rotary_dim=8),
    "GPTBigCode": of("GPTBigCode", **GPT2),
    "GPT-OSS": of("GptOss", **EXPERTS, head_dim=16),
    "Bloom": of("Bloom", vocab_size=320, hidden_size=64, n_layer=2, n_head=4),
    "Falcon": of("Falcon", **BERT, new_decoder_architecture=True, num_kv_heads=2),
    "MPT": of("Mpt", vocab_size=320, d_model=64, n_layers=2, n_heads=4),
    "OPT": of("OPT", **BERT, ffn_dim=128, word_embed_proj_dim=32),
    "Llama": of("Llama", **LLAMA),
    "Llama 4": llama4,
    "Gemma": of("Gemma", **LLAMA, head_dim=16),
    "Gemma 2": of("Gemma2", **LLAMA, head_dim=16),
    "GLM-4": of("Glm4", **LLAMA, head_dim=16),
    "Phi-3": of("Phi3", **LLAMA),
    "Qwen2": of("Qwen2", **LLAMA),
    "Qwen3": of("Qwen3", **LLAMA, head_dim=16),
    "Qwen2-MoE": of("Qwen2Moe", **EXPERTS, shared_expert_intermediate_size=64),
    "Qwen3-MoE": of("Qwen3Moe", **EXPERTS, head_dim=16),
    "Mixtral": of("Mixtral", **EXPERTS),
    "OLMoE": of("Olmoe", **EXPERTS),
    "DeepSeek-V3": of("DeepseekV3", **EXPERTS | LATENT_ATTENTION),
    "Switch Transformers": of("SwitchTransformers", "ForConditionalGeneration", **T5, num_experts=12),
    "Mamba": of("Mamba", vocab_size=320, hidden_size=64, num_hidden_layers=2),
    "Mamba 2": of("Mamba2", **BERT, num_heads=8, head_dim=16, n_groups=2),
    "RWKV": of("Rwkv", vocab_size=320, hidden_size=64, num_hidden_layers=2),
    "BERT": of("Bert", "ForMaskedLM", **BERT),
    "DistilBERT": of("DistilBert", "ForMaskedLM", vocab_size=320, dim=64, n_layers=2, n_heads=4, hidden_dim=128),
    "DeBERTa": of("DebertaV2", "ForMaskedLM", **BERT, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "ALBERT": of("Albert", "ForMaskedLM", **BERT, embedding_size=32),
    "ModernBERT": of("ModernBert", "ForMaskedLM", **BERT, pad_token_id=0),
    "T5": of("T5", "ForConditionalGeneration", **T5),
    "BART": of("Bart", "ForConditionalGeneration", **BART),
    "Whisper": whisper,
    "CLIP": clip,
    "ViT": of("ViT", "ForImageClassification", **VIT),
    "DINOv2": of("Dinov2", "ForImageClassification", **VIT),
    "BEiT": of("Beit", "ForImageClassification", **VIT | {"num_attention_heads": 16}, use_relative_position_bias=True),
    "Swin": of("Swin", "ForImageClassification", image_size=32, embed_dim=40, depths=[1, 1], num_heads=[10, 20]),
    "SegFormer": of("Segformer", "ForSemanticSegmentation", hidden_sizes=[16, 32, 32, 64], depths=[1, 1, 1, 1]),
    "ConvNeXt": of("ConvNext", "ForImageClassification", hidden_sizes=[24, 48, 96, 96], depths=[1, 1, 1, 1]),
    "ResNet": of("ResNet", "ForImageClassification", hidden_sizes=[32, 64, 96, 128], depths=[1, 1, 1, 1]),
    "MobileNetV2": of("MobileNetV2", "ForImageClassification", depth_multiplier=0.5),
}
HEADS = {"LSTM language model": "decoder.weight", "experts apart": "lm_head.weight"}
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
            f"{count} eigenvalues; at least 10 are needed" for count in range(10)
        }
        assert {status for status, _ in statuses} <= {"ok", "skipped"}
