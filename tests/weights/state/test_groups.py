"""Groups of convolutions, which a state dict does not have: what its names and shapes say, against the modules."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from esdmon.weights import discover
from esdmon.weights.state.groups import groups_of


def conv(inputs: int, outputs: int, size: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, groups=groups)


def named(**modules: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict(modules)


def bottleneck(*, groups: int, row: int) -> nn.ModuleDict:
    """1 × 1, some convolutions of k × k, and 1 × 1: ResNeXt's block, or with two in a row that of NFNet."""
    kernels = {f"conv2{'abc'[i]}": conv(64, 64, 3, groups) for i in range(row)}
    return named(conv1=conv(128, 64), **kernels, conv3=conv(64, 128))


def inverted(inputs: int, inside: int) -> nn.ModuleDict:
    """MobileNet V2's block; the first has no layer that widens."""
    wide = [conv(inputs, inside)] if inside != inputs else []
    return named(conv=nn.Sequential(*(nn.Sequential(layer) for layer in (*wide, conv(inside, inside, 3, inside)))))


def gated() -> nn.ModuleDict:
    """An encoder of HDemucs: the 1 × 1 layer makes twice as many channels as its gate lets through."""
    return named(
        **{
            "0": named(conv=conv(4, 32, 8), rewrite=conv(32, 64)),
            "1": named(conv=conv(32, 64, 8), rewrite=conv(64, 128)),
        }
    )


def discriminators() -> nn.ModuleDict:
    """Each of which reads one channel, as those of HiFi-GAN do."""
    return named(**{str(i): named(convs=nn.ModuleList([conv(1, 32, 5), conv(32, 128, 5)])) for i in range(3)})


def of_grey_volumes() -> nn.ModuleDict:
    """UNETR: the first block of its decoder reads the picture, behind an encoder of its own."""
    return named(
        vit=nn.Conv3d(1, 48, 4, stride=4),
        **{f"encoder{i}": named(conv1=nn.Conv3d(c, 24, 3), conv2=nn.Conv3d(24, 24, 3)) for i, c in ((1, 1), (2, 48))},
        up=nn.Conv3d(48, 24, 1),
    )


def of_one_channel() -> nn.ModuleDict:
    """MONAI's networks: a block of kernels of one channel, and a layer of 1 × 1 beside them; wide blocks have none."""
    first = named(conv1=conv(1, 24, 3), conv2=conv(24, 24, 3), conv3=conv(1, 24))
    second = named(conv1=conv(24, 24, 3), conv2=conv(24, 24, 3))
    return named(stem=conv(1, 48, 2), encoder1=first, encoder2=second, up=conv(48, 24))


def to_one_channel() -> nn.ModuleDict:
    """The decoder of a VQVAE: the last layer is transposed, and its bias says so."""
    layers = [conv(48, 32, 3), nn.ConvTranspose2d(32, 1, 4), nn.ConvTranspose2d(32, 24, 4, groups=8)]
    return named(decoder=nn.Sequential(*layers, nn.ConvTranspose1d(64, 32, 4)))


def shuffled() -> nn.ModuleDict:
    """ShuffleNet V2: a depthwise layer reads what two branches before it have made."""
    return named(
        conv1=conv(3, 24, 3),
        stage2=named(branch1=nn.Sequential(conv(24, 24, 3, 24), conv(24, 40)), branch2=nn.Sequential(conv(24, 40))),
        stage3=named(branch1=nn.Sequential(conv(80, 80, 3, 80), conv(80, 80)), branch2=nn.Sequential(conv(80, 80))),
    )


def of_speech() -> nn.ModuleDict:
    """The subsampling of NeMo's Conformers: of one channel, then depthwise and 1 × 1."""
    layers: list[nn.Module] = [conv(1, 40, 3), nn.ReLU(), conv(40, 40, 3, 40), conv(40, 40), nn.ReLU()]
    layers += [conv(40, 40, 3, 40), conv(40, 40)]
    separable = nn.Sequential(conv(32, 32, 3, 32), conv(32, 32), nn.ReLU(), conv(32, 32, 3, 32), conv(32, 64))
    return named(pre_encode=named(conv=nn.Sequential(*layers)), other=named(into=conv(3, 32, 3), separable=separable))


def of_grey_pictures(*first: str, size: int = 7) -> nn.ModuleDict:
    """segmentation_models_pytorch 0.6 with `in_channels=1`: a decoder makes as many channels as the first layer."""
    layer: nn.Module = conv(1, 64, size)
    for name in reversed(first):
        layer = nn.ModuleDict({name: layer})
    blocks = nn.ModuleList([named(conv1=conv(64, 64, 3), conv2=conv(64, 128, 3)), named(conv1=conv(128, 64))])
    return named(encoder=nn.ModuleDict({**dict(layer.named_children()), "layers": blocks}), decoder=conv(128, 64, 3))


def squeezed() -> nn.ModuleDict:
    """The gate of MAnet: channels are squeezed to one, and made from that."""
    gate = nn.Sequential(conv(24, 1), nn.ReLU(), conv(1, 24))
    return named(into=conv(3, 24, 3), gate=gate, other=conv(48, 24))


def behind_joined_channels() -> nn.ModuleDict:
    """The decoder of DeepLabV3+: a separable convolution reads the channels of two layers."""
    joined = nn.Sequential(nn.Sequential(conv(88, 88, 3, 88), conv(88, 64)))
    return named(encoder=conv(3, 24, 3), a=conv(24, 64), b=conv(24, 24), decoder=joined)


def of_waves() -> nn.ModuleDict:
    """Conv-TasNet of torchaudio 2.11 and the encoder of DAC: a list whose first layer reads a wave."""
    unit = nn.Sequential(nn.Conv1d(64, 64, 7), nn.Conv1d(64, 128, 4))
    return named(encoder=nn.ModuleList([nn.Conv1d(1, 64, 7), unit]), decoder=nn.Conv1d(128, 64, 7))


NETWORKS: dict[str, Callable[[], Any]] = {
    "ResNeXt": lambda: named(layer1=bottleneck(groups=4, row=1)),
    "RegNet": lambda: named(
        **{
            str(i): named(layer=nn.ModuleList(named(convolution=each) for each in bottleneck(groups=4, row=1).values()))
            for i in range(2)
        }
    ),
    "NFNet": lambda: named(layer1=bottleneck(groups=4, row=2), layer2=bottleneck(groups=4, row=3)),
    "MobileNet V2": lambda: named(
        stem=conv(3, 32, 3), features=nn.ModuleList([inverted(32, 32), inverted(16, 96), inverted(24, 144)])
    ),
    "HDemucs": gated,
    "HiFi-GAN": discriminators,
    "UNETR": of_grey_volumes,
    "ShuffleNet V2": shuffled,
    "MONAI": of_one_channel,
    "VQVAE": to_one_channel,
    "NeMo's Conformer": of_speech,
    "ResNet of smp": lambda: of_grey_pictures("conv1"),
    "MobileNet of smp": lambda: of_grey_pictures("features", "0", size=3),
    "SE-ResNet of smp": lambda: of_grey_pictures("layer0", "conv1"),
    "EfficientNet of smp": lambda: of_grey_pictures("_conv_stem", size=3),
    "MAnet": squeezed,
    "DeepLabV3+": behind_joined_channels,
    "DAC": of_waves,
    "a stem of one channel": lambda: named(stem=conv(1, 32), blocks=named(up=conv(64, 32), dw=conv(32, 32, 3, 32))),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_the_groups_of_a_module_are_found_in_its_state(network: str) -> None:
    """In the order of the module, and in that of safetensors."""
    model = NETWORKS[network]()
    state = model.state_dict()
    expected = {matrix.name: matrix.stack_shape() for matrix in discover(model).matrices}
    for names in (list(state), sorted(state)):
        found = discover({name: state[name] for name in names}).matrices
        assert {matrix.name: matrix.stack_shape() for matrix in found} == expected


def test_discriminators_of_grouped_kernels_read_one_channel() -> None:
    """Those of HiFi-GAN on scales, whose later groups a file does not have."""
    lists = [nn.ModuleList([conv(1, 32, 5), conv(32, 64, 7, 4)]) for _ in range(3)]
    state = nn.ModuleList(named(convs=each) for each in lists).state_dict()
    shapes = {name: tensor.shape for name, tensor in state.items()}
    assert [groups_of(f"{number}.convs.0.weight", shapes) for number in range(3)] == [1, 1, 1]
