"""Draws the diagrams of the documentation as SVG files beside this script: python docs/img/diagrams.py"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
COLOURS = {  # fill, stroke
    "data": ("#e3f2fd", "#1565c0"),
    "train": ("#fff3e0", "#e65100"),
    "eval": ("#e8f5e9", "#2e7d32"),
    "use": ("#f3e5f5", "#6a1b9a"),
    "file": ("#ffffff", "#607d8b"),
}


@dataclass(frozen=True)
class Box:
    """A labelled rectangle. x, y: its upper left corner in px. The first line is bold."""

    x: int
    y: int
    width: int
    height: int
    lines: tuple[str, ...]
    kind: str = "file"

    def svg(self) -> str:
        fill, stroke = COLOURS[self.kind]
        centre = self.x + self.width / 2
        first = self.y + self.height / 2 - 8.5 * (len(self.lines) - 1) + 4.5
        texts = [
            f'<text x="{centre:g}" y="{first + 17 * i:g}" text-anchor="middle" font-size="{13 if i == 0 else 11.5}"'
            f' font-weight="{600 if i == 0 else 400}">{escape(line)}</text>'
            for i, line in enumerate(self.lines)
        ]
        rect = f'<rect x="{self.x}" y="{self.y}" width="{self.width}" height="{self.height}" rx="7" fill="{fill}"'
        return "\n".join([f'{rect} stroke="{stroke}" stroke-width="1.4"/>', *texts])


def arrow(*points: tuple[int, int], dashed: bool = False) -> str:
    """Returns a polyline with a head at its last point."""
    path = " ".join(f"{x},{y}" for x, y in points)
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<polyline points="{path}" fill="none" stroke="#455a64" stroke-width="1.5"{dash} marker-end="url(#head)"/>'


def label(x: int, y: int, text: str, anchor: str = "middle", bold: bool = False) -> str:
    """Returns a line of small text."""
    weight = 600 if bold else 400
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="12" font-weight="{weight}">{escape(text)}</text>'


def drawing(width: int, height: int, title: str, parts: Iterable[str]) -> str:
    """Returns a whole SVG file with a white background, readable on dark pages too."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        f' role="img" font-family="{FONT}" fill="#212121">\n<title>{escape(title)}</title>\n'
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#455a64"/></marker></defs>\n'
        f'<rect width="{width}" height="{height}" rx="10" fill="#ffffff"/>'
    )
    return "\n".join([head, *parts, "</svg>"]) + "\n"


def pipeline() -> str:
    """Draws what feeds what, from videos to the report."""
    boxes = (
        Box(20, 40, 150, 62, ("Videos", "SRC=folder, list, table", "or packaged clips")),
        Box(210, 40, 140, 62, ("ingest, cut", "shots and clips"), "data"),
        Box(390, 40, 140, 62, ("track, encode", "points, latents"), "data"),
        Box(570, 40, 140, 62, ("shard, pack", "what passed the gates"), "data"),
        Box(390, 122, 140, 48, ("render", "scenes from stills"), "data"),
        Box(20, 230, 150, 62, ("Weights", "Wan, or the shipped", "nano base")),
        Box(210, 230, 140, 62, ("teacher", "learns to follow tracks", "bidirectional"), "train"),
        Box(390, 230, 140, 62, ("ode_pairs, adapt", "causal student", "KV cache, few steps"), "train"),
        Box(570, 230, 140, 62, ("dmd", "distribution matching", "on its own rollouts"), "train"),
        Box(390, 312, 140, 48, ("tiny_vae", "fast decoder"), "train"),
        Box(760, 230, 150, 62, ("Student", "streams chunks", "at constant cost"), "use"),
        Box(760, 122, 150, 62, ("demo, generate", "Python API, export"), "use"),
        Box(210, 400, 500, 48, ("select, generate, measure, speed, long_run", "held-out clips, other motions"), "eval"),
        Box(760, 393, 150, 62, ("report.json", "report.html", "MLflow"), "eval"),
    )
    arrows = (
        arrow((170, 71), (208, 71)),
        arrow((350, 71), (388, 71)),
        arrow((530, 71), (568, 71)),
        arrow((280, 102), (280, 146), (388, 146)),
        arrow((530, 146), (640, 146), (640, 104)),
        arrow((660, 102), (660, 200), (280, 200), (280, 228)),
        arrow((460, 200), (460, 228)),
        arrow((640, 200), (640, 228)),
        arrow((170, 261), (208, 261)),
        arrow((350, 261), (388, 261)),
        arrow((530, 261), (568, 261)),
        arrow((710, 261), (758, 261)),
        arrow((370, 200), (370, 336), (388, 336)),
        arrow((530, 336), (835, 336), (835, 294)),
        arrow((835, 230), (835, 186)),
        arrow((280, 292), (280, 398)),
        arrow((640, 292), (640, 398)),
        arrow((710, 424), (758, 424)),
    )
    names = (
        label(20, 26, "make data", "start", True),
        label(20, 218, "make teacher, make distill", "start", True),
        label(20, 429, "make eval", "start", True),
    )
    return drawing(
        930, 470, "From videos to a streaming student and its report", [*arrows, *names, *(b.svg() for b in boxes)]
    )


def house() -> str:
    """Draws the packages and who may import whom."""
    boxes = (
        Box(
            40,
            30,
            330,
            78,
            (
                "pipelines/",
                "what feeds what: data, teacher, distill, evaluate",
                "commands/: the command line, plan, bench, export",
            ),
            "use",
        ),
        Box(450, 30, 330, 78, ("demo/", "server/, playing/, page/", "the interactive page and its protocol"), "use"),
        Box(40, 150, 740, 52, ("configs/", "the tree of all settings, checks, loading; preset/*.yaml"), "file"),
        Box(
            40,
            244,
            430,
            78,
            (
                "stages/",
                "data/, train/, eval/, trackers/, play/",
                "one file a stage; contracts.py: Stage, Context, Engine",
            ),
            "train",
        ),
        Box(520, 244, 260, 78, ("infra/", "the only code that imports", "Ray, MLflow and DeepSpeed"), "data"),
        Box(
            40,
            364,
            740,
            78,
            (
                "msmodel/",
                "the model of the paper: DiT, track head, KV cache, rollout, stream, VAE",
                "torch only; io/, nano/, steering/, assets/",
            ),
            "eval",
        ),
    )
    arrows = (
        arrow((205, 108), (205, 148)),
        arrow((615, 108), (615, 148)),
        arrow((255, 202), (255, 242)),
        arrow((650, 202), (650, 242)),
        arrow((255, 322), (255, 362)),
        arrow((650, 322), (650, 362)),
        arrow((372, 69), (448, 69), dashed=True),
    )
    names = (
        label(410, 62, "late"),
        label(
            410,
            470,
            "An arrow means: may import. Stages do not import infra; pipelines/run.py joins both.",
        ),
    )
    return drawing(820, 490, "The packages and the direction of imports", [*arrows, *names, *(b.svg() for b in boxes)])


def cache() -> str:
    """Draws what chunk i attends to in c3s1w1, and at which positions."""
    parts = []
    for row, (chunk, kept) in enumerate(((0, ()), (1, (0,)), (2, (0, 1)), (3, (0, 2)), (9, (0, 8)))):
        y = 50 + 56 * row
        parts.append(label(20, y + 23, f"chunk {chunk}", "start", True))
        for place, held in enumerate((*kept, chunk)):
            kind = "use" if held == chunk else "train" if held == 0 else "data"
            text = "itself" if held == chunk else f"sink: chunk {held}" if held == 0 else f"window: chunk {held}"
            parts.append(Box(120 + 190 * place, y, 170, 38, (text,), kind).svg())
    for place in range(3):
        parts.append(label(205 + 190 * place, 34, f"position {place}"))
    parts.append(
        label(
            20,
            350,
            "From chunk 2 on cost and positions stay the same: sink + window + 1 chunks.",
            "start",
        )
    )
    return drawing(720, 370, "What a chunk attends to with sink 1 and window 1", parts)


DIAGRAMS = {"pipeline.svg": pipeline, "house.svg": house, "cache.svg": cache}

if __name__ == "__main__":
    for name, draw in DIAGRAMS.items():
        (FOLDER / name).write_text(draw(), encoding="utf-8")
