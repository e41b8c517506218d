"""Shapes and sizes of the model. All other sizes (tokens, horizon, chunk count) are derived here."""

from __future__ import annotations

from dataclasses import dataclass, field

SMALLEST_WAN = 1536  # dit.dim of the 1.3B
CLIP_TOKENS = 257  # of ViT-H/14 at 224 pixels: 16 x 16 patches, and the class token
WAN_IMAGE_ENCODER = "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"  # the one that all of Wan 2.1 and VideoX-Fun use
FITS = ("squash", "crop")
NULL_TEXTS = ("zeros", "empty", "negative")
# shared_config.sample_neg_prompt of Wan's repositories (Apache-2.0): garish, overexposed, static, blurred, subtitles...
WAN_NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，多余的手指，"
    "画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
OPTION = {"option": True}  # metadata of a field that a step's key leaves out while it is at its default, which is "off"


@dataclass(frozen=True)
class ClipConfig:
    """Settings of the pixel frames. frames must be 1 + a multiple of the VAE's temporal stride."""

    height: int = 480  # pixels
    width: int = 832  # pixels
    frames: int = 81  # of a clip: 1 + a multiple of vae.stride_t
    fps: float = 16.0  # frames a second of every clip, training and generated


@dataclass(frozen=True)
class VAEConfig:
    """Settings of a Wan VAE (diffusers' AutoencoderKLWan). Latents are normalised: (mu - mean) / std."""

    source: str = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"  # hub id, local folder, or "embedded:nano"
    z_channels: int = 16  # latent channels
    stride_t: int = 4  # frames a latent frame, after the first, which stands for one
    stride_s: int = 8  # pixels a latent cell, in both directions
    image_tail: str = "grey"  # image conditioning after the first frame: "grey" as Wan, or "still", the frame repeated


@dataclass(frozen=True)
class TextConfig:
    """Settings of the text encoder.

    Embeddings are computed once, offline, zero past the prompt and padded with zeros to `length`.

    null: what a model reads for no text. Text dropout gives "zeros" or the "empty" prompt. Guidance compares with the same,
    or with "negative" by the negative prompt, where dropout gives the empty one.
    """

    source: str = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"  # hub id, local folder, or (nano only) "embedded:minilm"
    dim: int = 4096  # width of the text embeddings
    length: int = 512  # text tokens a prompt
    null: str = field(default="zeros", metadata=OPTION)
    negative_prompt: str = field(default=WAN_NEGATIVE_PROMPT, metadata=OPTION)  # read with null=negative only

    @property
    def null_prompts(self) -> dict[str, str]:
        """Returns the prompts whose embeddings every clip's file holds in addition to its own, by the name of their array."""
        empty = {"empty_text": ""}
        return {"zeros": {}, "empty": empty, "negative": {**empty, "negative_text": self.negative_prompt}}[self.null]


@dataclass(frozen=True)
class ImageEncoderConfig:
    """Settings of CLIP's image encoder, whose tokens of the first frame dit.clip_dim reads.

    The tokens are computed once an image.

    fit: how a frame is fitted to CLIP's square input (msmodel/image_encoder.py).
    """

    source: str = ""  # hub id or local folder in diffusers' layout (`image_encoder`, `image_processor`); "" for none
    fit: str = "squash"  # "squash" the frame to the square, as Wan and VideoX-Fun; or "crop" its middle, as diffusers

    def problems(self, clip_dim: int) -> list[str]:
        """Returns every inconsistency, as 'field: what is wrong and how to fix it'; empty when consistent."""
        out = []
        if self.fit not in FITS:
            out.append(f"image_encoder.fit: {self.fit!r} is not one of {', '.join(FITS)}")
        if clip_dim > 0 and not self.source:
            out.append(
                f"image_encoder.source: is empty, and dit.clip_dim={clip_dim} reads its tokens: name the encoder, as in "
                f"image_encoder.source={WAN_IMAGE_ENCODER}, or set dit.clip_dim=0"
            )
        if self.source and not clip_dim:
            out.append(
                f"image_encoder.source: nobody would read the tokens of {self.source} with dit.clip_dim=0: set "
                f"dit.clip_dim=1280, or leave it out"
            )
        return out


@dataclass(frozen=True)
class DiTConfig:
    """Settings of the Wan DiT. Input channels, in order: noise z, mask stride_t, image z, track (track last)."""

    dim: int = 1536  # width of the transformer
    ffn_dim: int = 8960  # width of its feed-forward layers
    heads: int = 12  # attention heads
    layers: int = 30  # transformer blocks
    freq_dim: int = 256  # width of the sinusoidal time embedding
    patch: tuple[int, int, int] = (1, 2, 2)  # latent frames, rows and columns of one token
    image: str = (
        "channels"  # "channels": mask and image latents; "first_latent": clean first latent at t = 0 (Wan 2.2 5B)
    )
    track_encoding: str = "head"  # or "rgb_vae": coloured discs through the VAE, the paper's ablation (section 3.1)
    track_channels: int = 16  # of the track head; "rgb_vae" has vae.z_channels
    track_id_dim: int = 64  # width of the sinusoidal embedding of a track's id
    track_offsets: bool = False  # adds channels with a track's place within its cell; for small frames
    clip_dim: int = 0  # width of CLIP's image tokens for Wan 2.1's image branch (1280), 0 for no such branch
    eps: float = 1e-6  # of the norms
    shift: float = 6.0  # timestep shift k of flow matching (paper, section 3)


@dataclass(frozen=True)
class StudentConfig:
    """Settings of the causal student, written cXsYwZ (paper: c3s1w1).

    X are the latent frames a chunk, Y the sink chunks, Z the window chunks.

    A chunk attends to itself, to the first `sink` chunks of the video and to the `window` chunks just before it. The
    cache holds nothing else (msmodel/cache.py), so the cost of a chunk does not depend on the length of the video.
    """

    chunk: int = 3  # latent frames generated at once
    sink: int = 1  # first chunks that stay in the cache indefinitely, so that long videos do not drift
    window: int = (
        1  # chunks just before the current one that stay in the cache, besides the sink; older ones are dropped
    )
    steps: int = 3  # denoising steps a chunk


@dataclass(frozen=True)
class ModelConfig:
    """Settings of the model, and the sizes that follow from them."""

    clip: ClipConfig = field(default_factory=ClipConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    text: TextConfig = field(default_factory=TextConfig)
    dit: DiTConfig = field(default_factory=DiTConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    image_encoder: ImageEncoderConfig = field(default_factory=ImageEncoderConfig, metadata=OPTION)

    @property
    def latent_frames(self) -> int:
        return 1 + (self.clip.frames - 1) // self.vae.stride_t

    @property
    def latent_height(self) -> int:
        return self.clip.height // self.vae.stride_s

    @property
    def latent_width(self) -> int:
        return self.clip.width // self.vae.stride_s

    @property
    def tokens_per_frame(self) -> int:
        return (self.latent_height // self.dit.patch[1]) * (self.latent_width // self.dit.patch[2])

    @property
    def tokens(self) -> int:
        return self.latent_frames * self.tokens_per_frame

    @property
    def image_alone(self) -> bool:
        """Returns whether the clean image latent precedes the chunks (Wan 2.2 5B) or is frame 0 of the first chunk."""
        return self.dit.image == "first_latent"

    @property
    def image_frames(self) -> int:
        """Returns how many pixel frames of [first frame, grey...] are encoded as the image conditioning."""
        return 1 if self.image_alone else self.clip.frames

    @property
    def chunks(self) -> int:
        return (self.latent_frames - int(self.image_alone)) // self.student.chunk

    @property
    def mask_channels(self) -> int:
        return self.vae.stride_t if self.dit.image == "channels" else 0

    @property
    def image_channels(self) -> int:
        return self.vae.z_channels if self.dit.image == "channels" else 0

    @property
    def in_channels(self) -> int:
        return self.vae.z_channels + self.mask_channels + self.image_channels + self.track_channels

    @property
    def track_channels(self) -> int:
        """Returns the number of track channels of the patch embedding: the track head's, or the latents of a canvas."""
        return self.vae.z_channels if self.dit.track_encoding == "rgb_vae" else self.dit.track_channels

    @property
    def track_feature_channels(self) -> int:
        """Returns the number of channels of Conditioning.tracks.

        It counts stride_t pixel frames of the track map folded into one latent frame, or the latents of a canvas.
        """
        if self.dit.track_encoding == "rgb_vae":
            return self.vae.z_channels
        return self.vae.stride_t * (self.dit.track_id_dim + self.offset_channels)

    @property
    def offset_channels(self) -> int:
        """Returns the number of channels of the track map that hold a track's place within its cell: 2 (x and y), or 0."""
        return 2 if self.dit.track_offsets else 0

    def problems(self) -> list[str]:
        """Returns every inconsistency, as 'field: what is wrong and how to fix it'; empty when consistent."""
        c, v, d, k = self.clip, self.vae, self.dit, self.student
        out = []
        if c.frames < 1 or (c.frames - 1) % v.stride_t:
            out.append(f"clip.frames: {c.frames} is not 1 + a multiple of the VAE's temporal stride {v.stride_t}")
        if d.patch[0] != 1:
            out.append(f"dit.patch: {list(d.patch)} folds latent frames together; the first entry must be 1")
        for name, size, patch in (("height", c.height, d.patch[1]), ("width", c.width, d.patch[2])):
            if size <= 0 or size % (v.stride_s * patch):
                out.append(
                    f"clip.{name}: {size} is not a positive multiple of {v.stride_s * patch} (VAE stride x patch)"
                )
        if c.fps <= 0:
            out.append(f"clip.fps: {c.fps} must be positive")
        if v.image_tail not in ("grey", "still"):
            out.append(f"vae.image_tail: {v.image_tail!r} is not one of grey, still")
        if d.heads < 1 or d.dim % max(d.heads, 1) or (d.dim // max(d.heads, 1)) % 2:
            out.append(f"dit.heads: {d.heads} heads do not split dim {d.dim} into even head sizes")
        if self.text.null not in NULL_TEXTS:
            out.append(f"text.null: {self.text.null!r} is not one of {', '.join(NULL_TEXTS)}")
        out += self._embedded_text() + self._track_encoding()
        if d.layers < 1:
            out.append(f"dit.layers: {d.layers} must be at least 1")
        if d.image not in ("channels", "first_latent"):
            out.append(f"dit.image: {d.image!r} is not one of channels, first_latent")
        if d.clip_dim < 0 or (d.clip_dim and self.image_alone):
            out.append(
                f"dit.clip_dim: {d.clip_dim} must be 0, or the width of CLIP's tokens (1280) where dit.image is channels"
            )
        out += self.image_encoder.problems(d.clip_dim)
        if k.chunk < 1:
            out.append(f"student.chunk: {k.chunk} must be at least 1")
        elif (self.latent_frames - int(self.image_alone)) % k.chunk:
            out.append(
                f"student.chunk: {k.chunk} does not divide the horizon of "
                f"{self.latent_frames - int(self.image_alone)} latent frames"
            )
        if k.sink < 0:
            out.append(f"student.sink: {k.sink} is below zero")
        if k.window < 0:
            out.append(f"student.window: {k.window} is below zero")
        if k.steps < 1:
            out.append(f"student.steps: {k.steps} must be at least 1")
        if self.dit.shift <= 0:
            out.append(f"dit.shift: {self.dit.shift} must be positive")
        return out

    def _embedded_text(self) -> list[str]:
        if self.text.source.startswith("embedded:") and self.dit.dim >= SMALLEST_WAN:
            return [
                f"text.source: {self.text.source} stands in for umT5 at nano only, and dit.dim={self.dit.dim} is a Wan "
                f"backbone: take the umT5 it was trained with, as in text.source={TextConfig.source} text.dim={TextConfig.dim}"
            ]
        return []

    def _track_encoding(self) -> list[str]:
        if self.dit.track_encoding not in ("head", "rgb_vae"):
            return [f"dit.track_encoding: {self.dit.track_encoding!r} is not one of head, rgb_vae"]
        if self.dit.track_encoding == "rgb_vae" and self.dit.track_offsets:
            return [
                "dit.track_offsets: belongs to the track head, and dit.track_encoding=rgb_vae has none: set it to false"
            ]
        return []
