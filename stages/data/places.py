"""Where a path leads: the local disk, or an address (s3://...) that `Files` reads for the stages."""

from __future__ import annotations

import codecs
import errno
import glob
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from stages.contracts import StageError
from stages.records import Rejected

MAGIC = re.compile(r"[*?[]")


class Files(Protocol):
    """Files behind addresses. A file's stamp changes when its content may have.

    What is gone or forbidden comes back as an OSError in the value's place. ValueError, with how to mend it, where the
    whole address is of no use or an error may pass (credentials, network, a package that is not installed).
    """

    def listing(self, address: str) -> Mapping[str, str]:
        """Every file below a folder, matching a glob, or the file itself: address -> stamp. At least one."""
        ...

    def look(self, addresses: Sequence[str]) -> Mapping[str, str | OSError]:
        """address -> stamp, without reading the files."""
        ...

    def read(self, addresses: Sequence[str]) -> Mapping[str, bytes | OSError]:
        """Whole small files: captions, lists and tables."""
        ...


@dataclass(frozen=True)
class Places:
    """The local disk and, through `remote`, what lies behind addresses. None: the local disk alone."""

    remote: Files | None = None

    def behind(self, address: str) -> Files:
        """Raises StageError where addresses cannot be read here."""
        if self.remote is None:
            raise StageError(f"{address}: addresses cannot be read here: give a local path")
        return self.remote

    def look(self, paths: Iterable[str]) -> dict[str, str | OSError]:
        """path -> stamp, or why it is no readable file."""
        local, remote = _parted(paths)
        found = {path: _stamp(path) for path in local}
        return {**found, **self.behind(remote[0]).look(remote)} if remote else found

    def read(self, paths: Iterable[str]) -> dict[str, bytes | OSError]:
        local, remote = _parted(paths)
        found = {path: _content(path) for path in local}
        return {**found, **self.behind(remote[0]).read(remote)} if remote else found


def is_address(path: str) -> bool:
    return re.match(r"[a-z][a-z0-9+.-]*://", path) is not None


def is_glob(src: str) -> bool:
    """A local name that is there counts as itself, whatever characters it has; a web address may hold a query's "?"."""
    if is_address(src):
        return ("*" in src) if src.startswith("http") else MAGIC.search(src) is not None
    return MAGIC.search(src) is not None and not os.path.lexists(os.path.expanduser(src))


def base_folder(src: str) -> str:
    """The folder that names are relative to: of a glob the part before its first wildcard, else src itself."""
    if not is_glob(src):
        return src.rstrip("/") or "/"
    head = MAGIC.split(src, maxsplit=1)[0]
    return head.rpartition("/")[0] or ("/" if head.startswith("/") else ".")


def joined(base: str, path: str) -> str:
    """path, taken from the folder `base` where it is relative. Either may be an address."""
    if is_address(path):
        return path
    path = path.removeprefix("file://")
    if is_address(base) and not path.startswith(("/", "~")):
        return f"{base.rstrip('/')}/{path.removeprefix('./')}"
    return str(Path(base).expanduser() / Path(path).expanduser())


def decoded(data: bytes) -> tuple[str, str]:
    """(text, note): UTF-8 with or without a byte order mark, else UTF-16 that has one, Windows-1252 or Latin-1, which the note
    then says."""
    wide = [("utf-16", "UTF-16")] if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else []
    for encoding, note in (*wide, ("utf-8-sig", ""), ("cp1252", "Windows-1252")):
        try:
            return data.decode(encoding), f"not UTF-8, read as {note}" if note else ""
        except UnicodeDecodeError:
            continue
    return data.decode("latin-1"), "not UTF-8, read as Latin-1"


def walk(folder: Path, root: Path) -> tuple[list[str], list[Rejected]]:
    """All files below folder, sorted, links to folders not followed. Rejected: folders that cannot be listed, what is no
    regular file (a pipe would be waited on for ever), names that are not UTF-8 (they fit no catalogue)."""
    files: list[str] = []
    rejected: list[Rejected] = []
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda e: e.name)
    except OSError as e:
        name = str(folder.relative_to(root)) if folder != root else str(root)
        return [], [Rejected(name + os.sep, "sources", f"folder cannot be listed: {e.strerror}")]
    for entry in entries:
        reason = _unusable(entry)
        if reason:
            rejected.append(Rejected(_shown(entry.path, root), "sources", reason))
        elif entry.is_dir(follow_symlinks=False):
            more, bad = walk(Path(entry.path), root)
            files += more
            rejected += bad
        else:
            files.append(entry.path)
    return files, rejected


def matching(pattern: str) -> tuple[list[str], list[Rejected]]:
    """Local files that a glob matches (** for any depth), sorted; folders among them are passed over."""
    pattern = os.path.expanduser(pattern)
    base = Path(base_folder(pattern))
    paths = sorted(p for p in glob.iglob(pattern, recursive=True) if not os.path.isdir(p))
    bad = [p for p in paths if not _is_utf8(p)]
    rejected = [Rejected(_shown(p, base), "sources", "its name is not UTF-8: rename it") for p in bad]
    return [p for p in paths if _is_utf8(p)], rejected


def _unusable(entry: os.DirEntry[str]) -> str:
    """Why a folder's entry is not even looked at; "" where it is."""
    if not _is_utf8(entry.name):
        return "its name is not UTF-8: rename it"
    if entry.is_dir(follow_symlinks=False) or entry.is_file() or not os.path.exists(entry.path):
        return ""  # a broken link is listed when it is opened
    return "a link to a folder: give that folder itself" if entry.is_dir() else "a pipe, socket or device, no file"


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(path: str, root: Path) -> str:
    return os.fsencode(os.path.relpath(path, root)).decode(errors="backslashreplace")


def _parted(paths: Iterable[str]) -> tuple[list[str], list[str]]:
    local: list[str] = []
    remote: list[str] = []
    for path in paths:
        (remote if is_address(path) else local).append(path)
    return local, remote


def _stamp(path: str) -> str | OSError:
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            return IsADirectoryError(errno.EISDIR, "a folder, no file")
        if not stat.S_ISREG(mode):  # a pipe would be waited on for ever
            return OSError(errno.EINVAL, "a pipe, socket or device, no file")
        with open(path, "rb") as f:
            found = os.fstat(f.fileno())
    except OSError as e:
        return e
    except ValueError as e:  # a NUL in the path
        return OSError(errno.EINVAL, str(e))
    return f"{found.st_size}-{found.st_mtime_ns}"


def _content(path: str) -> bytes | OSError:
    try:
        return Path(path).read_bytes()
    except OSError as e:
        return e
