"""Quality gates: thresholds that a real clip must pass to be used. Rendered clips need none.

Gates of the picture apply before tracking, which is costly; gates of the tracks after it. A variant is judged by its own
figures (a push-in moves where the clip it is made from does not), but is dropped with a clip that is a duplicate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stages.data.duplicates import HASH_BITS, duplicates
from stages.data.track import group_clips
from stages.records import Clip, Rejected

STAGE = "gates"  # of the clips dropped here, in the catalogue
DUPLICATE = "max_duplicate_bits"  # the setting of the gate that compares clips
MOST_DUPLICATE_BITS = 16  # more would make the search slow, and clips that differ equal


@dataclass(frozen=True)
class GateConfig:
    """Thresholds: each is the least or the most of one figure of the catalogue. 0 (or 1 for a share) turns a gate off.

    The defaults drop only what is of no use to anybody.
    """

    min_brightness: float = 0.04  # mean luma, 0 black to 1 white
    max_brightness: float = 0.98  # mean luma above which a clip is dropped
    min_sharpness: float = 0.0  # variance of the Laplacian of luma (0..255) at clip size, median over frames
    max_letterbox: float = 0.12  # share of the picture taken by black bars
    max_overlay: float = 1.0  # share of the picture under still text or logos while the rest moves
    min_moving_share: float = 0.0  # of tracks: those whose path while visible is longer than 2% of the frame's width
    min_moving_px: float = 0.0  # median path length, pixels at clip size
    min_visible_share: float = (
        0.05  # of tracks and frames; with Lucas-Kanade usable hand-held videos have as little as 0.1
    )
    max_back_px: float = 0.0  # mean forward-backward error of visible points; point trackers without that check pass
    max_duplicate_bits: int = (
        6  # of 192: clips of different videos whose hashes differ in no more are duplicates; -1 is off
    )

    def problems(self) -> list[str]:
        """Lists every inconsistency as 'gates.field: what is wrong and how to fix it'."""
        out = []
        for gate in GATES:
            limit = vars(self)[gate.setting]
            if not limit >= 0:
                out.append(f"gates.{gate.setting}: {limit} must be at least 0")
            elif gate.share and limit > 1:
                out.append(f"gates.{gate.setting}: {limit} is a share, it must be at most 1")
        if self.min_brightness >= self.max_brightness:
            out.append(
                f"gates.min_brightness: {self.min_brightness} must be below max_brightness {self.max_brightness}"
            )
        if not -1 <= self.max_duplicate_bits <= MOST_DUPLICATE_BITS:
            bits = self.max_duplicate_bits
            out.append(f"gates.max_duplicate_bits: {bits} must lie between -1 (off) and {MOST_DUPLICATE_BITS}")
        return out


@dataclass(frozen=True)
class Gate:
    """Describes one threshold.

    setting: the field of GateConfig, min_... or max_.... figure: the key of Clip.quality that it judges. words: the
    reason, which
    value and threshold follow. share: whether the figure lies between 0 and 1.
    """

    setting: str
    figure: str
    words: str
    share: bool = True

    def off(self, cfg: GateConfig) -> bool:
        """Returns whether the gate is turned off."""
        limit = vars(cfg)[self.setting]
        if self.setting.startswith("min_"):
            return limit == 0
        return limit == (1 if self.share else 0)

    def drops(self, quality: Mapping[str, float], cfg: GateConfig) -> bool:
        """Returns whether these figures fail the gate. A figure that is missing passes."""
        if self.figure not in quality or self.off(cfg):
            return False
        value, limit = quality[self.figure], vars(cfg)[self.setting]
        return value < limit if self.setting.startswith("min_") else value > limit

    def reason(self, quality: Mapping[str, float], cfg: GateConfig) -> str:
        """Returns why the gate drops the clip, with value and threshold."""
        side = "below" if self.setting.startswith("min_") else "above"
        return f"{self.words} {quality[self.figure]:.4g} is {side} {self.setting} {vars(cfg)[self.setting]:g}"


PICTURE = (
    Gate("min_brightness", "brightness", "too dark: mean luma"),
    Gate("max_brightness", "brightness", "too bright: mean luma"),
    Gate("min_sharpness", "sharpness", "blurred: variance of the Laplacian", share=False),
    Gate("max_letterbox", "letterbox", "black bars: their share of the picture"),
    Gate("max_overlay", "overlay", "text or logo: its share of the picture"),
)
TRACKS = (
    Gate("min_moving_share", "moving_share", "hardly moves: share of moving tracks"),
    Gate("min_moving_px", "moving_px", "hardly moves: median path in pixels", share=False),
    Gate("min_visible_share", "visible_share", "few visible tracks: visible share"),
    Gate("max_back_px", "back_px", "inexact tracks: forward-backward error in pixels", share=False),
)
GATES = (*PICTURE, *TRACKS)


def judge(clip: Clip, cfg: GateConfig) -> list[str]:
    """Lists why a clip is dropped, with value and threshold; empty if it passes. Only real clips are judged, by figures that
    they have; duplicates are `apply_gates`' task."""
    return [gate.reason(clip.quality, cfg) for gate in failed(clip, cfg)]


def picture_gates(clip: Clip, cfg: GateConfig) -> list[str]:
    """Lists why a clip is dropped by the gates of the picture, which are known before tracking."""
    return [gate.reason(clip.quality, cfg) for gate in failed(clip, cfg) if gate in PICTURE]


def track_gates(clip: Clip, cfg: GateConfig) -> list[str]:
    """Lists why a clip is dropped by the gates of the tracks."""
    return [gate.reason(clip.quality, cfg) for gate in failed(clip, cfg) if gate in TRACKS]


def failed(clip: Clip, cfg: GateConfig) -> list[Gate]:
    """Returns the gates that drop this clip."""
    return [gate for gate in GATES if gate.drops(clip.quality, cfg)] if clip.kind == "real" else []


def apply_gates(clips: Sequence[Clip], cfg: GateConfig) -> tuple[list[Clip], list[Rejected]]:
    """Returns (clips kept, in order; clips dropped, by id with all reasons). Duplicates are found among clips that pass
    the rest.

    It may be called before tracking and again after it: figures that do not exist yet pass.
    """
    rejected = [Rejected(c.clip_id, STAGE, "; ".join(reasons)) for c in clips if (reasons := judge(c, cfg))]
    dropped = {r.name for r in rejected}
    passed = [c for c in clips if c.clip_id not in dropped]
    copies = with_variants(passed, duplicates(passed, cfg.max_duplicate_bits))
    why = f"within {DUPLICATE} {cfg.max_duplicate_bits}"
    rejected += [Rejected(name, STAGE, f"duplicate of {kept} of another video, {why}") for name, kept in copies.items()]
    kept = [c for c in passed if c.clip_id not in copies]
    return kept, sorted(rejected, key=lambda r: r.name)


def with_variants(clips: Sequence[Clip], copies: Mapping[str, str]) -> dict[str, str]:
    """Adds to the duplicates (clip_id -> kept clip_id) the variants made from them, which show the same."""
    of_span = {(c.scene, c.start_seconds): copies[c.clip_id] for c in clips if c.clip_id in copies}
    variants = (c for c in clips if c.kind == "real" and c.recipe and (c.scene, c.start_seconds) in of_span)
    return {**copies, **{c.clip_id: of_span[c.scene, c.start_seconds] for c in variants}}


def thresholds(cfg: GateConfig) -> dict[str, str]:
    """Returns each gate's setting -> its threshold as text, "off" if it is turned off."""
    out = {g.setting: "off" if g.off(cfg) else f"{vars(cfg)[g.setting]:g}" for g in GATES}
    bits = cfg.max_duplicate_bits
    return {**out, DUPLICATE: "off" if bits < 0 else f"{bits} of {HASH_BITS}"}


def dropped_by(rejected: Sequence[Rejected]) -> dict[str, int]:
    """Returns each gate's setting -> how many of these clips it dropped, by their reasons."""
    reasons = [r.reason for r in rejected if r.stage == STAGE]
    return {name: sum(name in reason for reason in reasons) for name in (*(g.setting for g in GATES), DUPLICATE)}


def report(clips: Sequence[Clip], cfg: GateConfig) -> list[str]:
    """Returns the lines of a table: how many real clips each gate drops, how many only it drops ("alone"), and the 5th, 50th
    and 95th percentile of its figure."""
    real = [c for c in clips if c.kind == "real"]
    by_gate = {g.setting: {c.clip_id for c in real if g.drops(c.quality, cfg)} for g in GATES}
    by_gate[DUPLICATE] = set(with_variants(real, duplicates(real, cfg.max_duplicate_bits)))
    figures = {g.setting: g.figure for g in GATES} | {DUPLICATE: "phash"}
    rows: list[tuple[str, ...]] = [("gate", "figure", "threshold", "drops", "alone", "share", "5%", "50%", "95%")]
    for setting, limit in thresholds(cfg).items():
        values = [c.quality[figures[setting]] for c in real if figures[setting] in c.quality]
        spread = [f"{v:.4g}" for v in np.percentile(values, (5, 50, 95))] if values else ["none"] * 3
        rows.append((setting, figures[setting], limit, *_counts(by_gate, setting, len(real)), *spread))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    dropped = len(apply_gates(real, cfg)[1])
    return [*lines, f"all gates together drop {dropped} of {len(real)} real clips; rendered ones are not judged"]


def _counts(by_gate: Mapping[str, set[str]], setting: str, clips: int) -> tuple[str, str, str]:
    """Returns how many clips a gate drops, how many only it drops, and its share of all."""
    others = set().union(*(ids for name, ids in by_gate.items() if name != setting))
    mine = by_gate[setting]
    return str(len(mine)), str(len(mine - others)), f"{len(mine) / max(clips, 1):.1%}"


Judge = Callable[[Clip, GateConfig], list[str]]


def to_track(records: Sequence[Clip | Rejected], gates: GateConfig | None) -> list[tuple[Clip, ...]]:
    """Groups cut or rendered clips into items of TRACK, without those that a gate of the picture drops. gates: None for no
    gate.

    A dropped clip changes no group but its own.
    """
    return _groups(records, gates, picture_gates)


def to_encode(records: Sequence[Clip | Rejected], gates: GateConfig | None) -> list[tuple[Clip, ...]]:
    """Groups tracked clips into items of ENCODE, without those that a gate of the tracks drops. gates: None for no gate."""
    return _groups(records, gates, track_gates)


def _groups(records: Sequence[Clip | Rejected], gates: GateConfig | None, judge: Judge) -> list[tuple[Clip, ...]]:
    groups = group_clips(r for r in records if isinstance(r, Clip))
    passed = (tuple(c for c in group if gates is None or not judge(c, gates)) for group in groups)
    return [group for group in passed if group]


def dropped_by_gates(
    records: Sequence[Clip | Rejected], gates: GateConfig, judge: Judge
) -> tuple[list[Clip], list[Rejected]]:
    """Returns (clips that `judge` drops, the same as Rejected with all reasons)."""
    judged = [(r, judge(r, gates)) for r in records if isinstance(r, Clip)]
    dropped = [(clip, reasons) for clip, reasons in judged if reasons]
    return [clip for clip, _ in dropped], [Rejected(c.clip_id, STAGE, "; ".join(reasons)) for c, reasons in dropped]
