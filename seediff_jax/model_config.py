"""ModelConfig: all that a checkpoint says besides its weights, read from and written to its folder.

model_index.json                  which pipeline this is
text_encoder/ unet/ vae/          config.json each, and the weights (see checkpoints)
scheduler/scheduler_config.json
tokenizer/
text_encoder_2/ tokenizer_2/     Stable Diffusion XL only
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
from seediff_jax.capture_choice import choose_capture
from seediff_jax.json_files import read_json
from seediff_jax.model_index import (
    is_xl,
    model_index,
    read_model_index,
    zeros_for_empty_prompt,
)
from seediff_jax.model_tokenizers import read_tokenizer, require_same_tokens
from seediff_jax.models import config as configs
from seediff_jax.models.capture import CaptureConfig, check_capture, published_capture
from seediff_jax.models.clip import ClipTextModel
from seediff_jax.models.conditioning import zero_conditions
from seediff_jax.models.names import COMPONENTS
from seediff_jax.models.transformer import TokenColumns
from seediff_jax.models.unet import UNet
from seediff_jax.models.vae import AutoencoderKL
from seediff_jax.scheduler_configs import SchedulerConfig, scheduler_config, scheduler_json
from seediff_jax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The static half of a model; hashable.

    Stable Diffusion XL has a second text encoder, which projects, and its tokenizer, which differs
    from the first in its padding alone.

    Attributes:
        force_zeros_for_empty_prompt: an empty negative prompt is embedded as zeros.
    """

    text_encoder: configs.ClipTextConfig
    unet: configs.UNetConfig
    vae: configs.VaeConfig
    scheduler: SchedulerConfig
    tokenizer: Tokenizer
    capture: CaptureConfig
    text_encoder_2: configs.ClipTextConfig | None = None
    tokenizer_2: Tokenizer | None = None
    force_zeros_for_empty_prompt: bool = False

    @property
    def is_xl(self) -> bool:
        """Whether it is Stable Diffusion XL."""
        return self.text_encoder_2 is not None

    @property
    def components(self) -> tuple[str, ...]:
        """Parts with weights: folders of the checkpoint and keys of the params."""
        return tuple(name for name in COMPONENTS if name != "text_encoder_2" or self.is_xl)

    def dtype_of(self, component: str, dtype: DTypeLike) -> DTypeLike:
        """The dtype in which a component of a model of `dtype` is kept and computed.

        The VAE of Stable Diffusion XL overflows in float16 unless its config says otherwise.
        """
        is_float32 = component == "vae" and self.is_xl and self.vae.force_upcast
        return jnp.float32 if is_float32 else dtype


def make_modules(config: ModelConfig, dtype: DTypeLike = jnp.float32) -> dict[str, nn.Module]:
    """The Linen modules of a model of `dtype`, under the keys of the params."""
    modules = {
        "text_encoder": ClipTextModel(config.text_encoder, dtype),
        "unet": UNet(config.unet, config.capture, dtype),
        "vae": AutoencoderKL(config.vae, config.dtype_of("vae", dtype)),
    }
    if config.is_xl:
        modules["text_encoder_2"] = ClipTextModel(config.text_encoder_2, dtype)
    return modules


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
    token_ids = jnp.zeros((1, 1), jnp.int32)
    latents = jnp.zeros((1, latent_side, latent_side, config.unet.in_channels))
    text = jnp.zeros((1, 1, config.unet.cross_attention_dim))
    columns, conditions = TokenColumns(jnp.zeros((1, 1, 1))), zero_conditions(config.unet, 1)
    inputs = {
        "text_encoder": (token_ids,),
        "text_encoder_2": (token_ids,),
        "unet": (latents, jnp.zeros(1, jnp.int32), text, columns, conditions),
        "vae": (jnp.zeros((1, image_side, image_side, config.vae.in_channels)),),
    }
    rngs = dict(zip(modules, jax.random.split(rng, len(modules)), strict=True))
    return {name: m.init(rngs[name], *inputs[name])["params"] for name, m in modules.items()}


def read_model_config(folder: Path, scheduler: str | None = None) -> ModelConfig:
    """Reads every JSON file of a diffusers folder.

    Args:
        folder: the folder.
        scheduler: one of `scheduler_configs.CLASS_NAMES` instead of the sampler that the folder
            names.

    Raises:
        ValueError: the pipeline is not supported, or a file is missing or damaged, asks for
            something that is not supported, or contradicts another one.
    """
    index, parts = read_model_index(folder), {}

    def read(name: str, parse: Callable[..., Any], **options: bool) -> Any:
        return parse(read_json(folder / name, **options), str(folder / name))

    unet = read("unet/config.json", configs.unet_config)
    own_capture = folder / "capture.json"
    if is_xl(index):
        projecting = functools.partial(configs.clip_text_config, projects=True)
        parts["text_encoder_2"] = read("text_encoder_2/config.json", projecting)
        parts["tokenizer_2"] = read_tokenizer(folder / "tokenizer_2")
    config = ModelConfig(
        text_encoder=read("text_encoder/config.json", configs.clip_text_config),
        unet=unet,
        vae=read("vae/config.json", configs.vae_config),
        scheduler=read(
            "scheduler/scheduler_config.json",
            functools.partial(scheduler_config, kind=scheduler),
            infinity=True,
        ),
        tokenizer=read_tokenizer(folder / "tokenizer"),
        capture=choose_capture(str(own_capture) if own_capture.exists() else "published", unet),
        force_zeros_for_empty_prompt=zeros_for_empty_prompt(index),
        **parts,
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
    unet, vae = config.unet, config.vae
    if unet.in_channels > vae.latent_channels:
        raise ValueError(
            f"{source}: unet in_channels = {unet.in_channels} must equal vae latent_channels = "
            f"{vae.latent_channels}; a UNet with more is for inpainting, depth or editing, not for "
            "text alone: load the text-to-image model that it was made from"
        )
    encoders = {"text_encoder": (config.text_encoder, config.tokenizer)}
    pooled_dim = 0
    if config.is_xl:
        encoders["text_encoder_2"] = (config.text_encoder_2, config.tokenizer_2)
        pooled_dim = config.text_encoder_2.projection_dim
        require_same_tokens(config.tokenizer, config.tokenizer_2, source)
    text_dim = sum(text.hidden_size for text, _ in encoders.values())
    pairs = (
        ("unet cross_attention_dim", unet.cross_attention_dim, "text hidden_size", text_dim),
        ("unet pooled text", unet.pooled_text_dim, "text_encoder_2 projection_dim", pooled_dim),
        ("unet in_channels", unet.in_channels, "vae latent_channels", vae.latent_channels),
        ("unet out_channels", unet.out_channels, "unet in_channels", unet.in_channels),
    )
    for name, value, other_name, other in pairs:
        if value != other:
            raise ValueError(f"{source}: {name} = {value} must equal {other_name} = {other}")
    for name, (text, tokenizer) in encoders.items():
        _check_tokenizer(text, tokenizer, f"{source}, {name}")


def _check_tokenizer(text: configs.ClipTextConfig, tokenizer: Tokenizer, source: str) -> None:
    length, longest = tokenizer.max_length, text.max_position_embeddings
    if length > longest:
        raise ValueError(
            f"{source}: the tokenizer writes {length} tokens, the text encoder reads {longest}"
        )
    largest = max(tokenizer.backend.get_vocab().values())
    if largest >= text.vocab_size:
        raise ValueError(
            f"{source}: the tokenizer has ids up to {largest}, the text encoder below "
            f"{text.vocab_size}"
        )


def write_model_config(folder: Path, config: ModelConfig) -> None:
    """Writes all of a diffusers folder but the weights; `folder` must exist."""
    scheduler = scheduler_json(config.scheduler)
    index = model_index(
        scheduler=scheduler["_class_name"],
        xl=config.is_xl,
        zeros_for_empty_prompt=config.force_zeros_for_empty_prompt,
    )
    contents = {
        "model_index.json": index,
        "scheduler/scheduler_config.json": scheduler,
        "text_encoder/config.json": _text_json(config.text_encoder, config.tokenizer),
        "unet/config.json": configs.unet_json(config.unet),
        "vae/config.json": configs.vae_json(config.vae),
    }
    tokenizers = {"tokenizer": config.tokenizer}
    if config.is_xl:
        text = _text_json(config.text_encoder_2, config.tokenizer_2)
        contents["text_encoder_2/config.json"] = text
        tokenizers["tokenizer_2"] = config.tokenizer_2
    if config.capture != published_capture(config.unet):
        contents["capture.json"] = dataclasses.asdict(config.capture)
    for name, content in contents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for name, tokenizer in tokenizers.items():
        tokenizer.backend.save_pretrained(folder / name)
        # transformers before version 5 reads these two in place of tokenizer.json.
        tokenizer.backend.backend_tokenizer.model.save(str(folder / name))


def _text_json(config: configs.ClipTextConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    ids = {name: getattr(tokenizer.backend, name) for name in names}
    return ids | configs.clip_text_json(config)
