import numpy as np
import pytest

from stages.eval.fidelity import PSNR_CEILING_DB, psnr, ssim


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    a = generator.integers(0, 256, (3, 24, 32, 3)).astype(np.uint8)
    return a, (a.astype(int) + generator.integers(-30, 31, a.shape)).clip(0, 255).astype(np.uint8)


def test_psnr_by_hand_is_a_mean_of_frames():
    a = np.zeros((3, 4, 4, 3), np.uint8)
    b = a.copy()
    b[1], b[2] = 10, 100
    expected = np.mean([20 * np.log10(255 / 10), 20 * np.log10(255 / 100)])
    assert psnr(b, a) == pytest.approx(expected)


def test_frame_0_does_not_count(pair):
    a, b = pair
    changed = b.copy()
    changed[0] = 0
    assert psnr(changed, a) == psnr(b, a) and ssim(changed, a) == ssim(b, a)


def test_identical_videos(pair):
    a, _ = pair
    assert psnr(a, a) == pytest.approx(PSNR_CEILING_DB) and ssim(a, a) == pytest.approx(1)


def test_ssim_agrees_with_an_independent_route(pair):
    """scipy's Gaussian filter, cut at 3.5 sigma (11 taps), with the border that a valid convolution lacks cropped away."""
    from scipy.ndimage import gaussian_filter

    def blur(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, 1.5, truncate=3.5)[5:-5, 5:-5]

    scores = []
    for x, y in zip(*(v[1:].transpose(0, 3, 1, 2).reshape(-1, 24, 32) / 255.0 for v in pair), strict=True):
        mx, my, c1, c2 = blur(x), blur(y), 0.01**2, 0.03**2
        vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
        scores.append(((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean())
    assert ssim(*pair) == pytest.approx(np.mean(scores), abs=1e-9)


def test_wrong_inputs_are_errors(pair):
    a, b = pair
    with pytest.raises(ValueError, match="uint8"):
        psnr(a.astype(np.float32), b)
    with pytest.raises(ValueError, match="one shape"):
        psnr(a, b[:2])
    with pytest.raises(ValueError, match="conditioning"):
        psnr(a[:1], b[:1])
    with pytest.raises(ValueError, match="window"):
        ssim(a[:, :8], b[:, :8])
