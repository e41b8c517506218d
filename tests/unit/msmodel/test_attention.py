"""Which kernel attends, and how the two generations of flash-attn are called: fakes with their signatures, layout, types and
contiguity, as read in Dao-AILab/flash-attention (flash_attn/flash_attn_interface.py and hopper/flash_attn_interface.py)."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from msmodel import attention
from msmodel.attention import attend, is_attention, kernel
from msmodel.causal import CausalDiT
from msmodel.rollout import rollout
from tests.unit.msmodel.models import conditioning, gaussian, randomise, tiny_config

CPU = torch.device("cpu")
BF16 = torch.bfloat16


def _checked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """What the kernels demand of their inputs, and what they give."""
    for x in (q, k, v):
        assert x.ndim == 4 and x.dtype in (torch.float16, torch.bfloat16) and x.dtype == q.dtype
        assert x.stride(-1) == 1, "Input tensor must have contiguous last dimension"
        assert x.shape[0] == q.shape[0] and x.shape[2:] == q.shape[2:], "(batch, sequence, heads, head channels)"
    assert k.shape == v.shape and q.shape[-1] <= 256 and q.shape[-1] % 8 == 0
    out = F.scaled_dot_product_attention(*(x.transpose(1, 2).float() for x in (q, k, v)))
    return out.transpose(1, 2).to(q.dtype).contiguous()


class Fake2:
    """flash_attn 2.x."""

    def __init__(self) -> None:
        self.calls: list[bool] = []

    def flash_attn_func(
        self, q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
        alibi_slopes=None, deterministic=False, return_attn_probs=False,
    ):  # fmt: skip
        assert (dropout_p, softmax_scale, causal, window_size, return_attn_probs) == (0.0, None, False, (-1, -1), False)
        self.calls.append(deterministic)
        return _checked(q, k, v)


class Fake3:
    """flash_attn_interface (Hopper). early: as first released, with the log-sum-exp beside the output."""

    def __init__(self, early: bool = False) -> None:
        self.calls: list[bool] = []
        self.early = early

    def flash_attn_func(
        self, q, k, v, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None,
        window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False,
        sm_margin=0, return_attn_probs=False,
    ):  # fmt: skip
        assert (softmax_scale, causal, qv, window_size, return_attn_probs) == (None, False, None, (-1, -1), False)
        self.calls.append(deterministic)
        out = _checked(q, k, v)
        return (out, torch.zeros(q.shape[0], q.shape[2], q.shape[1])) if self.early else out


@pytest.fixture
def card(monkeypatch):
    """A machine whose CPU tensors count as a card's: card(capability, module=fake...)."""

    def make(capability: tuple[int, int] | None, **modules: object) -> None:
        monkeypatch.setattr(attention, "_capability", lambda device: capability)
        for name in ("flash_attn", "flash_attn_interface"):
            fake = modules.get(name)
            found = SimpleNamespace(flash_attn_func=fake.flash_attn_func) if fake else None  # None: ImportError
            monkeypatch.setitem(sys.modules, name, found)
        kernel.cache_clear()

    yield make
    monkeypatch.undo()
    kernel.cache_clear()


def qkv(dtype: torch.dtype = BF16, heads: int = 2, channels: int = 16) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(2, n, heads, channels, generator=g).to(dtype) for n in (3, 7, 7)]


def by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    q, k, v = q.double(), k.double(), v.double()
    weights = (torch.einsum("blad,bmad->balm", q, k) / q.shape[-1] ** 0.5).softmax(dim=-1)
    return torch.einsum("balm,bmad->blad", weights, v)


@pytest.mark.slow
@pytest.mark.parametrize("fake", [Fake2(), Fake3(), Fake3(early=True)])
def test_flash_attention_of_both_generations_is_called_as_it_wants(fake, card):
    module = "flash_attn" if isinstance(fake, Fake2) else "flash_attn_interface"
    card((9, 0), **{module: fake})
    assert kernel(CPU, BF16, 16).name == ("flash-attn 2" if module == "flash_attn" else "flash-attn 3")
    given = qkv()
    found = attend(*given)
    assert (found.shape, found.dtype, len(fake.calls)) == ((2, 3, 2, 16), BF16, 1)
    torch.testing.assert_close(found.double(), by_hand(*given), atol=2e-2, rtol=2e-2)
    q, k, v = (x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in given)  # channels that are not contiguous
    assert q.stride(-1) != 1
    assert torch.equal(attend(q, k, v), found)


@pytest.mark.parametrize(
    ("capability", "dtype", "channels", "name"),
    [
        ((9, 0), BF16, 128, "flash-attn 3"),
        ((9, 0), torch.float16, 256, "flash-attn 3"),
        ((8, 0), BF16, 128, "flash-attn 2"),  # flash-attn 3 is for Hopper
        ((10, 0), BF16, 128, "flash-attn 2"),
        ((7, 5), BF16, 128, "torch SDPA (no flash-attn is installed for compute capability 7.5)"),
        ((9, 0), torch.float32, 128, "torch SDPA (flash-attn computes in fp16 and bf16, not float32)"),
        ((9, 0), BF16, 264, "torch SDPA (heads of 264: flash-attn takes multiples of 8 up to 256)"),
        ((9, 0), BF16, 12, "torch SDPA (heads of 12: flash-attn takes multiples of 8 up to 256)"),
        (None, BF16, 128, "torch SDPA (no CUDA device)"),
    ],
)
def test_the_kernel_fits_the_card_the_type_and_the_heads(capability, dtype, channels, name, card):
    two, three = Fake2(), Fake3()
    card(capability, flash_attn=two, flash_attn_interface=three)
    assert kernel(CPU, dtype, channels).name == name
    given = qkv(dtype, channels=channels)
    error = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(attend(*given).double(), by_hand(*given), atol=error, rtol=error)
    assert (len(two.calls), len(three.calls)) == (name == "flash-attn 2", name == "flash-attn 3")


def test_without_flash_attention_sdpa_serves_and_says_so(card):
    card((9, 0))
    assert kernel(CPU, BF16, 128).name == "torch SDPA (no flash-attn is installed for compute capability 9.0)"
    torch.testing.assert_close(attend(*qkv()).double(), by_hand(*qkv()), atol=2e-2, rtol=2e-2)


def test_deterministic_algorithms_reach_the_kernel(card, monkeypatch):
    fake = Fake3()
    card((9, 0), flash_attn_interface=fake)
    attend(*qkv())
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    attend(*qkv())
    assert fake.calls == [False, True]


@torch.no_grad()
def test_a_whole_rollout_keeps_to_the_kernels_rules(card):
    """What the layers and the cache hand over, in bf16: layout, types and contiguity as the fake demands."""
    cfg = tiny_config(chunks=4)
    student = randomise(CausalDiT(cfg)).to(BF16)
    cond, noise = conditioning(cfg), gaussian(cfg)

    def roll() -> torch.Tensor:
        return rollout(student, cond, noise, (1.0, 0.5), cfg.student, torch.Generator().manual_seed(0))

    expected, fake = roll(), Fake2()
    card((8, 0), flash_attn=fake)
    found = roll()
    # 4 chunks of 2 denoising passes with 2 attentions in each of 2 layers; 3 clean passes that stop at the last layer's keys
    assert len(fake.calls) == 4 * 2 * 2 * 2 + 3 * 2
    assert (found - expected).norm() / expected.norm() < 0.05


def operation(name: str) -> SimpleNamespace:
    """Stands for a torch._ops.OpOverload; hashable, as that is."""
    return type("Operation", (), {"name": lambda self: name})()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("aten::_scaled_dot_product_flash_attention", True),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", True),
        ("aten::_scaled_dot_product_efficient_attention", True),
        ("aten::_scaled_dot_product_cudnn_attention", True),
        ("aten::_scaled_dot_product_flash_attention_backward", False),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", False),
        ("flash_attn::_flash_attn_forward", True),
        ("flash_attn::_flash_attn_backward", False),
        ("flash_attn_3::fwd", True),
        ("flash_attn_3::_flash_attn_forward", True),
        ("flash_attn_3::bwd", False),
        ("aten::mm", False),
    ],
)
def test_the_operations_of_all_kernels_are_known_by_name(name, expected):
    assert is_attention(operation(name)) is expected
