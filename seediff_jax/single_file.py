"""A whole Stable Diffusion in one .safetensors file, in the layout of the original releases.

    names and shapes of the file -> its family -> the configs of a diffusers folder (families)
    tensors of the file -> tensors of diffusers, component by component (models.original_names)

Tensors that belong to no component (noise schedules, EMA copies of the UNet) are left alone.
"""

import contextlib
import dataclasses
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from seediff_jax.families import FAMILIES, Family, Json
from seediff_jax.model_config import ModelConfig, read_model_config
from seediff_jax.model_tokenizers import read_tokenizers
from seediff_jax.models.original_names import (
    Origin,
    original_open_clip_tensor,
    original_unet_name,
    original_vae_tensor,
)
from seediff_jax.weight_files import WeightReader, open_weights

_UNET, _VAE = "model.diffusion_model.", "first_stage_model."
_CONV_IN = f"{_UNET}input_blocks.0.0.weight"
# Marks that trainers put beside the weights: velocity, and a last timestep of pure noise.
_VELOCITY, _ZERO_SNR = "v_pred", "ztsnr"
_NEEDED = (
    "needed are the UNet 'model.diffusion_model.*', the VAE 'first_stage_model.*' and a text "
    "encoder: 'cond_stage_model.transformer.*' (Stable Diffusion 1.x), 'cond_stage_model.model.*' "
    "(2.x), or 'conditioner.embedders.0.transformer.*' and 'conditioner.embedders.1.model.*' (XL)"
)
# Tensors that only files of other families have.
_OTHER_FAMILIES = {
    r"(.*\.)?joint_blocks\.": "Stable Diffusion 3 (a transformer instead of a UNet)",
    r"(.*\.)?(double_blocks|single_transformer_blocks)\.": (
        "Flux or one of its kin (a transformer instead of a UNet)"
    ),
    r"conditioner\.embedders\.0\.model\.": (
        "the refiner of Stable Diffusion XL, which only changes images"
    ),
}


class ComponentReader:
    """The tensors of one component under their names in diffusers; as `WeightReader`.

    Attributes:
        shapes: the shape of every tensor.
        dtypes: the dtype of every tensor, in safetensors' spelling.
    """

    def __init__(self, reader: WeightReader, origins: Mapping[str, Origin]):
        self._reader, self._origins = reader, origins
        self.shapes = {n: _shape(o, reader.shapes[o.name]) for n, o in origins.items()}
        self.dtypes = {name: reader.dtypes[origin.name] for name, origin in origins.items()}

    def is_number(self, name: str) -> bool:
        """Whether the tensor holds floating-point numbers that can be read."""
        return self._reader.is_number(self._origins[name].name)

    @contextlib.contextmanager
    def borrow(self, name: str) -> Iterator[np.ndarray]:
        """Yields the tensor of this name as it is stored: a view of the file, read-only."""
        origin = self._origins[name]
        with self._reader.borrow(origin.name) as tensor:
            if origin.third is not None:
                rows = len(tensor) // 3
                tensor = tensor[origin.third * rows : (origin.third + 1) * rows]
            if origin.transposed:
                tensor = tensor.T
            yield tensor.reshape(self.shapes[name])


def read_family(path: Path, prediction_type: str | None = None) -> tuple[Family, dict[str, Json]]:
    """Recognises what a file holds.

    Args:
        path: a .safetensors file.
        prediction_type: "epsilon" or "v_prediction", in place of what the family says.

    Returns:
        The family, and the contents of the JSON files of its diffusers folder.

    Raises:
        ValueError: the file is damaged, holds no Stable Diffusion 1.x, 2.x or XL, or one of which
            the tensors do not tell the prediction type.
    """
    with open_weights([path]) as reader:
        shapes = reader.shapes
    family = _recognise(shapes, path)
    if _VELOCITY in shapes:
        family = dataclasses.replace(family, prediction_type="v_prediction")
    try:
        configs = family.folder_configs(prediction_type)
    except ValueError as error:
        raise ValueError(f"{path} is {error}") from error
    if _ZERO_SNR in shapes:
        configs["scheduler/scheduler_config.json"]["rescale_betas_zero_snr"] = True
    return family, configs


def family_config(
    family: Family,
    configs: Mapping[str, Json],
    tokenizers: Mapping[str, Path],
    scheduler: str | None = None,
) -> ModelConfig:
    """The static half of a model of a family.

    Args:
        family: see `read_family`.
        configs: see `read_family`.
        tokenizers: folder of each tokenizer, see `tokenizer_folders`; a single one
            takes the place of both with the family's padding.
        scheduler: as in `read_model_config`.

    Raises:
        ValueError: the tokenizer is missing or does not fit, or `scheduler` is needed.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, content in configs.items():
            path = Path(folder, name)
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(content), encoding="utf-8")
        for name, tokenizer in read_tokenizers(tokenizers, family.pad_tokens).items():
            tokenizer.backend.save_pretrained(Path(folder, name))
        try:
            return read_model_config(Path(folder), scheduler)
        except ValueError as error:
            raise ValueError(str(error).replace(folder, family.name)) from error


def component_reader(
    reader: WeightReader, component: str, names: Iterable[str], config: ModelConfig
) -> ComponentReader:
    """Presents a component of an open file under its names in diffusers.

    Args:
        reader: the file.
        component: "text_encoder", "unet", ...
        names: of all tensors that the component needs, in diffusers.
        config: of the model that the file holds.

    Returns:
        The tensors of `names` that are there, and under their own names all others that bear the
        component's prefix and mean something.
    """
    prefix, origin_of, ignored = _component(reader, component, config)
    origins = {}
    for name in names:
        origin = origin_of(name)
        origin = dataclasses.replace(origin, name=prefix + origin.name)
        if origin.name in reader.shapes:
            origins[name] = origin
    claimed = {origin.name for origin in origins.values()}
    for raw in reader.shapes.keys() - claimed:
        inside = raw.removeprefix(prefix)
        if inside != raw and not re.match(ignored, inside):
            # Hugging Face's CLIP has other spellings of its own, which the usual walk knows.
            origins[inside if origin_of is Origin else raw] = Origin(raw)
    return ComponentReader(reader, origins)


def _component(
    reader: WeightReader, component: str, config: ModelConfig
) -> tuple[str, Callable[[str], Origin], str]:
    """Prefix of a component, the origins of its tensors, and a pattern of what is no weight."""
    if component == "unet":
        return _UNET, lambda name: Origin(original_unet_name(name, config.unet)), "$"
    if component == "vae":
        return _VAE, lambda name: original_vae_tensor(name, config.vae), r"(loss|model_ema)\."
    prefix = _family_of(reader.shapes).text_encoders[component]
    if not prefix.endswith(".model."):
        return prefix, Origin, "$"
    # Stable Diffusion 2.x reads the last layer but one: the last one is never used.
    unused = getattr(config, component).num_hidden_layers
    pattern = rf"(logit_scale|attn_mask|text_projection)$|transformer\.resblocks\.{unused}\."
    return prefix, original_open_clip_tensor, pattern


def _recognise(shapes: Mapping[str, tuple[int, ...]], path: Path) -> Family:
    if any(".lora" in name for name in shapes):
        raise ValueError(
            f"{path} is a LoRA, which goes on top of a model: give it as loras=[(path, weight)] "
            "(--lora=path:weight) beside a model"
        )
    for pattern, kind in _OTHER_FAMILIES.items():
        if any(re.match(pattern, name) for name in shapes):
            known = ", ".join(family.name for family in FAMILIES.values())
            raise ValueError(f"{path} is {kind}, which is not supported; give a file of {known}")
    family = _family_of(shapes)
    if family is None or _CONV_IN not in shapes or not any(n.startswith(_VAE) for n in shapes):
        found = sorted({".".join(name.split(".")[:2]) for name in shapes})
        listed = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "")
        raise ValueError(
            f"{path} holds no whole Stable Diffusion in the original layout: {_NEEDED}; found are "
            f"{listed or 'no tensors'}"
        )
    if any(name.startswith("control_model.") for name in shapes) or "edm_mean" in shapes:
        raise ValueError(f"{path} is a ControlNet or Playground model, which is not supported")
    if shapes[_CONV_IN][1:2] != (4,):
        channels = ", ".join(map(str, shapes[_CONV_IN][1:2])) or "no"
        raise ValueError(
            f"{path}: its UNet takes {channels} channels, for inpainting, depth or another image "
            "beside the noise; only text to image is supported, which takes 4"
        )
    return family


def _family_of(shapes: Mapping[str, tuple[int, ...]]) -> Family | None:
    for family in FAMILIES.values():
        prefixes = family.text_encoders.values()
        if all(any(name.startswith(prefix) for name in shapes) for prefix in prefixes):
            return family
    return None


def _shape(origin: Origin, shape: tuple[int, ...]) -> tuple[int, ...]:
    if origin.third is not None and shape and shape[0] % 3 == 0:
        shape = (shape[0] // 3, *shape[1:])
    if origin.transposed:
        shape = shape[::-1]
    if origin.matrix and set(shape[2:]) == {1}:
        shape = shape[:2]
    return shape
