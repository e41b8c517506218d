"""Rendered scenes: the tracks must stick to what is painted, to a fraction of a pixel."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from msmodel.config import ClipConfig
from stages.data import motion, render, scene
from stages.data.config import DataConfig
from stages.data.cut import STILLS
from stages.data.files import read_clip_frames
from stages.data.motion import Motion
from stages.data.motion import Path as MotionPath
from stages.data.render import RenderRun
from stages.records import Clip
from stages.trackers.ground_truth import read_tracks
from tests.fakes import FakeContext
from tests.unit.stages.data.fakes import noise_picture, scene_item

CLIP = ClipConfig(48, 80, 13, 24.0)
RUN = RenderRun(CLIP, motions=4, supersampling=2, grid_rows=6, grid_cols=10, object_points=12)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("render")
    return render.run(RUN, scene_item(folder, objects=3), FakeContext(folder))


def test_motions_share_the_first_frame_and_differ_after(rendered):
    first = [read_clip_frames(c)[0] for c in rendered]
    assert all(np.array_equal(first[0], f) for f in first)
    ends = [read_clip_frames(c)[-1].astype(int) for c in rendered]
    assert all(np.abs(a - b).mean() > 0.5 for i, a in enumerate(ends) for b in ends[:i])
    queries = [read_tracks(c.folder)[0][0] for c in rendered]
    assert all(np.array_equal(queries[0], q) for q in queries)


def test_colour_at_a_track_stays_the_same(rendered):
    """Where a point is visible, clear of edges and its surface is not scaled, its pixel shows the same colour throughout."""
    errors, control = [], []
    for clip in rendered:
        frames, (xy, visible) = read_clip_frames(clip).astype(np.float32), read_tracks(clip.folder)
        scales = json.loads((Path(clip.folder) / "recipe.json").read_text())["motion"]
        if any(p["log_scale"] for p in (*scales["objects"], scales["camera"])):
            continue
        for t in range(1, CLIP.frames):
            near = (visible[t]) & (xy[t].min(axis=1) > 1) & (xy[t, :, 0] < 79) & (xy[t, :, 1] < 47)
            seen = sample(frames[t], xy[t][near])
            errors.append(np.abs(seen - sample(frames[0], xy[0][near])).mean(axis=-1))
            control.append(np.abs(seen - sample(frames[0], xy[0][near] + 3)).mean(axis=-1))
    assert np.median(np.concatenate(errors)) < 3.0
    assert np.median(np.concatenate(errors)) < 0.3 * np.median(np.concatenate(control))


def sample(frame: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Bilinear colour of frame h w 3 at n 2 points (pixel centres at +0.5): n 3."""
    x, y = ((xy - 0.5).astype(np.float32)).T
    return cv2.remap(frame, x[None], y[None], cv2.INTER_LINEAR)[0]


def dotted_scene(tmp_path, dot: tuple[int, int], ss: int):
    """A black background and one black object with a white dot painted at frame-0 position `dot`, cell units."""
    built = scene.build_scene(scene_item(tmp_path, objects=1), CLIP, ss, np.random.default_rng(3))
    ground, thing = built.layers
    shape = replace(thing.shape, centre=(30.0, 24.0), radius=12.0, waves=(), stretch=1.0)
    size = 32 * ss
    texture = np.zeros((size, size, 4), np.uint8)
    texture[..., 3] = 255
    to_frame = np.array([[1 / ss, 0, 14.0], [0, 1 / ss, 8.0], [0, 0, 1]])
    x, y = int((dot[0] - 14) * ss), int((dot[1] - 8) * ss)
    texture[y - ss : y + ss, x - ss : x + ss, :3] = 255  # 2 x 2 cells about the dot
    thing = replace(thing, texture=texture, to_frame=to_frame, shape=shape, depth_gain=1.2)
    ground = replace(ground, texture=np.zeros_like(ground.texture))
    return replace(built, layers=(ground, thing))


@pytest.mark.parametrize("supersampling", [1, 2, 3])
def test_a_painted_dot_lies_where_its_track_says(tmp_path, supersampling):
    dotted = dotted_scene(tmp_path, (33, 20), supersampling)
    drag = MotionPath((14.0, -6.0), bend=0.3, angle=0.7, log_scale=0.25, profile="linear")
    camera = MotionPath((5.0, 4.0), angle=-0.15, log_scale=-0.1, profile="ease")
    maps = render.layer_maps(dotted, Motion("combo", (drag,), camera), CLIP)
    frames = render.draw(dotted, maps, CLIP, supersampling).astype(np.float64).sum(axis=-1)
    xy, visible = render.exact_tracks(dotted, maps, np.array([[33.0, 20.0]]), CLIP)
    grid_x, grid_y = np.meshgrid(np.arange(80) + 0.5, np.arange(48) + 0.5)
    middle = [((f * grid_x).sum() / f.sum(), (f * grid_y).sum() / f.sum()) for f in frames]
    assert visible.all()
    assert np.abs(np.array(middle) - xy[:, 0]).max() < 0.1
    assert np.linalg.norm(xy[-1, 0] - xy[0, 0]) > 10


def test_a_nearer_object_hides_points_and_the_frame_ends_them(tmp_path):
    built = scene.build_scene(scene_item(tmp_path, objects=2), CLIP, 2, np.random.default_rng(5))
    ground, far, near = built.layers
    far = replace(far, shape=replace(far.shape, centre=(60.0, 24.0), radius=6.0, waves=(), stretch=1.0))
    near = replace(near, shape=replace(near.shape, centre=(20.0, 24.0), radius=9.0, waves=(), stretch=1.0))
    built = replace(built, layers=(ground, far, near))
    points = np.array([[60.0, 24.0], [40.0, 24.0], [20.0, 24.0], [40.0, 5.0]])  # far, background, near, untouched
    move = Motion("drag", (MotionPath(), MotionPath((80.0, 0.0), profile="linear")), MotionPath())
    xy, visible = render.exact_tracks(built, render.layer_maps(built, move, CLIP), points, CLIP)
    assert visible[0].all()
    x_of_near = xy[:, 2, 0]
    for point, x in ((0, 60.0), (1, 40.0)):
        assert visible[:, point].tolist() == (np.abs(x_of_near - x) >= 9).tolist()
        assert not visible[:, point].all()
    assert visible[:, 2].tolist() == (x_of_near < 80).tolist()
    assert visible[:, 3].all()


def test_points_lie_clear_of_edges_and_on_every_object(tmp_path):
    generator = np.random.default_rng(11)
    built = scene.build_scene(scene_item(tmp_path, objects=3), CLIP, 2, generator)
    points = render.place_points(built, RUN, generator)
    for layer in built.objects:
        assert np.abs(layer.shape.level(points)).min() >= render.EDGE_MARGIN_PX
    assert len(points) > 60  # more than the grid alone leaves


@pytest.mark.parametrize("profile", motion.PROFILES)
def test_every_path_starts_as_the_identity(profile):
    path = MotionPath((9.0, -4.0), 0.4, 0.9, 0.3, profile)
    assert motion.affine(path, 0.0, (3.0, 5.0)) == pytest.approx(np.eye(3))
    if profile != "return":
        moved = motion.affine(path, 1.0, (3.0, 5.0)) @ [3.0, 5.0, 1.0]
        assert moved[:2] == pytest.approx([12.0, 1.0])


def test_motions_need_tracks_to_be_distinguished():
    """One first frame, many motions: drags are long and unlike each other, and at most one motion is none."""
    reach, unlike = [], []
    for seed in range(40):
        made = motion.author([(20.0, 20.0), (60.0, 30.0)], 48, 80, 4, np.random.default_rng(seed))
        assert made[0].kind == "drag"
        assert sum(m.kind == "static" for m in made) <= 1
        ends = [p.end for m in made if m.kind == "drag" for p in m.objects if p.moves]
        reach += [np.hypot(*e) for e in ends]
        unlike += [np.hypot(a[0] - b[0], a[1] - b[1]) for i, a in enumerate(ends) for b in ends[:i]]
    assert min(reach) >= 0.15 * 80 - 1e-6
    assert max(reach) <= 0.55 * 80 + 1e-6
    assert np.median(unlike) > 15


def test_words_follow_the_picture():
    move = Motion("combo", (MotionPath((-20.0, 3.0)), MotionPath()), MotionPath((0.0, 9.0), log_scale=0.2))
    assert (
        motion.describe(move, ["red oval", "blob"]) == "the red oval moves left while the camera pans up and zooms in"
    )
    assert motion.describe(Motion("static", (MotionPath(),), MotionPath()), ["blob"]) == "nothing moves"


def test_scenes_depend_on_the_seed_alone(tmp_path):
    item = scene_item(tmp_path)
    a = render.run(RUN, item, FakeContext(tmp_path / "a"))
    b = render.run(RUN, item, FakeContext(tmp_path / "b"))
    assert [replace(c, folder="") for c in a] == [replace(c, folder="") for c in b]
    for x, y in zip(a, b, strict=True):
        for name in ("clip.npz", "tracks.npz", "recipe.json", "frames.mp4"):
            assert (Path(x.folder) / name).read_bytes() == (Path(y.folder) / name).read_bytes()


def real_clips(folder: Path, heldout: bool) -> list[Clip]:
    made = []
    for i in range(6):
        home = folder / f"clip-{i}"
        home.mkdir()
        for name in STILLS:
            noise_picture(home / name, i)
        split = "heldout" if heldout and i >= 4 else "train"
        made.append(Clip(f"clip-{i}", str(home), f"video-{i // 2}", split, "real", "", f"video {i // 2}", "MIT"))
    return made


def test_scenes_are_cut_from_their_own_split(tmp_path):
    clips = real_clips(tmp_path, heldout=True)
    items = scene.plan_scenes(DataConfig(train_scenes=20, heldout_scenes=5), clips, 0, pytest.fail)
    assert [i.split for i in items].count("train") == 20
    assert len({i.scene_id for i in items}) == 25
    for item in items:
        sources = {p.source for p in item.stills}
        assert sources <= ({"video 0", "video 1"} if item.split == "train" else {"video 2"})
    assert items == scene.plan_scenes(DataConfig(train_scenes=20, heldout_scenes=5), clips, 0, pytest.fail)
    assert items != scene.plan_scenes(DataConfig(train_scenes=20, heldout_scenes=5), clips, 1, pytest.fail)


def test_without_a_heldout_clip_the_stills_divide(tmp_path):
    logged: list[str] = []
    items = scene.plan_scenes(
        DataConfig(train_scenes=9, heldout_scenes=9), real_clips(tmp_path, False), 0, logged.append
    )
    used = {s: {p.path for i in items if i.split == s for p in i.stills} for s in ("train", "heldout")}
    assert used["train"].isdisjoint(used["heldout"])
    assert logged


def test_a_new_source_changes_only_the_scenes_that_cut_from_it():
    def stills(sources: int) -> scene.StillChooser:
        names = [(s, k) for s in range(sources) for k in range(3)]
        return scene.StillChooser(
            [scene.Still(f"/r/clip-{s}-{k}/still-0.png", f"video {s}", "MIT", "") for s, k in names]
        )

    before, after = stills(20), stills(21)
    changed = [i for i in range(200) if before.choose(4, i) != after.choose(4, i)]
    assert 0.05 < len(changed) / 200 < 0.35  # of four draws each, one in 21 goes to the new one
    for i in changed:
        assert "video 20" in {p.source for p in after.choose(4, i)}
    drawn = [p.source for i in range(200) for p in before.choose(4, i)]
    assert min(drawn.count(f"video {s}") for s in range(20)) > 20  # of 40
    moved = scene.StillChooser([replace(p, path=f"/elsewhere{p.path}") for ps in before.by_source.values() for p in ps])
    same = [[Path(p.path).parts[-2:] for p in one.choose(4, 3)] for one in (before, moved)]
    assert same[0] == same[1]
