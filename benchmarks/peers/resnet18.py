"""ResNet-18 (He et al. 2016, arXiv:1512.03385, table 1) with drawn weights: its size and shape, not its accuracy."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512)


class Block(nn.Module):
    """Two 3x3 convolutions around which the input is added."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = convolution(inputs, outputs, 3, stride)
        self.second = convolution(outputs, outputs, 3, 1)
        plain = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if plain else convolution(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inputs, h, w] to [batch, outputs, h / stride, w / stride]."""
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


class ResNet18(nn.Module):
    """Images [batch, 3, 224, 224] to logits [batch, classes]."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        blocks, before = [], WIDTHS[0]
        for stage, width in enumerate(WIDTHS):
            blocks += [Block(before, width, 1 if stage == 0 else 2), Block(width, width, 1)]
            before = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(WIDTHS[-1], classes)

    def features(self, images: Tensor) -> Tensor:
        """What the head sees, [batch, 512]."""
        pooled: Tensor = self.blocks(self.stem(images)).mean((2, 3))
        return pooled

    def forward(self, images: Tensor) -> Tensor:
        """Logits [batch, classes] of images [batch, 3, 224, 224]."""
        logits: Tensor = self.head(self.features(images))
        return logits


def convolution(inputs: int, outputs: int, size: int, stride: int) -> nn.Sequential:
    """A convolution without bias, and its batch normalisation."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs))


@torch.no_grad()
def warmed_up(images: Tensor, *, seed: int = 0) -> ResNet18:
    """The network with weights of a fixed seed, and with batch statistics of some images [n, 3, 224, 224].

    The bias of the head centres the logits on these images; otherwise the mean logit, which all images share, would
    drown what quantization does to their differences.
    """
    torch.manual_seed(seed)
    network = ResNet18()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean over all batches
    network.train()
    for batch in torch.split(images, 20):
        network(batch)
    network.eval()
    features = torch.cat([network.features(batch) for batch in torch.split(images, 20)])
    network.head.bias.copy_(-network.head.weight @ features.mean(0))
    return network
