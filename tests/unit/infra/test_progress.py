"""Progress as lines, and a worker's events on the driver's console."""

from __future__ import annotations

import io

from infra.progress import Count, EventFile, PlainConsole, Replay, duration


def test_durations_for_people():
    assert [duration(s) for s in (0.42, 12.4, 200, 7500)] == ["0.4 s", "12 s", "3 min 20 s", "2 h 5 min"]


def test_count_shows_rate_eta_and_failures():
    now = [0.0]
    count = Count("clips", 10, clock=lambda: now[0])
    now[0] = 2.0
    count.add(3, 1, "loss 0.5")
    assert count.line() == "clips: 4/10, 2.0/s, ETA 3.0 s, 1 failed | loss 0.5"


def test_plain_console_says_little_and_ends_with_the_total():
    stream = io.StringIO()
    with PlainConsole(stream, every=1000).progress("clips", 3) as progress:
        for _ in range(3):
            progress.advance()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("clips: 3/3")


def test_a_workers_events_are_shown_once_and_a_restart_begins_again(tmp_path):
    stream, path = io.StringIO(), tmp_path / "events.jsonl"
    EventFile(path).log("from an earlier attempt")
    with Replay(path, PlainConsole(stream, every=0), every=0.05):
        worker = EventFile(path)
        worker.log("hello")
        meter = worker.progress("steps", 4)
        meter.__enter__().advance(2)  # dies here
        with EventFile(path).progress("steps", 4) as progress:
            progress.advance(2, note="resumed")
            progress.advance(2)
    text = stream.getvalue()
    assert "earlier" not in text
    assert text.count("hello") == 1
    assert "steps: 4/4" in text
    assert "steps: 6/4" not in text


def test_half_a_line_waits_for_its_end(tmp_path):
    stream, path = io.StringIO(), tmp_path / "events.jsonl"
    replay = Replay(path, PlainConsole(stream))
    path.write_text('{"log": "ä"}\n{"log": "b')
    replay._show_new()
    assert stream.getvalue() == "ä\n"
    with open(path, "a") as f:
        f.write('"}\n')
    replay._show_new()
    assert stream.getvalue() == "ä\nb\n"
