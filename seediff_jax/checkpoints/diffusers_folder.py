"""Writes folders of diffusers: configs, tokenizers and weights; needs neither torch nor diffusers.

A folder appears when it is complete.
"""

import contextlib
import dataclasses
import glob
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from jax.typing import DTypeLike

from seediff_jax.checkpoints.model_config import (
    INDEX,
    PART_CLASSES,
    SCHEDULER,
    XL_PIPELINE,
    ZEROS_FOR_EMPTY_PROMPT,
    Json,
)
from seediff_jax.checkpoints.param_loading import require_finite, require_params
from seediff_jax.checkpoints.parameters import ParamPath, checkpoint_axes, component_parameters
from seediff_jax.checkpoints.safetensors_files import write_weights
from seediff_jax.errors import UserError, shown
from seediff_jax.files.paths import url_scheme
from seediff_jax.models import config as configs
from seediff_jax.models.capture import published_capture
from seediff_jax.models.model import Model, ModelConfig
from seediff_jax.schedulers.config import scheduler_json


def save_model(
    model: Model, folder: str | os.PathLike[str], *, dtype: DTypeLike = np.float32
) -> None:
    """Writes a diffusers folder, which diffusers and `load_model` can load.

    Args:
        model: the model.
        folder: must not exist, or be empty; it appears when it is complete.
        dtype: of the written weights; float16 halves the size.

    Raises:
        UserError: the folder exists or is a URL, or weights are not finite in `dtype`.
    """
    with new_model_folder(folder, model) as (aside, arrays):
        for component in model.config.components:
            tensors = {}
            for name, parameter in component_parameters(model.config, component).items():
                axes = checkpoint_axes(parameter.path[-1], len(parameter.shape))
                array = np.asarray(arrays[parameter.path]).transpose(axes)
                with np.errstate(over="ignore"):  # reported below, with the tensor's name
                    tensors[name] = np.ascontiguousarray(array, dtype)
            broken = [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]
            require_finite(broken, f"{component} as {np.dtype(dtype)}")
            write_weights(aside, component, tensors)


@contextlib.contextmanager
def new_model_folder(
    name: str | os.PathLike[str], model: Model
) -> Iterator[tuple[Path, dict[ParamPath, Any]]]:
    """Yields a temporary folder with all but the weights, which becomes the named one at the end.

    The flat params come with it; a UserError is raised unless they fit the model's config.
    """
    folder = require_free(name)
    arrays = flatten_dict(model.params)
    require_params(arrays, model.config, "params")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Ids of processes mean something on one host only; the folder may be shared by several.
    stem = f".{folder.name}.{socket.gethostname()}."
    aside = folder.parent / f"{stem}{os.getpid()}.partial"
    for left in folder.parent.glob(f"{glob.escape(stem)}*.partial"):
        if left == aside or not _is_alive(left.name[len(stem) : -len(".partial")]):
            shutil.rmtree(left, ignore_errors=True)
    aside.mkdir()
    try:
        write_model_config(aside, model.config)
        yield aside, arrays
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def require_free(name: str | os.PathLike[str]) -> Path:
    """Returns a local folder; raises a UserError if it is a file, is not empty, or is a URL."""
    text = os.fspath(name)
    if url_scheme(text):  # it would become a folder "gs:"
        raise UserError(f"{shown(text)} is a URL; models are written to local folders")
    folder = Path(text)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists; name a new folder or remove it first")
    return folder


def write_model_config(folder: Path, config: ModelConfig) -> None:
    """Writes all of a diffusers folder but the weights; `folder` must exist."""
    scheduler = scheduler_json(config.scheduler)
    contents = {
        INDEX: _make_index(config, scheduler["_class_name"]),
        SCHEDULER: scheduler,
        "unet/config.json": configs.unet_json(config.unet),
        "vae/config.json": configs.vae_json(config.vae),
    }
    for number in ("", "_2") if config.is_xl else ("",):
        tokenizer = getattr(config, f"tokenizer{number}").backend
        tokenizer.save_pretrained(folder / f"tokenizer{number}")
        # transformers before version 5 reads these two in place of tokenizer.json.
        tokenizer.backend_tokenizer.model.save(str(folder / f"tokenizer{number}"))
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        text = configs.clip_text_json(getattr(config, f"text_encoder{number}"))
        text = {name: getattr(tokenizer, name) for name in names} | text
        contents[f"text_encoder{number}/config.json"] = text
    capture = dataclasses.replace(config.capture, kept_layers=())  # of a run, not of the model
    if capture != published_capture(config.unet):
        contents["capture.json"] = dataclasses.asdict(capture)
        del contents["capture.json"]["kept_layers"]
    for name, content in contents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _make_index(config: ModelConfig, scheduler: str) -> Json:
    absent = ("feature_extractor", "image_encoder" if config.is_xl else "safety_checker")
    own: Json = {"requires_safety_checker": False}
    if config.is_xl:
        own = {ZEROS_FOR_EMPTY_PROMPT: config.force_zeros_for_empty_prompt}
        own["tokenizer_2"] = ("transformers", "CLIPTokenizer")
    return {
        "_class_name": XL_PIPELINE if config.is_xl else "StableDiffusionPipeline",
        **{name: PART_CLASSES[name] for name in config.components},
        "scheduler": ("diffusers", scheduler),
        "tokenizer": ("transformers", "CLIPTokenizer"),
        **dict.fromkeys(absent, (None, None)),
        **own,
    }


def _is_alive(process: str) -> bool:
    """Whether a process of this host has the id `process`."""
    try:
        os.kill(int(process), 0)
    except PermissionError:
        return True
    except (ValueError, OverflowError, OSError):
        return False
    return True
