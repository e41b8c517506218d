"""Plans and builds rendered scenes: a still of a real clip as background, textured shapes cut from other stills as objects.

Legend: h w frame size in clip pixels; positions are clip pixels, origin top-left, pixel centres at +0.5.
"""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from msmodel.config import ClipConfig
from stages.data.config import DataConfig
from stages.data.cut import STILLS
from stages.records import Clip

SHAPES = ("oval", "rounded square", "rounded triangle", "blob")
EDGE_PX = 1.0  # width of the soft edge
BACKGROUND_REACH = (1.6, 2.0)  # the background is cut this much wider than the frame, for the camera to move over


@dataclass(frozen=True)
class Still:
    """Describes a still picture of a real clip, from which scenes cut textures."""

    path: str
    source: str
    licence: str
    caption: str


@dataclass(frozen=True)
class SceneItem:
    """Describes a scene to render. stills: the background's first, then one for each object; all of the scene's own split."""

    scene_id: str
    split: str
    seed: int
    stills: tuple[Still, ...]


@dataclass(frozen=True)
class Shape:
    """Describes a star-shaped outline around `centre`: its radius is a cosine series of the angle."""

    name: str
    centre: tuple[float, float]
    radius: float
    waves: tuple[tuple[int, float, float], ...]  # (times round, share of the radius, phase)
    stretch: float = 1.0

    def level(self, xy: np.ndarray) -> np.ndarray:
        """Returns how far points (... 2) lie inside the outline along the ray from the centre, px: positive inside."""
        x = (xy[..., 0] - self.centre[0]) / self.stretch
        y = (xy[..., 1] - self.centre[1]) * self.stretch
        turn = np.arctan2(y, x)
        outline = self.radius * (1 + sum(share * np.cos(k * turn + phase) for k, share, phase in self.waves))
        return outline - np.hypot(x, y)

    def alpha(self, xy: np.ndarray) -> np.ndarray:
        """Returns the opacity at points (... 2), 0 to 1; 0.5 on the outline."""
        return np.clip(self.level(xy) / EDGE_PX + 0.5, 0, 1)


@dataclass(frozen=True, eq=False)
class SceneLayer:
    """Holds one layer of a scene: the background or an object.

    texture: h w 3 (or 4, with alpha) uint8. to_frame: 3 x 3 map, texture pixels (centres at +0.5) -> frame 0. shape: None for
    the background, which covers everything.
    """

    name: str
    texture: np.ndarray
    to_frame: np.ndarray
    shape: Shape | None
    depth_gain: float  # how much more than the background a camera's pan shifts it


@dataclass(frozen=True, eq=False)
class Scene:
    """Holds a scene's layers: the background first, then objects from far to near."""

    item: SceneItem
    layers: tuple[SceneLayer, ...]

    @property
    def objects(self) -> tuple[SceneLayer, ...]:
        return self.layers[1:]

    @property
    def caption(self) -> str:
        things = " and ".join(f"{'an' if o.name[0] in 'aeio' else 'a'} {o.name}" for o in self.objects)
        ground = self.item.stills[0].caption
        return f"{things} over {ground}" if ground else things


def stills_of(clips: Sequence[Clip], split: str) -> list[Still]:
    """Returns the stills of a split's real clips, in a fixed order."""
    plain = sorted(
        (c for c in clips if c.kind == "real" and not c.recipe and c.split == split), key=lambda c: c.clip_id
    )
    paths = [(c, Path(c.folder) / name) for c in plain for name in STILLS]
    return [Still(str(p), c.source, c.licence, c.caption) for c, p in paths]


def plan_scenes(cfg: DataConfig, clips: Sequence[Clip], seed: int, log: Callable[[str], None]) -> list[SceneItem]:
    """Plans the scenes to render, from `seed`. Each split cuts from its own real clips only.

    Without a held-out real clip, held-out scenes are cut from the middle frames and training scenes from the first ones; this
    is logged.
    """
    stills = {split: stills_of(clips, split) for split in ("train", "heldout")}
    if not stills["heldout"] and cfg.heldout_scenes:
        log(
            "no held-out real clip: held-out scenes are cut from the middle frames of the clips, training scenes from the first"
        )
        stills = {"train": stills["train"][0::2], "heldout": stills["train"][1::2]}
    choosers = {split: StillChooser(found) for split, found in stills.items()}
    items = []
    for number, (split, count) in enumerate((("train", cfg.train_scenes), ("heldout", cfg.heldout_scenes))):
        for index in range(count):
            generator = np.random.default_rng([seed, number, index])
            count = 1 + int(generator.integers(1, cfg.objects + 1))
            scene_seed = int(generator.integers(2**31))
            chosen = choosers[split].choose(count, scene_seed)
            items.append(SceneItem(f"scene-{split}-{index:05d}", split, scene_seed, chosen))
    return items


class StillChooser:
    """Chooses stills for scenes by rendezvous hashing (Thaler and Ravishankar 1998).

    For each layer of each scene every source gets a pseudo-random number, and the largest wins. A new source changes only
    the scenes in which it wins.
    """

    def __init__(self, stills: Sequence[Still]) -> None:
        self.by_source: dict[str, list[Still]] = {}
        for still in stills:
            self.by_source.setdefault(still.source, []).append(still)
        self.sources = np.array(sorted(self.by_source))
        self.marks = _marks(self.sources)

    def choose(self, count: int, seed: int) -> tuple[Still, ...]:
        """Returns a background, then objects, from other sources than the background's if there are any.

        The source is drawn first, then one of its stills, so that a long video is not used more often than others.
        """
        ground = self._source(seed, 0, "")
        others = [self._source(seed, layer, ground) for layer in range(1, count)]
        return tuple(self._still(source, seed, layer) for layer, source in enumerate([ground, *others]))

    def _source(self, seed: int, layer: int, without: str) -> str:
        drawn = _draw(self.marks, seed, layer)
        if len(self.sources) > 1:
            drawn[self.sources == without] = 0
        return str(self.sources[int(drawn.argmax())])

    def _still(self, source: str, seed: int, layer: int) -> Still:
        stills = self.by_source[source]
        names = np.array([_drawn_name(s.path) for s in stills])
        return stills[int(_draw(_marks(names), seed, layer).argmax())]


def _drawn_name(path: str) -> str:
    """Returns the clip's folder and the still's name, from which its number is drawn.

    "plate" is what stills were called first: with another word every scene would be cut from other stills than before.
    """
    still = Path(path)
    return f"{still.parent.name}/{still.name.replace('still', 'plate')}"


def _marks(names: np.ndarray) -> np.ndarray:
    """Returns a number for each name, the same on every machine: n uint64."""
    digests = b"".join(hashlib.blake2b(str(n).encode(), digest_size=8).digest() for n in names)
    return np.frombuffer(digests, np.uint64)


def _draw(marks: np.ndarray, seed: int, layer: int) -> np.ndarray:
    """Returns a pseudo-random number for each mark (the finish of splitmix64; Steele et al. 2014): n uint64."""
    x = marks ^ _marks(np.array([f"{seed} {layer}"]))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return x ^ (x >> np.uint64(31))


def build_scene(item: SceneItem, clip: ClipConfig, supersampling: int, generator: np.random.Generator) -> Scene:
    """Cuts textures and shapes. Every random choice comes from `generator`. Raises ValueError if a still is missing."""
    layers = [_background(_read(item.stills[0]), clip, supersampling, generator)]
    for depth, still in enumerate(item.stills[1:], start=1):
        layers.append(_object(_read(still), depth, clip, supersampling, generator))
    return Scene(item, tuple(layers))


def _read(still: Still) -> np.ndarray:
    picture = cv2.imread(still.path, cv2.IMREAD_COLOR)
    if picture is None:
        raise ValueError(f"the still {still.path} is missing or unreadable: make the data again (`make data`)")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def _background(picture: np.ndarray, clip: ClipConfig, ss: int, generator: np.random.Generator) -> SceneLayer:
    """Cuts a random window of the clip's aspect, resized so that the frame lies in its middle with room on all sides."""
    height, width = picture.shape[:2]
    reach = generator.uniform(*BACKGROUND_REACH)
    fit = min(width / clip.width, height / clip.height) * generator.uniform(0.75, 1.0)
    w, h = int(clip.width * fit), int(clip.height * fit)
    left, top = int(generator.integers(width - w + 1)), int(generator.integers(height - h + 1))
    size = (round(clip.width * reach * ss), round(clip.height * reach * ss))
    texture = cv2.resize(
        np.ascontiguousarray(picture[top : top + h, left : left + w]),
        size,
        interpolation=cv2.INTER_AREA if w > size[0] else cv2.INTER_CUBIC,
    )
    if generator.random() < 0.5:
        texture = np.ascontiguousarray(texture[:, ::-1])
    x, y = clip.width / 2 - size[0] / ss / 2, clip.height / 2 - size[1] / ss / 2
    return SceneLayer("background", texture, np.array([[1 / ss, 0, x], [0, 1 / ss, y], [0, 0, 1]]), None, 1.0)


def _object(picture: np.ndarray, depth: int, clip: ClipConfig, ss: int, generator: np.random.Generator) -> SceneLayer:
    """Makes a shape whose texture is the most varied of six random square cuts of the still."""
    shape = _shape(clip, generator)
    cuts = []
    for _ in range(6):
        side = int(min(picture.shape[:2]) * generator.uniform(0.25, 0.6))
        top, left = (int(generator.integers(n - side + 1)) for n in picture.shape[:2])
        cuts.append(picture[top : top + side, left : left + side])
    cut = max(cuts, key=lambda c: float(c.std(axis=(0, 1)).sum()))
    half = 1.6 * shape.radius * max(shape.stretch, 1 / shape.stretch)  # the outline's furthest point
    size = max(4, round(2 * half * ss))
    texture = cv2.resize(
        np.ascontiguousarray(cut), (size, size), interpolation=cv2.INTER_AREA if len(cut) > size else cv2.INTER_CUBIC
    )
    gain = generator.uniform(0.8, 1.25) * generator.uniform(0.85, 1.15, 3)
    texture = np.clip(texture * gain, 0, 255).astype(np.uint8)
    scale = 2 * half / size
    to_frame = np.array([[scale, 0, shape.centre[0] - half], [0, scale, shape.centre[1] - half], [0, 0, 1]])
    xy = (np.stack(np.meshgrid(np.arange(size), np.arange(size)), axis=-1) + 0.5) * scale + to_frame[:2, 2]
    alpha = shape.alpha(xy)
    name = f"{_colour(texture[alpha > 0.5])} {shape.name}"
    rgba = np.dstack([texture, np.round(alpha * 255).astype(np.uint8)])
    return SceneLayer(name, rgba, to_frame, shape, 1.0 + 0.12 * depth)


def _shape(clip: ClipConfig, generator: np.random.Generator) -> Shape:
    name = str(generator.choice(SHAPES))
    radius = generator.uniform(0.16, 0.28) * clip.height
    edge = 0.6 * radius
    centre = (float(generator.uniform(edge, clip.width - edge)), float(generator.uniform(edge, clip.height - edge)))
    phase = generator.uniform(0, 2 * np.pi)
    waves: tuple[tuple[int, float, float], ...] = ()
    if name == "rounded square":
        waves = ((4, 0.09, phase),)
    elif name == "rounded triangle":
        waves = ((3, 0.14, phase),)
    elif name == "blob":
        waves = tuple((k, float(generator.uniform(0.03, 0.13)), float(generator.uniform(0, 6.28))) for k in (2, 3, 5))
    stretch = float(generator.uniform(0.8, 1.25)) if name in ("oval", "blob") else 1.0
    return Shape(name, centre, float(radius), waves, stretch)


def _colour(pixels: np.ndarray) -> str:
    """Names the mean colour of pixels n 3 uint8."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(pixels.mean(axis=0) / 255))
    if value < 0.2:
        return "black"
    if saturation < 0.18:
        return "white" if value > 0.75 else "grey"
    names = ("red", "orange", "yellow", "green", "green", "cyan", "cyan", "blue", "blue", "purple", "pink", "red")
    return names[int(hue * 12 + 0.5) % 12]
