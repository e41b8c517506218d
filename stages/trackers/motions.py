"""Finds points that move together: affine motions in the paths of tracked points, by RANSAC over whole paths.

Objects and the camera move rigidly for the most part, so a few affine maps from the query frame explain most points. A map
fitted to many points is more exact than each of them, and predicts where an invisible point is.

Legend: T frames, n points. query n 2, xy T n 2, seen T n bool; maps ... 2 3 take query positions to positions at a frame.
"""

from __future__ import annotations

import numpy as np

SEEDS = 150  # points from which triples are drawn, spread evenly over the list
NEIGHBOURS = 9  # a triple is chosen among this many neighbours
FRAMES_JUDGED = 10  # frames on which triples are judged, evenly spread over the clip
AGREEING = 0.85  # share of the frames with a visible member that its motion must explain
FEWEST = 6  # members of a motion
MOST = 8  # motions


def apply_maps(maps: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Applies maps (... 2 3) to points n 2: ... n 2."""
    return xy @ np.swapaxes(maps[..., :2], -1, -2) + maps[..., None, :, 2]


def fit_maps(
    query: np.ndarray, xy: np.ndarray, weight: np.ndarray, towards: np.ndarray, ridge: float = 3.0
) -> np.ndarray:
    """Fits maps (... 2 3) by least squares: query n 2, xy ... n 2, weight ... n, towards ... 2 3.

    The linear part is regularised towards that of `towards` (ridge, px^2), which decides for points that lie close
    together or in a
    line. Without any weight the map is `towards` itself.
    """
    total = weight.sum(axis=-1)[..., None, None]
    share = weight[..., None] / np.maximum(total, 1e-9)
    middle, target = (share * query).sum(axis=-2), (share * xy).sum(axis=-2)
    away = query - middle[..., None, :]
    pull = np.swapaxes(weight[..., None] * away, -1, -2)
    spread = pull @ away + ridge * np.eye(2)
    moved = np.swapaxes(pull @ (xy - target[..., None, :]), -1, -2) + ridge * towards[..., :2]
    linear = moved @ np.linalg.inv(spread)
    shift = target - (linear @ middle[..., None])[..., 0]
    return np.where(total > 0, np.concatenate([linear, shift[..., None]], axis=-1), towards)


def path_maps(query: np.ndarray, xy: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fits one motion to its members' paths (weight T n): maps T 2 3, and whether a frame has 3 visible members, T."""
    still = np.broadcast_to(np.eye(2, 3), (len(xy), 2, 3))
    return fit_maps(query, xy, weight, still), (weight > 0).sum(axis=-1) >= 3


def find_motions(query: np.ndarray, xy: np.ndarray, seen: np.ndarray, tolerance: float) -> list[np.ndarray]:
    """Returns the members (n bool) of each motion, the largest first; no point is in two. tolerance: deviation of a member, px.

    A triple of neighbours proposes a map at every frame. The one that explains most points is fitted to all of them, these are
    removed, and the search is repeated.
    """
    support = _proposals(query, xy, seen, 2 * tolerance)
    free = np.ones(len(query), bool)
    found: list[np.ndarray] = []
    while len(found) < MOST and len(support):
        votes = (support & free).sum(axis=1)
        best = int(votes.argmax())
        if votes[best] < FEWEST:
            break
        members = support[best] & free
        for _ in range(3):
            wider = free & _explained(query, xy, seen, members, tolerance)
            if wider.sum() < FEWEST:
                break
            members = wider
        support[best] = False
        free &= ~members
        found.append(members)
    return sorted(found, key=lambda m: -int(m.sum()))


def _explained(
    query: np.ndarray, xy: np.ndarray, seen: np.ndarray, members: np.ndarray, tolerance: float
) -> np.ndarray:
    """Returns the points whose paths the members' motion explains, where both are known: n bool."""
    maps, known = path_maps(query, xy, (seen & members).astype(float))
    near = np.linalg.norm(apply_maps(maps, query) - xy, axis=-1) < tolerance
    both = seen & known[:, None]
    return ((near & both).sum(axis=0) >= AGREEING * both.sum(axis=0)) & (both.sum(axis=0) >= 3)


def _proposals(query: np.ndarray, xy: np.ndarray, seen: np.ndarray, tolerance: float) -> np.ndarray:
    """Returns the points that each triple of neighbours explains: h n bool. Frames are sampled; thin triples are left out."""
    if len(query) < FEWEST or len(xy) < 2:
        return np.zeros((0, len(query)), bool)
    seeds = np.unique(np.linspace(0, len(query) - 1, SEEDS).astype(int))
    gaps = np.linalg.norm(query[seeds, None] - query, axis=-1)
    near = np.argsort(gaps, axis=1, kind="stable")[:, 1 : NEIGHBOURS + 1]
    triples = []
    for second in (0, 1):
        side = query[near[:, second]] - query[seeds]
        others = query[near] - query[seeds, None]
        area = np.abs(side[:, None, 0] * others[..., 1] - side[:, None, 1] * others[..., 0])
        third = np.take_along_axis(near, area.argmax(axis=1)[:, None], axis=1)[:, 0]
        triples.append(np.stack([seeds, near[:, second], third], axis=1)[area.max(axis=1) > 4])
    triple = np.concatenate(triples)
    frames = np.unique(np.linspace(0, len(xy) - 1, FRAMES_JUDGED + 1).astype(int))
    corners = np.concatenate([query[triple], np.ones((len(triple), 3, 1))], axis=-1)
    weights = np.concatenate([query, np.ones((len(query), 1))], axis=-1) @ np.linalg.inv(corners)  # h n 3: barycentric
    error = weights.astype(np.float32) @ xy[frames][:, triple].astype(np.float32) - xy[frames][:, None]
    both = seen[frames][:, triple].all(axis=-1)[:, :, None] & seen[frames][:, None]
    close = ((error**2).sum(axis=-1) < tolerance**2) & both
    enough = both.sum(axis=0) >= np.maximum(3, 0.5 * seen[frames].sum(axis=0))
    return (close.sum(axis=0) >= AGREEING * both.sum(axis=0)) & enough
