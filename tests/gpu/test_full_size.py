"""The paper's smaller model at full size with random weights, for the first person with a card. Run by `make test-gpu`.

What is measured is printed and written to RUNS/gpu-bench.json: {gpu, capability, torch, git_sha, preset, attention, ...}.
At the preset of MS_GPU_PRESET (wan21-1.3b). DMD holds three models: it wants 80 GB.
"""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from configs.settings import load
from infra.context import RunContext
from infra.files import git_sha
from msmodel.attention import kernel
from msmodel.vae import fresh_vae
from tests.gpu import bodies

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
PRESET = os.environ.get("MS_GPU_PRESET", "wan21-1.3b")
GPU = torch.device("cuda")


@pytest.fixture(scope="module")
def bench():
    """Collects figures; written after every test, so that a later crash loses nothing."""
    model = load(PRESET).model
    head_dim = model.dit.dim // model.dit.heads
    figures: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "capability": list(torch.cuda.get_device_capability()),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "git_sha": git_sha(),
        "preset": PRESET,
        "attention": kernel(torch.device("cuda"), torch.bfloat16, head_dim).name,
    }
    file = Path(os.environ.get("RUNS", "runs")) / "gpu-bench.json"

    def add(name: str, values: Any) -> None:
        figures[name] = values
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(figures, indent=1) + "\n")
        print(f"\n{name}: {json.dumps(values)}  ({figures['gpu']}, {figures['attention']})")

    return model, add


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """A process group of one, so that trainings take DeepSpeed's bf16 engine. One for all: DeepSpeed holds on to it."""
    file = tmp_path_factory.mktemp("group") / "group"
    dist.init_process_group("nccl", init_method=f"file://{file}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def ctx(tmp_path, group):
    yield RunContext(workdir=tmp_path, seed=0, device=torch.device("cuda", torch.cuda.current_device()))
    gc.collect()  # engines and their hooks are cycles
    torch.cuda.empty_cache()


@pytest.mark.parametrize("stage", sorted(bodies.STAGES))
def test_one_step_of_each_stage(stage, ctx, bench):
    model, add = bench
    add(f"step/{stage}", bodies.STAGES[stage](model, ctx))


@pytest.mark.parametrize("decoded", [False, True])
def test_latency_and_throughput_of_the_student(decoded, bench):
    model, add = bench
    vae = fresh_vae(model.vae).to(GPU) if decoded else None
    add("student_with_vae" if decoded else "student", bodies.student_speed(model, GPU, vae, chunks=50, warmup=10))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", ["chunk", "clip"])
def test_flash_attention_equals_sdpa(size, dtype, bench):
    """A steady chunk against the cache, and the teacher's self-attention over a whole clip."""
    model, add = bench
    d, own = model.dit, model.student
    if kernel(GPU, dtype, d.dim // d.heads).flash is None:
        pytest.skip("flash-attn is not installed, or not for this card: pip install -e '.[flash]' --no-build-isolation")
    chunk = own.chunk * model.tokens_per_frame
    query, keys = (chunk, chunk * (own.sink + own.window + 1)) if size == "chunk" else (model.tokens, model.tokens)
    found = bodies.flash_against_sdpa(GPU, dtype, query, keys, d.heads, d.dim // d.heads, rounds=20)
    add(f"flash/{size}/{str(dtype).removeprefix('torch.')}", found)
    assert found["worst_difference"] < 2e-2  # both round to 8 (bf16) or 11 bits
