"""ModelConfig: all that a checkpoint says besides its weights, read from and written to its folder.

model_index.json                  which pipeline this is
text_encoder/ unet/ vae/          config.json each, and the weights (see checkpoints)
scheduler/scheduler_config.json
tokenizer/
capture.json                      ours, optional: the attention layers to record
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from seediff_jax.arrays import Array
from seediff_jax.json_files import read_json
from seediff_jax.models import config as configs
from seediff_jax.models.capture import CaptureConfig, check_capture, published_capture
from seediff_jax.models.clip import ClipTextModel
from seediff_jax.models.unet import UNet
from seediff_jax.models.vae import AutoencoderKL
from seediff_jax.scheduler_configs import CLASS_NAMES, SchedulerConfig, scheduler_config
from seediff_jax.tokenizer import Tokenizer, load_tokenizer

_PIPELINE = "StableDiffusionPipeline"
_CLASSES = {
    "text_encoder": ("transformers", "CLIPTextModel"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
}
# Options of SchedulerConfig that diffusers' class of the other kind does not know.
_FOREIGN = {
    "ddim": {"skip_prk_steps"},
    "pndm": {"clip_sample", "clip_sample_range", "rescale_betas_zero_snr"},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The static half of a model; hashable."""

    text_encoder: configs.ClipTextConfig
    unet: configs.UNetConfig
    vae: configs.VaeConfig
    scheduler: SchedulerConfig
    tokenizer: Tokenizer
    capture: CaptureConfig


def make_modules(config: ModelConfig, dtype: DTypeLike = jnp.float32) -> dict[str, nn.Module]:
    """The Linen modules that compute in `dtype`, under the keys of the params."""
    return {
        "text_encoder": ClipTextModel(config.text_encoder, dtype),
        "unet": UNet(config.unet, config.capture, dtype),
        "vae": AutoencoderKL(config.vae, dtype),
    }


def init_params(config: ModelConfig, rng: Array) -> dict[str, Any]:
    """Random float32 params for training; under `jax.eval_shape` their shapes alone.

    Args:
        config: the model's config.
        rng: a PRNG key.
    """
    modules = make_modules(config)
    # Shapes of parameters do not depend on these sides; the smallest that keep the levels apart.
    latent_side, image_side = (
        2 ** (len(config.unet.block_out_channels) - 1),
        config.vae.downsampling,
    )
    latents = jnp.zeros((1, latent_side, latent_side, config.unet.in_channels))
    text = jnp.zeros((1, 1, config.unet.cross_attention_dim))
    inputs = {
        "text_encoder": (jnp.zeros((1, 1), jnp.int32),),
        "unet": (latents, jnp.zeros(1, jnp.int32), text, jnp.zeros((1, 1, 1))),
        "vae": (jnp.zeros((1, image_side, image_side, config.vae.in_channels)),),
    }
    rngs = dict(zip(modules, jax.random.split(rng, len(modules)), strict=True))
    return {name: m.init(rngs[name], *inputs[name])["params"] for name, m in modules.items()}


def read_model_config(folder: Path, scheduler: str | None = None) -> ModelConfig:
    """Reads every JSON file of a diffusers folder.

    Args:
        folder: the folder.
        scheduler: "ddim" or "pndm" instead of the sampler that the folder names.

    Raises:
        ValueError: the pipeline is not Stable Diffusion 1.x or 2.x, a file is missing or damaged,
            asks for something that is not supported, or contradicts another one.
    """
    _check_model_index(folder)

    def read(name: str, parse: Callable[..., Any]) -> Any:
        return parse(read_json(folder / name), str(folder / name))

    unet = read("unet/config.json", configs.unet_config)
    capture = published_capture(unet)
    if (folder / "capture.json").exists():
        capture = read("capture.json", _capture_config)
    config = ModelConfig(
        text_encoder=read("text_encoder/config.json", configs.clip_text_config),
        unet=unet,
        vae=read("vae/config.json", configs.vae_config),
        scheduler=read(
            "scheduler/scheduler_config.json", functools.partial(scheduler_config, kind=scheduler)
        ),
        tokenizer=_read_tokenizer(folder / "tokenizer"),
        capture=capture,
    )
    check_model_config(config, str(folder))
    return config


def check_model_config(config: ModelConfig, source: str) -> None:
    """Checks that the parts of a model fit together.

    Raises:
        ValueError: they do not; the message names both sides.
    """
    try:
        check_capture(config.capture, config.unet)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    text, unet, vae = config.text_encoder, config.unet, config.vae
    if unet.in_channels > vae.latent_channels:
        raise ValueError(
            f"{source}: unet in_channels = {unet.in_channels} must equal vae latent_channels = "
            f"{vae.latent_channels}; a UNet with more is for inpainting, depth or editing, not for "
            "text alone: load the text-to-image model that it was made from"
        )
    pairs = (
        (
            "unet cross_attention_dim",
            unet.cross_attention_dim,
            "text hidden_size",
            text.hidden_size,
        ),
        ("unet in_channels", unet.in_channels, "vae latent_channels", vae.latent_channels),
        ("unet out_channels", unet.out_channels, "unet in_channels", unet.in_channels),
    )
    for name, value, other_name, other in pairs:
        if value != other:
            raise ValueError(f"{source}: {name} = {value} must equal {other_name} = {other}")
    length, longest = config.tokenizer.max_length, text.max_position_embeddings
    if length > longest:
        raise ValueError(
            f"{source}: the tokenizer writes {length} tokens, the text encoder reads {longest}"
        )
    largest = max(config.tokenizer.backend.get_vocab().values())
    if largest >= text.vocab_size:
        raise ValueError(
            f"{source}: the tokenizer has ids up to {largest}, the text encoder below "
            f"{text.vocab_size}"
        )


def write_model_config(folder: Path, config: ModelConfig) -> None:
    """Writes all of a diffusers folder but the weights; `folder` must exist."""
    scheduler = dataclasses.asdict(config.scheduler)
    kind = scheduler.pop("kind")
    index = {
        "_class_name": _PIPELINE,
        **_CLASSES,
        "scheduler": ("diffusers", CLASS_NAMES[kind]),
        "tokenizer": ("transformers", "CLIPTokenizer"),
        **dict.fromkeys(("feature_extractor", "safety_checker"), (None, None)),
        "requires_safety_checker": False,
    }
    scheduler = {k: v for k, v in scheduler.items() if k not in _FOREIGN[kind]}
    tokens, names = config.tokenizer.backend, ("bos_token_id", "eos_token_id", "pad_token_id")
    ids = {name: getattr(tokens, name) for name in names}
    contents = {
        "model_index.json": index,
        "scheduler/scheduler_config.json": {"_class_name": CLASS_NAMES[kind], **scheduler},
        "text_encoder/config.json": {**configs.clip_text_json(config.text_encoder), **ids},
        "unet/config.json": configs.unet_json(config.unet),
        "vae/config.json": configs.vae_json(config.vae),
    }
    if config.capture != published_capture(config.unet):
        contents["capture.json"] = dataclasses.asdict(config.capture)
    for name, content in contents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    tokens.save_pretrained(folder / "tokenizer")
    # transformers before version 5 reads these two in place of tokenizer.json.
    tokens.backend_tokenizer.model.save(str(folder / "tokenizer"))


def _check_model_index(folder: Path) -> None:
    path = folder / "model_index.json"
    index = read_json(path)
    if (pipeline := index.get("_class_name")) != _PIPELINE:
        raise ValueError(
            f"{path}: {pipeline} is not supported, only {_PIPELINE} (Stable Diffusion 1.x, 2.x); "
            "name a text-to-image checkpoint of that family"
        )
    for name, (library, wanted) in _CLASSES.items():
        part = index.get(name)
        if not isinstance(part, list) or part[1:] != [wanted]:
            raise ValueError(f"{path}: {name} is {part}, only {library}'s {wanted} is supported")


def _read_tokenizer(folder: Path) -> Tokenizer:
    try:
        return load_tokenizer(folder)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error


def _capture_config(content: dict[str, Any], source: str) -> CaptureConfig:
    names = {field.name for field in dataclasses.fields(CaptureConfig)}
    is_list = all(isinstance(layers, list) for layers in content.values())
    if content.keys() != names or not is_list:
        raise ValueError(f"{source}: needed are lists of layer names under {sorted(names)} alone")
    return CaptureConfig(**{name: tuple(map(str, layers)) for name, layers in content.items()})
