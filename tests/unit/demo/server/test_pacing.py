"""The pacer, in simulated time: chunks arrive shortly before they are needed, over any network, at the clip's fps."""

from __future__ import annotations

import random

import pytest

from demo.server.pacing import Pacer

SECONDS = 0.25  # that a chunk plays


def simulate(cost, one_way: float, chunks: int = 200, margin: float = 0.03, drift: float = 1.0, greedy: bool = False):
    """Per chunk: how long it waited at the client, and when it was shown. cost(k): seconds of generation. drift: of the
    client's clock. greedy: it acknowledges what it has not shown."""
    pacer, now, ends, out = Pacer(margin), 0.0, 0.0, []
    for k in range(chunks):
        begun = max(now, pacer.due)
        sent = begun + cost(k)
        pacer.sent(begun, sent, SECONDS)
        arrived = sent + one_way
        shown = arrived if greedy else max(arrived, ends)
        ends = shown + SECONDS * drift
        now = shown + one_way
        pacer.acknowledged(now, shown - arrived)
        out.append((shown - arrived, shown))
    return out


@pytest.mark.parametrize("one_way", [0.0, 0.02, 0.05])
@pytest.mark.parametrize("drift", [0.9999, 1.0001])
def test_chunks_come_just_in_time(one_way, drift):
    dice = random.Random(0)
    played = simulate(lambda k: 0.08 + 0.02 * dice.random(), one_way, drift=drift)[20:]
    waits = [w for w, _ in played]
    assert min(waits) > 0, "the picture stood still"
    assert max(waits) < 0.03 + 0.03, "chunks lie about, and what they show is old"
    rate = (played[-1][1] - played[0][1]) / (len(played) - 1)
    assert rate == pytest.approx(SECONDS * drift, rel=2e-3)


def test_one_slow_chunk_changes_little():
    played = simulate(lambda k: 2.0 if k == 50 else 0.1, 0.0)
    assert played[50][0] == 0
    assert all(w < 0.031 for w, _ in played[52:]), "one accident makes every later chunk early"


def test_a_machine_that_became_slower_is_believed():
    played = simulate(lambda k: 0.1 if k < 50 else 0.2, 0.0)
    assert all(w > 0 for w, _ in played[53:])


def test_a_machine_too_slow_for_the_fps_never_waits():
    played = simulate(lambda k: 0.4, 0.0)
    assert played[-1][1] == pytest.approx(200 * 0.4)


def test_who_acknowledges_at_once_is_held_to_the_fps():
    played = simulate(lambda k: 0.01, 0.0, greedy=True)[20:]
    rate = (played[-1][1] - played[0][1]) / (len(played) - 1)
    assert SECONDS * 0.99 < rate <= SECONDS


def test_a_pause_is_no_cost():
    pacer = Pacer(0.03)
    pacer.sent(0.0, 0.1, SECONDS)
    pacer.acknowledged(60.0, 0.0, measured=False)
    assert pacer.cost == 0


def test_after_a_restart_the_next_chunk_may_begin_at_once():
    pacer = Pacer(0.03)
    pacer.sent(0.0, 0.1, SECONDS)
    pacer.acknowledged(0.1, 0.0)
    assert pacer.due == pytest.approx(0.1 + SECONDS - 0.1 - 0.03)
    pacer.restart()
    assert pacer.due == float("-inf")
    assert pacer.cost == pytest.approx(0.1)
