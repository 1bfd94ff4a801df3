"""What a data set tells the trainer: its scenes and the recipe of its model."""

import dataclasses
import importlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

from experiments.training import networks
from experiments.training.scenes import Renderer
from experiments.training.vocabulary import write_tokenizer
from seediff_jax.models import config as configs
from seediff_jax.models.capture import published_capture
from seediff_jax.models.model import ModelConfig
from seediff_jax.prompts.tokenizer import load_tokenizer
from seediff_jax.schedulers.config import scheduler_config

STAGES = ("vae", "inner", "unet", "decoder")
"""Kinds of stages, each with one checkpoint in the folder of a run."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a plan; ends at a step, counted over all stages of the same kind.

    Attributes:
        kind: one of STAGES; "inner" is the UNet without its finest level, from which the stage
            "unet" then starts.
        steps: the stage ends at this step.
        batch_size: images per step.
        image_side: edge of the images that the UNet is trained on, pixels.
        learning_rate: of AdamW, after a short warm-up.
        decay_from: step at which the learning rate starts to fall, linearly to 2 % at `decay_to`.
        decay_to: see `decay_from`.
    """

    kind: str
    steps: int
    batch_size: int
    image_side: int = 128
    learning_rate: float = 1e-3
    decay_from: int = 10**9
    decay_to: int = 10**9 + 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """A data set and the model that is trained on it.

    Attributes:
        name: of the model.
        classes: names of the classes, in the order of their ids.
        words: every word of the captions.
        synonyms: further words -> the word of `words` that each means; the exported model reads
            both in the same way.
        reword: `(caption, index)` -> the caption that training scene `index` is shown with.
        make_renderer: folder of the run -> what renders its scenes.
        text_encoder_json: `vocabulary` -> the text encoder's config.
        unet_json, vae_json: configs, as diffusers writes them.
        plans: name, such as "cpu" and "gpu" -> the stages of a training run, in order.
        notice: text of the NOTICE file beside the exported weights, which then also have a copy of
            the project's LICENSE; empty for none.
    """

    name: str
    classes: tuple[str, ...]
    words: tuple[str, ...]
    reword: Callable[[str, int], str] = lambda caption, index: caption
    make_renderer: Callable[[pathlib.Path], Renderer]
    text_encoder_json: Callable[[dict[str, int]], dict[str, Any]] = networks.text_encoder_json
    unet_json: dict[str, Any]
    vae_json: dict[str, Any]
    plans: dict[str, tuple[Stage, ...]]
    notice: str = ""
    synonyms: dict[str, str] = dataclasses.field(default_factory=dict)


def load_study(name: str) -> Study:
    """The study of a name: `STUDY` in its recipe."""
    return importlib.import_module(f"experiments.{name}.recipe").STUDY


def make_config(study: Study, run_dir: pathlib.Path, *, inner: bool = False) -> ModelConfig:
    """The static half of the model; the latent scale is 1 until the VAE is trained.

    Args:
        study: see `Study`.
        run_dir: folder of the run.
        inner: without the finest level of the UNet.
    """
    vocabulary = write_tokenizer(
        run_dir / "tokenizer", (*study.words, *study.synonyms), networks.MAX_TOKENS
    )
    scale_file = run_dir / "latent_scale.json"
    scale = json.loads(scale_file.read_text()) if scale_file.exists() else 1.0
    unet_json = networks.inner_unet_json(study.unet_json) if inner else study.unet_json
    unet = configs.unet_config(unet_json)
    return ModelConfig(
        text_encoder=configs.clip_text_config(study.text_encoder_json(vocabulary)),
        unet=unet,
        vae=configs.vae_config(study.vae_json | {"scaling_factor": scale}),
        scheduler=scheduler_config(networks.SCHEDULER_JSON),
        tokenizer=load_tokenizer(run_dir / "tokenizer"),
        capture=published_capture(unet),
    )
