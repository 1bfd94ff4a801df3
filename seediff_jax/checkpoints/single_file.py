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
from seediff_jax.checkpoints.model_config import SCHEDULER
from seediff_jax.checkpoints.original_names import (
    Origin,
    original_open_clip_tensor,
    original_unet_name,
    original_vae_tensor,
)
from seediff_jax.checkpoints.parameters import is_unused
from seediff_jax.checkpoints.safetensors_files import StoredTensor, Tensors, open_weights
from seediff_jax.errors import UserError, listed
from seediff_jax.models.model import ModelConfig

_UNET, _VAE = "model.diffusion_model.", "first_stage_model."
_CONV_IN = f"{_UNET}input_blocks.0.0.weight"
_CONTEXT = re.compile(rf"{re.escape(_UNET)}.+\.attn2\.to_k\.weight")
# Empty tensors by which trainers state that the UNet predicts velocity, and that the last timestep
# is pure noise; metadata that state what the UNet predicts.
_VELOCITY, _ZERO_SNR = "v_pred", "ztsnr"
_STATEMENTS = ("modelspec.prediction_type", "modelspec.predict_key")
_STATED = {
    **dict.fromkeys(("epsilon", "eps"), "epsilon"),
    **dict.fromkeys(("v", "v_prediction", "v-prediction", "velocity"), "v_prediction"),
}
_NEEDED = (
    "needed are the UNet 'model.diffusion_model.*', the VAE 'first_stage_model.*' and a text "
    "encoder: 'cond_stage_model.transformer.*' (Stable Diffusion 1.x), 'cond_stage_model.model.*' "
    "(2.x), or 'conditioner.embedders.0.transformer.*' and 'conditioner.embedders.1.model.*' (XL)"
)
_REFINER = "the refiner of Stable Diffusion XL, which only changes images"
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

    Args:
        path: a .safetensors file.
        prediction_type: instead of the one that the file or its family states.
        needs_vae: whether a file without a VAE is refused.

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
    """Finds the tensors of a component in a file.

    Returns:
        The tensors of `names` (in diffusers) that the file has, and, under their own names, all
        others with the component's prefix that are not known to be unused.
    """
    prefix, origin_of, unused = _component(tensors, component, config)
    origins = {name: origin_of(name) for name in names}
    found = {
        name: _derive(tensors[prefix + origin.name], origin)
        for name, origin in origins.items()
        if prefix + origin.name in tensors
    }
    for raw in tensors.keys() - {tensor.name for tensor in found.values()}:
        inside = raw.removeprefix(prefix)
        known = re.match(unused, inside) or is_unused(component, inside)
        if raw.startswith(prefix) and not known:
            # Hugging Face's CLIP has other spellings of its own, which `canonical_name` knows.
            found[inside if origin_of is Origin else raw] = tensors[raw]
    return found


def _component(
    tensors: Tensors, component: str, config: ModelConfig
) -> tuple[str, Callable[[str], Origin], str]:
    """Prefix of a component, origins of its tensors, and a pattern of those that are not used."""
    if component == "unet":
        return _UNET, lambda name: Origin(original_unet_name(name, config.unet)), "$"
    if component == "vae":
        prefix = _VAE if any(name.startswith(_VAE) for name in tensors) else ""
        return prefix, lambda name: original_vae_tensor(name, config.vae), r"(loss|model_ema)\."
    _, prefixes = _find_family(tensors)
    if not prefixes[component].endswith(".model."):
        return prefixes[component], Origin, "$"
    # Stable Diffusion 2.x reads the penultimate layer and never uses the last one.
    last = getattr(config, component).num_hidden_layers
    return prefixes[component], original_open_clip_tensor, rf"transformer\.resblocks\.{last}\."


def _recognise(tensors: Tensors, path: Path, needs_vae: bool) -> Family:
    def has(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in tensors)

    if any(".lora" in name for name in tensors):
        raise UserError(
            f"{path} is a LoRA, which changes another model: give that model, and the file as "
            "loras=[(path, weight)] (--lora=path:weight)"
        )
    for pattern, kind in _OTHER_FAMILIES.items():
        if any(re.match(pattern, name) for name in tensors):
            raise UserError(_refusal(path, kind))
    family, _ = _find_family(tensors)
    if family is None and has(_UNET) and has("conditioner.embedders.0.model."):
        raise UserError(_refusal(path, _REFINER))
    if family is None or _CONV_IN not in tensors:
        found = sorted({".".join(name.split(".")[:2]) for name in tensors})
        raise UserError(
            f"{path} does not hold a whole Stable Diffusion in the original layout: {_NEEDED}; "
            f"found are {listed(found, 8) or 'no tensors'}"
        )
    if needs_vae and not has(_VAE):
        raise UserError(
            f"{path} has no VAE ('{_VAE}*'); give one as vae (--vae): a file or a folder"
        )
    if (channels := tensors[_CONV_IN].shape[1:2]) != (4,):
        raise UserError(
            f"{path}: its UNet takes {channels[0] if channels else 'no'} channels, for inpainting, "
            "depth or another image; only text-to-image models are supported, which take 4"
        )
    return family


def _refusal(path: Path, kind: str) -> str:
    known = ", ".join(family.name for family in FAMILIES.values())
    return f"{path} is {kind}, which is not supported; give a file of {known}"


def _find_family(tensors: Tensors) -> tuple[Family | None, Mapping[str, str]]:
    """Finds the family of a file by its text encoders; also returns the prefixes of their names."""
    for family in sorted(FAMILIES.values(), key=lambda family: -len(family.text_encoders)):
        # All models with one text encoder have the same newer names; its width tells them apart.
        width = family.configs["unet/config.json"]["cross_attention_dim"]
        fits = width in _text_widths(tensors)
        for prefixes in (family.text_encoders, family.newer_text_encoders if fits else None):
            if prefixes is not None and all(
                any(name.startswith(prefix) for name in tensors) for prefix in prefixes.values()
            ):
                return family, prefixes
    return None, {}


def _text_widths(tensors: Tensors) -> tuple[int, ...]:
    """Width of the text that the UNet reads, if it is known."""
    found = (tensor.shape for name, tensor in tensors.items() if _CONTEXT.fullmatch(name))
    return next(found, ())[1:2]


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


def _derive(tensor: StoredTensor, origin: Origin) -> StoredTensor:
    """Makes a tensor of diffusers from a tensor of the original layout."""
    shape, start = tensor.shape, tensor.start
    if origin.qkv_index is not None and shape and shape[0] % 3 == 0:
        shape = (shape[0] // 3, *shape[1:])
        start += origin.qkv_index * tensor.size // 3
    if origin.transposed:
        shape = shape[::-1]
    if origin.squeeze_1x1 and set(shape[2:]) == {1}:
        shape = shape[:2]
    return dataclasses.replace(tensor, start=start, shape=shape, transposed=origin.transposed)
