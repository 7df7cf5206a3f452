"""What names and shapes alone say of a file's weights, where that is easily mistaken."""

import pytest
import torch
from torch import nn

import esdmon
from esdmon.weights import discover


def conv(outputs: int, inputs: int, kernel: int = 3) -> torch.Tensor:
    return torch.randn(outputs, inputs, kernel)


ONE_CHANNEL: dict[str, tuple[dict[str, torch.Tensor], dict[str, int]]] = {
    "the first of a sound's encoder, beside linear layers as wide": (
        {"encoder.conv1.weight": conv(24, 1, 12), "encoder.fc.weight": torch.randn(24, 48)},
        {"encoder.conv1": 12},
    ),
    "the same beside convolutions of as many inputs and outputs": (
        {"conv_in.weight": conv(24, 1, 12), "block.1.conv.weight": conv(24, 24), "block.2.conv.weight": conv(24, 24)},
        {"conv_in": 12},
    ),
    "depthwise, behind the layer that makes the channels": (
        {"stem.weight": conv(24, 3), "depthwise.weight": conv(24, 1)},
        {"depthwise": 72},
    ),
    "depthwise, one in each block": (
        {f"blocks.{i}.{name}.weight": conv(24, inputs) for i in (0, 1) for name, inputs in (("dw", 1), ("pw", 24))},
        {"blocks.0.dw": 72, "blocks.1.dw": 72},
    ),
    "patches of a spectrogram": (
        {"embeddings.patch_embeddings.projection.weight": torch.randn(24, 1, 4, 4), "out.weight": conv(24, 12)},
        {"embeddings.patch_embeddings.projection": 16},
    ),
    "depthwise, where patches are merged": (
        {"stem.weight": conv(24, 3), "patchmerge.conv2.weight": conv(24, 1)},
        {"patchmerge.conv2": 72},
    ),
}


@pytest.mark.parametrize("kind", ONE_CHANNEL)
def test_a_convolution_of_one_input_is_depthwise_or_reads_one_channel(kind: str) -> None:
    """One slice for each position of the kernel, or for each position and channel."""
    state, slices = ONE_CHANNEL[kind]
    found = {matrix.name: matrix.size().slices for matrix in discover(state).matrices}
    assert {name: found[name] for name in slices} == slices


@pytest.mark.parametrize(
    ("name", "is_table"),
    [
        ("embed_tokens", True),
        ("embeddings.3", True),
        ("xpath_tag_embeddings.0", True),
        ("embedding_dict.user", True),
        ("token_embedder", True),
        ("emb.Embedding", True),
        ("local_rel_pos_bias", True),
        ("mask_decoder.mask_tokens", True),  # of segment_anything 1.0
        ("quantizers.0.codebook", True),  # of DAC
        ("position_encoding", True),  # of T5FilmDecoder in diffusers 0.42
        ("queries_features", True),  # of Mask2Former
        ("embedding_projection", False),
        ("context_embedder", False),
        ("cond_embeds_mapper", False),
        ("film.scale_bias", False),
        ("patch_embedder.patch_embedding", False),
        ("entity_embedding_dense", False),
    ],
)
def test_embeddings_are_known_by_their_names(name: str, *, is_table: bool) -> None:
    """Also in a list; a linear layer into or out of them is none."""
    state = {f"{name}.weight": torch.randn(40, 24), "fc.weight": torch.randn(24, 24)}
    assert [layer.name for layer in esdmon.analyze(state)] == (["fc"] if is_table else [name, "fc"])


@pytest.mark.parametrize(("rows", "names"), [(192, {"fc1/gate", "fc1/up", "fc2"}), (96, {"fc1", "fc2"})])
def test_a_gate_is_told_from_a_wide_layer_by_the_layer_behind(rows: int, names: set[str]) -> None:
    """In files of Megatron, which have no configuration of their own."""
    state = {"mlp.linear_fc1.weight": torch.randn(rows, 64), "mlp.linear_fc2.weight": torch.randn(64, 96)}
    assert {matrix.name for matrix in discover(state).matrices} == {f"mlp.linear_{name}" for name in names}


def test_layers_in_a_sequence_are_no_embeddings() -> None:
    """By the number of the activation between them, which has no weight."""
    state = nn.ModuleDict(
        {"time_embed": nn.Sequential(nn.Linear(24, 40, bias=False), nn.SiLU(), nn.Linear(40, 40, bias=False))}
    )
    assert [layer.name for layer in esdmon.analyze(state.state_dict())] == ["time_embed.0", "time_embed.2"]


def test_a_vector_of_four_sides_is_no_convolution() -> None:
    """The scale of ConvNeXt V2's norm."""
    report = esdmon.analyze({"grn.weight": torch.randn(1, 1, 1, 384), "fc.weight": torch.randn(24, 24)})
    assert [layer.name for layer in report] == ["fc"]
    assert {skip.name: skip.reason for skip in report.coverage.skipped} == {"grn.weight": "vectors"}


def test_a_configuration_without_a_model_type_describes_no_architecture() -> None:
    """An empty text begins the name of every class."""
    state = nn.ModuleDict({"in_proj": nn.Linear(20, 60), "out_proj": nn.Linear(20, 20)}).state_dict()
    checkpoint = esdmon.weights.checkpoint.mapping.Checkpoint(state, state.__getitem__, config={"model_type": ""})
    assert [matrix.name for matrix in discover(checkpoint).matrices] == ["in_proj", "out_proj"]
