"""Defines and loads the configuration.

Each group of settings is a frozen dataclass, defined next to the code that reads it. A preset states only the values
that differ from the defaults, and overrides are applied last. load() reports all mistakes at once: unknown keys, wrong
types, and the problems() of the groups.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.checks import problems_of
from configs.tree import Config

PRESETS = Path(__file__).resolve().parents[1] / "configs" / "preset"
FROM_COMMAND_LINE = ("preset", "runs", "src")  # set by --preset, --runs, --src
# Old name of a setting or group -> its present name. An old name is rejected with a message that gives the new one.
RENAMED: dict[str, str] = {
    "demo.strikes": "demo.max_invalid_messages",
    "dmd.teacher": "dmd.teacher_placement",
    "eval.long_run.beside": "eval.long_run.other_caches",
    **{f"{group}.steps": f"{group}.phase1_steps" for group in ("teacher", "phase1", "phase1_context")},
    **{
        f"{group}.observe_steps": f"{group}.validate_steps"
        for group in (
            "vae_training",
            "base",
            "phase1",
            "phase1_context",
            "tiny_base",
            "teacher",
            "adapt",
            "dmd",
            "tiny_vae",
        )
    },
}


class ConfigError(ValueError):
    """The error for a configuration with mistakes; its message lists all of them, one per line."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        lines = "".join(f"\n  {p}" for p in self.problems)
        count = len(self.problems)
        super().__init__(f"the configuration has {count} problem{'s' if count > 1 else ''}:{lines}")


def load(preset: str, overrides: Sequence[str] = (), src: str = "", runs: str = "runs", gpus: str = "") -> Config:
    """Returns the configuration of a preset with Hydra overrides. gpus: if not "", sets compute.gpus and
    compute.workers.

    Raises ConfigError with all mistakes, before anything starts.
    """
    problems: list[str] = []
    tree = _defaults()
    for origin, key, value in [*_preset_values(preset, problems), *_override_values(overrides, problems)]:
        _set(tree, origin, key, value, problems)
    OmegaConf.update(tree, "preset", preset)
    OmegaConf.update(tree, "src", src)
    OmegaConf.update(tree, "runs", runs)
    if gpus.isdecimal() and int(gpus):
        OmegaConf.update(tree, "compute.gpus", int(gpus))
        OmegaConf.update(tree, "compute.workers", int(gpus))
    elif gpus:
        problems.append(f"GPUS={gpus}: not a whole number of at least 1")
    config = _tuples(OmegaConf.to_object(tree), Config)
    problems += problems_of(config)
    if problems:
        raise ConfigError(problems)
    return config


def as_yaml(config: Config) -> str:
    """Returns the resolved configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def changed(config: Config) -> dict[str, Any]:
    """Returns the settings that differ from the defaults, by dotted key: those of the preset and of the command line."""
    defaults = dict(_leaves(asdict(Config()), ""))
    return {key: value for key, value in _leaves(asdict(config), "") if value != defaults.get(key)}


def preset_names() -> list[str]:
    """Returns the names of all presets, sorted."""
    return sorted(p.stem for p in PRESETS.glob("*.yaml"))


def _defaults() -> DictConfig:
    tree = OmegaConf.structured(Config)
    _unfreeze(tree)
    OmegaConf.set_struct(tree, True)
    return tree


def _unfreeze(tree: DictConfig) -> None:
    """Makes a tree writable, because OmegaConf turns frozen dataclasses into read-only nodes."""
    OmegaConf.set_readonly(tree, False)
    for key in tree:
        child = tree._get_node(key)
        if isinstance(child, DictConfig):
            _unfreeze(child)


def _preset_values(preset: str, problems: list[str]) -> list[tuple[str, str, Any]]:
    """Returns (file, dotted key, value) of every leaf of the preset's file."""
    if preset not in preset_names():
        problems.append(f"preset: {preset!r} does not exist; there are {', '.join(preset_names())}")
        return []
    return [(f"configs/preset/{preset}.yaml", key, value) for key, value in preset_leaves(preset)]


def preset_leaves(preset: str) -> list[tuple[str, Any]]:
    """Returns (dotted key, value) of every leaf of a preset's file."""
    loaded = OmegaConf.to_container(OmegaConf.load(PRESETS / f"{preset}.yaml")) or {}
    assert isinstance(loaded, dict)
    return list(_leaves(loaded, ""))


def _leaves(tree: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _override_values(overrides: Sequence[str], problems: list[str]) -> list[tuple[str, str, Any]]:
    """Returns (text, dotted key, value) of overrides in Hydra's grammar, without adding, deleting and sweeping."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser, found = OverridesParser.create(), []
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            problems.append(f"{text}: not key=value ({str(error).splitlines()[0]})")
            continue
        key = override.key_or_group
        if override.is_add() or override.is_delete() or override.is_sweep_override():
            problems.append(f"{text}: only key=value is understood here, without +, ~ and sweeps")
        elif key in FROM_COMMAND_LINE:
            problems.append(f"{text}: set it with --{key} (make: {key.upper()}=...)")
        else:
            found.append((text, key, override.value()))
    return found


def _set(tree: DictConfig, origin: str, key: str, value: Any, problems: list[str]) -> None:
    """Sets one key of the tree, or appends the mistake to `problems`."""
    where = origin if origin.startswith(key) else f"{origin}: {key}"
    known = dict(_known(Config, ""))
    if renamed := _renamed(key):
        problems.append(f"{origin}: {key} is now called {renamed}")
    elif key not in known:
        problems.append(f"{where}: unknown key{_meant(key, list(known))}")
    elif known[key] and isinstance(value, Mapping):
        for inner, part in _leaves(value, f"{key}."):
            _set(tree, origin, inner, part, problems)
    elif known[key]:
        problems.append(f"{where}: {key} is a group of settings; set one of them, as in {_example(key, list(known))}")
    elif (length := _fixed_length(key)) and not (isinstance(value, (list, tuple)) and len(value) == length):
        problems.append(f"{where}: {value} is not a list of {length} values")
    else:
        try:
            OmegaConf.update(tree, key, value)
        except OmegaConfBaseException as error:
            problems.append(f"{where}: {str(error).splitlines()[0]}")


def _renamed(key: str) -> str:
    """Returns the present name of a setting that was renamed, itself or with its group; "" for any other key."""
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        if new := RENAMED.get(".".join(parts[:end])):
            return ".".join([new, *parts[end:]])
    return ""


def _known(kind: type, prefix: str) -> Iterator[tuple[str, bool]]:
    """Yields (dotted key, whether it is a group) for every field of a config dataclass, groups before their fields."""
    hints = get_type_hints(kind)
    for f in fields(kind):
        group = is_dataclass(hints[f.name])
        yield f"{prefix}{f.name}", group
        if group:
            yield from _known(hints[f.name], f"{prefix}{f.name}.")


def _fixed_length(key: str) -> int:
    """Returns the number of values of a key of type tuple[X, Y], and 0 for any other type and for tuples of any
    length."""
    hint: Any = Config
    for part in key.split("."):
        hint = get_type_hints(hint)[part]
    if get_origin(hint) is not tuple or Ellipsis in get_args(hint):
        return 0
    return len(get_args(hint))


def _meant(key: str, known: Sequence[str]) -> str:
    """Returns a hint with the nearest known keys, first those with the same last part; "" if there are none."""
    same = [k for k in known if k.rpartition(".")[2] == key.rpartition(".")[2]]
    near = [*same, *difflib.get_close_matches(key, known, n=3, cutoff=0.6)]
    unique = list(dict.fromkeys(near))[:3]
    return f"; did you mean {' or '.join(unique)}?" if unique else ""


def _example(group: str, known: Sequence[str]) -> str:
    return next((k for k in known if k.startswith(f"{group}.")), group) + "=..."


def _tuples(value: Any, hint: Any) -> Any:
    """Returns `value` with tuples in place of the lists that OmegaConf makes of them, as the type `hint` declares."""
    if is_dataclass(value) and not isinstance(value, type):
        hints = get_type_hints(type(value))
        made = {f.name: _tuples(vars(value)[f.name], hints[f.name]) for f in fields(value)}
        return type(value)(**made)
    if get_origin(hint) in (Union, types.UnionType):
        inner = [h for h in get_args(hint) if h is not type(None)]
        return None if value is None else _tuples(value, inner[0])
    if get_origin(hint) is tuple and isinstance(value, list):
        return tuple(_tuples(v, get_args(hint)[0]) for v in value)
    return value
