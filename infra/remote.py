"""Reads files behind addresses (s3://, gs://, https://...) through fsspec: the driver lists them, the workers fetch
them.

Errors of the storage libraries are translated to FileNotFoundError (no such file), PermissionError (access denied) or
another OSError (a retry may succeed). Where the driver cannot use an address at all, it raises ValueError with advice.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from infra.files import FolderLock

AT_ONCE = 16  # concurrent requests of the driver
LIST_FROM = 50  # from this many files of one folder on, the folder is listed; fewer are queried one by one
STAMPS = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "mtime", "updated", "created")
GONE = {404, 410}
FORBIDDEN = {401, 403}
LONGEST_NAME = 200  # bytes; the last part of an object's key may be longer than a file name can be


def is_remote(source: str) -> bool:
    """Tells whether a source is an address (scheme://...) rather than a local path."""
    return re.match(r"[a-z][a-z0-9+.-]*://", source) is not None


class RemoteFiles:
    """Lists and reads files behind addresses; implements the protocol stages.data.places.Files."""

    def listing(self, address: str) -> dict[str, str]:
        """Returns {address: stamp} of all files below a folder, of those that match a glob, or of one file. Fetches
        nothing.

        Raises ValueError where there is no such file or the address cannot be listed.
        """
        try:
            fs, root = open_address(address)
            fs.invalidate_cache()
            found = translated(_found, fs, root, "*" in root if address.startswith("http") else _is_glob(root))
        except OSError as error:
            raise ValueError(_advice(address, error)) from error
        if not found:
            raise ValueError(
                f"SRC={address}: no such bucket, folder or file, or nothing in it: check how it is spelled"
            )
        return {_address(fs, address, root, path): _stamp(info) for path, info in sorted(found.items())}

    def look(self, addresses: Sequence[str]) -> dict[str, str | OSError]:
        """Returns {address: stamp}, with a FileNotFoundError or PermissionError as the value of a file that cannot be
        read.

        Raises ValueError for errors that a retry may resolve.
        """
        folders: dict[str, list[str]] = {}
        for address in addresses:
            folders.setdefault(address.rpartition("/")[0], []).append(address)
        listed = {f for f, inside in folders.items() if len(inside) >= LIST_FROM and not f.startswith("http")}
        found: dict[str, str | OSError] = {}
        for folder, names in _each(_names, sorted(listed)).items():
            missing = names if isinstance(names, OSError) else _gone(folder)
            stamps: Mapping[str, str] = {} if isinstance(names, OSError) else names
            found |= {a: stamps.get(a.rpartition("/")[2], missing) for a in folders[folder]}
        return found | _each(_info_stamp, [a for f, inside in folders.items() if f not in listed for a in inside])

    def read(self, addresses: Sequence[str]) -> dict[str, bytes | OSError]:
        """Returns {address: complete content}, with an OSError as the value of a file that cannot be read."""
        return _each(_content, addresses)


def fetch(address: str, cache: Path) -> Path:
    """Returns a local path of the file: `address` itself if local, else a copy at cache/<hash of address and
    stamp>/<name>.

    The copy is written to a temporary file, checked by its size and renamed, so that a file of that name is complete.
    Workers of one node wait for each other; workers of several nodes replace the copy with an equal one.
    FileNotFoundError and PermissionError concern the source, never the cache; after any other OSError a retry may
    succeed.
    """
    if not is_remote(address):
        return Path(address)
    fs, path = open_address(address)
    info = translated(fs.info, path)
    key = hashlib.sha256(f"{address} {_stamp(info)}".encode()).hexdigest()[:16]
    target = cache / key / _file_name(path)
    size = info.get("size")  # a web server may not report it
    if _is_whole(target, size):
        return target
    try:
        with FolderLock(target.parent):
            if not _is_whole(target, size):
                _copy(fs, path, size, target)
    except (FileNotFoundError, PermissionError) as error:
        if not str(error.filename or "").startswith(str(cache)):
            raise
        raise OSError(f"the cache {cache} cannot be written: {error}") from error
    return target


def _copy(fs: Any, path: str, size: int | None, target: Path) -> None:
    aside = target.with_name(
        f".part-{os.uname().nodename}"
    )  # the lock allows one writer per node; the file of a killed writer is overwritten
    try:
        aside.touch()
        translated(fs.get_file, path, str(aside))
        got = aside.stat().st_size
        if size is not None and got != size:
            raise OSError(f"{path}: {got} of {size} bytes arrived")
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)


def _is_whole(target: Path, size: int | None) -> bool:
    return target.is_file() and size in (None, target.stat().st_size)


def _file_name(path: str) -> str:
    name = path.rstrip("/").rpartition("/")[2] or "file"
    return name if len(name.encode()) <= LONGEST_NAME else f"file{Path(name).suffix[:20]}"


def open_address(address: str, setting: str = "SRC") -> tuple[Any, str]:
    """Returns (fsspec file system, path in it). setting: name of the user's setting, for error messages.

    Raises ValueError where the protocol is unknown or its package is not installed.
    """
    import fsspec
    from fsspec.registry import known_implementations

    protocol = address.partition("://")[0]
    known = known_implementations.get(protocol)
    try:
        fs, path = translated(fsspec.core.url_to_fs, address)
    except ImportError as error:
        package = "aiohttp" if protocol.startswith("http") else known["class"].partition(".")[0] if known else protocol
        raise ValueError(f"{setting}={address}: {error}: run .venv/bin/pip install {package}") from error
    except ValueError as error:
        raise ValueError(f"{setting}={address}: {error}: {protocol}:// is none of fsspec's protocols") from error
    return fs, path


def translated(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Returns the result of an fsspec call. Errors of the libraries below fsspec are raised as OSError."""
    try:
        return function(*arguments, **options)
    except (ImportError, ValueError):
        raise
    except FileNotFoundError as error:
        raise _gone(str(arguments[0])) from error
    except PermissionError as error:
        raise PermissionError(errno.EACCES, f"access denied ({error})") from error
    except OSError:
        raise
    except Exception as error:  # botocore, aiohttp and google.auth have no common error class
        raise _as_os_error(error) from error


def _as_os_error(error: Exception) -> OSError:
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if status in GONE:
        return _gone(str(error))
    if status in FORBIDDEN:
        return PermissionError(errno.EACCES, f"access denied ({error})")
    return OSError(f"{type(error).__name__}: {error}")


def _gone(path: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


def _advice(address: str, error: OSError) -> str:
    reason = error.strerror or str(error)
    if isinstance(error, FileNotFoundError):
        return f"SRC={address}: no such bucket, folder or file: check how it is spelled"
    if isinstance(error, PermissionError) or "redential" in reason:
        keys = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE" if address.startswith("s3") else "them"
        return f"SRC={address}: {reason}: check the credentials: set {keys}, with the right to list and read"
    return (
        f"SRC={address}: cannot be reached: {reason}: check the network, and AWS_ENDPOINT_URL for a server of your own"
    )


def _is_glob(path: str) -> bool:
    return re.search(r"[*?[]", path) is not None


def _found(fs: Any, root: str, is_glob: bool) -> dict[str, dict[str, Any]]:
    found = fs.glob(root, detail=True) if is_glob else fs.find(root, detail=True)
    if not found:
        found = {root: fs.info(root)} if fs.exists(root) else {}
    return {path: info for path, info in found.items() if info.get("type", "file") == "file"}


def _address(fs: Any, address: str, root: str, path: str) -> str:
    """Returns the address of a file with the same beginning as the user's, so that relative names can be computed."""
    head = address[: len(address.rstrip("/")) - len(root.rstrip("/"))]
    return path if is_remote(path) else head + path


def _stamp(info: Mapping[str, Any]) -> str:
    """Returns text that changes when the content may have changed: the size, and the first of STAMPS that the server
    reports."""
    token = next((str(info[key]) for key in STAMPS if info.get(key)), "")
    return f"{info.get('size')}-{token.strip(chr(34))}"


def _each(function: Callable[[str], Any], addresses: Sequence[str]) -> dict[str, Any]:
    """Returns {address: function(address)}, computed concurrently, with the OSError as the value of a file that is
    missing or forbidden. Raises ValueError for any other OSError."""

    def one(address: str) -> Any:
        try:
            return function(address)
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            return error
        except OSError as error:
            raise ValueError(_advice(address, error)) from error

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(addresses, pool.map(one, addresses), strict=True))


def _names(folder: str) -> dict[str, str]:
    fs, path = open_address(folder)
    fs.invalidate_cache()
    listing = translated(lambda: fs.ls(path, detail=True))
    return {info["name"].rpartition("/")[2]: _stamp(info) for info in listing if info.get("type", "file") == "file"}


def _info_stamp(address: str) -> str:
    fs, path = open_address(address)
    info = translated(fs.info, path)
    if info.get("type") == "directory":
        raise IsADirectoryError(errno.EISDIR, "a folder, no file")
    return _stamp(info)


def _content(address: str) -> bytes:
    fs, path = open_address(address)
    return translated(fs.cat_file, path)
