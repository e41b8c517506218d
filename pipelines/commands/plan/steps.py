"""Counts what the stages compute, by running their own code on the meta device: a training method's loss and
validation, the teacher's sampling, the student's stream, and the encoders.

Legend: b batch, z latent channels, t latent frames, h w latent size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode

from msmodel import flow
from msmodel.batch import Batch, Conditioning
from msmodel.causal import CausalDiT
from msmodel.config import CLIP_TOKENS, ModelConfig, TextConfig, VAEConfig
from msmodel.dit import WanDiT
from msmodel.rollout import generate_chunk, rollout, start
from msmodel.text import MINILM
from msmodel.tiny_vae import TinyDecoder
from msmodel.vae import vae_on_meta
from pipelines.commands.plan.trace import Cost, MetaCounter, count
from stages.train.adapt import AdaptConfig, AdaptMethod
from stages.train.conditioning import Augment, condition, draw_tracks
from stages.train.dmd import DmdConfig, DmdMethod, DmdRun
from stages.train.frames import CropSize, FrameBatch, place_crop
from stages.train.method import Method, RngStreams
from stages.train.ode_pairs import PairBatch
from stages.train.sampling import Guidance, sample_teacher
from stages.train.teacher import Probe, TeacherConfig, TeacherMethod
from stages.train.tiny_vae import TinyVAEConfig, TinyVAEMethod, TinyVAERun, decode_stepwise

META = torch.device("meta")
HIGHEST = 0.999  # quantile of a random decision
SPAN = 60  # steps over which the schedule of updates is averaged
WIDEST = (HIGHEST, HIGHEST, HIGHEST)
HELDOUT = {"teacher": "probe_clips", "adapt": "heldout_pairs", "dmd": "heldout_clips", "tiny_vae": "heldout_clips"}


@dataclass(frozen=True)
class Case:
    """A training at one size. own: its settings. tracks: points of a clip. dtype: of the weights. keep: whether full
    gradients accumulate and count; otherwise each is freed at once (added to a shard, or counted elsewhere)."""

    name: str
    model: ModelConfig
    own: Any
    guidance: Guidance
    tracks: int
    dtype: torch.dtype
    keep: bool = False


@dataclass(frozen=True)
class Choice:
    """One outcome of the random decisions of a step. share: of the steps. quantiles: quantiles of the decisions."""

    share: float
    step: int
    quantiles: tuple[float, ...] = (0.5,)


def choices(case: Case) -> list[Choice]:
    """Returns the outcomes that together have the mean cost of a step, among them the dearest. A step's cost is linear
    in what lies between two outcomes that stand for a range."""
    own = case.own
    if isinstance(own, TeacherConfig):
        grouped, last = own.group_steps / max(own.total_steps, 1), max(own.total_steps - 1, 0)
        whole = 1 - grouped
        outcomes = [
            Choice(whole * (1 - own.context_share), last, (HIGHEST,)),
            Choice(whole * own.context_share, last, (0.0, HIGHEST)),
            *(Choice(grouped / 2, 0, (size,)) for size in (0.0, HIGHEST)),
        ]
    elif isinstance(own, AdaptConfig):
        other = (1 - own.own_share) / 2
        outcomes = [Choice(own.own_share, 0, (0.0,)), Choice(other, 0, (HIGHEST, 0.0, 0.0)), Choice(other, 0, WIDEST)]
    elif isinstance(own, DmdConfig):
        outcomes = [Choice(0.5, 0, (0.0,)), Choice(0.5, 0, (HIGHEST,))]  # the first and the last exit step
    else:
        outcomes = [Choice(1.0, 0)]
    return [choice for choice in outcomes if choice.share > 0]


def mean_loss(case: Case, module: str) -> Cost:
    """Returns the mean cost of a micro-step of one module (loss and backward pass), with the peaks of the dearest."""
    found = [(c.share, _loss(_lean(case), module, c)) for c in choices(case)]

    def mean(of: Callable[[Cost], float]) -> float:
        return sum(share * of(cost) for share, cost in found)

    return Cost(
        mean(lambda c: c.flops),
        max(c.peak for _, c in found),
        mean(lambda c: c.passes),
        mean(lambda c: c.frozen_passes),
        max(c.frozen_peak for _, c in found),
    )


@lru_cache(maxsize=64)
def updates(case: Case) -> dict[str, float]:
    """Returns {module: the share of the steps in which it is updated}."""
    lean = _lean(replace(case, model=_deep(case.model, 1)))
    with MetaCounter():
        method = make_method(lean, trained_nets(lean))
    made = [method.update_schedule(step) for step in range(SPAN)]
    return {module: sum(module in names for names in made) / SPAN for module in method.trainable_modules()}


def parameters_of(case: Case) -> int:
    """Returns the number of parameters of one model that is trained, those of the tiny VAE's discriminator included."""
    if not isinstance(case.own, TinyVAEConfig):
        return parameters(case.model)[0]
    lean = _lean(case)
    with MetaCounter():
        modules = make_method(lean, trained_nets(lean)).trainable_modules().values()
    return sum(p.numel() for trained in modules for p in trained.module.parameters())


def validation(case: Case) -> Cost:
    """Returns the cost of one validation."""
    own = replace(case.own, batch=1, accumulate=1, global_batch=0, checkpoint_layers=False, keep_attention=False)
    return _validation(replace(case, own=_on_device(own), keep=False))


def heldout_bytes(case: Case) -> float:
    """Returns the bytes of the held-out inputs, which stay on the device."""
    return _held(replace(case, model=_deep(case.model, 1), own=_on_device(case.own)))


@lru_cache(maxsize=512)
def _loss(case: Case, module: str, choice: Choice) -> Cost:
    return extrapolated(case.model, lambda model: _loss_at(replace(case, model=model), module, choice))


@lru_cache(maxsize=512)
def _validation(case: Case) -> Cost:
    return extrapolated(case.model, lambda model: _validated_at(replace(case, model=model)))


@lru_cache(maxsize=128)
def _held(case: Case) -> float:
    nets, counter = trained_nets(case), MetaCounter()
    with counter:
        method = make_method(case, nets)
    alive = counter.alive
    del method
    return alive


def _lean(case: Case) -> Case:
    """Returns the case with held-out clips that no loss depends on left out, so that equal losses are counted once."""
    fewest = {HELDOUT[case.name]: 1, "picture_clips": 0, "accumulate": 1, "global_batch": 0}
    return replace(case, own=_on_device(replace(case.own, **fewest)))


def _on_device(own: Any) -> Any:
    """Returns the settings with DMD's teacher on the device, because it cannot leave the meta device."""
    return replace(own, teacher_placement="device") if isinstance(own, DmdConfig) else own


def _loss_at(case: Case, module: str, choice: Choice) -> Cost:
    nets = trained_nets(case)
    with MetaCounter():
        method = make_method(case, nets)
    trained = method.trainable_modules()[module].module
    counter = MetaCounter(choice.quantiles)
    if not case.keep:
        for p in filter(lambda p: p.requires_grad, trained.parameters()):
            p.register_post_accumulate_grad_hook(_forget)
    with watched(nets, counter) as seen, counter:
        given = make_batch(case, case.own.batch)
        method.loss(module, given, RngStreams(0, choice.step)).value.backward()
        del given
    return Cost(counter.flops, counter.peak, seen.passes, seen.frozen_passes, seen.frozen_peak)


def _validated_at(case: Case) -> Cost:
    nets = trained_nets(case)
    if case.name == "tiny_vae":  # its held-out clips stay in CPU memory, and are decoded one by one
        whole = partial(latents, case.model, 1)
        return count(lambda: decode_stepwise(nets[0], whole()))  # type: ignore[arg-type]
    counter = MetaCounter()
    with watched(nets, counter) as seen, counter:
        method = make_method(case, nets)
        method.validate(case.own.total_steps)
    return Cost(counter.flops, counter.peak, seen.passes)


def extrapolated(model: ModelConfig, counted: Callable[[ModelConfig], Cost]) -> Cost:
    """Returns counted(model). For 4 layers or more, models of 2 and 3 layers are counted and extrapolated, because the
    cost is linear in the number of layers."""
    layers = model.dit.layers
    if layers < 4:
        return counted(model)
    return counted(_deep(model, 2)).at(counted(_deep(model, 3)), layers - 2)


def _deep(model: ModelConfig, layers: int) -> ModelConfig:
    return replace(model, dit=replace(model.dit, layers=layers))


def _forget(parameter: Tensor) -> None:
    parameter.grad = None


class Passes:
    """Counts the calls of the first layers of networks, and of their gradients."""

    passes = frozen_passes = 0
    frozen_peak = 0.0


@contextmanager
def watched(nets: list[nn.Module], counter: MetaCounter) -> Iterator[Passes]:
    """Counts, while the block runs, the passes through DiTs (see Cost)."""
    seen, hooks = Passes(), []

    def returned(layer: nn.Module, args: Any, out: Any) -> None:
        seen.passes += 1  # a recomputation ends before the layer returns
        result = out[0] if isinstance(out, tuple) else out
        if result.requires_grad:
            result.register_hook(turned)

    def turned(gradient: Tensor) -> None:
        seen.passes += 1

    def scored(net: nn.Module, args: Any, out: Any) -> None:
        seen.frozen_passes += 1
        seen.frozen_peak = counter.peak

    for net in nets:
        if isinstance(net, WanDiT):
            if any(p.requires_grad for p in net.parameters()):
                hooks.append(net.blocks[0].register_forward_hook(returned))
            else:
                hooks.append(net.register_forward_hook(scored))
    yield seen
    for hook in hooks:
        hook.remove()


def trained_nets(case: Case) -> list[nn.Module]:
    """Returns the networks of a training on the meta device, in the order in which its method takes them."""
    kinds: dict[str, list[type[WanDiT]]] = {
        "teacher": [WanDiT],
        "adapt": [CausalDiT],
        "dmd": [CausalDiT, WanDiT, WanDiT],
    }
    vae_on_meta(case.model.vae)  # outside of what is counted: canvases of tracks may need it
    with META:
        if isinstance(case.own, TinyVAEConfig):
            return [TinyDecoder(case.model.vae, case.own.width).to(case.dtype)]
        nets: list[nn.Module] = [kind(case.model).to(case.dtype) for kind in kinds[case.name]]
    for net in nets:
        case.own.set_checkpointing(net)
    if case.name == "dmd":
        nets[2].eval().requires_grad_(False)
    return nets


def make_method(case: Case, nets: list[Any]) -> Method:
    """Returns the training method with its held-out inputs, on the meta device."""
    model, own, decode = case.model, case.own, partial(decode_on_meta, case.model)
    if isinstance(own, TinyVAEConfig):
        method = TinyVAEMethod(nets[0], TinyVAERun(model, own), make_batch(case, 1), 0, META)
        if method.discriminator is not None:
            method.discriminator.to(case.dtype)
        return method
    held = make_batch(case, vars(own)[HELDOUT[case.name]])
    if isinstance(own, TeacherConfig):
        return TeacherMethod(nets[0], model, own, Probe(held, model, own.augment, decode, 0))
    if isinstance(own, AdaptConfig):
        return AdaptMethod(nets[0], model, own, held, decode, 0)
    return DmdMethod(DmdRun(model, own, case.guidance), nets[0], nets[1], nets[2], held, decode, 0)


def make_batch(case: Case, size: int, device: torch.device = META) -> Any:
    """Returns `size` random clips in the form in which the training reads them."""
    if isinstance(case.own, TinyVAEConfig):
        return crops(case.model, case.own, size, device)
    given = clips(case.model, size, case.tracks, device)
    if not isinstance(case.own, AdaptConfig):
        return given
    states = torch.stack([given.latents] * case.model.student.steps, dim=1)
    return PairBatch(states, given.latents, inputs(case.model, size, case.tracks, device))


def clips(model: ModelConfig, size: int, tracks: int, device: torch.device) -> Batch:
    """Returns random clips as the loader yields them."""
    corner = torch.tensor([model.clip.width, model.clip.height])
    tokens, words = (size, CLIP_TOKENS, model.dit.clip_dim), (size, model.text.length, model.text.dim)
    return Batch(
        latents=latents(model, size, device),
        image=latents(model, size, device, frames=int(model.image_alone)),
        text=torch.randn(words, device=device),
        xy_px=torch.rand(size, model.clip.frames, tracks, 2, device=device) * corner.to(device),
        visible=torch.ones(size, model.clip.frames, tracks, dtype=torch.bool, device=device),
        real=torch.ones(size, dtype=torch.bool, device=device),
        clip_ids=tuple(f"random{i}" for i in range(size)),
        image_tokens=torch.randn(tokens, device=device) if model.dit.clip_dim else None,
        **{name: torch.randn(words, device=device) for name in model.text.null_prompts},
    )


def latents(model: ModelConfig, size: int, device: torch.device = META, frames: int = 0) -> Tensor:
    """Returns random latents b z t h w of `size` clips. frames: latent frames; 0 for whole clips."""
    shape = (model.vae.z_channels, frames or model.latent_frames, model.latent_height, model.latent_width)
    return torch.randn(size, *shape, device=device)


def crops(model: ModelConfig, own: TinyVAEConfig, size: int, device: torch.device) -> FrameBatch:
    """Returns random crops as the tiny VAE's loader yields them."""
    shape = (model.latent_frames, model.latent_height, model.latent_width)
    place = place_crop(CropSize(model.vae, own.latent_frames, own.side_px), shape, torch.Generator())
    t, h, w = (len(span) for span in (place.frames, place.rows, place.columns))
    s = model.vae.stride_s
    return FrameBatch(
        torch.randn(size, model.vae.z_channels, t, h, w, device=device),
        torch.zeros(size, 1 + (t - 1) * model.vae.stride_t, s * h, s * w, 3, dtype=torch.uint8, device=device),
        torch.zeros(size, dtype=torch.bool, device=device),
    )


def decode_on_meta(model: ModelConfig, given: Tensor) -> Tensor:
    """Returns the video b 3 T H W of latents b z t h w, and adds the VAE's cost, which is counted once for each size."""
    counter = _get_current_dispatch_mode()
    with _disable_current_modes():
        cost = decoded(model.vae, tuple(given.shape))
    if isinstance(counter, MetaCounter):
        counter.spend(cost)
    b, _, t, h, w = given.shape
    s = model.vae.stride_s
    return torch.empty(b, 3, 1 + (t - 1) * model.vae.stride_t, s * h, s * w, device=META)


@lru_cache(maxsize=64)
def decoded(cfg: VAEConfig, shape: tuple[int, ...]) -> Cost:
    """Returns the cost of decoding latents of this shape (b z t h w)."""
    vae: Any = vae_on_meta(cfg)
    return count(lambda: vae.decode(torch.empty(shape, device=META)))


@lru_cache(maxsize=16)
def decoded_in_parts(model: ModelConfig) -> Cost:
    """Returns the cost of decoding a clip one latent frame at a time, each leaving the device before the next."""
    vae: Any = vae_on_meta(model.vae)

    def work() -> None:
        session = vae.decoder()
        for part in latents(model, 1).split(1, dim=2):
            session.push(part)

    return count(work)


@lru_cache(maxsize=16)
def encoded(model: ModelConfig) -> Cost:
    """Returns the cost of the latents of a clip and of its image."""
    vae: Any = vae_on_meta(model.vae)
    size = (model.clip.frames, model.clip.height, model.clip.width)

    def work() -> None:
        video = torch.empty(1, 3, *size, device=META)
        vae.encode(video)
        vae.encode_image(video[:, :, 0], model.image_frames)

    return count(work)


@lru_cache(maxsize=8)
def text_encoded(cfg: TextConfig, dtype: torch.dtype) -> tuple[Cost, float]:
    """Returns (the cost of encoding a caption, bytes of the encoder): umT5-XXL; nothing for the packaged MiniLM."""
    if cfg.source == MINILM:
        return Cost(), 0.0
    from transformers import UMT5Config, UMT5EncoderModel

    sizes: dict[str, Any] = {"d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 256384}
    about = UMT5Config(d_model=cfg.dim, feed_forward_proj="gated-gelu", **sizes)
    with META:
        net: Any = UMT5EncoderModel(about)
        net = net.to(dtype).eval()
    tokens = torch.zeros(1, cfg.length, dtype=torch.long, device=META)
    with torch.no_grad():
        cost = count(lambda: net(input_ids=tokens, attention_mask=torch.ones_like(tokens)))
    return cost, bytes_of(net)


@lru_cache(maxsize=8)
def image_encoded(width: int) -> tuple[Cost, float]:
    """Returns (the cost of CLIP's tokens of a first frame, bytes of the encoder): ViT-H/14 in float32."""
    if not width:
        return Cost(), 0.0
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes: dict[str, Any] = {"num_hidden_layers": 32, "num_attention_heads": 16, "image_size": 224, "patch_size": 14}
    with META:
        net = CLIPVisionModel(CLIPVisionConfig(hidden_size=width, intermediate_size=4 * width, **sizes)).eval()
    with torch.no_grad():
        return count(lambda: net(torch.empty(1, 3, 224, 224, device=META))), bytes_of(net)


def bytes_of(net: nn.Module) -> float:
    """Returns the bytes of a network's parameters and buffers in their types."""
    return sum(x.numel() * x.element_size() for x in (*net.parameters(), *net.buffers()))


@lru_cache(maxsize=8)
def vae_bytes(cfg: VAEConfig) -> float:
    """Returns the bytes of the VAE."""
    return bytes_of(vae_on_meta(cfg))


def sampled(model: ModelConfig, weights: Guidance, batch: int, tracks: int, dtype: torch.dtype, steps: int) -> Cost:
    """Returns the cost of the teacher's sampling of a batch in `steps` Euler steps, extrapolated from 1 and 2."""
    one, two = (_sampled(model, weights, batch, tracks, dtype, n) for n in (1, 2))
    return replace(one.at(two, steps - 1), peak=two.peak)


@lru_cache(maxsize=64)
def _sampled(model: ModelConfig, weights: Guidance, batch: int, tracks: int, dtype: torch.dtype, steps: int) -> Cost:
    def at(model: ModelConfig) -> Cost:
        with META:
            dit = WanDiT(model).to(dtype)
        cond = partial(inputs, model, batch, tracks)
        return count(lambda: sample_teacher(dit, cond(), latents(model, batch), steps, weights, model))

    return extrapolated(model, at)


def inputs(model: ModelConfig, size: int, tracks: int, device: torch.device = META) -> Conditioning:
    """Returns the full conditioning of `size` random clips."""
    given = clips(model, size, tracks, device)
    return condition(given, draw_tracks(given, Augment(), model, RngStreams(0, 0)), model)


@lru_cache(maxsize=64)
def rolled(model: ModelConfig, tracks: int, dtype: torch.dtype) -> Cost:
    """Returns the cost of a rollout of one clip by the student."""

    def at(model: ModelConfig) -> Cost:
        with META:
            dit = CausalDiT(model).to(dtype)
        times = flow.student_timesteps(model.student.steps, model.dit.shift)
        with torch.no_grad():
            return count(
                lambda: rollout(
                    dit, inputs(model, 1, tracks), latents(model, 1), times, model.student, torch.Generator()
                )
            )

    return extrapolated(model, at)


@lru_cache(maxsize=64)
def streamed(model: ModelConfig, tracks: int, dtype: torch.dtype, chunks: int) -> Cost:
    """Returns the cost of the first `chunks` chunks of a stream, each written into the cache, without decoding."""

    def at(model: ModelConfig) -> Cost:
        with META:
            dit = CausalDiT(model).to(dtype)
        own = model.student
        times = flow.student_timesteps(own.steps, model.dit.shift)

        def work() -> None:
            cond = inputs(model, 1, tracks)
            text = dit.text_keys_values(cond.text, cond.image_tokens)
            cache = start(dit, cond, own, text)
            for i in range(chunks):
                part, context = cond.frames(0, own.chunk), cache.context(i)
                noise = latents(model, 1, frames=own.chunk)
                x = generate_chunk(dit, noise, part, context, times, torch.Generator(), text=text)
                cache.write(i, dit.clean_pass(x, part, context, text))

        with torch.no_grad():
            return count(work)

    return extrapolated(model, at)


@lru_cache(maxsize=32)
def parameters(model: ModelConfig) -> tuple[int, int]:
    """Returns the numbers of parameters of one DiT: (all, those in the layers' matrices, which Muon would train)."""
    with META:
        named = list(CausalDiT(model).named_parameters())
    matrices = sum(p.numel() for n, p in named if n.startswith("blocks.") and p.ndim == 2)
    return sum(p.numel() for _, p in named), matrices


@lru_cache(maxsize=32)
def largest(model: ModelConfig) -> int:
    """Returns the number of elements of the largest weight of one DiT."""
    with META:
        return max(p.numel() for p in CausalDiT(model).parameters())
