"""Every default, against defaults.json: a changed default must be meant. To accept: python -m tests.golden.test_defaults."""

from __future__ import annotations

import json
from pathlib import Path

from omegaconf import OmegaConf

from configs.settings import Config

GOLDEN = Path(__file__).with_name("defaults.json")


def defaults() -> dict[str, object]:
    """Dotted key -> default."""
    out: dict[str, object] = {}

    def walk(tree: object, prefix: str) -> None:
        if isinstance(tree, dict):
            for key, value in tree.items():
                walk(value, f"{prefix}.{key}" if prefix else str(key))
        else:
            out[prefix] = tree

    walk(OmegaConf.to_container(OmegaConf.structured(Config)), "")
    return out


def differences(now: dict[str, object], golden: dict[str, object]) -> list[str]:
    keys = sorted({*now, *golden})
    return [f"{k}: {golden.get(k)} -> {now.get(k)}" for k in keys if now.get(k, ...) != golden.get(k, ...)]


def test_no_default_has_changed_unnoticed():
    found = differences(defaults(), json.loads(GOLDEN.read_text()))
    assert not found, "changed defaults (if meant: python -m tests.golden.test_defaults): " + "; ".join(found)


def test_a_planted_wrong_default_is_caught():
    now = defaults()
    assert differences({**now, "dmd.critic_lr": -1.0}, now) == [f"dmd.critic_lr: {now['dmd.critic_lr']} -> -1.0"]
    missing = {k: v for k, v in now.items() if k != "student.sink"}
    assert differences(missing, now) == [f"student.sink: {now['student.sink']} -> None"]


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(defaults(), indent=0, sort_keys=True) + "\n")
