import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.contracts import StageError
from stages.data.places import decoded
from stages.data.sources import find_candidates
from stages.data.tables import read_rows, seconds

OPENVID = "video,caption,aesthetic score,motion score,temporal consistency score,camera motion,frame,fps,seconds\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "videos").mkdir()
    for name in ("a.mp4", "b.mp4", "videos/c.mp4"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def table(folder, text, name="t.csv", root=""):
    """(name -> candidate, rejected name -> reason)"""
    data = text if isinstance(text, bytes) else text.encode()
    (folder / name).write_bytes(data)
    found, rejected = find_candidates(str(folder / name), root)
    return {c.name: c for c in found}, {r.name: r.reason for r in rejected}


def test_openvids_table_works_as_it_is_next_to_its_videos_or_with_a_root(folder):
    rows = OPENVID + 'a.mp4,"A man, smiling.",5.2,3.1,0.99,pan_left,141,29.97,4.7\n'
    found, rejected = table(folder, rows)
    assert found["a.mp4"].caption == "A man, smiling."
    assert found["a.mp4"].path == str(folder / "a.mp4") and not rejected
    assert (found["a.mp4"].start_seconds, found["a.mp4"].end_seconds) == (0.0, 0.0)
    found, _ = table(folder, rows.replace("a.mp4", "c.mp4"), root=str(folder / "videos"))
    assert found["c.mp4"].path == str(folder / "videos" / "c.mp4")


def test_a_table_gives_paths_spans_captions_and_licences_by_their_other_names(folder):
    text = "URL\tPrompt\tStart_Seconds\tend_seconds\tlicense\tx\na.mp4\twords\t1.5\t00:00:03.250\tCC0\t7\nb.mp4\t\t\t\t\t\n"
    found, rejected = table(folder, text, "t.tsv")
    assert not rejected
    a, b = found["a.mp4@1.5-3.25s"], found["b.mp4"]
    assert (a.source, a.start_seconds, a.end_seconds, a.caption, a.licence) == ("a.mp4", 1.5, 3.25, "words", "CC0")
    assert (b.end_seconds, b.caption, b.licence) == (0.0, "b", "unknown (user's folder)")


def test_several_rows_name_spans_of_one_file_and_a_repeat_is_rejected(folder):
    found, rejected = table(
        folder, "path,start,end\na.mp4,0,1\na.mp4,1,2\na.mp4,2,\n./a.mp4,1.0,2.0\na.mp4,,\na.mp4,,\n"
    )
    assert list(found) == ["a.mp4@0-1s", "a.mp4@1-2s", "a.mp4@2-s", "a.mp4"]
    assert rejected == {
        "t.csv row 4 (./a.mp4)": "same path and span as row 2",
        "t.csv row 6 (a.mp4)": "same path and span as row 5",
    }


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a.mp4,3,2", "end 2 is not after start 3"),
        ("a.mp4,2,2", "end 2 is not after start 2"),
        ("a.mp4,0,0", "end 0 is not after start 0"),
        ("a.mp4,-1,2", "start is '-1': give seconds or HH:MM:SS.mmm, not below 0"),
        ("a.mp4,soon,2", "start is 'soon'"),
        ("a.mp4,nan,2", "start is 'nan'"),
        ("a.mp4,0,inf", "end is 'inf'"),
        ("a.mp4,1:2:3:4,", "start is '1:2:3:4'"),
        ("gone.mp4,,", "cannot be opened: No such file or directory"),
        ("videos,,", "a folder, no file"),
        ("a\0.mp4,,", "embedded null byte"),
        (",1,2", "no path"),
        ("a.mp4,1", "2 fields where the header has 3"),
        ("a.mp4,1,2,3", "4 fields where the header has 3: put quotes around"),
    ],
)
def test_a_bad_row_is_rejected_with_its_number_and_the_rest_goes_on(folder, row, reason):
    found, rejected = table(folder, f"path,start,end\nb.mp4,,\n{row}\nvideos/c.mp4,,\n")
    assert list(found) == ["b.mp4", "videos/c.mp4"]
    ((name, logged),) = rejected.items()
    assert name.startswith("t.csv row 2") and reason in logged


EXCELS = 'video;Caption;start;end\r\na.mp4;Straße, naß;1,5;2\r\nb.mp4;"a; b";0;1\r\n'


@pytest.mark.parametrize("text", [EXCELS, "sep=;\r\n" + EXCELS, EXCELS.replace(";", "\t")])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_what_excel_saves_is_read(folder, text, encoding):
    found, rejected = table(folder, text.replace("1,5", "1.5").encode(encoding))
    assert not rejected
    assert {n: c.caption for n, c in found.items()} == {
        "a.mp4@1.5-2s": "Straße, naß",
        "b.mp4@0-1s": "a; b" if ";" in text else "a\t b",
    }
    notes = {"utf-8-sig": (), "utf-16": ("t.csv: not UTF-8, read as UTF-16",)}
    assert found["b.mp4@0-1s"].notes == notes.get(encoding, ("t.csv: not UTF-8, read as Windows-1252",))


def test_what_excel_saves_wrongly_is_reported(folder):
    _, rejected = table(folder, EXCELS)
    assert rejected["t.csv row 1 (a.mp4)"] == "start is '1,5': give seconds or HH:MM:SS.mmm, not below 0"
    _, rejected = table(folder, EXCELS + "a.mp4;0\n")
    assert rejected["t.csv row 3"] == "2 fields where the header has 4: put quotes around text with semicolons"
    with pytest.raises(StageError, match="NUL characters, as UTF-16 without a byte order mark does: save it as UTF-8"):
        table(folder, EXCELS.encode("utf-16-le"))


def test_a_parquet_table_is_read_by_its_columns_and_nulls_are_empty(folder):
    columns = {"file": ["a.mp4", "b.mp4", None], "text": ["w", None, "x"], "start": [None, 0.5, None], "n": [1, 2, 3]}
    pq.write_table(pa.table(columns), folder / "t.parquet")
    found, rejected = find_candidates(str(folder / "t.parquet"))
    assert [(c.name, c.caption, c.start_seconds) for c in found] == [("a.mp4", "w", 0.0), ("b.mp4@0.5-s", "b", 0.5)]
    assert [(r.name, r.reason) for r in rejected] == [("t.parquet row 3", "no path")]


def test_a_table_of_no_use_says_why(folder):
    with pytest.raises(StageError, match=r"no column of paths: call it path or video or.*found are: name, caption"):
        table(folder, "name,caption\na.mp4,x\n")
    pq.write_table(pa.table({"name": ["a.mp4"]}), folder / "n.parquet")
    with pytest.raises(StageError, match="found are: name"):
        find_candidates(str(folder / "n.parquet"))
    for text in ("path,caption\n", "path\n\n \n"):
        with pytest.raises(StageError, match="holds no row"):
            table(folder, text)
    with pytest.raises(StageError, match="found are: none"):
        table(folder, "")
    with pytest.raises(StageError, match="cannot be read as Parquet"):
        table(folder, "no parquet", "t.parquet")
    with pytest.raises(StageError, match="cannot be read as CSV: field larger"):
        table(folder, 'path,caption\na.mp4,"' + "x" * 1_100_000)
    with pytest.raises(StageError, match=r"holds no file.*\n  t.csv row 1 \(z.mp4\): cannot be opened"):
        table(folder, "path\nz.mp4\n")
    with pytest.raises(StageError, match=r"SRC=.*missing.csv: cannot be opened: No such file"):
        find_candidates(str(folder / "missing.csv"))


def test_a_long_list_of_reasons_is_cut(folder):
    with pytest.raises(StageError, match=r"(?s)row 20 .*and 80 more$"):
        table(folder, "path\n" + "".join(f"{n}.avi\n" for n in range(100)))


def test_a_list_names_files_from_its_folder_or_from_anywhere(folder):
    text = f"# videos\n\n  a.mp4\nvideos/c.mp4  \n{folder}/b.mp4\n#b.mp4\ngone.mp4\n./a.mp4\n"
    found, rejected = table(folder, text, "videos.lst")
    assert list(found) == ["a.mp4", "videos/c.mp4", f"{folder}/b.mp4"]
    assert rejected == {
        "videos.lst line 7 (gone.mp4)": "cannot be opened: No such file or directory",
        "videos.lst line 8 (./a.mp4)": "same path and span as line 3",
    }
    with pytest.raises(StageError, match="holds no row"):
        table(folder, "# nothing\n", "videos.txt")


def test_rows_without_a_caption_take_the_file_next_to_the_video(folder):
    (folder / "a.txt").write_text("beside a")
    (folder / "videos" / "c.mp4.txt").write_text("beside c")
    found, _ = table(folder, "path,caption\na.mp4,\nvideos/c.mp4,of the table\n")
    assert [c.caption for c in found.values()] == ["beside a", "of the table"]


def test_any_encoding_is_read_and_reported(folder):
    (folder / "é.mp4").write_bytes(b"x")
    for encoding, note in (("utf-8", ()), ("utf-8-sig", ()), ("cp1252", ("t.csv: not UTF-8, read as Windows-1252",))):
        found, _ = table(folder, "path,caption\né.mp4,un café\n".encode(encoding))
        assert found["é.mp4"].caption == "un café"
        assert found["é.mp4"].notes == note
    assert decoded(b"\x81\xe9") == ("\x81é", "not UTF-8, read as Latin-1")


@pytest.mark.parametrize(("text", "value"), [("", 0), ("12.5", 12.5), ("1:02.5", 62.5), ("01:00:01.250", 3601.25)])
def test_times(text, value):
    assert seconds(text) == value


def test_row_numbers_count_rows_though_captions_hold_line_breaks():
    rows, _ = read_rows("t.csv", ".csv", b'path,caption\na.mp4,"two\nlines"\n\n,x\n')
    assert [r.number for r in rows] == [1, 2]
