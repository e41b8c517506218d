"""docs/licences.md and NOTICE name everything of others that is shipped or installed, and agree with the code."""

from __future__ import annotations

import json
import re
import subprocess

import pytest

from configs.settings import load
from infra.files import CHECKOUT
from stages.data.sources import PACKAGED
from stages.trackers import TRACKERS

PAGE = (CHECKOUT / "docs" / "licences.md").read_text()
NOTICE = (CHECKOUT / "NOTICE").read_text()
CARD = (CHECKOUT / "msmodel" / "assets" / "nano" / "README.md").read_text()
ASSETS = "msmodel/assets"
PICTURES = f"{ASSETS}/nano/pictures"


def rows(first_header: str) -> list[list[str]]:
    """The cells of the table of docs/licences.md whose first column has this header; a package stands for the rows below."""
    lines = iter(PAGE.splitlines())
    next(line for line in lines if line.startswith(f"| {first_header} |"))
    next(lines)
    out: list[list[str]] = []
    for line in lines:
        if not line.startswith("|"):
            break
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        out.append([cells[0] or out[-1][0], *cells[1:]])
    return out


def shipped() -> list[str]:
    """Files of msmodel/assets that git knows, or would take, relative to the checkout."""
    command = ["git", "-C", str(CHECKOUT), "ls-files", "--cached", "--others", "--exclude-standard", ASSETS]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def unnamed(files: list[str]) -> list[str]:
    """Shipped files that no row names, by themselves or by their folder."""
    named = [f"{ASSETS}/{row[0].strip('`')}" for row in rows(f"path in `{ASSETS}`")]
    named += [f"{PICTURES}/{row[0].strip('`')}" for row in rows(f"picture in `{PICTURES}`")]
    return [f for f in files if not any(f == n or (n.endswith("/") and f.startswith(n)) for n in named)]


def test_every_shipped_file_has_a_licence_on_the_page():
    assert len(shipped()) > 20
    assert unnamed(shipped()) == []


@pytest.mark.parametrize(
    "new", ["nano/pictures/new.png", "nano/another/model.safetensors", "nano-large/vae.safetensors"]
)
def test_a_file_that_nobody_named_is_found(new):
    assert unnamed([f"{ASSETS}/{new}"]) == [f"{ASSETS}/{new}"]


def test_the_notice_names_every_folder_of_weights_and_every_package_that_a_picture_is_from():
    folders = {name.rpartition("/")[0] for name in shipped() if name.endswith(".safetensors")}
    assert len(folders) == 5
    assert [folder for folder in folders if folder not in NOTICE] == []
    pictures = json.loads((CHECKOUT / PICTURES / "pictures.json").read_text())
    sources = {s for p in pictures for s in p["source"].removeprefix("rendered from ").split(" + ")}
    assert [s for s in sources if s.partition("/")[0] not in NOTICE or s.rpartition("/")[2] not in NOTICE] == []


def test_a_pictures_licence_is_that_of_the_clips_that_it_is_from():
    clips = {clip.source: clip.licence for clip in PACKAGED}
    on_page = {row[0].strip("`"): row for row in rows(f"picture in `{PICTURES}`")}
    for picture in json.loads((CHECKOUT / PICTURES / "pictures.json").read_text()):
        sources = picture["source"].removeprefix("rendered from ").split(" + ")
        assert picture["licence"] == " + ".join(dict.fromkeys(clips[source] for source in sources))
        row = on_page.pop(f"{picture['id']}.png")
        assert row[2] == picture["licence"]
        assert all(f"`{source.rpartition('/')[2]}`" in row[1] for source in sources)
    assert on_page == {}


def test_every_default_clip_is_on_the_page_with_its_licence_and_split():
    table = {(row[0].partition(" ")[0], row[1], row[4]): row[2] for row in rows("package")}
    found = set()
    for clip in PACKAGED:
        scene = re.search(r"Demo_\w+", clip.source)  # one row for several cameras
        name = scene[0] if scene else clip.source.rpartition("/")[2]
        split = "held out" if clip.heldout else "train"
        (key,) = [k for k in table if k[0] == clip.package and name in k[1] and k[2] == split]
        assert table[key].startswith(clip.licence.partition(" ")[0]), clip.source
        found.add(key)
    assert found == set(table)


def test_every_package_of_clips_and_weights_is_on_the_page_with_its_version():
    lines = (CHECKOUT / "infra" / "env" / "assets.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    assert len(pins) == 8
    assert [name for name, version in pins if f"{name} {version}" not in PAGE] == []


def test_every_tracker_is_on_the_page():
    assert [name for name in TRACKERS if not any(f"`{name}`" in row[0] for row in rows("tracker"))] == []


def test_the_settings_that_do_without_cotracker_do():
    (words,) = re.findall(r'ARGS="(data\.tracker[^"]*)"', PAGE)
    cfg = load("wan21-1.3b", words.split())
    for tracker in (cfg.data.tracker, cfg.eval.measure.tracker):
        assert (tracker.name, tracker.licence) == ("lucas_kanade", "Apache-2.0")


def test_the_model_card_tells_the_same_licences_and_leaves_no_network_out():
    text = CARD.split("## Licence")[1]
    for part in ("VAE", "tiny VAE", "base", "teacher", "student", "pictures", "docs/licences.md"):
        assert part in text
    assert [
        clip.licence for clip in PACKAGED if clip.licence.partition(" ")[0] not in text and clip.licence != "MIT"
    ] == []


def test_the_licence_of_the_code_is_apache():
    text = (CHECKOUT / "LICENSE").read_text()
    assert text.lstrip().startswith("Apache License\n")
    assert "END OF TERMS AND CONDITIONS" in text and len(text) > 11_000
