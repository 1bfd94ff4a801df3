"""Where a model comes from: the embedded one, a folder, a single file, or the Hugging Face hub.

name -> find_source -> folder or file -> read_source_config -> read_source_leaves
"""

import dataclasses
import importlib.resources
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict
from jax.typing import DTypeLike

from seediff_jax.capture_choice import choose_capture
from seediff_jax.checkpoints import expected_shapes, read_component_leaves, read_leaves
from seediff_jax.families import PREDICTION_TYPES
from seediff_jax.hub import (
    config_files,
    fetch,
    is_hub_id,
    missing_config_files,
    missing_tokenizer_files,
    tokenizer_files,
)
from seediff_jax.leaves import Leaves, Merges
from seediff_jax.lora import find_lora, open_merges
from seediff_jax.model_config import ModelConfig, check_model_config, read_model_config
from seediff_jax.model_tokenizers import read_tokenizers, tokenizer_folders
from seediff_jax.models.capture import CaptureConfig
from seediff_jax.single_file import component_reader, family_config, read_family
from seediff_jax.tokenizer import Tokenizer
from seediff_jax.weight_files import CONVERT, open_weights

DEFAULT_TOKENIZER = "openai/clip-vit-large-patch14"
_EMBEDDED = ("shapes",)
_FILE = ".safetensors"
_PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl")


def find_source(
    name_or_path: str | os.PathLike[str],
    revision: str | None = None,
    *,
    weights: bool = True,
) -> Path:
    """The folder or the .safetensors file of a model; what the hub has is downloaded.

    Args:
        name_or_path: see `load_model`.
        revision: a branch, tag or commit of a model of the hub.
        weights: whether these are downloaded too.

    Raises:
        ValueError: there is no such model, it is a file of another kind, or a revision is asked of
            something that has none.
    """
    name = str(name_or_path)
    path = _expand(name)
    local = name in _EMBEDDED or path.exists()
    if not local and is_hub_id(name) and path.suffix != _FILE:
        if weights:
            return fetch(name, revision)
        return fetch(name, revision, config_files, missing_config_files)
    if revision is not None:
        raise ValueError(f"revision={revision!r} is of a model of the hub, {name!r} is none")
    if name in _EMBEDDED:
        # pip and Bazel both install the package as plain files.
        return Path(str(importlib.resources.files("seediff_jax"))) / "assets" / name
    if path.is_file() and path.suffix != _FILE:
        raise ValueError(
            f"{path} is a file; a {_FILE} file or a diffusers folder is needed{_advice(path)}"
        )
    if name and path.exists():  # the path of an empty name is the current folder
        return path
    raise ValueError(
        f"there is no model {name!r}: neither {', '.join(map(repr, _EMBEDDED))}, nor a folder or "
        f"{_FILE} file, nor the 'owner/model' of the Hugging Face hub"
    )


def read_source_config(
    source: Path,
    *,
    scheduler: str | None = None,
    scheduler_options: Mapping[str, Any] | None = None,
    prediction_type: str | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    capture: str | CaptureConfig | None = None,
) -> ModelConfig:
    """The static half of a model.

    Args:
        source: of `find_source`.
        scheduler: see `load_model`.
        scheduler_options: see `load_model`.
        prediction_type: see `load_model`.
        tokenizer: see `load_model`.
        capture: see `load_model`.

    Raises:
        ValueError: something in the files, or an argument, is not supported or does not fit.
    """
    if prediction_type not in (None, *PREDICTION_TYPES):
        choices = ", ".join(map(repr, PREDICTION_TYPES))
        raise ValueError(f"prediction_type={prediction_type!r} is none of {choices}")
    if source.is_file():
        family, configs = read_family(source, prediction_type)
        folders = _tokenizer_of_file(source) if tokenizer is None else _find_tokenizers(tokenizer)
        config = family_config(family, configs, folders, scheduler)
        config = _with_scheduler_options(config, scheduler_options)
        return config if capture is None else _with_capture(config, capture)
    config = read_model_config(source, scheduler)
    changes: dict[str, Any] = {}
    if prediction_type is not None:
        changes["scheduler"] = dataclasses.replace(
            config.scheduler, prediction_type=prediction_type
        )
    if tokenizer is not None:
        changes |= _other_tokenizers(config, _find_tokenizers(tokenizer))
    config = _with_scheduler_options(dataclasses.replace(config, **changes), scheduler_options)
    if capture is not None:
        config = _with_capture(config, capture)
    check_model_config(config, str(source))
    return config


def _with_scheduler_options(config: ModelConfig, options: Mapping[str, Any] | None) -> ModelConfig:
    if not options:
        return config
    return dataclasses.replace(config, scheduler=config.scheduler.with_options(options))


def read_source_leaves(
    source: Path,
    config: ModelConfig,
    dtype: DTypeLike,
    loras: Sequence[tuple[str | os.PathLike[str], float]] = (),
) -> Leaves:
    """Reads the weights of a model one by one, each with the LoRAs merged.

    Args:
        source: of `find_source`.
        config: of `read_source_config`.
        dtype: of the model.
        loras: files, and what their changes are multiplied by.

    Yields:
        As `read_leaves`.

    Raises:
        ValueError: weights are missing, damaged or do not fit the config, or a LoRA does not fit.
    """
    with _open_merges(config, loras) as merges:
        yield from _read_leaves(source, config, dtype, merges)


def _read_leaves(source: Path, config: ModelConfig, dtype: DTypeLike, merges: Merges) -> Leaves:
    if not source.is_file():
        yield from read_leaves(source, config, dtype, merges)
        return
    with open_weights([source]) as reader:
        yield from read_component_leaves(
            lambda component, names: component_reader(reader, component, names, config),
            config,
            lambda component: f"{source}: {component}",
            dtype,
            merges,
        )


def require_loras(
    config: ModelConfig, loras: Sequence[tuple[str | os.PathLike[str], float]]
) -> None:
    """Looks into LoRAs as a load does, and reads no weight.

    Raises:
        ValueError: one does not fit the model.
    """
    with _open_merges(config, loras):
        pass


def _with_capture(config: ModelConfig, capture: str | CaptureConfig) -> ModelConfig:
    return dataclasses.replace(config, capture=choose_capture(capture, config.unet))


def _open_merges(config: ModelConfig, loras: Sequence[tuple[str | os.PathLike[str], float]]):
    """`open_merges`, which looks into the LoRAs before a weight of the model is read."""
    found = [find_lora(path, strength) for path, strength in loras]
    shapes = {}
    if found:
        expected = flatten_dict(expected_shapes(config))
        shapes = {path: leaf.shape for path, leaf in expected.items()}
    return open_merges(found, shapes, config.unet)


def _other_tokenizers(config: ModelConfig, folders: Mapping[str, Path]) -> dict[str, Tokenizer]:
    """Tokenizers in place of a model's own; one for both of XL keeps the second's padding."""
    pad_tokens = {"tokenizer": None}
    if config.is_xl:
        own = config.tokenizer_2.backend.pad_token
        pad_tokens["tokenizer_2"] = None if "tokenizer_2" in folders else own
    return read_tokenizers(folders, pad_tokens)


def _find_tokenizers(name_or_path: str | os.PathLike[str]) -> dict[str, Path]:
    """The folders with tokenizers' files: the named one, those inside of it, or the hub's."""
    name = str(name_or_path)
    path = _expand(name)
    if not name or not path.is_dir():
        if not is_hub_id(name):
            raise ValueError(
                f"tokenizer={name!r} is neither a folder nor the 'owner/model' of the hub"
            )
        path = fetch(name, choose=tokenizer_files, missing=missing_tokenizer_files)
    return tokenizer_folders(path)


def _expand(name: str) -> Path:
    """The path of a name; shells leave the ~ of --flag=~/path alone."""
    return Path(os.path.expanduser(name))


def _advice(path: Path) -> str:
    """What to do with a file that is no safetensors."""
    if path.suffix in _PICKLES:
        return "; " + CONVERT.format(loader="from_single_file", source=str(path))
    if (path.parent / "model_index.json").is_file():
        return f"; name the folder, {path.parent}"
    return ""


def _tokenizer_of_file(source: Path) -> dict[str, Path]:
    try:
        return _find_tokenizers(DEFAULT_TOKENIZER)
    except ValueError as error:
        raise ValueError(
            f"{source} has no tokenizer, as every single file, and that of {error}. Give "
            "tokenizer (--tokenizer): a folder with vocab.json and merges.txt, or a diffusers "
            "folder of Stable Diffusion"
        ) from error
