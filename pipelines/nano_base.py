"""make nano-base: pretrains what the nano preset starts from (VAE, tiny VAE, image-to-video DiT) and ships it in
msmodel/assets/nano. The held-out sources are left out of all three."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from stages.train.tiny_vae import TINY_VAE, TinyVAEInputs, TinyVAERun

from infra.files import CHECKOUT
from stages.data.sources import assign_splits
from stages.records import Checkpoint
from stages.train.base import BASE, BaseRun, ClipInputs
from stages.train.vae import STAGE as VAE
from stages.train.vae import VAEPretrainConfig

from .data import data, usable_videos
from .wiring import Run, without_student

STAGES = (VAE, BASE, TINY_VAE)
ASSETS = CHECKOUT / "msmodel" / "assets" / "nano"


def nano_base(run: Run) -> None:
    """Training videos -> VAE -> shards of its latents -> DiT and tiny VAE -> msmodel/assets/nano."""
    with run.making("nano-base"):
        videos, _ = usable_videos(run)
        split = assign_splits(videos, run.cfg.data)
        vae = run.step(VAE, VAEPretrainConfig(vae=run.cfg.vae), [v for v in videos if split[v.video_id] == "train"])
        fresh = replace(run, cfg=replace(run.cfg, vae=replace(run.cfg.vae, source=vae.folder)))
        shards = data(fresh)
        model = without_student(fresh.cfg)
        dit = run.step(BASE, BaseRun(model, run.cfg.base), ClipInputs(shards.train, shards.heldout))
        tiny = run.step(TINY_VAE, TinyVAERun(model, run.cfg.tiny_vae), TinyVAEInputs(shards.train, shards.heldout))
        for part, checkpoint in (("vae", vae), ("dit", dit), ("tiny_vae", tiny)):
            ship(checkpoint, ASSETS / part)
            run.say(f"shipped {checkpoint.name} to {ASSETS / part}")


def ship(checkpoint: Checkpoint, folder: Path) -> None:
    """Copies the weights and their config."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in Path(checkpoint.folder).iterdir():
        if (file.suffix == ".safetensors" and file.stem != "state") or file.name == "config.json":
            shutil.copyfile(file, folder / file.name)
