"""Architectures in plain torch, with the shapes of torchvision where it has them; discovery asks for no `forward`."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn


def lenet5() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5),
        nn.Conv2d(6, 16, 5),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.Linear(120, 84),
        nn.Linear(84, 10),
    )


def alexnet() -> nn.Module:
    features = [
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.Conv2d(256, 256, 3, padding=1),
    ]
    classifier = [nn.Linear(9216, 4096), nn.Linear(4096, 4096), nn.Linear(4096, 1000)]
    return nn.ModuleDict({"features": nn.Sequential(*features), "classifier": nn.Sequential(*classifier)})


def vgg11() -> nn.Module:
    widths = [3, 64, 128, 256, 256, 512, 512, 512, 512]
    features = [nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths)]
    classifier = [nn.Linear(25088, 4096), nn.Linear(4096, 4096), nn.Linear(4096, 1000)]
    return nn.ModuleDict({"features": nn.Sequential(*features), "classifier": nn.Sequential(*classifier)})


def narrow_vgg() -> nn.Module:
    """The layers of VGG at an eighth of their widths."""
    widths = [3, 16, 32, 48, 64]
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()]
    classifier = nn.Sequential(nn.Linear(256, 96), nn.ReLU(), nn.Dropout(), nn.Linear(96, 100))
    return nn.ModuleDict({"features": nn.Sequential(*layers), "classifier": classifier})


class Bottleneck(nn.Module):
    """The block of ResNet-50; with groups that of ResNeXt."""

    def __init__(self, inputs: int, width: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        if inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))


def bottlenecks(groups: int = 1) -> nn.Module:
    """The parts of torchvision's ResNet under its names, two stages of two blocks."""
    width = 32 if groups == 1 else 64
    stages = {
        "layer1": nn.Sequential(Bottleneck(32, width, 128, groups), Bottleneck(128, width, 128, groups)),
        "layer2": nn.Sequential(Bottleneck(128, 2 * width, 256, groups), Bottleneck(256, 2 * width, 256, groups)),
    }
    return nn.ModuleDict({"conv1": nn.Conv2d(3, 32, 7, bias=False), **stages, "fc": nn.Linear(256, 100)})


def mobilenet() -> nn.Module:
    """Depthwise and pointwise convolutions in turn, as MobileNet has them."""
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, stride=2, bias=False), nn.BatchNorm2d(32)]
    for a, b in pairwise([32, 64, 96, 128]):
        layers += [nn.Conv2d(a, a, 3, padding=1, groups=a, bias=False), nn.BatchNorm2d(a)]
        layers += [nn.Conv2d(a, b, 1, bias=False), nn.BatchNorm2d(b)]
    return nn.ModuleDict({"features": nn.Sequential(*layers), "classifier": nn.Linear(128, 100)})


def gru_classifier() -> nn.Module:
    return nn.ModuleDict({"gru": nn.GRU(40, 48, 2, bidirectional=True), "classifier": nn.Linear(96, 40)})


Kernel = int | tuple[int, int]
Path = Sequence[tuple[int, Kernel]]


class InceptionBlock(nn.Module):
    """Paths side by side, each of convolutions with batch norm; `forks` end a path of their own in two."""

    def __init__(self, inputs: int, *paths: Path, forks: Sequence[Path] = ()) -> None:
        super().__init__()
        self.paths = nn.ModuleList(_path(inputs, path) for path in paths)
        self.forks = nn.ModuleList(
            nn.ModuleList(_path(path[-1][0], [(384, kernel)]) for kernel in ((1, 3), (3, 1))) for path in forks
        )
        self.stems = nn.ModuleList(_path(inputs, path) for path in forks)


def _path(inputs: int, path: Path) -> nn.Sequential:
    widths = [inputs, *(width for width, _ in path)]
    layers: list[nn.Module] = []
    for before, (width, kernel) in zip(widths, path, strict=False):
        layers += [nn.Conv2d(before, width, kernel, bias=False), nn.BatchNorm2d(width)]
    return nn.Sequential(*layers)


def _inception_a(inputs: int, pool: int) -> nn.Module:
    return InceptionBlock(inputs, [(64, 1)], [(48, 1), (64, 5)], [(64, 1), (96, 3), (96, 3)], [(pool, 1)])


def _inception_c(c: int) -> nn.Module:
    wide, tall = (1, 7), (7, 1)
    double: Path = [(c, 1), (c, tall), (c, wide), (c, tall), (192, wide)]
    return InceptionBlock(768, [(192, 1)], [(c, 1), (c, wide), (192, tall)], double, [(192, 1)])


def _inception_e(inputs: int) -> nn.Module:
    return InceptionBlock(inputs, [(320, 1)], [(192, 1)], forks=[[(384, 1)], [(448, 1), (384, 3)]])


def inception_v3() -> nn.Module:
    return nn.ModuleDict(
        {
            "stem": _path(3, [(32, 3), (32, 3), (64, 3), (80, 1), (192, 3)]),
            "mixed_a": nn.Sequential(_inception_a(192, 32), _inception_a(256, 64), _inception_a(288, 64)),
            "mixed_b": InceptionBlock(288, [(384, 3)], [(64, 1), (96, 3), (96, 3)]),
            "mixed_c": nn.Sequential(*(_inception_c(c) for c in (128, 160, 160, 192))),
            "auxiliary": nn.ModuleDict({"path": _path(768, [(128, 1), (768, 5)]), "fc": nn.Linear(768, 1000)}),
            "mixed_d": InceptionBlock(768, [(192, 1), (320, 3)], [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3)]),
            "mixed_e": nn.Sequential(_inception_e(1280), _inception_e(2048)),
            "fc": nn.Linear(2048, 1000),
        }
    )


class UNet(nn.Module):
    """Three depths of double convolutions down, transposed convolutions and skips up."""

    def __init__(self, inputs: int = 3, classes: int = 4, width: int = 16) -> None:
        super().__init__()
        widths = [width * 2**depth for depth in range(4)]
        self.down = nn.ModuleList(_double(a, b) for a, b in zip([inputs, *widths], widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * b, b, 2, stride=2) for b in reversed(widths[:-1]))
        self.join = nn.ModuleList(_double(2 * b, b) for b in reversed(widths[:-1]))
        self.out = nn.Conv2d(width, classes, 1)


def _double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
    )


class LSTMLanguageModel(nn.Module):
    """Tokens to an LSTM of two layers to tokens."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(320, 64)
        self.lstm = nn.LSTM(64, 64, num_layers=2)
        self.decoder = nn.Linear(64, 320, bias=False)
        if tied:
            self.decoder.weight = self.embedding.weight


class TorchLayers(nn.Module):
    """Every layer of torch that holds a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(30, 20)
        self.bilinear = nn.Bilinear(12, 14, 6)
        self.convolutions = nn.ModuleList(
            [
                nn.Conv1d(12, 24, 5, groups=3),
                nn.Conv2d(12, 24, 3),
                nn.Conv3d(12, 16, 2),
                nn.ConvTranspose1d(12, 24, 5),
                nn.ConvTranspose2d(12, 18, 3, groups=2),
                nn.ConvTranspose3d(12, 16, 2),
            ]
        )
        self.recurrent = nn.ModuleList(
            [nn.RNN(15, 20), nn.GRU(15, 20, bidirectional=True), nn.LSTM(15, 20, 2, proj_size=12), nn.LSTMCell(15, 20)]
        )
        self.attention = nn.MultiheadAttention(24, 2, kdim=16, vdim=12)
        self.tables = nn.ModuleList([nn.Embedding(50, 12), nn.EmbeddingBag(40, 12)])
        self.transformer = nn.Transformer(32, 2, num_encoder_layers=1, num_decoder_layers=1, dim_feedforward=64)


class ExpertsApart(nn.Module):
    """Experts that are modules of their own beside a router, as before transformers 5."""

    def __init__(self, width: int = 32, experts: int = 12) -> None:
        super().__init__()
        self.gate = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.Linear(2 * width, width)) for _ in range(experts)
        )


class MixtureOfModules(nn.Module):
    """A mixture-of-experts language model, each expert a module; positions are a parameter of the model's own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(320, 32)
        self.pos_embed = nn.Parameter(torch.randn(64, 32))
        self.layers = nn.ModuleList(
            nn.ModuleDict({"attention": nn.MultiheadAttention(32, 2), "mlp": ExpertsApart()}) for _ in range(2)
        )
        self.lm_head = nn.Linear(32, 320, bias=False)
