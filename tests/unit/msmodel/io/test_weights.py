"""Weights on disk: round trips, errors that name what is wrong, atomic writes, backbones without motion control."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file, save_file

from msmodel.causal import CausalDiT
from msmodel.config import ModelConfig
from msmodel.dit import WanDiT
from msmodel.io.weights import (
    causal_from,
    load_student,
    load_teacher,
    load_weights,
    model_config,
    read_config,
    read_state,
    save_weights,
)
from tests.unit.msmodel.models import randomise, tiny_config


@pytest.fixture
def teacher():
    return randomise(WanDiT(tiny_config()))


def same(a, b) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def test_a_folder_is_enough_to_rebuild_the_model(teacher, tmp_path):
    save_weights(teacher, tmp_path / "new" / "folder", {"step": 7, "stage": "teacher"})
    loaded = load_teacher(tmp_path / "new" / "folder")
    assert type(loaded) is WanDiT
    assert loaded.cfg == teacher.cfg
    assert same(loaded, teacher)
    assert read_config(tmp_path / "new" / "folder")["meta"] == {"step": 7, "stage": "teacher"}
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == ["config.json", "model.safetensors"]


def test_a_student_starts_from_the_teacher_in_memory_or_from_disk(teacher, tmp_path):
    save_weights(teacher, tmp_path, {})
    for student in (causal_from(teacher), load_student(tmp_path)):
        assert type(student) is CausalDiT
        assert same(student, teacher)
    student = causal_from(teacher)
    with torch.no_grad():
        student.proj_out.weight.zero_()
    assert teacher.proj_out.weight.any()  # a copy, not a view


def test_half_precision_is_kept(teacher, tmp_path):
    save_weights(teacher.to(torch.bfloat16), tmp_path, {})
    assert load_teacher(tmp_path).proj_out.weight.dtype == torch.bfloat16
    wide = WanDiT(teacher.cfg)
    load_weights(wide, tmp_path)
    assert torch.equal(wide.proj_out.weight, teacher.proj_out.weight.float())


def test_errors_name_missing_unexpected_and_misshaped_tensors(teacher, tmp_path):
    save_weights(teacher, tmp_path, {})
    state = load_file(tmp_path / "model.safetensors")
    del state["proj_out.bias"]
    state["clip.weight"] = torch.zeros(1)
    state["track_head.bias"] = torch.zeros(9)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"1 missing: proj_out.bias; 1 unexpected: clip.weight; 1 mis-shaped: track_head"
    ):
        load_teacher(tmp_path)
    with pytest.raises(ValueError, match=r"track_head.bias \(9,\) should be \(3,\)"):
        load_weights(WanDiT(teacher.cfg), tmp_path, strict=False)


def test_not_strict_leaves_the_rest_alone(teacher, tmp_path):
    save_file({"proj_out.bias": torch.full((16,), 3.0), "other": torch.zeros(1)}, tmp_path / "part.safetensors")
    before = teacher.proj_out.weight.clone()
    load_weights(teacher, tmp_path / "part.safetensors", strict=False)
    assert (teacher.proj_out.bias == 3).all()
    assert torch.equal(teacher.proj_out.weight, before)


@pytest.mark.parametrize("kept", [0, 5, 0.5, 0.999])
def test_a_truncated_file_is_named(teacher, tmp_path, kept):
    save_weights(teacher, tmp_path, {})
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(kept * len(whole)) if kept < 1 else kept])
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged or truncated"):
        load_teacher(tmp_path)


def test_missing_or_damaged_files_are_named(teacher, tmp_path):
    with pytest.raises(ValueError, match=r"config\.json: missing"):
        load_teacher(tmp_path)
    with pytest.raises(ValueError, match="no safetensors"):
        load_weights(teacher, tmp_path / "nowhere.safetensors")
    with pytest.raises(ValueError, match="no safetensors"):
        read_state(tmp_path)
    save_weights(teacher, tmp_path, {})
    (tmp_path / "config.json").write_text('{"model": ')
    with pytest.raises(ValueError, match=r"config\.json: damaged"):
        load_teacher(tmp_path)


def test_a_failing_write_leaves_the_old_files(teacher, tmp_path):
    save_weights(teacher, tmp_path, {"step": 1})
    changed = randomise(WanDiT(teacher.cfg), seed=5)
    with pytest.raises(TypeError):
        save_weights(changed, tmp_path, {"step": object()})
    assert same(load_teacher(tmp_path), teacher)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_shards_are_read_together_and_may_not_overlap(teacher, tmp_path):
    state = {k: v.contiguous() for k, v in teacher.state_dict().items()}
    names = sorted(state)
    save_file({k: state[k] for k in names[:9]}, tmp_path / "a-00001-of-00002.safetensors")
    save_file({k: state[k] for k in names[9:]}, tmp_path / "a-00002-of-00002.safetensors")
    fresh = WanDiT(teacher.cfg)
    load_weights(fresh, tmp_path)
    assert same(fresh, teacher)
    save_file({names[0]: state[names[0]]}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="another file"):
        read_state(tmp_path)


def test_model_config_survives_json_and_refuses_other_versions():
    cfg = tiny_config()
    values = json.loads(json.dumps(asdict(cfg)))
    assert model_config(values) == cfg
    assert model_config(json.loads(json.dumps(asdict(ModelConfig())))) == ModelConfig()
    older = json.loads(json.dumps(values))
    del older["dit"]["clip_dim"]  # written before the field was
    assert model_config(older) == cfg
    values["dit"]["depth"] = 3
    with pytest.raises(ValueError, match=r"model\.dit: .*depth"):
        model_config(values)


def test_a_vae_like_module_has_no_model_sizes(tmp_path):
    save_weights(torch.nn.Linear(2, 2), tmp_path, {})
    with pytest.raises(ValueError, match="no model sizes"):
        load_teacher(tmp_path)
