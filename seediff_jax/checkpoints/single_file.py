"""A whole Stable Diffusion in one .safetensors file, in the layout of the original releases.

    names and shapes of the file -> its family -> the configs of a diffusers folder (families)
    tensors of the file -> tensors of diffusers, component by component (original_names)

Tensors that belong to no component (noise schedules, EMA copies of the UNet) are ignored.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from seediff_jax.checkpoints.families import FAMILIES, Family, Json
from seediff_jax.checkpoints.model_config import REFINER, SCHEDULER
from seediff_jax.checkpoints.original_names import (
    original_open_clip_name,
    original_unet_name,
    original_vae_name,
)
from seediff_jax.checkpoints.parameters import is_unused
from seediff_jax.checkpoints.safetensors_files import StoredTensor, Tensors, open_weights
from seediff_jax.errors import UserError, listed
from seediff_jax.models.model import ModelConfig

_UNET, _VAE = "model.diffusion_model.", "first_stage_model."
_CONV_IN = f"{_UNET}input_blocks.0.0.weight"
_CONTEXT = re.compile(rf"{re.escape(_UNET)}.+\.attn2\.to_k\.weight")
# Prefix of the first text encoder, in files of CompVis and in those of Stability AI's later code.
_TEXT, _LATER_TEXT = "cond_stage_model.", "conditioner.embedders.0."
_VAE_PROJECTION = re.compile(r"\.attentions\.0\.to_.+\.weight$")  # may be a 1 x 1 convolution
# Empty tensors by which trainers state that the UNet predicts velocity, and that the last timestep
# is pure noise; metadata that state what the UNet predicts.
_VELOCITY, _ZERO_SNR = "v_pred", "ztsnr"
_STATEMENTS = ("modelspec.prediction_type", "modelspec.predict_key")
_STATED = {
    **dict.fromkeys(("epsilon", "eps"), "epsilon"),
    **dict.fromkeys(("v", "v_prediction", "v-prediction", "velocity"), "v_prediction"),
}
_NEEDED = (
    "expected the UNet 'model.diffusion_model.*', the VAE 'first_stage_model.*' and a text "
    "encoder: 'cond_stage_model.transformer.*' (Stable Diffusion 1.x), 'cond_stage_model.model.*' "
    "(2.x), or 'conditioner.embedders.0.transformer.*' and 'conditioner.embedders.1.model.*' (XL)"
)
# Tensors that only files of other families have.
_OTHER_FAMILIES = {
    r"(.*\.)?joint_blocks\.": "Stable Diffusion 3 (a transformer instead of a UNet)",
    r"(.*\.)?(double_blocks|single_transformer_blocks)\.": (
        "Flux or a similar model (a transformer instead of a UNet)"
    ),
    r"edm_vpred\.": "a model trained with the EDM form of v-prediction (such as CosXL)",
    r"edm_(mean|std)": "Playground v2.5 (EDM)",
    r"control_model\.": "a ControlNet",
}


def read_family(
    path: Path, prediction_type: str | None = None, *, needs_vae: bool = True
) -> tuple[Family, dict[str, Json]]:
    """Recognises the family of a file; returns it with the JSON files of its diffusers folder.

    A `prediction_type` is used instead of the one that the file or its family states. Only with
    `needs_vae`, a file without a VAE is refused.

    Raises:
        UserError: the file is damaged, is not Stable Diffusion 1.x, 2.x or XL, or predicts
            something that is not supported or not known.
    """
    tensors, metadata = open_weights(path)
    family = _recognise(tensors, path, needs_vae)
    stated = prediction_type or _stated_prediction(tensors, metadata, path)
    chosen = stated or family.prediction_type
    if chosen is None:
        raise UserError(
            f"{path} is {family.name} and does not say what the UNet predicts; give "
            "prediction_type (--prediction_type): 'epsilon' for the base models of 512 x 512, "
            "'v_prediction' for those of 768 x 768"
        )
    configs = family.folder_configs(chosen)
    if _ZERO_SNR in tensors:
        configs[SCHEDULER]["rescale_betas_zero_snr"] = True
    return family, configs


def component_tensors(
    tensors: Tensors, component: str, names: Iterable[str], config: ModelConfig
) -> Tensors:
    """Finds the tensors of a component in a file; a VAE's own file may have diffusers' names.

    Returns:
        The tensors of `names` (in diffusers) that the file has, and, under their own names, all
        others with the component's prefix that are not known to be unused.
    """
    prefix, translate, unused = _layout(tensors, component, config)
    originals = {name: prefix + translate(name) for name in names}
    found = {n: _derive(tensors[raw], n) for n, raw in originals.items() if raw in tensors}
    for raw in tensors.keys() - originals.values():
        inside = raw.removeprefix(prefix)
        known = re.match(unused, inside) or is_unused(component, inside)
        if raw.startswith(prefix) and not known:
            # diffusers' names have other spellings, which `canonical_name` knows.
            found[inside if translate is str else raw] = tensors[raw]
    return found


def _layout(
    tensors: Tensors, component: str, config: ModelConfig
) -> tuple[str, Callable[[str], str], str]:
    """Prefix of a component, its names without it, and a pattern of those that are not used."""
    if component == "unet":
        return _UNET, lambda name: original_unet_name(name, config.unet), "$"
    if component == "vae":
        if not any(".block." in name or ".mid." in name for name in tensors):
            return "", str, "$"
        prefix = _VAE if _has(tensors, _VAE) else ""
        return prefix, lambda name: original_vae_name(name, config.vae), r"(loss|model_ema)\."
    _, prefixes = _find_family(tensors)
    if not prefixes[component].endswith(".model."):
        return prefixes[component], str, "$"
    # Stable Diffusion 2.x reads the penultimate layer and never uses the last one.
    last = getattr(config, component).num_hidden_layers
    return prefixes[component], original_open_clip_name, rf"transformer\.resblocks\.{last}\."


def _recognise(tensors: Tensors, path: Path, needs_vae: bool) -> Family:
    if any(".lora" in name for name in tensors):
        raise UserError(
            f"{path} is a LoRA, which changes another model: give that model, and the file as "
            "loras=[(path, weight)] (--lora=path:weight)"
        )
    family, _ = _find_family(tensors)
    kinds = [
        kind
        for pattern, kind in _OTHER_FAMILIES.items()
        if any(re.match(pattern, name) for name in tensors)
    ]
    if family is None and _has(tensors, _UNET) and _has(tensors, f"{_LATER_TEXT}model."):
        kinds.append(REFINER)
    if kinds:
        known = ", ".join(family.name for family in FAMILIES.values())
        raise UserError(f"{path} is {kinds[0]}, which is not supported; give a file of {known}")
    if family is None or _CONV_IN not in tensors:
        found = sorted({".".join(name.split(".")[:2]) for name in tensors})
        raise UserError(
            f"{path} does not hold a whole Stable Diffusion in the original layout: {_NEEDED}; "
            f"found are {listed(found, 8) or 'no tensors'}"
        )
    if needs_vae and not _has(tensors, _VAE):
        raise UserError(
            f"{path} has no VAE ('{_VAE}*'); give one as vae (--vae): a file or a folder"
        )
    if (channels := tensors[_CONV_IN].shape[1:2]) != (4,):
        raise UserError(
            f"{path}: its UNet takes {channels[0] if channels else 'no'} channels, for inpainting, "
            "depth or another image; only text-to-image models are supported, which take 4"
        )
    return family


def _find_family(tensors: Tensors) -> tuple[Family | None, Mapping[str, str]]:
    """Finds the family of a file by its text encoders; also returns the prefixes of their names."""
    width = next((t.shape for name, t in tensors.items() if _CONTEXT.fullmatch(name)), ())[1:2]
    for family in FAMILIES.values():
        old = family.text_encoders
        new = {name: prefix.replace(_TEXT, _LATER_TEXT) for name, prefix in old.items()}
        # The later code has one name for all of them; the width of the text tells them apart.
        fits = width == (family.configs["unet/config.json"]["cross_attention_dim"],)
        for prefixes in (old, *([new] if fits else [])):
            if all(_has(tensors, prefix) for prefix in prefixes.values()):
                return family, prefixes
    return None, {}


def _has(tensors: Tensors, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in tensors)


def _stated_prediction(tensors: Tensors, metadata: Mapping[str, str], path: Path) -> str | None:
    """What the UNet of a file predicts, by its metadata or a marker tensor, if it is stated."""
    said = {name: metadata[name] for name in _STATEMENTS if name in metadata}
    if _VELOCITY in tensors:
        said[_VELOCITY] = "v_prediction"
    stated = {_STATED.get(value.strip().lower()) for value in said.values()}
    if None in stated or len(stated) > 1:
        raise UserError(
            f"{path} says {listed(f'{name} = {value}' for name, value in said.items())}; supported "
            "is one of 'epsilon' and 'v_prediction': give the right one as prediction_type "
            "(--prediction_type)"
        )
    return stated.pop() if stated else None


def _derive(tensor: StoredTensor, name: str) -> StoredTensor:
    """Makes the tensor that diffusers names `name` from its source in the original layout."""
    shape, start, transposed = tensor.shape, tensor.start, tensor.name.endswith("text_projection")
    if ".in_proj_" in tensor.name and shape and shape[0] % 3 == 0:  # query, key and value
        shape = (shape[0] // 3, *shape[1:])
        start += "qkv".index(name.split(".self_attn.")[1][0]) * tensor.size // 3
    if transposed:
        shape = shape[::-1]
    if _VAE_PROJECTION.search(name) and set(shape[2:]) == {1}:
        shape = shape[:2]
    return dataclasses.replace(tensor, start=start, shape=shape, transposed=transposed)
