"""The Python API of streaming: a picture and a prompt in, steered frames out, chunk after chunk.

    session = StreamingSession.from_pretrained("embedded:nano-student", "photo.png", "a city street")
    session.drag(start=(0.3, 0.5), end=(0.7, 0.5), seconds=2)
    for chunk in session.stream(chunks=10):
        show(chunk.frames)  # T H W 3 uint8

`StreamingSession` steers a `ChunkStream` (msmodel/stream.py) with `Controls`, as the demo does.

Legend: T pixel frames, H W pixels, n tracks. Shares: 0..1 of the frame's width and height, x first, origin top-left.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msmodel.io.tensor_files import Download
from msmodel.pretrained import StreamingModel, find_student, load_streaming_model
from msmodel.steering.authored import drag_controls
from msmodel.steering.controls import Controls, InputSmoothing
from msmodel.steering.steering import Steering
from msmodel.stream import StreamChunk
from msmodel.tracks import ID_RANGE

Picture = Any  # a path, a PIL image, or an array H W 3 uint8
GRID_SIDE = 50  # rows and columns of the full presets' track grid; smaller models have one track a latent cell
TRACKS_A_CELL = 2  # tracks of a session for each cell of its grid: a camera's points need one and a half
AS_GIVEN = InputSmoothing(smooth_seconds=0.0, max_speed=0.0)


class StreamingSession:
    """A session that streams one endless video from a first frame. Memory, and work per chunk, do not grow.

    controls: the current snapshot, read when a chunk begins; set it at any time. frame: H W 3 uint8, the first frame as
    the model gets it. prompt: the current prompt.
    """

    controls: Controls

    def __init__(
        self,
        model: StreamingModel,
        picture: Picture,
        prompt: str = "",
        *,
        seed: int = 0,
        grid: tuple[int, int] | None = None,
        max_tracks: int | None = None,
        smoothing: InputSmoothing = AS_GIVEN,
    ) -> None:
        """Starts a session on a loaded model; arguments as in `from_pretrained`."""
        cfg = model.student.cfg
        self.size = (cfg.clip.height, cfg.clip.width)
        self.fps = cfg.clip.fps
        self.model, self.controls = model, Controls()
        self.frame, self.prompt = read_picture(picture, self.size), _checked_prompt(prompt)
        self._grid = grid or (min(GRID_SIDE, cfg.latent_height), min(GRID_SIDE, cfg.latent_width))
        tracks = max_tracks or min(ID_RANGE, TRACKS_A_CELL * self._grid[0] * self._grid[1])
        self._steering = Steering(self.size, self.fps, smoothing, tracks, self._grid)
        self._named = 0  # drawn paths and motions so far: each gets a new name, so that it begins when it is set
        self._stream = model.new_stream(self.frame, prompt, seed, self._steer, tracks)

    @classmethod
    def from_pretrained(
        cls,
        model: Path | str,
        picture: Picture,
        prompt: str = "",
        *,
        seed: int = 0,
        decoder: str = "auto",
        tiny_vae: Path | str | None = None,
        device: torch.device | str | None = None,
        grid: tuple[int, int] | None = None,
        max_tracks: int | None = None,
        smoothing: InputSmoothing = AS_GIVEN,
        download: Download | None = None,
    ) -> StreamingSession:
        """Loads a trained student and starts a session.

        Args:
            model: "embedded:nano-student" (part of the package), a student's checkpoint folder, a folder of `make
                export`, or a hub id "owner/name" (optionally "owner/name@revision").
            picture: the first frame: a path, a PIL image, or an array H W 3 uint8. It is scaled until it covers the
                model's frame and cropped evenly on both sides; a picture of the model's own size is used unchanged.
            prompt: text; may be empty.
            seed: of the noise and the track ids. The same arguments give the same frames on one machine.
            decoder: "vae", "tiny", or "auto": the tiny VAE where one is given and the VAE is Wan's.
            tiny_vae: a folder of `make distill`'s tiny VAE, or "embedded:nano".
            device: as for torch; by default CUDA where there is one, else the CPU. Weights are bfloat16 on CUDA,
                float32 elsewhere.
            grid: (rows, columns) of the track grid that the student was trained with (data.grid_rows, data.grid_cols);
                by default one track a latent cell, at most 50 x 50, as in the presets.
            max_tracks: the most tracks at once, two a grid cell by default. Frames depend on it.
            smoothing: of points that are set interactively (Controls.xy); by default positions are used unchanged.
            download: replaces huggingface_hub.snapshot_download.

        Raises:
            ValueError: for a folder that is missing, has no config.json or holds no student; weights that are damaged
                or cannot be downloaded; a picture that cannot be read or is smaller than the model's frame.
        """
        loaded = load_streaming_model(find_student(model, download), decoder=decoder, tiny_vae=tiny_vae, device=device)
        return cls(loaded, picture, prompt, seed=seed, grid=grid, max_tracks=max_tracks, smoothing=smoothing)

    def stream(self, chunks: int | None = None) -> Iterator[StreamChunk]:
        """Yields the next `chunks` chunks, or chunks without end. Controls may be set between two of them."""
        return islice(iter(self.next_chunk, None), chunks)

    def next_chunk(self) -> StreamChunk:
        """Reads `controls` and returns the next chunk.

        chunk.frames is T H W 3 uint8 on the CPU. Raises ValueError for more points than `max_tracks`.
        """
        return self._stream.next_chunk(concurrently=True)

    def drag(
        self, start: tuple[float, float], end: tuple[float, float], seconds: float, *, radius: float = 0.15
    ) -> None:
        """Drags what is around `start` to `end`, from the next chunk on; the rest of the picture is held still.

        start, end: (x, y) shares of the frame. seconds: how long the drag takes; afterwards what was dragged stays at
        `end`. radius: of what is dragged, in frame widths. Replaces `controls`. Raises ValueError for a place outside
        the frame, or a duration or radius that is not positive.
        """
        for name, place in (("start", start), ("end", end)):
            if len(place) != 2 or not all(0 <= share <= 1 for share in place):
                raise ValueError(f"drag: {name}={place} is not (x, y) in shares of the frame, from 0 to 1")
        if not (seconds > 0 and radius > 0):
            raise ValueError(f"drag: seconds={seconds} and radius={radius} must be positive")
        self.controls = drag_controls(self.size, self._grid, start, end, radius, seconds, self._new_name())

    def follow(self, xy_px: np.ndarray, visible: np.ndarray) -> None:
        """Follows the given tracks, from the next chunk on: forward, then backward, and so on.

        xy_px: T n 2, pixels of the model's frame (`size`) at the model's rate (`fps`), x first, pixel centres at +0.5;
        msmodel.tracks.resize_px and resample convert others. visible: T n bool. Replaces `controls`. Raises ValueError
        for shapes that do not fit and visible points that are not finite.
        """
        name = f"tracks {self._new_name()}"
        self._steering.add_motion(name, np.asarray(xy_px), np.asarray(visible))
        self.controls = Controls(transfer=name)

    def set_prompt(self, prompt: str) -> None:
        """Changes the prompt from the next chunk on. Cached chunks were generated with the old prompt and stay cached."""
        self.prompt = _checked_prompt(prompt)
        self._stream.set_text(self.model.text(prompt))

    def refresh_sink(self) -> None:
        """Anchors later chunks to the newest chunk in place of the first, for use after the scene has changed.

        Raises ValueError before there is a chunk after the sinks, and for a student without sinks.
        """
        self._stream.refresh_sink()

    def reset(self) -> None:
        """Returns to chunk 0, so that the same frames are generated again. The current controls and prompt stay."""
        self._stream.reset()
        self._steering.reset()

    def fork(self) -> StreamingSession:
        """Returns an independent session that continues from the current state.

        Weights, and tensors cached so far, are shared.
        """
        other = copy.copy(self)
        other._steering, other._stream = self._steering.fork(), self._stream.fork()
        other._stream.controls = other._steer
        return other

    @property
    def cache_bytes(self) -> int:
        """Returns the bytes of keys and values held between chunks (msmodel/cache.py has the formula)."""
        return self._stream.cache_bytes

    def _new_name(self) -> int:
        self._named += 1
        return self._named

    def _steer(self, _chunk: int, first: int, frames: int) -> tuple[Tensor, Tensor]:
        """Returns the tracks of the next chunk, for ChunkStream."""
        xy_px, visible = self._steering.tracks(self.controls, first, frames)
        return torch.from_numpy(xy_px), torch.from_numpy(visible)


def read_picture(picture: Picture, size: tuple[int, int]) -> np.ndarray:
    """Returns a picture as a frame of `size` (height, width): H W 3 uint8.

    picture: a path, a PIL image, or an array H W 3 uint8. It is scaled (Lanczos, aspect kept) until it covers the
    frame, and cropped around its centre. Raises ValueError where it cannot be read, is another kind of array, or is
    smaller than the frame in either direction.
    """
    from PIL import Image, ImageOps

    if isinstance(picture, np.ndarray):
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise ValueError(f"picture: an array must be H W 3 uint8 (RGB), not {picture.shape} {picture.dtype}")
        image, name = Image.fromarray(picture), "the array"
    elif isinstance(picture, Image.Image):
        image, name = picture, "the image"
    else:
        name = str(picture)
        try:
            with Image.open(picture) as file:
                image = ImageOps.exif_transpose(file).convert("RGB")
        except FileNotFoundError:
            raise ValueError(f"picture: there is no file {picture}") from None
        except (OSError, AttributeError, SyntaxError) as error:
            raise ValueError(f"picture: {picture} cannot be read as a picture ({error})") from error
    height, width = size
    if image.width < width or image.height < height:
        raise ValueError(
            f"picture: {name} has {image.width}x{image.height} pixels, fewer than the {width}x{height} of this model's "
            f"frame: take a larger picture, or enlarge it first"
        )
    return np.asarray(ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.LANCZOS))


def _checked_prompt(prompt: str) -> str:
    if not isinstance(prompt, str):
        raise ValueError(f"prompt: must be text, not {type(prompt).__name__}")
    return prompt
