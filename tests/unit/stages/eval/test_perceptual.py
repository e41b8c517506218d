import cv2
import numpy as np
import pytest

from stages.eval import perceptual
from tests.unit.stages.eval.world import panning


@pytest.fixture(scope="module")
def net() -> perceptual.EfficientNetLite0:
    return perceptual.load_efficientnet()


@pytest.fixture
def video() -> np.ndarray:
    return panning(5, (1, 0), 3)


def test_identical_is_zero_and_frame_0_does_not_count(net, video):
    other = video.copy()
    other[0] = 0
    assert perceptual.distance(net, other, video) == 0


def test_grows_with_blur_and_with_noise(net, video):
    blurs = [np.stack([cv2.GaussianBlur(f, (0, 0), s) for f in video]) for s in (0.5, 1.0, 2.0)]
    generator = np.random.default_rng(0)
    noise = generator.normal(size=video.shape)
    noises = [(video + s * noise).clip(0, 255).astype(np.uint8) for s in (5, 15, 40)]
    for worse in (blurs, noises):
        distances = [perceptual.distance(net, v, video) for v in worse]
        assert 0 < distances[0] < distances[1] < distances[2]


def test_recognises_a_photograph(net):
    """Weights and preprocessing fit each other: china.jpg is a palace (698), bell cote (442) or monastery (663) to ImageNet."""
    from sklearn.datasets import load_sample_image

    logits = net(perceptual.prepare(load_sample_image("china.jpg")[None, :, 100:527]))[0]
    assert {698, 442, 663} & set(logits.topk(3).indices.tolist())


def test_shapes_must_agree(net, video):
    with pytest.raises(ValueError, match="one shape"):
        perceptual.distance(net, video, video[:2])
