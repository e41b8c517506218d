"""Reads paths on the local disk and, through `Files`, addresses (s3://...)."""

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
    """Reads files behind addresses. A file's stamp changes when its content may have changed.

    For a file that is missing or forbidden an OSError is returned in place of the value. ValueError, which says what to do, is
    raised if no file of the address can be read, or the error may be temporary (credentials, network, a missing package).
    """

    def listing(self, address: str) -> Mapping[str, str]:
        """Lists every file below a folder, those that a glob matches, or the file itself: address -> stamp. At least one."""
        ...

    def look(self, addresses: Sequence[str]) -> Mapping[str, str | OSError]:
        """Returns address -> stamp, without reading the files."""
        ...

    def read(self, addresses: Sequence[str]) -> Mapping[str, bytes | OSError]:
        """Reads small files whole: captions, lists and tables."""
        ...


@dataclass(frozen=True)
class Places:
    """Reads the local disk and, through `remote`, addresses. remote: None for the local disk alone."""

    remote: Files | None = None

    def behind(self, address: str) -> Files:
        """Returns what reads addresses. Raises StageError if nothing does."""
        if self.remote is None:
            raise StageError(f"{address}: addresses cannot be read here: give a local path")
        return self.remote

    def look(self, paths: Iterable[str]) -> dict[str, str | OSError]:
        """Returns path -> stamp, or the OSError that says why it is no readable file."""
        local, remote = _parted(paths)
        found = {path: _stamp(path) for path in local}
        return {**found, **self.behind(remote[0]).look(remote)} if remote else found

    def read(self, paths: Iterable[str]) -> dict[str, bytes | OSError]:
        """Returns path -> content, or the OSError that says why it cannot be read."""
        local, remote = _parted(paths)
        found = {path: _content(path) for path in local}
        return {**found, **self.behind(remote[0]).read(remote)} if remote else found


def is_address(path: str) -> bool:
    return re.match(r"[a-z][a-z0-9+.-]*://", path) is not None


def is_glob(src: str) -> bool:
    """Returns whether src is a glob. An existing local name is none, whatever its characters; a web address may have a "?"."""
    if is_address(src):
        return ("*" in src) if src.startswith("http") else MAGIC.search(src) is not None
    return MAGIC.search(src) is not None and not os.path.lexists(os.path.expanduser(src))


def base_folder(src: str) -> str:
    """Returns the folder that names are relative to: of a glob the part before its first wildcard, else src itself."""
    if not is_glob(src):
        return src.rstrip("/") or "/"
    head = MAGIC.split(src, maxsplit=1)[0]
    return head.rpartition("/")[0] or ("/" if head.startswith("/") else ".")


def joined(base: str, path: str) -> str:
    """Joins a relative path to the folder `base`. Either may be an address."""
    if is_address(path):
        return path
    path = path.removeprefix("file://")
    if is_address(base) and not path.startswith(("/", "~")):
        return f"{base.rstrip('/')}/{path.removeprefix('./')}"
    return str(Path(base).expanduser() / Path(path).expanduser())


def decoded(data: bytes) -> tuple[str, str]:
    """Decodes text: UTF-8 with or without a byte order mark, else UTF-16 with one, Windows-1252 or Latin-1.

    Returns (text, note); the note names an encoding other than UTF-8.
    """
    wide = [("utf-16", "UTF-16")] if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else []
    for encoding, note in (*wide, ("utf-8-sig", ""), ("cp1252", "Windows-1252")):
        try:
            return data.decode(encoding), f"not UTF-8, read as {note}" if note else ""
        except UnicodeDecodeError:
            continue
    return data.decode("latin-1"), "not UTF-8, read as Latin-1"


def walk(folder: Path, root: Path) -> tuple[list[str], list[Rejected]]:
    """Lists all files below `folder`, sorted, without following links to folders.

    Rejected: folders that cannot be listed, what is no regular file (reading a pipe would never end), and names that are not
    UTF-8 (the catalogue cannot hold them).
    """
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
    """Lists the local files that a glob matches (** for any depth), sorted, without folders; and those it rejects."""
    pattern = os.path.expanduser(pattern)
    base = Path(base_folder(pattern))
    paths = sorted(p for p in glob.iglob(pattern, recursive=True) if not os.path.isdir(p))
    bad = [p for p in paths if not _is_utf8(p)]
    rejected = [Rejected(_shown(p, base), "sources", "its name is not UTF-8: rename it") for p in bad]
    return [p for p in paths if _is_utf8(p)], rejected


def _unusable(entry: os.DirEntry[str]) -> str:
    """Returns why an entry of a folder is not opened at all; "" if it may be."""
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
        if not stat.S_ISREG(mode):  # reading a pipe would never end
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
