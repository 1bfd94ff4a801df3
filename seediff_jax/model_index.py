"""model_index.json: which pipeline of diffusers a folder is, read, checked and written."""

import os
from pathlib import Path
from typing import Any

from seediff_jax.json_files import read_json

XL_PIPELINE = "StableDiffusionXLPipeline"
_PIPELINES = {
    "StableDiffusionPipeline": "Stable Diffusion 1.x, 2.x",
    "LatentConsistencyModelPipeline": "latent consistency models",
    XL_PIPELINE: "Stable Diffusion XL base",
}
_CLASSES = {
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
}
_NAME = "model_index.json"
_ZEROS = "force_zeros_for_empty_prompt"
_NONE = (None, None)


def read_model_index(folder: Path) -> dict[str, Any]:
    """Reads and checks the model_index.json of a folder.

    Raises:
        ValueError: the file is missing or damaged, or the pipeline or a part is not supported.
    """
    path = folder / _NAME
    if os.access(folder, os.X_OK) and not path.exists():
        raise ValueError(
            f"{path} is missing; name the folder of a model, which holds it{_other_folder(folder)}"
        )
    index = read_json(path)
    pipeline = index.get("_class_name")
    if pipeline not in list(_PIPELINES) or index.get("requires_aesthetics_score"):
        known = "; ".join(f"{name} ({kinds})" for name, kinds in _PIPELINES.items())
        raise ValueError(
            f"{path}: {_describe(pipeline, index)} is not supported, only {known}; name a "
            "text-to-image checkpoint of one of them"
        )
    for name, (library, wanted) in _CLASSES.items():
        if name == "text_encoder_2" and not is_xl(index):
            continue
        part = index.get(name)
        if not isinstance(part, list) or part[1:] != [wanted]:
            raise ValueError(f"{path}: {name} is {part}, only {library}'s {wanted} is supported")
    if not isinstance(zeros := index.get(_ZEROS, True), bool):
        raise ValueError(f"{path}: {_ZEROS} = {zeros!r}, needed true or false")
    return index


def is_xl(index: dict[str, Any]) -> bool:
    """Whether the pipeline has a second text encoder, as Stable Diffusion XL does."""
    return index["_class_name"] == XL_PIPELINE


def zeros_for_empty_prompt(index: dict[str, Any]) -> bool:
    """Whether an empty negative prompt is embedded as zeros; diffusers' default for XL is True."""
    return is_xl(index) and index.get(_ZEROS, True)


def model_index(*, scheduler: str, xl: bool, zeros_for_empty_prompt: bool) -> dict[str, Any]:
    """The content of a model_index.json.

    Args:
        scheduler: diffusers' class name.
        xl: whether it is Stable Diffusion XL.
        zeros_for_empty_prompt: read by Stable Diffusion XL alone.
    """
    if xl:
        absent, own = ("feature_extractor", "image_encoder"), {_ZEROS: zeros_for_empty_prompt}
        own["tokenizer_2"] = ("transformers", "CLIPTokenizer")
    else:
        absent, own = ("feature_extractor", "safety_checker"), {"requires_safety_checker": False}
    return {
        "_class_name": XL_PIPELINE if xl else "StableDiffusionPipeline",
        **{name: kind for name, kind in _CLASSES.items() if xl or name != "text_encoder_2"},
        "scheduler": ("diffusers", scheduler),
        "tokenizer": ("transformers", "CLIPTokenizer"),
        **dict.fromkeys(absent, _NONE),
        **own,
    }


def _other_folder(folder: Path) -> str:
    """The folder that may have been meant: the one above of a component's, or one inside."""
    near = (folder.absolute().parent, *sorted(path.parent for path in folder.glob(f"*/{_NAME}")))
    found = [str(path) for path in near if (path / _NAME).is_file()]
    return f"; {' and '.join(found)} {'do' if len(found) > 1 else 'does'}" if found else ""


def _describe(pipeline: Any, index: dict[str, Any]) -> str:
    """The pipeline's name, and for people what it is."""
    if index.get("requires_aesthetics_score"):
        return f"{pipeline} (the refiner of Stable Diffusion XL, which only changes images)"
    if "Inpaint" in str(pipeline):
        return f"{pipeline} (inpainting, whose UNet also reads an image and a mask)"
    if str(pipeline).startswith(("StableDiffusion3", "Flux")):
        return f"{pipeline} (a transformer instead of a UNet)"
    return f"{pipeline}"
