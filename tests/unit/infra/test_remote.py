"""Listing and fetching behind addresses: fsspec's memory, a web server, and S3 served by moto."""

from __future__ import annotations

import functools
import threading
import urllib.request
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import boto3
import fsspec
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from infra.context import RunContext
from infra.remote import RemoteFiles, fetch
from stages.contracts import StageError
from stages.data.sources import find_candidates

BUCKET = "films"


@pytest.fixture
def memory():
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    yield fs
    fs.store.clear()


@pytest.fixture(scope="module")
def server():
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(server, monkeypatch):
    """A boto3 client of a bucket with two videos, a caption and a table. What fsspec reads is in the environment."""
    keys = {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    urllib.request.urlopen(urllib.request.Request(f"{server}/moto-api/reset", method="POST"))
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    table = b"video,caption\na.mp4,a red car\nmissing.mp4,nothing\ns3://films/v/deep/b.mp4,\n"
    objects = {
        "v/a.mp4": b"1234",
        "v/a.txt": b"a blue car",
        "v/deep/b.mp4": b"12",
        "v/table.csv": table,
        "v2.mp4": b"1",
    }
    for key, body in objects.items():
        client.put_object(Bucket=BUCKET, Key=key, Body=body)
    s3fs.S3FileSystem.clear_instance_cache()
    yield client
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def downloads(monkeypatch):
    """Paths of which content was asked for."""
    asked: list[str] = []

    def noted(method):
        async def call(self, path, *arguments, **options):
            asked.append(path)
            return await method(self, path, *arguments, **options)

        return call

    for name in ("_get_file", "_cat_file"):
        monkeypatch.setattr(s3fs.S3FileSystem, name, noted(getattr(s3fs.S3FileSystem, name)))
    return asked


def names(candidates):
    return {c.name: c.caption for c in candidates}


@pytest.mark.slow
def test_a_bucket_is_listed_with_its_captions_and_no_video_is_downloaded(s3, downloads):
    s3.delete_object(Bucket=BUCKET, Key="v/table.csv")
    found, rejected = find_candidates("s3://films/v", files=RemoteFiles())
    assert names(found) == {"a.mp4": "a blue car", "deep/b.mp4": "b"}
    assert [c.path for c in found] == ["s3://films/v/a.mp4", "s3://films/v/deep/b.mp4"]
    assert rejected == []
    assert downloads == ["films/v/a.txt"]


def test_a_bucket_whose_table_would_be_ignored_is_refused(s3):
    with pytest.raises(ValueError, match=r"give SRC=s3://films/v/table\.csv"):
        find_candidates("s3://films/v", files=RemoteFiles())


def test_the_whole_bucket_a_single_key_and_a_glob(s3):
    s3.delete_object(Bucket=BUCKET, Key="v/table.csv")
    files = RemoteFiles()
    assert set(names(find_candidates("s3://films", files=files)[0])) == {"v/a.mp4", "v/deep/b.mp4", "v2.mp4"}
    assert names(find_candidates("s3://films/v/a.mp4", files=files)[0]) == {"a.mp4": "a blue car"}
    assert names(find_candidates("s3://films/v/**/*.mp4", files=files)[0]) == {"a.mp4": "a blue car", "deep/b.mp4": "b"}
    assert names(find_candidates("s3://films/v/*.mp4", files=files)[0]) == {"a.mp4": "a blue car"}


def test_a_table_on_s3_names_files_next_to_it_and_by_address(s3, downloads):
    found, rejected = find_candidates("s3://films/v/table.csv", files=RemoteFiles())
    assert names(found) == {"a.mp4": "a red car", "s3://films/v/deep/b.mp4": "b"}
    assert [(r.name, r.reason) for r in rejected] == [
        ("table.csv row 2 (missing.mp4)", "cannot be opened: No such file or directory")
    ]
    assert downloads == ["films/v/table.csv"]


def test_a_local_table_of_many_videos_on_s3_is_looked_up_in_one_listing(s3, tmp_path, monkeypatch):
    (tmp_path / "t.csv").write_text("path\n" + "".join(f"{n}.mp4\n" for n in range(60)))
    s3.put_object(Bucket=BUCKET, Key="many/7.mp4", Body=b"x")
    calls: list[str] = []
    info = s3fs.S3FileSystem._info
    monkeypatch.setattr(s3fs.S3FileSystem, "_info", lambda self, path, *a, **o: calls.append(path) or info(self, path))
    found, rejected = find_candidates(str(tmp_path / "t.csv"), "s3://films/many", RemoteFiles())
    assert names(found) == {"7.mp4": ""}
    assert len(rejected) == 59
    assert len(calls) < 10


def test_a_changed_object_is_another_candidate(s3):
    before = RemoteFiles().listing("s3://films/v/a.mp4")
    assert RemoteFiles().listing("s3://films/v/a.mp4") == before
    s3.put_object(Bucket=BUCKET, Key="v/a.mp4", Body=b"4321")
    assert RemoteFiles().listing("s3://films/v/a.mp4") != before


def test_a_key_is_fetched_once_and_again_when_it_has_changed(s3, tmp_path, downloads):
    first = fetch("s3://films/v/a.mp4", tmp_path)
    assert first.name == "a.mp4" and first.read_bytes() == b"1234"
    assert fetch("s3://films/v/a.mp4", tmp_path) == first
    assert downloads == ["films/v/a.mp4"]
    s3.put_object(Bucket=BUCKET, Key="v/a.mp4", Body=b"4321")
    s3fs.S3FileSystem.clear_instance_cache()
    assert fetch("s3://films/v/a.mp4", tmp_path).read_bytes() == b"4321"


@pytest.mark.slow
def test_workers_that_want_the_same_file_fetch_it_once(s3, tmp_path, downloads):
    paths = []
    threads = [threading.Thread(target=lambda: paths.append(fetch("s3://films/v/a.mp4", tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(paths)) == 1 and len(paths) == 4
    assert downloads == ["films/v/a.mp4"]


def test_a_missing_bucket_or_prefix_says_so(s3, tmp_path):
    for address in ("s3://nowhere/v", "s3://films/nothing", "s3://films/v/*.avi"):
        with pytest.raises(ValueError, match=rf"SRC={address[:8]}.*no such bucket, folder or file"):
            RemoteFiles().listing(address)
    with pytest.raises(StageError, match=r"SRC=s3://films/no.csv: cannot be opened: No such file"):
        find_candidates("s3://films/no.csv", files=RemoteFiles())
    with pytest.raises(FileNotFoundError):
        fetch("s3://films/v/gone.mp4", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def strict(s3, server):
    """S3 that checks who asks; the keys in the environment are nobody's."""

    def after(count: str) -> None:
        plain = {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(f"{server}/moto-api/reset-auth", count.encode(), plain))

    after("0")
    yield s3
    after("inf")


@pytest.mark.slow
def test_wrong_credentials_are_reported_and_a_worker_sees_a_forbidden_file(strict, tmp_path):
    for address in ("s3://films/v", "s3://films/v/*.mp4", "s3://films/v/a.mp4"):
        with pytest.raises(ValueError, match=r"SRC=s3.*access denied.*AWS_ACCESS_KEY_ID"):
            RemoteFiles().listing(address)
    with pytest.raises(StageError, match="access denied"):
        find_candidates("s3://films/v/table.csv", files=RemoteFiles())
    with pytest.raises(PermissionError):
        fetch("s3://films/v/a.mp4", tmp_path)


def test_missing_credentials_are_reported_and_a_worker_may_try_again(s3, tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"credentials.*AWS_ACCESS_KEY_ID"):
        RemoteFiles().listing("s3://films/v")
    with pytest.raises(OSError, match="redential") as raised:
        fetch("s3://films/v/a.mp4", tmp_path)
    assert not isinstance(raised.value, (FileNotFoundError, PermissionError))


def test_an_interrupted_download_leaves_no_file_and_may_be_tried_again(memory, tmp_path, monkeypatch):
    memory.pipe("/films/a.mp4", b"1234")

    def breaks(self, path, local, **options):
        with open(local, "wb") as f:
            f.write(b"12")
        raise ConnectionResetError("the line was cut")

    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "get_file", breaks)
        with pytest.raises(OSError, match="the line was cut"):
            fetch("memory://films/a.mp4", tmp_path)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [".lock"]
    assert fetch("memory://films/a.mp4", tmp_path).read_bytes() == b"1234"


def test_a_download_that_ends_early_is_no_file(memory, tmp_path, monkeypatch):
    memory.pipe("/films/a.mp4", b"1234")
    monkeypatch.setattr(type(memory), "get_file", lambda self, path, local, **o: open(local, "wb").close())
    with pytest.raises(OSError, match="0 of 4 bytes"):
        fetch("memory://films/a.mp4", tmp_path)
    assert not list(tmp_path.rglob("a.mp4"))


def test_a_cache_that_cannot_be_written_is_not_taken_for_a_forbidden_source(memory, tmp_path):
    memory.pipe("/films/a.mp4", b"1234")
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as raised:
        fetch("memory://films/a.mp4", tmp_path / "file")
    assert not isinstance(raised.value, (FileNotFoundError, PermissionError))


def test_a_server_that_is_not_there_says_so(s3, monkeypatch, tmp_path):
    def refuses(self, *arguments, **options):
        raise ConnectionRefusedError("connection refused")

    monkeypatch.setattr(s3fs.S3FileSystem, "find", refuses)
    with pytest.raises(ValueError, match=r"cannot be reached: connection refused.*AWS_ENDPOINT_URL"):
        RemoteFiles().listing("s3://films/v")


def test_an_unknown_protocol_and_a_missing_package_report_how_to_fix_it(monkeypatch):
    with pytest.raises(ValueError, match=r"nope:// is none of fsspec's protocols"):
        RemoteFiles().listing("nope://films")
    with pytest.raises(ValueError, match=r"pip install gcsfs"):
        RemoteFiles().listing("gs://films")


def test_a_web_folder_is_listed_and_fetched_once_though_it_tells_no_etag(tmp_path):
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "a.mp4").write_bytes(b"abc")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "web"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        found, _ = find_candidates(address + "/", files=RemoteFiles())
        assert [(c.name, c.path) for c in found] == [("a.mp4", f"{address}/a.mp4")]
        copies = [fetch(found[0].path, tmp_path / "cache") for _ in range(2)]
        assert copies[0] == copies[1] and copies[0].read_bytes() == b"abc"
        with pytest.raises(ValueError, match=r"SRC=http.*no such"):
            RemoteFiles().listing(address + "/missing.mp4")
        with pytest.raises(FileNotFoundError):
            fetch(address + "/missing.mp4", tmp_path / "cache")
        server.shutdown()


def test_a_context_leaves_local_paths_alone_and_keeps_remote_files_in_its_folder(memory, tmp_path):
    memory.pipe("/films/a.mp4", b"1234")
    ctx = RunContext(workdir=tmp_path, seed=0, sources=tmp_path / "sources")
    assert ctx.fetch("some/a.mp4").as_posix() == "some/a.mp4"
    assert ctx.fetch("memory://films/a.mp4").is_relative_to(tmp_path / "sources")
