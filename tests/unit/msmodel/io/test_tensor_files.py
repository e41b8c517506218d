"""Safetensors as they lie about: files, shards with and without an index, pipelines, the hub; and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from msmodel.io.tensor_files import FETCHED, located, open_tensors

TENSORS = {name: torch.full((2, 3), float(place)) for place, name in enumerate("abcdef")}


def write_shards(folder: Path, count: int = 3, stem: str = "w", index: bool = True) -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    weight_map = {}
    for n in range(count):
        part = dict(list(TENSORS.items())[n::count])
        file = f"{stem}-{n + 1:05d}-of-{count:05d}.safetensors"
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    if index:
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map


def read(path) -> dict[str, torch.Tensor]:
    files = open_tensors(path)
    return {name: files.read(name) for name in files.shapes}


def same(found) -> bool:
    return found.keys() == TENSORS.keys() and all(torch.equal(found[n], TENSORS[n]) for n in TENSORS)


@pytest.mark.parametrize("index", [True, False])
def test_shards_are_read_with_and_without_an_index(index, tmp_path):
    write_shards(tmp_path, index=index)
    assert same(read(tmp_path))
    assert open_tensors(tmp_path).shapes["a"] == (2, 3)


def test_one_file_is_read_by_its_name_or_its_folder(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors")
    assert same(read(tmp_path)) and same(read(tmp_path / "x.safetensors"))


def test_an_index_says_which_files_count(tmp_path):
    write_shards(tmp_path)
    save_file(TENSORS, tmp_path / "w.fp16.safetensors")
    assert same(read(tmp_path))
    (tmp_path / "w.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match="another file"):
        read(tmp_path)


def test_a_pipelines_folder_gives_its_transformer_and_track_head(tmp_path):
    write_shards(tmp_path / "transformer")
    (tmp_path / "track_head").mkdir()
    save_file({"track_head.bias": torch.zeros(2)}, tmp_path / "track_head" / "model.safetensors")
    (tmp_path / "vae").mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "vae" / "model.safetensors")
    found = open_tensors(tmp_path)
    assert found.shapes.keys() == {*TENSORS, "track_head.bias"}
    assert found.folder == tmp_path / "transformer"


@pytest.mark.parametrize("index", [True, False])
def test_a_missing_shard_is_named(index, tmp_path):
    write_shards(tmp_path, index=index)
    (tmp_path / "w-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match=r"shard missing: w-00002-of-00003\.safetensors"):
        open_tensors(tmp_path)


def test_tensors_of_the_index_that_no_shard_holds_are_named(tmp_path):
    weight_map = write_shards(tmp_path)
    text = json.dumps({"weight_map": weight_map | {"lost": "w-00001-of-00003.safetensors"}})
    (tmp_path / "w.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match="index names lost"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("text", ['{"weight', "[]", "{}"])
def test_a_damaged_index_is_named(text, tmp_path):
    write_shards(tmp_path)
    (tmp_path / "w.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"w\.safetensors\.index\.json: (damaged|holds no weight_map)"):
        open_tensors(tmp_path)


def test_two_indices_are_one_too_many(tmp_path):
    write_shards(tmp_path)
    write_shards(tmp_path, stem="v")
    with pytest.raises(ValueError, match="several indices"):
        open_tensors(tmp_path)


def test_a_truncated_shard_is_named(tmp_path):
    write_shards(tmp_path)
    file = tmp_path / "w-00003-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"w-00003-of-00003\.safetensors: damaged or truncated"):
        open_tensors(tmp_path)


def test_a_hub_id_is_fetched_but_for_what_is_not_the_transformer(tmp_path):
    save_file(TENSORS, tmp_path / "diffusion_pytorch_model.safetensors")
    asked = []

    def download(name, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        return str(tmp_path)

    assert located("some-one/Some.Model@v1", download) == tmp_path
    assert open_tensors("some-one/Some.Model", download).shapes.keys() == TENSORS.keys()
    assert asked == [("some-one/Some.Model", "v1", FETCHED), ("some-one/Some.Model", None, FETCHED)]


def test_what_is_fetched_leaves_out_text_encoders_and_pickles():
    from huggingface_hub.utils import filter_repo_objects

    files = [
        *("transformer/config.json", "transformer/diffusion_pytorch_model-00001-of-00003.safetensors"),
        *("transformer/diffusion_pytorch_model.safetensors.index.json", "model_index.json", "config.json"),
        *("diffusion_pytorch_model.safetensors", "model.safetensors", "track_head/model.safetensors"),
        *("text_encoder/model-00001-of-00005.safetensors", "vae/diffusion_pytorch_model.safetensors"),
        *(
            "models_t5_umt5-xxl-enc-bf16.pth",
            "Wan2.1_VAE.pth",
            "google/umt5-xxl/tokenizer.json",
            "transformer_2/a.json",
        ),
    ]
    assert list(filter_repo_objects(files, allow_patterns=FETCHED)) == files[:8]


def test_the_hubs_cache_serves_without_a_network(tmp_path, monkeypatch):
    import huggingface_hub

    folder = tmp_path / "models--some-one--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    write_shards(folder / "snapshots" / "abc" / "transformer")

    def cached_only(name, **kwargs):
        return huggingface_hub.snapshot_download(name, cache_dir=tmp_path, local_files_only=True, **kwargs)

    assert open_tensors("some-one/model", cached_only).shapes.keys() == TENSORS.keys()
    with pytest.raises(ValueError, match="cannot be fetched"):
        open_tensors("some-one/other", cached_only)


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("cannot find\nit"), OSError("no route to host")])
def test_without_a_network_it_says_what_to_download_and_how_to_name_it(error):
    def download(name, **kwargs):
        raise error

    with pytest.raises(ValueError) as stopped:
        open_tensors("Wan-AI/Wan2.2-TI2V-5B-Diffusers", download)
    logged = str(stopped.value)
    assert "hf download Wan-AI/Wan2.2-TI2V-5B-Diffusers --local-dir FOLDER" in logged
    assert "transformer/*.safetensors" in logged and str(error).splitlines()[0] in logged


def test_a_path_that_is_no_hub_id_is_never_asked_for(tmp_path):
    def download(name, **kwargs):
        raise AssertionError("asked")

    for source in (str(tmp_path / "none"), "a/b/c", tmp_path / "none", "none.safetensors"):
        with pytest.raises(ValueError, match="no safetensors weights"):
            open_tensors(source, download)
