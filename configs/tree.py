"""The tree of all settings: one frozen dataclass a group, each defined next to the code that reads it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from configs.demo import DemoConfig
from configs.distill import DistillConfig
from configs.export import ExportConfig
from configs.plan import PlanConfig
from infra.config import ComputeConfig
from msmodel.config import ClipConfig, DiTConfig, ImageEncoderConfig, ModelConfig, StudentConfig, TextConfig, VAEConfig
from stages.contracts import Config as StageConfig
from stages.contracts import Inputs, Output, Stage
from stages.data.config import DataBenchConfig, DataConfig
from stages.data.loader import LoaderConfig
from stages.eval.bench import BenchConfig
from stages.eval.config import EvalConfig
from stages.eval.sweep import SweepConfig
from stages.trackers.bench import TrackerBenchConfig
from stages.train.adapt import AdaptConfig
from stages.train.base import BaseConfig
from stages.train.dmd import DmdConfig
from stages.train.method import LoopConfig
from stages.train.ode_pairs import OdeConfig
from stages.train.sampling import Guidance
from stages.train.teacher import ContextConfig, Phase1Config, TeacherConfig
from stages.train.tiny_vae import TinyBaseConfig, TinyVAEConfig
from stages.train.vae import VAETrainConfig


@dataclass(frozen=True)
class Config:
    """All settings that a user can change. Overrides are written `teacher.phase1_steps=200 student.window=2`."""

    preset: str = "nano"  # name of a file in configs/preset, set by --preset
    seed: int = 0  # seed of all random numbers
    runs: str = "runs"  # folder of all results, set by --runs
    src: str = ""  # folder, glob, list, table or address of one's own videos; "" takes the packaged clips
    clip: ClipConfig = field(default_factory=ClipConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    text: TextConfig = field(default_factory=TextConfig)
    image_encoder: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    dit: DiTConfig = field(default_factory=DiTConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    guidance: Guidance = field(default_factory=Guidance)  # of the teacher, in distillation
    data: DataConfig = field(default_factory=DataConfig)
    vae_training: VAETrainConfig = field(default_factory=VAETrainConfig)  # make nano-base
    base: BaseConfig = field(default_factory=BaseConfig)  # make nano-base
    phase1: Phase1Config = field(default_factory=Phase1Config)  # make nano-base
    phase1_context: ContextConfig = field(default_factory=ContextConfig)  # make nano-base
    tiny_base: TinyBaseConfig = field(default_factory=TinyBaseConfig)  # make nano-base
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    ode: OdeConfig = field(default_factory=OdeConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    dmd: DmdConfig = field(default_factory=DmdConfig)
    tiny_vae: TinyVAEConfig = field(default_factory=TinyVAEConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)  # of every training on shards
    sweep: SweepConfig = field(default_factory=SweepConfig)  # make sweep
    bench: BenchConfig = field(default_factory=BenchConfig)  # make bench
    tracker_bench: TrackerBenchConfig = field(default_factory=TrackerBenchConfig)  # make bench-trackers
    bench_data: DataBenchConfig = field(default_factory=DataBenchConfig)  # make bench-data
    export: ExportConfig = field(default_factory=ExportConfig)  # make export
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)  # make plan
    demo: DemoConfig = field(default_factory=DemoConfig)  # make demo

    @property
    def model(self) -> ModelConfig:
        """Returns the settings that define the model, without those of its training."""
        return ModelConfig(self.clip, self.vae, self.text, self.dit, self.student, self.image_encoder)

    @property
    def root(self) -> Path:
        """Returns the run's folder, RUNS/PRESET."""
        return Path(self.runs).expanduser().resolve() / self.preset

    def ranks(self, stage: Stage[Any, Any, Any]) -> int:
        """Returns the number of processes that run a distributed stage."""
        workers = 1 if self.compute.executor == "local" else self.compute.workers or stage.resources.workers
        training = vars(self).get(stage.name)
        return training.ranks(workers) if isinstance(training, LoopConfig) else workers

    def sized(self, stage: Stage[StageConfig, Inputs, Output]) -> Stage[StageConfig, Inputs, Output]:
        """Returns the distributed stage limited to `ranks(stage)` processes."""
        return replace(stage, resources=replace(stage.resources, most=self.ranks(stage)))
