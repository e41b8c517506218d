"""make nano-base: pretrains the models that the nano preset starts from, and ships them in msmodel/assets.

They are a VAE, a tiny VAE, an image-to-video DiT, and a phase-1 teacher made from that DiT. The held-out sources are
left out of all four.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from infra.files import CHECKOUT
from pipelines.data import data, usable_videos
from pipelines.run import Run, without_student
from stages.data.sources import assign_splits
from stages.records import Checkpoint
from stages.train.base import BASE, BaseRun, ClipInputs
from stages.train.teacher import TEACHER, TeacherInputs, TeacherRun
from stages.train.tiny_vae import TINY_VAE, TinyVAEInputs, TinyVAERun
from stages.train.vae import VAE, VAEInputs, VAERun

STAGES = (VAE, BASE, TEACHER, TINY_VAE)
ASSETS = CHECKOUT / "msmodel" / "assets"


def nano_base(run: Run) -> None:
    """Trains the VAE on the training videos, then DiT, teacher and tiny VAE on shards of its latents, and ships them.

    Raises ValueError for another preset than nano.
    """
    if run.cfg.preset != "nano":
        raise ValueError(f"nano-base ships what PRESET=nano starts from; it cannot be made at PRESET={run.cfg.preset}")
    with run.making("nano-base"):
        videos, _ = usable_videos(run)
        split = assign_splits(videos, run.cfg.data)
        train, heldout = (tuple(v for v in videos if split[v.video_id] == name) for name in ("train", "heldout"))
        clip = run.cfg.clip
        pixels = VAERun(run.cfg.vae, run.cfg.vae_training, clip.height, clip.width)
        vae = run.step(VAE, pixels, VAEInputs(train, heldout))
        more = replace(run.cfg.data, train_scenes=run.cfg.base.scenes)
        fresh = replace(run, cfg=replace(run.cfg, vae=replace(run.cfg.vae, source=vae.folder), data=more))
        shards = data(fresh)
        model = without_student(fresh.cfg)
        dit = run.step(BASE, BaseRun(model, run.cfg.base), ClipInputs(shards.train, shards.heldout))
        teacher_checkpoint = dit
        for phase in (run.cfg.phase1, run.cfg.phase1_context):
            teacher = TeacherRun(without_student(fresh.cfg, "chunk"), phase)
            teacher_checkpoint = run.step(
                TEACHER, teacher, TeacherInputs(shards.train, shards.heldout, teacher_checkpoint), label=phase.group
            )
        tiny = run.step(TINY_VAE, TinyVAERun(model, run.cfg.tiny_base), TinyVAEInputs(shards.train, shards.heldout))
        parts = {"nano/vae": vae, "nano/dit": dit, "nano-phase1/dit": teacher_checkpoint, "nano/tiny_vae": tiny}
        for part, checkpoint in parts.items():
            ship(checkpoint, ASSETS / part)
            run.log(f"shipped {checkpoint.name} to {ASSETS / part}")


def ship(checkpoint: Checkpoint, folder: Path) -> None:
    """Copies the weights and their config to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in Path(checkpoint.folder).iterdir():
        if (file.suffix == ".safetensors" and file.stem != "state") or file.name == "config.json":
            shutil.copyfile(file, folder / file.name)
