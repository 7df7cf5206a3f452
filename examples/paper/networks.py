"""The networks of the paper that are small enough to train here.

Widths and order of the layers are taken from the authors' notebooks
(github.com/CalculatedContent/ImplicitSelfRegularization). Weights start Glorot normal, biases zero.
"""

from collections import OrderedDict

from torch import nn


def mini_alexnet(*, channels: int = 3, dropout: float = 0.0) -> nn.Sequential:
    """Return MiniAlexNet for 28 × 28 images: FC1 is 4096 × 384, FC2 is 384 × 192."""
    return _initialised(
        conv1=nn.Conv2d(channels, 96, 5, padding=2),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(3, stride=3, ceil_mode=True),
        norm1=nn.BatchNorm2d(96),
        conv2=nn.Conv2d(96, 256, 5, padding=2),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(3, stride=3, ceil_mode=True),
        norm2=nn.BatchNorm2d(256),
        flatten=nn.Flatten(),
        fc1=nn.Linear(4096, 384),
        relu3=nn.ReLU(),
        drop1=nn.Dropout(dropout),
        fc2=nn.Linear(384, 192),
        relu4=nn.ReLU(),
        drop2=nn.Dropout(dropout),
        fc3=nn.Linear(192, 10),
    )


def small_alexnet(*, channels: int = 1, dropout: float = 0.0) -> nn.Sequential:
    """Return a smaller MiniAlexNet for 16 × 16 images: FC1 is 1024 × 384, FC2 is 384 × 192.

    It has a third of the channels and no batch norm, so a step costs a fifteenth. The fully connected layers, which the
    paper studies, keep their sizes except for FC1's inputs. Without dropout it is the network of
    `examples/batch_size_sweep.py`.
    """
    return _initialised(
        conv1=nn.Conv2d(channels, 32, 5, padding=2),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(32, 64, 5, padding=2),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        fc1=nn.Linear(1024, 384),
        relu3=nn.ReLU(),
        drop1=nn.Dropout(dropout),
        fc2=nn.Linear(384, 192),
        relu4=nn.ReLU(),
        drop2=nn.Dropout(dropout),
        fc3=nn.Linear(192, 10),
    )


def lenet5() -> nn.Sequential:
    """Return LeNet5 as in the paper, for 28 × 28 images: FC1 is 2450 × 500."""
    return _initialised(
        conv1=nn.Conv2d(1, 20, 5, padding=2),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(20, 50, 5, padding=2),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        fc1=nn.Linear(2450, 500),
        relu3=nn.ReLU(),
        fc2=nn.Linear(500, 10),
    )


def mlp3() -> nn.Sequential:
    """Return MLP3 as in the paper, for 28 × 28 × 3 images: FC1 and FC2 are 512 × 512, behind a first layer."""
    return _initialised(
        flatten=nn.Flatten(),
        fc0=nn.Linear(2352, 512),
        relu0=nn.ReLU(),
        fc1=nn.Linear(512, 512),
        relu1=nn.ReLU(),
        fc2=nn.Linear(512, 512),
        relu2=nn.ReLU(),
        fc3=nn.Linear(512, 10),
    )


def setol_mlp3() -> nn.Sequential:
    """Return MLP3 of SETOL (Martin & Hinrichs 2025), for 28 × 28 images: FC1 is 784 × 300, FC2 is 300 × 100."""
    return _initialised(
        flatten=nn.Flatten(),
        fc1=nn.Linear(784, 300),
        relu1=nn.ReLU(),
        fc2=nn.Linear(300, 100),
        relu2=nn.ReLU(),
        fc3=nn.Linear(100, 10),
    )


def _initialised(**layers: nn.Module) -> nn.Sequential:
    network = nn.Sequential(OrderedDict(layers))
    for module in network:
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network
