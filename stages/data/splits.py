"""Ensures that both splits have real clips, once it is known which videos gave any."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from stages.contracts import StageError
from stages.records import Clip

TIME_HELDOUT_SHARE = 0.15  # of the clips, if only one source is left and the split must go by time


def settle_splits(clips: Sequence[Clip], log: Callable[[str], None]) -> list[Clip]:
    """Ensures that both splits hold real clips. If one source is left, its last clips are held out, which is logged.

    Variants of held-out clips, and training clips that overlap one in time, are dropped. Raises StageError without clips.
    """
    if not clips:
        raise StageError("no clip was made: every input was rejected (see the reasons above)")
    if len({c.split for c in clips}) == 2:
        return list(clips)
    if len({c.source for c in clips}) > 1:
        return _by_source(clips, log)
    plain = sorted((c for c in clips if not c.recipe), key=lambda c: (c.source, c.start_seconds))
    if len(plain) < 2:
        log(
            f"one real clip only ({plain[0].clip_id}): it is used for training; held-out scenes are cut from its middle frame"
        )
        return [replace(c, split="train") for c in clips]
    held = plain[-max(1, round(len(plain) * TIME_HELDOUT_SHARE)) :]
    log(f"one usable source only: its last {len(held)} of {len(plain)} clips are held out by time, not by source")
    out = [replace(c, split="heldout") for c in held]
    taken = {c.clip_id for c in held}
    for clip in clips:
        apart = all(clip.source != h.source or _apart(clip, h) for h in held)
        if clip.clip_id not in taken and apart:
            out.append(replace(clip, split="train"))
    return sorted(out, key=lambda c: c.clip_id)


def _by_source(clips: Sequence[Clip], log: Callable[[str], None]) -> list[Clip]:
    """Moves a whole source where all clips are in one split, because the sources of the other split gave none.

    The source with the fewest clips is held out, without its variants; all others train.
    """
    counts = Counter(c.source for c in clips)
    held = min(counts, key=lambda source: (counts[source], source))
    log(f"the sources chosen for one split gave no clip: {held} is held out, the other {len(counts) - 1} train")
    kept = [c for c in clips if c.source != held or not c.recipe]
    return [replace(c, split="heldout" if c.source == held else "train") for c in kept]


def _apart(a: Clip, b: Clip) -> bool:
    """Returns whether two clips of one source do not overlap in time."""
    tolerance = 1e-6
    return (
        a.start_seconds + a.clip_seconds <= b.start_seconds + tolerance
        or b.start_seconds + b.clip_seconds <= a.start_seconds + tolerance
    )
