import pytest
import torch

from msmodel import guidance, losses
from msmodel.batch import Conditioning


def test_joint_guidance_equals_three_separate_evaluations():
    g = torch.Generator().manual_seed(0)
    cond = Conditioning(
        torch.randn(2, 3, 4, generator=g),
        torch.randn(2, 1, 2, 2, 2, generator=g),
        torch.randn(2, 1, 2, 2, 2, generator=g),
    )
    noisy, t = torch.randn(2, 1, 2, 2, 2, generator=g), torch.tensor([0.4, 0.7])

    def model(x, time, c):
        return (
            x * time[:, None, None, None, None]
            + c.image
            + 2 * c.tracks
            + c.text.mean((1, 2))[:, None, None, None, None]
        )

    v = guidance.joint(model, noisy, t, cond, 3.0, 1.5)
    full, no_text, no_tracks = (model(noisy, t, c) for c in (cond, cond.without_text(), cond.without_tracks()))
    base = (2 / 3) * no_text + (1 / 3) * no_tracks
    torch.testing.assert_close(v, base + 3.0 * (full - no_text) + 1.5 * (full - no_tracks))


def test_image_tokens_are_in_every_branch():
    """Joint guidance drops text and tracks; the image stays."""
    text, image, clip = torch.randn(2, 3, 4), torch.randn(2, 1, 2, 2, 2), torch.randn(2, 5, 20)
    seen = []

    def model(x, time, c):
        seen.append(c.image_tokens)
        return x

    guidance.joint(model, image, torch.tensor([0.4, 0.7]), Conditioning(text, image, image, clip), 3.0, 1.5)
    assert torch.equal(seen[0], torch.cat([clip] * 3))


@pytest.mark.parametrize(
    ("w_text", "w_track", "evaluations"),
    [(3.0, 1.5, 3), (0.0, 1.5, 2), (2.0, 0.0, 2), (1.0, 0.0, 1), (0.0, 1.0, 1), (0.5, 0.5, 1)],
)
def test_a_branch_of_no_weight_is_left_out_and_changes_nothing(w_text, w_track, evaluations):
    g = torch.Generator().manual_seed(0)
    noisy, t = torch.randn(2, 3, 4, 5, 6, generator=g), torch.rand(2, generator=g)
    cond = Conditioning(*(torch.randn(2, 3, 4, 5, 6, generator=g) for _ in range(3)))
    sizes = []

    def model(x, t, c):
        sizes.append(x.shape[0])
        return x * t[:, None, None, None, None] + c.text * 2 + c.tracks.square()

    got = guidance.joint(model, noisy, t, cond, w_text, w_track)
    full, tracks_only, text_only = (model(noisy, t, c) for c in (cond, cond.without_text(), cond.without_tracks()))
    torch.testing.assert_close(got, guidance.combine(full, tracks_only, text_only, w_text, w_track))
    assert sizes[0] == 2 * evaluations


def test_guidance_is_neutral_when_all_branches_agree():
    v = torch.randn(1, 1, 1, 2, 2)
    torch.testing.assert_close(guidance.combine(v, v, v, 3.0, 1.5), v)
    with pytest.raises(ValueError, match="weights"):
        guidance.combine(v, v, v, 0.0, 0.0)


def test_dmd_gradient_is_the_normalised_difference_of_clean_estimates():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 2, 2, generator=g, requires_grad=True)
    real, fake = torch.randn(2, 3, 4, 2, 2, generator=g), torch.randn(2, 3, 4, 2, 2, generator=g)
    losses.dmd(x, real, fake).backward()
    scale = (x.detach() - real).abs().mean(dim=(1, 2, 3, 4), keepdim=True)
    torch.testing.assert_close(x.grad, (fake - real) / scale / x.numel())


def test_dmd_descends_toward_the_real_estimate_and_spares_unmarked_frames():
    x = torch.zeros(1, 1, 3, 1, 1, requires_grad=True)
    losses.dmd(x, torch.ones_like(x), -torch.ones_like(x), frames=torch.tensor([False, True, True])).backward()
    assert x.grad is not None
    assert x.grad[0, 0, 0].item() == 0 and (x.grad[0, 0, 1:] < 0).all()


def test_flow_matching_weights_each_clip_by_its_time():
    v, target = torch.zeros(2, 1, 1, 1, 1), torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1, 1)
    assert losses.flow_matching(v, target, torch.tensor([0.1, 0.9])).item() == 2.5
    assert losses.flow_matching(v, target, torch.tensor([0.0, 1.0]), "bell").item() == pytest.approx(0, abs=1e-6)
