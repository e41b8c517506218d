"""Reads safetensors from a file, a folder of shards, a diffusers pipeline, or a model on Hugging Face's hub.

Only headers are read at first; tensors are read one by one. Nothing is unpickled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

EMBEDDED = "embedded:"  # "embedded:nano" is the transformer shipped in msmodel/assets/nano/dit
SHOWN = 5  # names listed in an error, of each kind
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")  # owner/name, and optionally @revision
FETCHED = [  # files of a hub repository: the transformer's weights and their configs, not text encoder, VAE or pickles
    "transformer/*.safetensors",
    "transformer/*.json",
    "track_head/*",
    "diffusion_pytorch_model*.safetensors",
    "diffusion_pytorch_model*.json",
    "model*.safetensors",
    "model*.json",
    "config.json",
]
SHARD = re.compile(r"(.*)-(\d+)-of-(\d+)\.safetensors")

Download = Callable[..., str]


@dataclass(frozen=True)
class TensorFiles:
    """Named tensors in files under `folder`. files, shapes: by name."""

    folder: Path
    files: Mapping[str, Path]
    shapes: Mapping[str, tuple[int, ...]]

    def read(self, name: str) -> Tensor:
        """Reads one tensor to the CPU."""
        with safe_open(self.files[name], framework="pt") as f:
            return f.get_tensor(name)


def located(source: Path | str, download: Download | None = None) -> Path:
    """Returns the local path of `source`: a folder or file, "embedded:NAME", or a hub id "owner/name".

    A hub id is downloaded, or found in the hub's local cache. download: replaces huggingface_hub.snapshot_download. A
    path that does not exist is returned unchanged.
    """
    text = str(source)
    if text.startswith(EMBEDDED):
        return Path(str(resources.files("msmodel") / "assets" / text.removeprefix(EMBEDDED) / "dit"))
    path = Path(source).expanduser()
    if isinstance(source, str) and not path.exists() and HUB_ID.fullmatch(source):
        return _fetched(source, download)
    return path


def _fetched(source: str, download: Download | None) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    name, _, revision = source.partition("@")
    get = download or huggingface_hub.snapshot_download
    try:
        return Path(get(name, revision=revision or None, allow_patterns=FETCHED))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{source}: there is no such folder or file here, and as a model of Hugging Face's hub it cannot be fetched "
            f"({first}). Where there is a network: `hf download {name} --local-dir FOLDER`, of which the transformer is "
            f"enough ({', '.join(FETCHED[:2])} or diffusion_pytorch_model*); then name FOLDER in place of {source}"
        ) from None


def open_tensors(folder_or_file: Path | str, download: Download | None = None) -> TensorFiles:
    """Opens a safetensors file or folder. Only the headers with the tensors' shapes are read.

    A folder's shards may have an index (*.safetensors.index.json) or none. Of a folder with a subfolder transformer/ (a
    diffusers pipeline) that one is read, and track_head/ next to it. Raises ValueError naming what is missing,
    truncated, damaged, or duplicated.
    """
    path = located(folder_or_file, download)
    folders = [path]
    if (path / "transformer").is_dir():
        folders = [path / "transformer", *[path / "track_head"] * (path / "track_head").is_dir()]
    files: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for folder in folders:
        for file in _files(folder):
            part = _header(file)
            if doubled := files.keys() & part.keys():
                raise ValueError(f"{file}: holds {some(doubled)}, which another file of {path} holds too")
            shapes |= part
            files |= dict.fromkeys(part, file)
        _check_index(folder, files)
    return TensorFiles(folders[0], files, shapes)


def _header(file: Path) -> dict[str, tuple[int, ...]]:
    """Returns shapes by name. The library compares the header with the file's length, so a truncated file is found here."""
    try:
        with safe_open(file, framework="pt") as f:
            return {name: tuple(f.get_slice(name).get_shape()) for name in f.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: damaged or truncated ({error}); copy or make it again") from error


def _files(path: Path) -> list[Path]:
    """Returns the weight files of a folder (those of its index where it has one), or the file itself."""
    if path.is_file():
        return [path]
    index = _index(path)
    files = sorted({path / name for name in index.values()}) if index else sorted(path.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{path}: no safetensors weights there; check the path, or make them again")
    missing = [f for f in files if not f.is_file()]
    for file in files:
        if shard := SHARD.fullmatch(file.name):
            stem, width, count = shard[1], len(shard[2]), int(shard[3])
            all_of_them = (path / f"{stem}-{n:0{width}d}-of-{shard[3]}.safetensors" for n in range(1, count + 1))
            missing += [f for f in all_of_them if not f.is_file()]
    if missing:
        names = some({f.name for f in missing})
        raise ValueError(f"{path}: shard missing: {names}; the weights are not whole: copy or download it again")
    return files


def _index(folder: Path) -> dict[str, str]:
    """Returns name of tensor -> name of file, from the folder's index; empty without one."""
    found = sorted(folder.glob("*.safetensors.index.json"))
    if not found:
        return {}
    if len(found) > 1:
        raise ValueError(f"{folder}: several indices, {some({f.name for f in found})}: keep the one to be read")
    values = read_json(found[0])
    weight_map = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{found[0]}: holds no weight_map, so it is no index of shards")
    return weight_map


def _check_index(folder: Path, files: Mapping[str, Path]) -> None:
    if not folder.is_dir():
        return
    lost = {n for n, file in _index(folder).items() if files.get(n) != folder / file}
    if lost:
        raise ValueError(f"{folder}: the index names {some(lost)}, which its shards do not hold; copy them again")


def read_json(path: Path) -> Any:
    """Returns the JSON in a file. Raises ValueError where it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path}: missing, so the sizes of the model are unknown") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: damaged ({error})") from error


def some(names: Any) -> str:
    """Returns the first few of a set of names, as text."""
    return listed(sorted(names))


def listed(items: list[str]) -> str:
    more = len(items) - SHOWN
    return ", ".join(items[:SHOWN]) + (f" and {more} more" if more > 0 else "")
