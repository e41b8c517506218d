"""Names of a student's settings: cXsYwZ, with "a" for absolute rotary positions (Self Forcing's) and kN for N denoising steps:
c3s1w1, c3s1w1a, c3s1w1k2. Attention sees differences of positions only, so "a" changes nothing without a sink: the paper's
Self Forcing row, c3s0w6 with absolute positions, is c3s0w6.
"""

from __future__ import annotations

import copy
import re
from dataclasses import replace

from msmodel.cache import AbsoluteCache
from msmodel.causal import CausalDiT
from msmodel.config import StudentConfig

CACHE = re.compile(r"s\d+w\d+a?")  # sink, window and positions alone
SETTING = re.compile(r"c(\d+)s(\d+)w(\d+)(a?)(?:k(\d+))?")


def read_setting(name: str, own: StudentConfig) -> tuple[StudentConfig, bool]:
    """The student's setting that `name` means, and whether rotary positions are absolute. ValueError: not a name, or no
    chunk or no step in it."""
    found = SETTING.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} is no setting: write cXsYwZ, then `a` for absolute positions, then kN for N steps")
    chunk, sink, window, absolute, steps = found.groups()
    chosen = replace(own, chunk=int(chunk), sink=int(sink), window=int(window), steps=int(steps or own.steps))
    if chosen.chunk < 1 or chosen.steps < 1:
        raise ValueError(f"{name!r} has no chunk or no step")
    return chosen, bool(absolute)


def setting_name(cfg: StudentConfig) -> str:
    return f"c{cfg.chunk}s{cfg.sink}w{cfg.window}"


def with_positions(student: CausalDiT, absolute: bool) -> CausalDiT:
    """The student itself, or one that shares its weights and whose caches count absolute positions."""
    if not absolute:
        return student
    other = copy.copy(student)
    other.cache_type = AbsoluteCache
    return other
