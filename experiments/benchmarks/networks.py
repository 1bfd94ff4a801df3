"""Models with random weights, in the sizes that are measured; time does not depend on values."""

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from experiments.shapes.recipe import STUDY
from experiments.training.networks import MAX_TOKENS, SCHEDULER_JSON
from experiments.training.vocabulary import make_vocabulary, write_tokenizer
from seediff_jax.checkpoints.families import SD1
from seediff_jax.checkpoints.load import make_model
from seediff_jax.models.capture import published_capture
from seediff_jax.models.config import UNetConfig, clip_text_config, unet_config, vae_config
from seediff_jax.models.model import Model, ModelConfig, init_params
from seediff_jax.pipeline.memory import abstract_model
from seediff_jax.prompts.tokenizer import CLIP_LENGTH, load_tokenizer
from seediff_jax.schedulers.config import scheduler_config

TOKENS = 77

_SD1 = SD1.folder_configs("epsilon")
UNETS = {"sd1": _SD1["unet/config.json"], "small": STUDY.unet_json}
"""UNets by name: Stable Diffusion 1, and that of the embedded model for a quick check."""

PARTS = {
    "sd1": (_SD1["text_encoder/config.json"], _SD1["vae/config.json"]),
    "small": (STUDY.text_encoder_json(make_vocabulary(STUDY.words)[0]), STUDY.vae_json),
}
"""Configs of the text encoder and VAE that belong to each of UNETS."""


def random_params(init: Callable[[], Any], rng_seed: int = 0) -> Any:
    """Draws float32 params in the shapes that `init` would return: unit gain, no bias.

    They are drawn one by one and without a compiled program, so that peak memory is their size.
    """
    random = np.random.default_rng(rng_seed)

    def draw(path, leaf):
        if leaf.ndim == 1:
            return jnp.full(leaf.shape, float(path[-1].key == "scale"))
        values = random.standard_normal(leaf.shape, np.float32)
        values /= np.float32(np.sqrt(np.prod(leaf.shape[:-1])))
        return jnp.asarray(values)

    return jax.tree.map_with_path(draw, jax.eval_shape(init))


class UNetInputs(NamedTuple):
    """Inputs of one UNet call, in order, channels last."""

    latents: np.ndarray
    timesteps: np.ndarray
    text_embeddings: np.ndarray


def random_inputs(config: UNetConfig, batch_size: int) -> UNetInputs:
    """Draws normal latents and text embeddings, at timestep 437."""
    random = np.random.default_rng(1)
    side = config.sample_size
    return UNetInputs(
        random.standard_normal((batch_size, side, side, config.in_channels), np.float32),
        np.full(batch_size, 437, np.int32),
        random.standard_normal((batch_size, TOKENS, config.cross_attention_dim), np.float32),
    )


def make_unet_config(name: str) -> UNetConfig:
    """Returns the config of one of UNETS."""
    return unet_config(UNETS[name])


def make_random_model(name: str) -> Model:
    """Makes a model with random weights: "sd1", or "small" with the embedded model's config."""
    config = _model_config(name)
    params = random_params(lambda: init_params(config, jax.random.key(0)))
    return make_model(config, params, model_id=name)


def make_abstract_model(name: str, dtype: DTypeLike = jnp.float32) -> Model:
    """Makes a model without weights, with prompts of 77 tokens and Stable Diffusion 1's PNDM."""
    config = _model_config(name)
    config = dataclasses.replace(
        config,
        text_encoder=dataclasses.replace(config.text_encoder, max_position_embeddings=CLIP_LENGTH),
        tokenizer=dataclasses.replace(config.tokenizer, max_length=CLIP_LENGTH),
        scheduler=scheduler_config(_SD1["scheduler/scheduler_config.json"]),
    )
    return abstract_model(config, dtype)


def _model_config(name: str) -> ModelConfig:
    text, vae = PARTS[name]
    unet = make_unet_config(name)
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder), STUDY.words, MAX_TOKENS)
        tokenizer = load_tokenizer(Path(folder))
    return ModelConfig(
        text_encoder=clip_text_config(text),
        unet=unet,
        vae=vae_config(vae),
        scheduler=scheduler_config(SCHEDULER_JSON),
        tokenizer=tokenizer,
        capture=published_capture(unet),
    )
