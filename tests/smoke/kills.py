"""`make data` under fire: its driver, and workers and actors at work, are killed at random moments until the shards are there.

python -m tests.smoke.kills [rounds] [kills] repeats it (`make kill-test`).
"""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from itertools import cycle
from pathlib import Path

import cv2
import numpy as np
import psutil

from stages.data.files import write_mp4

ROOT = Path(__file__).resolve().parents[2]
VIDEOS, SECONDS, FPS = 16, 3.0, 24
# Of Ray's process titles, those of ours: a worker on an item, an actor on an item, the actor that counts them.
TITLES = {"worker": ("(run_row)", "(advance)"), "actor": ("submit",), "tally": ("Tally",)}
KINDS = ("driver", *TITLES)
# Whom a command loses, by the kind of its workers; with the driver it ends, and the next one has the other kind.
WAVES = {"auto": ("worker",) * 4 + ("driver",), "actors": ("actor", "tally", "actor", "actor", "driver")}
HANG_SECONDS = 900  # without one more finished item, a process to kill, or the end: not slow, but stuck


def make_videos(folder: Path, count: int = VIDEOS) -> Path:
    """Textures that pan, each its own: five clips each at the debug preset."""
    folder.mkdir(parents=True)
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 256, (14, 30, 3)).astype(np.uint8)
        texture = cv2.resize(noise, (300, 140), interpolation=cv2.INTER_CUBIC)
        shifts = range(int(SECONDS * FPS))
        write_mp4(folder / f"film-{number:02d}.mp4", np.stack([texture[:96, s : s + 128] for s in shifts]), FPS)
    return folder


def command(src: Path, runs: Path, executor: str, pool: str = "auto") -> list[str]:
    words = [sys.executable, "-m", "pipelines", "data", "--preset", "debug", "--src", str(src), "--runs", str(runs)]
    return [*words, f"compute.executor={executor}", f"compute.pool={pool}"]


def undisturbed(src: Path, runs: Path) -> int:
    """Does the same work in one process, without Ray, and returns the number of its items."""
    subprocess.run(command(src, runs, "local"), cwd=ROOT, check=True, capture_output=True, timeout=4 * HANG_SECONDS)
    return finished(runs)


def finished(runs: Path) -> int:
    """Returns how many items of all stages are done."""
    return sum(1 for _ in runs.rglob("item.json"))


def under_fire(src: Path, runs: Path, kills: int, items: int, seed: int) -> Counter[str]:
    """Runs the command again and again through so many kills, then to its end, and returns who was killed.

    items: how many the work has. A random number of them is finished between two kills, half of all at most, so that work is
    left to be killed at any speed of the machine. Only the command itself and processes that descend from it are killed.
    """
    moments, killed, waves = random.Random(seed), Counter[str](), cycle(WAVES)
    driver, wave, starts = None, (), 0
    while killed.total() < kills:
        if driver is None or driver.poll() is not None:
            assert driver is None or driver.returncode, f"done after {killed.total()} of {kills} kills"
            starts += 1
            assert starts <= kills, f"started {kills} times, with {killed.total()} kills"
            pool = next(waves)
            driver, wave = _start(src, runs, pool), WAVES[pool]
        _advance(driver, runs, moments.randint(0, max(1, items // (2 * kills))))
        victim = _find(driver, wave[0], moments)
        if victim is not None:
            victim.kill()
            killed[wave[0]] += 1
            wave = wave[1:]
            if not wave:
                driver.wait()
    for _ in range(3):  # a worker that was killed three times on one item gives it up: the same command tries again
        assert driver is not None
        _advance(driver, runs, items)
        if driver.wait() == 0:
            return killed
        driver = _start(src, runs, next(waves))
    raise AssertionError("the command does not come to its end")


def _advance(driver: subprocess.Popen[bytes], runs: Path, count: int) -> None:
    """Returns when `count` more items are finished, or the driver has ended. Items that are done already do not count, so for
    all of them it waits for the driver's end."""
    have, goal, changed = finished(runs), finished(runs) + count, time.monotonic()
    while driver.poll() is None and have < goal:
        time.sleep(0.05)
        now = finished(runs)
        changed = changed if now == have else time.monotonic()
        assert time.monotonic() - changed < HANG_SECONDS, f"no item finished for {HANG_SECONDS} s"
        have = now


def _start(src: Path, runs: Path, pool: str) -> subprocess.Popen[bytes]:
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command(src, runs, "ray", pool), cwd=ROOT, stdout=quiet, stderr=quiet)


def _find(driver: subprocess.Popen[bytes], kind: str, moments: random.Random) -> psutil.Process | None:
    """The driver itself, or one of its processes of this kind, as soon as there is one; None where the driver ended first."""
    if kind == "driver":
        return psutil.Process(driver.pid) if driver.poll() is None else None
    deadline = time.monotonic() + HANG_SECONDS
    while driver.poll() is None:
        assert time.monotonic() < deadline, f"no {kind} to kill for {HANG_SECONDS} s"
        found = [p for p in _family(driver.pid) if _is(kind, p)]
        if found:
            return moments.choice(found)
        time.sleep(0.05)
    return None


def _family(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _is(kind: str, process: psutil.Process) -> bool:
    """By the title that Ray gives its processes."""
    try:
        title = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return title.startswith("ray::") and any(part in title for part in TITLES[kind])


def results(runs: Path) -> dict[str, str]:
    """Path -> SHA-256 of everything in the pack: shards, indexes, catalogue, dead letters, card."""
    pack = runs / "debug" / "pack"
    files = (p for p in pack.rglob("*") if p.is_file() and p.name not in ("manifest.json", ".lock"))
    return {str(p.relative_to(pack)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def main(rounds: int = 5, kills: int = 20) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        src = make_videos(folder / "src")
        items = undisturbed(src, folder / "alone")
        expected = results(folder / "alone")
        print(f"undisturbed: {items} items, {len(expected)} files")
        for number in range(rounds):
            runs, started = folder / f"fire-{number}", time.monotonic()
            killed = under_fire(src, runs, kills, items, seed=number)
            same = results(runs) == expected
            print(f"round {number}: {dict(killed)}, {time.monotonic() - started:.0f} s, the same bytes: {same}")
            if not same:
                sys.exit("the results differ")


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
