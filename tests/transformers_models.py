"""Architectures, most of them of transformers, made tiny: one builder of a module with random weights for each name."""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn

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
WAV2VEC2: dict[str, Any] = {
    **BERT,
    "conv_dim": [32] * 3,
    "conv_kernel": [10, 3, 3],
    "conv_stride": [5, 2, 2],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
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


def llava() -> nn.Module:
    text, vision = {**LLAMA, "model_type": "llama"}, {**VIT, "model_type": "clip_vision_model"}
    return of("Llava", "ForConditionalGeneration", text_config=text, vision_config=vision, image_token_id=3)()


def qwen_vl() -> nn.Module:
    vision = {"embed_dim": 64, "hidden_size": 64, "depth": 2, "num_heads": 4, "patch_size": 8}
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3]}
    return of(
        "Qwen2VL", "ForConditionalGeneration", text_config={**LLAMA, "rope_scaling": rope}, vision_config=vision
    )()


def blip() -> nn.Module:
    text = {**BERT, "encoder_hidden_size": 64, "max_position_embeddings": 32}
    return of("Blip", "ForConditionalGeneration", text_config=text, vision_config=VIT, projection_dim=32)()


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
    "GRU": plain.gru_classifier,
    "VGG, narrow": plain.narrow_vgg,
    "ResNet of bottlenecks": plain.bottlenecks,
    "ResNeXt": lambda: plain.bottlenecks(groups=4),
    "MobileNet": plain.mobilenet,
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
    "Mistral": of("Mistral", **LLAMA),
    "Gemma": of("Gemma", **LLAMA, head_dim=16),
    "Gemma 2": of("Gemma2", **LLAMA, head_dim=16),
    "GLM-4": of("Glm4", **LLAMA, head_dim=16),
    "Phi": of("Phi", **BERT),
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
    "Falcon Mamba": of("FalconMamba", vocab_size=320, hidden_size=64, num_hidden_layers=2),
    "Phi-3.5 of experts": of("Phimoe", **EXPERTS),
    "GLM-OCR, text": of("GlmOcrText", "Model", **LLAMA),
    "RWKV": of("Rwkv", vocab_size=320, hidden_size=64, num_hidden_layers=2),
    "BERT": of("Bert", "ForMaskedLM", **BERT),
    "RoBERTa": of("Roberta", "ForMaskedLM", **BERT),
    "DistilBERT": of("DistilBert", "ForMaskedLM", vocab_size=320, dim=64, n_layers=2, n_heads=4, hidden_dim=128),
    "DeBERTa": of("DebertaV2", "ForMaskedLM", **BERT, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "ALBERT": of("Albert", "ForMaskedLM", **BERT, embedding_size=32),
    "ModernBERT": of("ModernBert", "ForMaskedLM", **BERT, pad_token_id=0),
    "ModernBERT, decoder": of("ModernBertDecoder", **BERT, pad_token_id=0),
    "T5": of("T5", "ForConditionalGeneration", **T5),
    "BART": of("Bart", "ForConditionalGeneration", **BART),
    "Whisper": whisper,
    "Wav2Vec2": of("Wav2Vec2", "ForCTC", **WAV2VEC2),
    "CLIP": clip,
    "BLIP": blip,
    "ViT": of("ViT", "ForImageClassification", **VIT),
    "DeiT": of("DeiT", "ForImageClassification", **VIT),
    "AST": of("AST", "ForAudioClassification", **VIT | {"max_length": 64, "num_mel_bins": 32}),
    "LLaVA": llava,
    "Qwen2-VL": qwen_vl,
    "DINOv2": of("Dinov2", "ForImageClassification", **VIT),
    "BEiT": of("Beit", "ForImageClassification", **VIT | {"num_attention_heads": 16}, use_relative_position_bias=True),
    "Swin": of("Swin", "ForImageClassification", image_size=32, embed_dim=40, depths=[1, 1], num_heads=[10, 20]),
    "SegFormer": of("Segformer", "ForSemanticSegmentation", hidden_sizes=[16, 32, 32, 64], depths=[1, 1, 1, 1]),
    "ConvNeXt V2": of("ConvNextV2", "Model", hidden_sizes=[24, 48, 96, 96], depths=[1, 1, 1, 1]),
    "ConvNeXt": of("ConvNext", "ForImageClassification", hidden_sizes=[24, 48, 96, 96], depths=[1, 1, 1, 1]),
    "ResNet": of("ResNet", "ForImageClassification", hidden_sizes=[32, 64, 96, 128], depths=[1, 1, 1, 1]),
    "MobileNetV2": of("MobileNetV2", "ForImageClassification", depth_multiplier=0.5),
}
