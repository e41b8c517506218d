import pytest
import torch

from msmodel import flow


def test_identities_between_noise_clean_and_velocity():
    g = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 4, 3, 2, 2, generator=g), torch.randn(2, 4, 3, 2, 2, generator=g)
    for t in (torch.tensor([0.3, 0.9]), torch.rand(2, 3, generator=g)):
        x_t = flow.add_noise(x0, eps, t)
        v = flow.velocity(x0, eps)
        torch.testing.assert_close(flow.x0_from_velocity(x_t, v, t), x0)


def test_per_frame_times_act_on_their_own_frame():
    x0, eps = torch.zeros(1, 1, 2, 1, 1), torch.ones(1, 1, 2, 1, 1)
    assert flow.add_noise(x0, eps, torch.tensor([[0.25, 0.75]])).flatten().tolist() == [0.25, 0.75]


def test_shift_fixes_ends_and_matches_the_papers_formula():
    assert flow.shift(0.0, 6.0) == 0 and flow.shift(1.0, 6.0) == 1
    assert flow.shift(0.5, 6.0) == pytest.approx(6 * 0.5 / 3.5)


def test_student_times_lie_on_the_solver_grid_when_k_divides_steps():
    grid = flow.solver_times(12, 5.0)
    assert all(t in grid for t in flow.student_timesteps(3, 5.0))
    assert [round(1000 * t, 1) for t in flow.student_timesteps(3, 5.0)] == [1000, 909.1, 714.3]


def test_euler_is_exact_for_a_constant_velocity():
    noise = torch.randn(1, 2, 3, 2, 2)
    states = []
    x = flow.euler(lambda x, t: torch.full_like(x, 2.0), noise, 7, 3.0, on_state=lambda t, s: states.append(t))
    torch.testing.assert_close(x, noise - 2.0)
    assert states[0] == 1.0 and states[-1] == 0.0 and len(states) == 8


def test_loss_weight_has_mean_one_and_bell_vanishes_at_the_ends():
    t = torch.linspace(0, 1, 10_001)
    assert flow.loss_weight(t, "bell").mean() == pytest.approx(1.0, abs=1e-3)
    assert flow.loss_weight(torch.tensor([0.0, 1.0]), "bell").abs().max() < 1e-6
    with pytest.raises(ValueError, match="weighting"):
        flow.loss_weight(t, "linear")


def test_sampled_times_follow_the_shift_and_the_clamp():
    t = flow.sample_t(20_000, 3.0, torch.Generator().manual_seed(0), 0.02, 0.98)
    assert t.min() >= 0.02 and t.max() <= 0.98
    assert t.median() == pytest.approx(flow.shift(0.5, 3.0), abs=0.01)
