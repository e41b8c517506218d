"""What goes on from one per-item stage of the data to the next: clips that the gates let through, in groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stages.data.gates import STAGE, GateConfig, picture_gates, track_gates
from stages.data.track import group_clips
from stages.records import Clip, Rejected

Judge = Callable[[Clip, GateConfig], list[str]]


def to_track(records: Sequence[Clip | Rejected], gates: GateConfig | None) -> list[tuple[Clip, ...]]:
    """Cut or rendered clips -> items of TRACK. gates: None lets all through. What comes of
    some items of the stage before does not depend on the others; a clip that is dropped changes no group but its own."""
    return _groups(records, gates, picture_gates)


def to_encode(records: Sequence[Clip | Rejected], gates: GateConfig | None) -> list[tuple[Clip, ...]]:
    """Tracked clips -> items of ENCODE; as `to_track`."""
    return _groups(records, gates, track_gates)


def _groups(records: Sequence[Clip | Rejected], gates: GateConfig | None, judge: Judge) -> list[tuple[Clip, ...]]:
    groups = group_clips(r for r in records if isinstance(r, Clip))
    passed = (tuple(c for c in group if gates is None or not judge(c, gates)) for group in groups)
    return [group for group in passed if group]


def turned_away(
    records: Sequence[Clip | Rejected], gates: GateConfig, judge: Judge
) -> tuple[list[Clip], list[Rejected]]:
    """(clips that the gate dropped, the same as rejected, with all reasons)."""
    judged = [(r, judge(r, gates)) for r in records if isinstance(r, Clip)]
    dropped = [(clip, reasons) for clip, reasons in judged if reasons]
    return [clip for clip, _ in dropped], [Rejected(c.clip_id, STAGE, "; ".join(reasons)) for c, reasons in dropped]
