"""A hub folder that behaves as CoTracker3's, its habits included. test_cotracker.py holds it against the real one.

Points move by `speed` pixels a frame of the resized clip, plus `joint` times how many are tracked together.
"""

from __future__ import annotations

from pathlib import Path

import torch

HUBCONF = '''
import torch

torch.manual_seed(0)  # as the real code does on import
dependencies = ["torch"]
ROWS, COLUMNS, SUPPORT = 384, 512, 36


class Net(torch.nn.Module):
    """(tracks, visibility, confidence, None) in pixels of the resized clip. Online: everything since the first window."""

    def __init__(self, window):
        super().__init__()
        self.register_buffer("time_emb", torch.zeros(1, window, 1110))
        self.speed = torch.nn.Parameter(torch.zeros(2))
        self.register_buffer("joint", torch.zeros(()))
        self.register_buffer("limit", torch.zeros(2))  # most points; what is raised above that
        self.window, self.seen = window, 0

    def forward(self, video, queries, iters=4, is_online=False):
        b, frames, c, h, w = video.shape
        assert (c, h, w) == (3, ROWS, COLUMNS) and video.dtype == torch.float32 and video.max() > 1.5, "floats 0..255"
        n = queries.shape[1]
        if self.limit[0] and n > self.limit[0]:
            torch_cpu = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")
            raise (torch_cpu, torch.OutOfMemoryError("CUDA out of memory. Tried"), MemoryError())[int(self.limit[1])]
        if is_online:
            assert frames <= self.window
            if n == 0:
                raise RuntimeError("cannot reshape tensor of 0 elements")
            self.seen = frames if self.seen == 0 else self.seen + frames - self.window // 2
            frames = self.seen
        time = torch.arange(frames)[:, None] - queries[0, None, :, 0]
        tracks = queries[0, None, :, 1:] + time[..., None] * self.speed + self.joint * n
        visibility = torch.where(time < 0, 0.05, 1 - 0.01 * time)  # before its query a point is not looked for
        return tracks[None], visibility[None], torch.full_like(visibility, 0.8)[None], None


def resized(video):
    b, frames, c, h, w = video.shape
    return torch.nn.functional.interpolate(video.reshape(b * frames, c, h, w), (ROWS, COLUMNS)).unflatten(0, (b, frames))


def scale(video):
    return torch.tensor([(COLUMNS - 1) / (video.shape[-1] - 1), (ROWS - 1) / (video.shape[-2] - 1)])


class Offline(torch.nn.Module):
    """With support points of its own; calls `forward` past the hooks; writes into the answer; the query is put right."""

    def __init__(self):
        super().__init__()
        self.model = Net(60)

    def forward(self, video, queries=None, segm_mask=None, grid_size=0, grid_query_frame=0, backward_tracking=False):
        back, n, film = 1 / scale(video), queries.shape[1], resized(video)
        first = queries[0, :, 0].long()
        queries = torch.cat([queries[..., :1], queries[..., 1:] * scale(video)], dim=-1)
        queries = torch.cat([queries, torch.zeros(1, SUPPORT, 3)], dim=1)
        tracks, visibility, *_ = self.model.forward(video=film, queries=queries, iters=6)
        if backward_tracking:
            other = queries.clone()
            other[..., 0] = video.shape[1] - 1 - other[..., 0]
            found, seen, *_ = self.model(video=film.flip(1), queries=other, iters=6)
            before = torch.arange(video.shape[1])[:, None] < queries[0, None, :, 0]
            tracks[0][before], visibility[0][before] = found.flip(1)[0][before], seen.flip(1)[0][before]
        tracks, visible = tracks[:, :, :n], visibility[:, :, :n] > 0.9
        tracks[0, first, torch.arange(n)] = queries[0, :n, 1:]
        visible[0, first, torch.arange(n)] = True
        return tracks * back, visible


class Online(torch.nn.Module):
    """Windows of 16 frames, stride `step`; the query is not put right, nor called visible."""

    def __init__(self):
        super().__init__()
        self.model, self.step = Net(16), 8

    def forward(self, video_chunk, is_first_step=False, queries=None, grid_size=5, grid_query_frame=0):
        if is_first_step:
            self.model.seen = 0
            self.queries = torch.cat([queries[..., :1], queries[..., 1:] * scale(video_chunk)], dim=-1)
            return None, None
        film = resized(video_chunk)
        tracks, visibility, confidence, _ = self.model(video=film, queries=self.queries, iters=6, is_online=True)
        return tracks / scale(video_chunk), visibility * confidence > 0.6


def cotracker3_offline(*, pretrained=True, **kwargs):
    if pretrained:
        raise OSError("no network in tests")
    return Offline()


def cotracker3_online(*, pretrained=True, **kwargs):
    if pretrained:
        raise OSError("no network in tests")
    return Online()
'''
WINDOW = {"cotracker3_offline": 60, "cotracker3_online": 16}


def write_hub(folder: Path) -> Path:
    (folder / "hubconf.py").write_text(HUBCONF)
    return folder


def weights(
    name: str, speed: tuple[float, float] = (0.0, 0.0), joint: float = 0.0, limit: int = 0, error: int = 0
) -> dict[str, torch.Tensor]:
    """Of the fake's variant `name`. limit: most points a call, support points counted; 0 is any number. error: which is
    raised above that (torch on CPU, CUDA, Python)."""
    return {
        "time_emb": torch.zeros(1, WINDOW[name], 1110),
        "speed": torch.tensor(speed),
        "joint": torch.tensor(joint),
        "limit": torch.tensor([float(limit), float(error)]),
    }
