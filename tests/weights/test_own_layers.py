"""Layers of the user's own, whose classes no extractor knows, with weights of three and more sides."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import esdmon
from esdmon.weights import discover


class Own(nn.Module):
    """A layer with one weight, and attributes that say what it does with it."""

    def __init__(self, *shape: int, name: str = "weight", **attributes: Any) -> None:
        super().__init__()
        self.register_parameter(name, nn.Parameter(torch.randn(shape)))
        for attribute, value in attributes.items():
            setattr(self, attribute, value)


READ: dict[str, tuple[nn.Module, str, tuple[int, int, int], str]] = {
    "a convolution of equalised scale": (Own(40, 20, 3, 3), "layer", (9, 40, 20), "conv2d"),
    "one along time": (Own(40, 20, 5), "layer", (5, 40, 20), "conv1d"),
    "one that is modulated for each sample": (Own(1, 40, 20, 3, 3), "layer", (9, 40, 20), "conv2d"),
    "a convolution of volumes": (Own(40, 20, 3, 3, 3), "layer", (27, 40, 20), "conv3d"),
    "a matrix for each relation": (Own(5, 32, 64), "layer", (5, 32, 64), "linear"),
    "two critics": (Own(2, 32, 12, bias=nn.Parameter(torch.randn(2, 32))), "layer", (2, 32, 12), "linear"),
    "critics, inputs first": (Own(3, 12, 32, bias=nn.Parameter(torch.randn(3, 1, 32))), "layer", (3, 12, 32), "linear"),
    "a matrix for each head": (Own(8, 12, 10, bias=nn.Parameter(torch.randn(96))), "layer", (8, 12, 10), "linear"),
    "an ensemble of convolutions": (
        Own(4, 24, 12, 3, 3, bias=nn.Parameter(torch.randn(4, 24))),
        "layer",
        (36, 24, 12),
        "conv2d",
    ),
    "experts without their number": (Own(4, 32, 64, name="w1"), "experts", (4, 32, 64), "experts"),
}


@pytest.mark.parametrize("kind", READ)
def test_a_weight_of_an_unknown_layer_is_read_alike_from_module_and_state(kind: str) -> None:
    """As kernel positions or as a stack, by its shape and name."""
    layer, name, shape, layer_type = READ[kind]
    model = nn.ModuleDict({name: layer, "fc": nn.Linear(24, 24)})
    in_module, in_state = (
        {matrix.name: matrix.stack_shape() for matrix in discover(form).matrices}
        for form in (model, model.state_dict())
    )
    assert in_module == in_state
    assert shape in in_module.values()
    own = esdmon.analyze(model, measures=["frobenius_norm"]).layers[0]
    assert own.kind == layer_type
    assert own.measures["frobenius_norm"] == pytest.approx(float(next(layer.parameters()).detach().norm()), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "attributes", "is_table"),
    [
        ("word_embeddings", {}, True),
        ("tok_embeddings", {}, True),
        ("patch_embed", {}, False),
        ("time_embed", {"bias": nn.Parameter(torch.randn(64))}, False),
    ],
)
def test_a_table_of_an_unknown_layer_is_known_by_its_name(name: str, attributes: Any, is_table: bool) -> None:  # noqa: FBT001
    """As a file's is; unlike a linear layer it has no bias."""
    model = nn.ModuleDict({name: Own(64, 24, **attributes), "fc": nn.Linear(24, 24)})
    for form in (model, model.state_dict()):
        names = [layer.name for layer in esdmon.analyze(form, measures=["frobenius_norm"])]
        assert names == (["fc"] if is_table else [name, "fc"])
        assert esdmon.analyze(form, layers=[name], measures=["frobenius_norm"]).layers[0].status == "ok"


def test_stacked_states_are_read_as_their_networks() -> None:
    """Those that `torch.func.stack_module_state` makes of an ensemble: norms are of all networks."""
    networks = [nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 10)) for _ in range(4)]
    parameters, _ = torch.func.stack_module_state(networks)
    report = esdmon.analyze(parameters, measures=["spectral_norm"])
    for name, layer in (("0", 0), ("2", 2)):
        each = [torch.linalg.matrix_norm(network[layer].weight, ord=2).item() for network in networks]
        assert report[name].slices == 4
        assert report[name].measures["spectral_norm"] == pytest.approx(max(each), rel=1e-5)


def test_the_places_of_weights_that_are_passed_with_each_call_are_left_out() -> None:
    """In the networks of several agents that TorchRL makes: a copy without parameters, on the meta device."""
    layer = nn.Linear(24, 16, device="meta")
    del layer.weight, layer.bias
    setattr(layer, "weight", torch.empty(16, 24, device="meta"))  # noqa: B010 -- a Parameter by its type
    model = nn.ModuleDict({"fc": nn.Linear(24, 16), "place": layer, "unloaded": nn.Linear(24, 16, device="meta")})
    report = esdmon.analyze(model, measures=["frobenius_norm"])
    assert [(each.name, each.status) for each in report] == [("fc", "ok"), ("unloaded", "skipped")]


class Paths(nn.Module):
    """Parameters whose names are paths, as in the `TensorDictParams` of tensordict."""

    def __init__(self) -> None:
        super().__init__()
        self._parameters["critic.0.weight"] = nn.Parameter(torch.randn(24, 16))
        self._parameters["critic.0.bias"] = nn.Parameter(torch.randn(24))


def test_parameters_that_are_named_by_paths_have_the_names_of_their_layers() -> None:
    """As in their state dict."""
    model = nn.ModuleDict({"agent": Paths()})
    for form in (model, model.state_dict()):
        assert [layer.name for layer in esdmon.analyze(form, measures=["frobenius_norm"])] == ["agent.critic.0"]


def test_a_layer_that_says_its_groups_is_read_by_them() -> None:
    """As deformable convolutions of torchvision do; a file does not say so."""
    matrix, *_ = discover(nn.ModuleDict({"conv": Own(40, 5, 3, 3, groups=4)})).matrices
    assert matrix.stack_shape() == (36, 10, 5)


LEFT_OUT: dict[str, tuple[nn.Module, str]] = {
    "a norm over positions": (nn.LayerNorm((24, 24)), "scales, as of a norm"),
    "a norm over pictures": (nn.LayerNorm((24, 16, 16)), "scales, as of a norm"),
    "an embedding of each number": (Own(24, 16, bias=nn.Parameter(torch.randn(24, 16))), "scales, as of a norm"),
    "a scale for each channel": (Own(1, 24, 1, 1), "4-D parameters of unknown layout, which a plugin can read"),
    "learned positions": (Own(1, 50, 128), "3-D parameters of unknown layout, which a plugin can read"),
}


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_what_only_looks_like_a_matrix_is_left_out_with_its_reason(kind: str) -> None:
    """From a module; from a state dict where the name says what it is."""
    layer, reason = LEFT_OUT[kind]
    name = "norm1" if kind == "a norm over positions" else "layer"  # its biases have two sides as well
    model = nn.ModuleDict({name: layer, "fc": nn.Linear(24, 24)})
    forms: list[nn.Module | dict[str, Tensor]] = [model]
    if kind != "a scale for each channel":
        forms.append(model.state_dict())
    for form in forms:
        report = esdmon.analyze(form, measures=["frobenius_norm"])
        assert [layer.name for layer in report] == ["fc"]
        assert {skip.name: skip.reason for skip in report.coverage.skipped}[f"{name}.weight"] == reason


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("layers.0.attn.proj", "attention"),
        ("attn_layers.layers.1.1.to_q", "attention"),
        ("layer.0.attention.output.dense", "attention"),
        ("attn_layers.layers.1.1.ff.0.proj", "linear"),
        ("cross_attn.0.mlp.c_fc", "linear"),
    ],
)
def test_an_mlp_in_a_block_of_attention_is_no_projection(name: str, kind: str) -> None:
    """In x-transformers and open_clip the block, or the list of all layers, has the name of attention."""
    (layer,) = esdmon.analyze({f"{name}.weight": torch.randn(24, 24)}, measures=["frobenius_norm"])
    assert layer.kind == kind


def block(a_log: Tensor | None = None, **sizes: tuple[int, int]) -> nn.Module:
    """A module with linear layers, given by (outputs, inputs)."""
    module = nn.ModuleDict({name: nn.Linear(inputs, outputs) for name, (outputs, inputs) in sizes.items()})
    if a_log is not None:
        module.A_log = nn.Parameter(a_log)
    return nn.ModuleDict({"block": module})


FUSED: dict[str, tuple[nn.Module, list[str]]] = {
    "SwiGLU": (block(gate_up_proj=(96, 24), down_proj=(24, 48)), ["gate_up_proj/gate", "gate_up_proj/up", "down_proj"]),
    "grouped queries": (block(qkv_proj=(72, 24), o_proj=(24, 24)), [*(f"qkv_proj/{x}" for x in "qkv"), "o_proj"]),
    "q, k and v": (block(Wqkv=(72, 24), out_proj=(24, 24)), [*(f"Wqkv/{x}" for x in "qkv"), "out_proj"]),
    "Mamba": (
        block(torch.ones(48, 16), in_proj=(96, 24), out_proj=(24, 48)),
        ["in_proj/x", "in_proj/gate", "out_proj"],
    ),
    "Mamba 2": (block(torch.ones(8), in_proj=(136, 24), out_proj=(24, 48)), ["in_proj", "out_proj"]),
    "no other layer fits": (block(qkv_proj=(72, 24), down_proj=(24, 40)), ["qkv_proj", "down_proj"]),
}


@pytest.mark.parametrize("kind", FUSED)
def test_fused_weights_are_split_alike_in_modules_and_files(kind: str) -> None:
    """By their names and the layers beside them, whoever wrote the module."""
    model, names = FUSED[kind]
    for form in (model, model.state_dict()):
        assert sorted(matrix.name for matrix in discover(form).matrices) == sorted(f"block.{name}" for name in names)


def test_a_projection_that_alternates_by_head_is_not_split() -> None:
    """SpeechBrain's `in_proj_weight` has no bias, unlike its output; that of torch has both or none."""
    state = {"mha.in_proj_weight": torch.randn(72, 24), "mha.out_proj.weight": torch.randn(24, 24)}
    bias = {"mha.out_proj.bias": torch.randn(24)}
    assert [matrix.name for matrix in discover(state | bias).matrices] == ["mha.in_proj_weight", "mha.out_proj"]
    assert len(discover(state).matrices) == 4


class OwnAttention(nn.Module):
    """Attention with the parameters of torch's."""

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.randn(96, 32))
        if bias:
            self.in_proj_bias = nn.Parameter(torch.randn(96))
        self.out_proj = nn.Linear(32, 32)


class OwnRecurrent(nn.Module):
    """An LSTM with the parameters of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight_ih_l0 = nn.Parameter(torch.randn(80, 12))
        self.weight_hh_l0 = nn.Parameter(torch.randn(80, 20))


@pytest.mark.parametrize(
    ("layer", "names"),
    [
        (OwnAttention(), ["in_proj_weight/q", "in_proj_weight/k", "in_proj_weight/v", "out_proj"]),
        (OwnAttention(bias=False), ["in_proj_weight", "out_proj"]),  # q, k and v alternate by head in SpeechBrain's
        (OwnRecurrent(), [f"weight_{of}_l0/{gate}" for of in ("ih", "hh") for gate in "ifgo"]),
    ],
    ids=["attention", "attention without a bias", "LSTM"],
)
@pytest.mark.parametrize("prefix", ["", "net."])
def test_parameters_that_are_named_as_those_of_torch_are_split_alike(
    layer: nn.Module, names: list[str], prefix: str
) -> None:
    """In a module of the user's own, alone or in another, and in its state dict."""
    model = nn.ModuleDict({"net": layer}) if prefix else layer
    for form in (model, model.state_dict()):
        assert [matrix.name for matrix in discover(form).matrices if not matrix.detail] == [
            f"{prefix}{name}" for name in names
        ]


class Scripted(nn.Module):
    """A network that TorchScript can compile."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.fc = nn.LSTM(12, 20), nn.Linear(20, 24)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs at all times."""
        outputs: Tensor = self.fc(self.rnn(x)[0])
        return outputs


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_scripted_model_is_read_and_watched_as_the_model_that_was_compiled() -> None:
    """All its modules are of one class, and their registries have no `get`."""
    model = Scripted()
    scripted = torch.jit.script(model)
    expected = {layer.name: layer.measures["frobenius_norm"] for layer in esdmon.analyze(model)}
    assert {layer.name: layer.measures["frobenius_norm"] for layer in esdmon.analyze(scripted)} == expected
    optimizer = torch.optim.SGD(scripted.parameters(), lr=0.01)
    with esdmon.watch(scripted, optimizer, every=1, budget=None, sinks=None) as monitor:
        for _ in range(2):
            scripted(torch.randn(3, 2, 12)).square().sum().backward()
            optimizer.step()
    assert monitor.report is not None
    assert all(layer.status == "ok" and layer.in_optimizer and layer.step == 2 for layer in monitor.report)
    assert monitor.errors == ()


class Strict(nn.Module):
    """A module whose `__getattr__` raises what torch's does not."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(24, 24)

    def __getattr__(self, name: str) -> Any:
        if name not in {"fc", "weight"}:
            raise RuntimeError(name)
        return super().__getattr__(name)


def test_a_getattr_that_raises_costs_no_layer() -> None:
    """Neither when heads are searched, nor when layers are."""
    assert [layer.status for layer in esdmon.analyze(nn.Sequential(Strict(), nn.Linear(24, 24)))] == ["ok", "ok"]
