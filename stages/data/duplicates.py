"""Finds clips of different videos that show the same, by their perceptual hashes (stages.data.quality).

Legend: n hashes of 192 bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from stages.records import Clip

HASH_BITS = 192
PLAIN_BITS = 12  # a hash with fewer ones or zeros is that of a uniform picture, which unlike clips share


def duplicates(clips: Sequence[Clip], max_bits: int) -> dict[str, str]:
    """Finds duplicates among real clips (no variants) of different scenes: clip_id -> the clip_id that is kept in its place.

    Two clips are duplicates if their hashes differ in at most max_bits; -1 finds none. Clips are taken in a fixed order,
    held-out ones first so that training shows nothing of them, then by id; each is kept unless it is a duplicate of one kept
    before. Clips without a hash, and uniform pictures, have no duplicates.
    """
    plain = [c for c in clips if c.kind == "real" and not c.recipe and c.phash]
    if max_bits < 0 or not plain:
        return {}
    plain.sort(key=lambda c: (c.split != "heldout", c.clip_id))
    hashes, index = np.unique(unpack([c.phash for c in plain]), axis=0, return_inverse=True)
    index = index.reshape(-1)
    ones = np.unpackbits(hashes, axis=1).sum(axis=1)
    telling = (ones >= PLAIN_BITS) & (ones <= HASH_BITS - PLAIN_BITS)
    like: dict[int, list[int]] = {}
    for a, b in near(hashes, max_bits).tolist():
        like.setdefault(a, []).append(b)
        like.setdefault(b, []).append(a)
    first: dict[int, int] = {}  # hash -> the first clip kept of it: all that are kept of one hash are of one scene
    out = {}
    for rank, clip in enumerate(plain):
        mine = int(index[rank])
        if not telling[mine]:
            continue
        kept = (first[h] for h in (mine, *like.get(mine, ())) if h in first)
        winner = min((k for k in kept if plain[k].scene != clip.scene), default=None)
        if winner is None:
            first.setdefault(mine, rank)
        else:
            out[clip.clip_id] = plain[winner].clip_id
    return out


def unpack(phashes: Sequence[str]) -> np.ndarray:
    """Decodes hexadecimal hashes: n 24 uint8. Raises ValueError if one does not have 192 bits."""
    for text in phashes:
        if len(text) != HASH_BITS // 4:
            raise ValueError(f"perceptual hash {text!r} has not {HASH_BITS // 4} hexadecimal digits")
    return np.frombuffer(bytes.fromhex("".join(phashes)), np.uint8).reshape(-1, HASH_BITS // 8)


def near(hashes: np.ndarray, max_bits: int) -> np.ndarray:
    """Returns the pairs of hashes (n 24 uint8, unique) that differ in at most max_bits: k 2 int, each once.

    Such a pair is equal in at least one of max_bits + 1 bands of bits (pigeonhole), so only hashes equal in a band are
    compared.
    """
    bits = np.unpackbits(hashes, axis=1)
    words = np.ascontiguousarray(hashes).view(np.uint64)
    found = [np.empty((0, 2), np.int64)]
    for band in range(max_bits + 1):
        # Every (max_bits + 1)th bit, at most 64: neighbouring bits are often alike, which would fill few buckets.
        packed = np.packbits(bits[:, band :: max_bits + 1][:, :64], axis=1)
        keys = np.pad(packed, ((0, 0), (0, 8 - packed.shape[1]))).view(np.uint64)[:, 0]
        for a, b in _alike(keys):
            close = np.bitwise_count(words[a] ^ words[b]).sum(axis=1) <= max_bits
            found.append(np.stack([np.minimum(a, b)[close], np.maximum(a, b)[close]], axis=1))
    return np.unique(np.concatenate(found), axis=0)


def _alike(keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields every pair of equal keys (n) as two arrays of indices, in as many parts as the largest bucket has members."""
    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    left, shift = np.arange(len(keys)), 0
    while True:
        shift += 1
        left = left[left + shift < len(keys)]
        left = left[ranked[left] == ranked[left + shift]]
        if not len(left):
            return
        yield order[left], order[left + shift]
