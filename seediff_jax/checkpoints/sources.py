"""Where a model comes from: an embedded model, a folder, a single file, or the Hugging Face hub.

name -> find_source -> folder or file -> read_source_config -> read_source_weights
"""

import importlib.resources
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.typing import DTypeLike

from seediff_jax.checkpoints.hub import fetch, is_hub_id
from seediff_jax.checkpoints.lora import Loras, lora_merges
from seediff_jax.checkpoints.model_config import (
    INDEX,
    SCHEDULER,
    Json,
    make_model_config,
    read_model_index,
)
from seediff_jax.checkpoints.orbax_folder import is_orbax, read_orbax
from seediff_jax.checkpoints.param_loading import Weights, read_components
from seediff_jax.checkpoints.parameters import component_parameters
from seediff_jax.checkpoints.safetensors_files import CONVERT, PICKLES, open_component, open_weights
from seediff_jax.checkpoints.single_file import component_tensors, read_family
from seediff_jax.errors import UserError, hint, shown
from seediff_jax.files.paths import expand_path
from seediff_jax.files.strict_json import read_json
from seediff_jax.models.model import ModelConfig
from seediff_jax.prompts.embedded_models import EMBEDDED_MODELS
from seediff_jax.prompts.tokenizer import (
    TOKENIZER_FOLDERS,
    Tokenizer,
    load_tokenizer,
    read_tokenizers,
    tokenizer_folders,
)
from seediff_jax.schedulers.config import PREDICTION_TYPES

DEFAULT_TOKENIZER = "openai/clip-vit-large-patch14"
_FILE = ".safetensors"


def find_source(
    name_or_path: str | os.PathLike[str], revision: str | None = None, *, weights: bool = True
) -> Path:
    """Finds the folder or .safetensors file of a model, or downloads it from the hub.

    Raises:
        UserError: there is no such model, it is a file of another kind, or it has no revisions.
    """
    name = str(name_or_path)
    path = Path(expand_path(name))
    local = name in EMBEDDED_MODELS or path.exists()
    if not local and is_hub_id(name) and path.suffix != _FILE:
        return fetch(name, revision, "all" if weights else "configs")
    if revision is not None:
        raise UserError(
            f"revision={revision!r} is given, but only models of the hub have revisions; "
            f"{shown(name)!r} is not one"
        )
    if name in EMBEDDED_MODELS:
        # pip and Bazel both install the package as plain files.
        return Path(str(importlib.resources.files("seediff_jax"))) / "assets" / name
    if name and path.exists():  # the path of an empty name is the current folder
        if path.is_dir() or (path.is_file() and path.suffix == _FILE):
            return path
        kind, advice = "a file" if path.is_file() else "not a regular file", ""
        if path.suffix in PICKLES:
            advice = "; " + CONVERT.format(loader="from_single_file", source=str(path))
        elif (path.parent / INDEX).is_file():
            advice = f"; name the folder, {path.parent}"
        raise UserError(f"{path} is {kind}; a {_FILE} file or a diffusers folder is needed{advice}")
    raise UserError(
        f"there is no model {shown(name)!r}: neither {', '.join(map(repr, EMBEDDED_MODELS))}, nor "
        f"a folder or {_FILE} file, nor the 'owner/model' of the Hugging Face hub"
        f"{hint(name, EMBEDDED_MODELS, 0.7)}"
    )


def read_source_config(
    source: Path,
    *,
    prediction_type: str | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    vae: str | os.PathLike[str] | None = None,
    **options: Any,
) -> ModelConfig:
    """Reads the config of a model that `find_source` found.

    See `load_model` for the arguments; the options are scheduler, scheduler_options and capture.

    Raises:
        UserError: a file is missing or damaged; something in the files, or an option, is not
            supported or does not fit.
    """
    if prediction_type not in (None, *PREDICTION_TYPES):
        choices = ", ".join(map(repr, PREDICTION_TYPES))
        raise UserError(f"prediction_type={prediction_type!r} is not one of {choices}")
    folders = None if tokenizer is None else _find_tokenizers(tokenizer)
    changes = {}
    if vae is not None and (path := find_vae(vae) / "config.json").is_file():
        changes["vae/config.json"] = read_json(path)
        kind = changes["vae/config.json"].get("_class_name", "AutoencoderKL")
        if kind != "AutoencoderKL":
            kind = shown(str(kind), 200)
            raise UserError(f"{path} has a {kind}; only AutoencoderKL is supported")
    if source.is_file():
        family, contents = read_family(source, prediction_type, needs_vae=vae is None)
        tokenizers = read_tokenizers(folders or _default_tokenizer(source), family.pad_tokens)
        name = f"{source} ({family.name}): "
    else:
        contents, tokenizers = _read_folder(source, folders)
        if prediction_type is not None:
            contents[SCHEDULER]["prediction_type"] = prediction_type
        if (path := source / "capture.json").exists():
            options["own_capture"] = str(path)
        name = f"{source}/"
    return make_model_config(contents | changes, tokenizers, name, **options)


def _read_folder(
    folder: Path, tokenizers: Mapping[str, Path] | None
) -> tuple[dict[str, Json], dict[str, Tokenizer]]:
    """Reads the JSON files of a diffusers folder, and its tokenizers or those of other folders.

    A single other tokenizer serves as both of Stable Diffusion XL; the second keeps its padding.
    """
    index, components = read_model_index(folder)
    names = [f"{component}/config.json" for component in components]
    contents = {INDEX: index} | {name: read_json(folder / name) for name in names}
    # diffusers writes -Infinity into the file of DPM-Solver.
    contents[SCHEDULER] = read_json(folder / SCHEDULER, infinity=True)
    is_xl = "text_encoder_2" in components
    own = {name: folder / name for name in TOKENIZER_FOLDERS[: 2 if is_xl else 1]}
    pad_tokens = dict.fromkeys(own)
    if is_xl and tokenizers and "tokenizer_2" not in tokenizers:
        pad_tokens["tokenizer_2"] = load_tokenizer(own["tokenizer_2"]).backend.pad_token
    return contents, read_tokenizers(tokenizers or own, pad_tokens)


def read_source_weights(
    source: Path,
    config: ModelConfig,
    dtype: DTypeLike,
    loras: Loras = (),
    vae: str | os.PathLike[str] | None = None,
) -> Weights:
    """Reads the weights of a model one by one, each with the LoRAs merged.

    `source` and `config` come from the functions above; see `load_model` for the others.

    Raises:
        UserError: weights are missing, damaged or do not fit the config, or a LoRA does not fit.
    """
    merges = lora_merges(loras, config)
    places = {name: source / name if source.is_dir() else source for name in config.components}
    if vae is not None:
        places["vae"] = find_vae(vae)
    if is_orbax(source):
        for path, weight in read_orbax(source, config, dtype, merges):
            if vae is None or path[0] != "vae":
                yield path, weight
        places = {} if vae is None else {"vae": places["vae"]}
    opened = {path: open_weights(path)[0] for path in {*places.values()} if path.is_file()}
    found = {}
    for name, place in places.items():
        if place in opened:
            names = component_parameters(config, name)
            tensors = component_tensors(opened[place], name, names, config)
            found[name] = f"{place}: {name}", tensors
        else:
            found[name] = str(place), open_component(place, name)
    yield from read_components(found, config, dtype, merges)


def find_vae(name_or_path: str | os.PathLike[str]) -> Path:
    """Finds the .safetensors file of a VAE, or the folder with its config.json and weights."""
    path = Path(expand_path(name_or_path))
    if (path / "vae").is_dir():
        path = path / "vae"
    if not (path / "config.json").is_file() and not (path.is_file() and path.suffix == _FILE):
        raise UserError(
            f"vae={shown(str(name_or_path))!r} is neither a {_FILE} file nor the folder of a VAE "
            "or of a model"
        )
    return path


def _find_tokenizers(name_or_path: str | os.PathLike[str]) -> dict[str, Path]:
    """Finds the folders of tokenizers in a local folder or on the hub."""
    name = str(name_or_path)
    path = Path(expand_path(name))
    if not name or not path.is_dir():
        if not is_hub_id(name):
            raise UserError(
                f"tokenizer={shown(name)!r} is neither a folder nor the 'owner/model' of the hub"
            )
        path = fetch(name, parts="tokenizers")
    return tokenizer_folders(path)


def _default_tokenizer(source: Path) -> dict[str, Path]:
    try:
        return _find_tokenizers(DEFAULT_TOKENIZER)
    except UserError as error:
        raise UserError(
            f"{source} has no tokenizer (no single file has one), and the default cannot be read: "
            f"{error}. Give tokenizer (--tokenizer): a folder with vocab.json and merges.txt, or a "
            "diffusers folder of Stable Diffusion"
        ) from error
