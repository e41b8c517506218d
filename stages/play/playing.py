"""Students of this project as the demo, `make generate` and replay play them: msmodel's StreamingModel with its digest.

Legend: H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from msmodel.pretrained import StreamingModel, load_streaming_model
from msmodel.stream import ChunkStream, Controls
from stages.records import Checkpoint


@dataclass(frozen=True)
class Playable(StreamingModel):
    """A student of this project, ready to be played. digest: of the student's weights. points: the most tracks that a
    stream may
    be asked to follow; the ids that are drawn, and so the frames, depend on it."""

    digest: str
    points: int

    def open(self, frame: np.ndarray, prompt: str, seed: int, controls: Controls) -> ChunkStream:
        """Returns a new stream from `frame` (H W 3 uint8). Raises ValueError for a frame of another size than the student's."""
        return self.new_stream(frame, prompt, seed, controls, self.points)


def load_playable(
    student: Checkpoint,
    tiny_vae: Checkpoint | None,
    decoder: str,
    points: int,
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> Playable:
    """Loads a student's checkpoint for playing; decoder and dtype as for
    msmodel.pretrained.load_streaming_model.

    Raises ValueError where weights cannot be read, or "tiny" is asked for and there is none.
    """
    if decoder == "tiny" and tiny_vae is None:
        raise ValueError(
            "demo.decoder=tiny: this run has no tiny VAE; `make distill` trains one, demo.decoder=vae does without"
        )
    tiny = tiny_vae.folder if tiny_vae else None
    model = load_streaming_model(student.folder, decoder=decoder, tiny_vae=tiny, device=device, dtype=dtype)
    return Playable(**vars(model), digest=student.digest, points=points)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Runs what is inside with this number of torch threads: another number sums in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
