"""Shows the progress of long work: items, rate, ETA and failures.

A Console receives lines and progress. It shows a bar on a terminal and prints plain lines elsewhere. A worker writes
events to a file, and the driver replays that file on its own console.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

from stages.contracts import Progress


class Console(Protocol):
    """Receives lines and progress."""

    def log(self, line: str) -> None: ...
    def progress(self, what: str, total: int) -> contextlib.AbstractContextManager[Progress]: ...


def duration(seconds: float) -> str:
    """Returns a duration as readable text: 0.4 s, 12 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Count:
    """Counts the finished and failed items of a total, and formats them with the rate and ETA since the count began."""

    def __init__(self, what: str, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.what, self.total, self.clock = what, total, clock
        self.done = self.failed = 0
        self.note = ""
        self.started = clock()

    def add(self, done: int, failed: int, note: str) -> None:
        """Adds finished and failed items; an empty note keeps the previous one."""
        self.done += done
        self.failed += failed
        self.note = note or self.note

    def line(self) -> str:
        """Returns the progress as one line of text."""
        seconds = max(self.clock() - self.started, 1e-9)
        rate = (self.done + self.failed) / seconds
        left = max(self.total - self.done - self.failed, 0)
        text = f"{self.what}: {self.done + self.failed}/{self.total}, {_rate(rate)}"
        text += f", ETA {duration(left / rate)}" if rate and left else ""
        text += f", {self.failed} failed" if self.failed else ""
        return text + (f" | {self.note}" if self.note else "")


def _rate(per_second: float) -> str:
    return f"{per_second:.1f}/s" if per_second >= 0.1 else f"{per_second * 60:.1f}/min"


class PlainConsole:
    """Prints plain lines, for logs and pipes. A progress line appears at most every `every` seconds, and one at the
    end."""

    def __init__(self, stream: TextIO | None = None, every: float = 15.0) -> None:
        self.stream, self.every = stream, every

    def log(self, line: str) -> None:
        print(line, file=self.stream or sys.stdout, flush=True)

    @contextlib.contextmanager
    def progress(self, what: str, total: int) -> Iterator[Progress]:
        console, count = self, Count(what, total)

        class Lines:
            logged = count.started

            def advance(self, done: int = 1, failed: int = 0, note: str = "") -> None:
                count.add(done, failed, note)
                if count.clock() - self.logged >= console.every:
                    self.logged = count.clock()
                    console.log(count.line())

        yield Lines()
        if count.done + count.failed:
            console.log(count.line() + f", {duration(count.clock() - count.started)}")


class TerminalConsole:
    """Shows lines and a progress bar on a terminal, with rich."""

    def __init__(self) -> None:
        from rich.console import Console as RichConsole

        self.rich = RichConsole(highlight=False)

    def log(self, line: str) -> None:
        self.rich.print(line, markup=False)

    @contextlib.contextmanager
    def progress(self, what: str, total: int) -> Iterator[Progress]:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        count = Count(what, total)
        with RichProgress(BarColumn(28), TextColumn("{task.description}"), console=self.rich) as bars:
            bar = bars.add_task(count.line(), total=max(total, 1))

            class Bar:
                def advance(self, done: int = 1, failed: int = 0, note: str = "") -> None:
                    count.add(done, failed, note)
                    bars.update(bar, advance=done + failed, description=count.line())

            yield Bar()


def console() -> Console:
    """Returns a console with a bar where standard output is a terminal, with plain lines elsewhere."""
    return TerminalConsole() if sys.stdout.isatty() else PlainConsole()


class EventFile:
    """The console of a worker: it appends one JSON event per line to a file. Progress is written at most twice a
    second."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def _write(self, event: dict[str, Any]) -> None:
        with self._lock, open(self.path, "a", encoding="utf-8") as f:
            f.write(json.dumps(event) + "\n")

    def log(self, line: str) -> None:
        self._write({"log": line})

    @contextlib.contextmanager
    def progress(self, what: str, total: int) -> Iterator[Progress]:
        events = self
        events._write({"begin": what, "total": total})

        class Deltas:
            done = failed = 0
            note = ""
            written = 0.0

            def advance(self, done: int = 1, failed: int = 0, note: str = "") -> None:
                self.done, self.failed, self.note = self.done + done, self.failed + failed, note or self.note
                if time.monotonic() - self.written >= 0.5:
                    self.flush()

            def flush(self) -> None:
                if self.done or self.failed:
                    events._write({"advance": what, "done": self.done, "failed": self.failed, "note": self.note})
                self.done = self.failed = 0
                self.written = time.monotonic()

        meter = Deltas()
        try:
            yield meter
        finally:
            meter.flush()
            events._write({"end": what})


class SilentConsole:
    """Discards lines and progress, for ranks other than 0 and for tests."""

    def log(self, line: str) -> None:
        """Discards the line."""

    @contextlib.contextmanager
    def progress(self, what: str, total: int) -> Iterator[Progress]:
        class Nothing:
            def advance(self, done: int = 1, failed: int = 0, note: str = "") -> None:
                """Counts nothing."""

        yield Nothing()


class Replay:
    """Reads new events of a worker's file and shows them on `console`, until the `with` block ends.

    Events that the file holds already are skipped. every: seconds between reads.
    """

    def __init__(self, path: Path, console: Console, every: float = 0.3) -> None:
        self.path, self.console, self.every = path, console, every
        self._offset = path.stat().st_size if path.exists() else 0
        self._stop = threading.Event()
        self._open: dict[str, tuple[contextlib.ExitStack, Progress]] = {}
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Replay:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self._show_new()
        for stack, _ in self._open.values():
            stack.close()

    def _follow(self) -> None:
        while not self._stop.wait(self.every):
            self._show_new()

    def _show_new(self) -> None:
        if not self.path.exists():
            return
        with open(self.path, encoding="utf-8") as f:
            f.seek(self._offset)
            text = f.read()
        whole, newline, _ = text.rpartition("\n")
        self._offset += len((whole + newline).encode())
        for line in whole.splitlines():
            self._show(json.loads(line))

    def _show(self, event: dict[str, Any]) -> None:
        if "log" in event:
            self.console.log(event["log"])
        elif "begin" in event:
            self._close(event["begin"])  # a restarted worker begins again
            stack = contextlib.ExitStack()
            meter = stack.enter_context(self.console.progress(event["begin"], event["total"]))
            self._open[event["begin"]] = (stack, meter)
        elif "advance" in event and event["advance"] in self._open:
            self._open[event["advance"]][1].advance(event["done"], event["failed"], event["note"])
        elif "end" in event:
            self._close(event["end"])

    def _close(self, what: str) -> None:
        if what in self._open:
            self._open.pop(what)[0].close()


@dataclass
class Counts:
    """The numbers of items that one stage of a graph received (met), finished and failed, and the seconds of work on
    them."""

    met: int = 0
    done: int = 0
    failed: int = 0
    seconds: float = 0.0


@dataclass
class Tally:
    """The counts of all stages of a graph, kept in an actor. If the actor dies they restart at zero, because they are
    only displayed."""

    operators: int
    counts: list[Counts] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = [Counts() for _ in range(self.operators)]

    def add(self, operator: int, failed: bool, next_items: int, seconds: float) -> None:
        self.counts[operator].seconds += seconds
        self.counts[operator].done += not failed
        self.counts[operator].failed += failed
        if operator + 1 < self.operators:
            self.counts[operator + 1].met += next_items

    def read(self) -> list[Counts]:
        return self.counts
