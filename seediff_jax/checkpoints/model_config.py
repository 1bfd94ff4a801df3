"""Makes and checks a ModelConfig: everything in a checkpoint except its weights.

model_index.json                  which pipeline of diffusers this is
text_encoder/ unet/ vae/          config.json each, and the weights
scheduler/scheduler_config.json
tokenizer/
text_encoder_2/ tokenizer_2/      Stable Diffusion XL only
capture.json                      ours, optional: the attention layers to record
"""

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seediff_jax.checkpoints.parameters import parameters
from seediff_jax.errors import UserError, hint, quoted, shown
from seediff_jax.files.paths import expand_path
from seediff_jax.files.strict_json import read_json
from seediff_jax.models import config as configs
from seediff_jax.models.capture import (
    HALF,
    LATER_HALF,
    PRESETS,
    CaptureConfig,
    attention_layers,
    check_capture,
)
from seediff_jax.models.model import COMPONENTS, ModelConfig
from seediff_jax.prompts.tokenizer import Tokenizer, require_same_tokens
from seediff_jax.schedulers.config import scheduler_config

Json = dict[str, Any]
INDEX = "model_index.json"
SCHEDULER = "scheduler/scheduler_config.json"
XL_PIPELINE = "StableDiffusionXLPipeline"
_PIPELINES = {
    "StableDiffusionPipeline": "Stable Diffusion 1.x, 2.x",
    "LatentConsistencyModelPipeline": "latent consistency models",
    XL_PIPELINE: "Stable Diffusion XL base",
}
REFINER = "the refiner of Stable Diffusion XL, which only changes images"
_OTHER_PIPELINES = {
    "Inpaint": "inpainting, whose UNet also reads an image and a mask",
    **dict.fromkeys(("StableDiffusion3", "Flux"), "a transformer instead of a UNet"),
}
PART_CLASSES = {
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
}
_MORE_CHANNELS = (
    "; a UNet with more is for inpainting, depth or editing, not for text alone: load the "
    "text-to-image model that it was trained from"
)
_MOST_WEIGHTS, _MOST_PER_IMAGE = 2**40, 2**38  # bytes: of several hosts, and of any one device
ZEROS_FOR_EMPTY_PROMPT = "force_zeros_for_empty_prompt"


def make_model_config(
    contents: Mapping[str, Json],
    tokenizers: Mapping[str, Tokenizer],
    source: str,
    *,
    scheduler: str | None = None,
    scheduler_options: Mapping[str, Any] | None = None,
    capture: str | CaptureConfig | None = None,
    own_capture: str = "published",
) -> ModelConfig:
    """Builds the config of a model from the contents of the files of its diffusers folder.

    Args:
        contents: parsed JSON files by name; the index, if there is one, has been checked.
        tokenizers: "tokenizer", and "tokenizer_2" of Stable Diffusion XL.
        source: prefix of the names of files in errors, for example "folder/".
        scheduler: see `load_model`, as are scheduler_options.
        capture: see `choose_capture`; None is own_capture.
        own_capture: the model's own choice.
    """

    def read(name: str, parse: Any, **options: Any) -> Any:
        return parse(contents[name], f"{source}{name}", **options)

    unet = read("unet/config.json", configs.unet_config)
    sampler = read(SCHEDULER, scheduler_config, kind=scheduler)
    more: dict[str, Any] = dict(tokenizers)
    if (second := "text_encoder_2/config.json") in contents:
        more["text_encoder_2"] = read(second, configs.clip_text_config, projects=True)
        # diffusers' default for XL is True.
        more[ZEROS_FOR_EMPTY_PROMPT] = contents.get(INDEX, {}).get(ZEROS_FOR_EMPTY_PROMPT, True)
    config = ModelConfig(
        text_encoder=read("text_encoder/config.json", configs.clip_text_config),
        unet=unet,
        vae=read("vae/config.json", configs.vae_config),
        scheduler=sampler.with_options(scheduler_options or {}),
        capture=choose_capture(capture or own_capture, unet, own_capture),
        **more,
    )
    check_model_config(config, source.rstrip("/: "))
    return config


def check_model_config(config: ModelConfig, source: str) -> None:
    """Raises a UserError that names both sides unless the parts of a model fit together."""
    unet, vae = config.unet, config.vae
    encoders = {"text_encoder": (config.text_encoder, config.tokenizer)}
    pooled_dim = 0
    if config.is_xl:
        encoders["text_encoder_2"] = (config.text_encoder_2, config.tokenizer_2)
        pooled_dim = config.text_encoder_2.projection_dim
        require_same_tokens(config.tokenizer, config.tokenizer_2, source)
    text_dim = sum(text.hidden_size for text, _ in encoders.values())
    for name, value, other_name, other in (
        ("unet in_channels", unet.in_channels, "vae latent_channels", vae.latent_channels),
        ("unet cross_attention_dim", unet.cross_attention_dim, "text hidden_size", text_dim),
        ("unet pooled text", unet.pooled_text_dim, "text_encoder_2 projection_dim", pooled_dim),
        ("unet out_channels", unet.out_channels, "unet in_channels", unet.in_channels),
    ):
        if value != other:
            has_more = name == "unet in_channels" and value > other
            raise UserError(
                f"{source}: {name} = {value} must equal {other_name} = {other}"
                + (_MORE_CHANNELS if has_more else "")
            )
    _require_memory(config, source)
    for name, (text, tokenizer) in encoders.items():
        length, longest = tokenizer.max_length, text.max_position_embeddings
        if length > longest:
            raise UserError(
                f"{source}, {name}: the tokenizer makes {length} tokens, but the text encoder "
                f"reads at most {longest}"
            )
        largest = max(tokenizer.backend.get_vocab().values())
        if largest >= text.vocab_size:
            raise UserError(
                f"{source}, {name}: the tokenizer has ids up to {largest}, but the text encoder "
                f"only below {text.vocab_size}"
            )


def _require_memory(config: ModelConfig, source: str) -> None:
    """Refuses a model that no accelerator can hold, before anything is traced."""
    weights = 4 * sum(math.prod(parameter.shape) for parameter in parameters(config).values())
    sides = {f"{layer.name}.attn1": layer.side for layer in attention_layers(config.unet)}
    recorded = sum(sides[name] ** 4 for name in config.capture.self_layers)
    image = 4 * (recorded + config.image_side**2 * config.vae.block_out_channels[0])
    of_side = f"an image of sample_size = {config.unet.sample_size} ({config.image_side} pixels)"
    for what, needed, most, where in (
        ("its weights", weights, _MOST_WEIGHTS, "the widths in its configs"),
        (of_side, image, _MOST_PER_IMAGE, "sample_size in its unet config"),
    ):
        if needed > most:
            raise UserError(
                f"{source}: {what} would take {needed / 2**30:.0f} GiB of memory, at most "
                f"{most / 2**30:.0f} are supported; check {where}"
            )


def choose_capture(
    choice: str | CaptureConfig, unet: configs.UNetConfig, own: str = "published"
) -> CaptureConfig:
    """Reads a choice of attention layers to record.

    It is a name of `capture.PRESETS`; LATER_HALF, of the model's own choice; a JSON file with the
    lists "cross_layers", "self_layers" and, to average only some UNet calls, "calls"; or a
    CaptureConfig.
    """
    if isinstance(choice, CaptureConfig):
        check_capture(choice, unet)
        return choice
    if choice in PRESETS:
        return PRESETS[choice](unet)
    if choice == LATER_HALF:
        return dataclasses.replace(choose_capture(own, unet), calls=HALF)
    if not choice.endswith(".json"):
        names = [*PRESETS, LATER_HALF]
        raise UserError(
            f"capture={shown(choice, 200)!r} is not one of {', '.join(names)}, and not a .json "
            f"file{hint(choice, names)}"
        )
    path = Path(expand_path(choice))
    content = {"calls": [0.0, 1.0], **read_json(path)}
    kinds = {"cross_layers": str, "self_layers": str, "calls": (int, float)}
    is_sound = content.keys() == kinds.keys() and all(
        isinstance(content[name], list) and all(isinstance(item, kind) for item in content[name])
        for name, kind in kinds.items()
    )
    if not is_sound or len(content["calls"]) != 2:
        raise UserError(
            f"{path}: expected the lists of layer names cross_layers and self_layers, optionally "
            '"calls": [from, to], and nothing else'
        )
    try:
        values = {name: tuple(values) for name, values in content.items()}
        return choose_capture(CaptureConfig(**values), unet)
    except UserError as error:
        raise UserError(f"{path}: {shown(str(error))}") from error


def read_model_index(folder: Path) -> tuple[Json, list[str]]:
    """Reads the model_index.json of a folder; raises a UserError for other kinds of models.

    Returns:
        The index, and the parts of the pipeline that have weights, as `ModelConfig.components`.
    """
    path = folder / INDEX
    if os.access(folder, os.X_OK) and not path.exists():
        raise UserError(
            f"{path} is missing; name the folder of a model, which holds it{_other_folder(folder)}"
        )
    index = read_json(path)
    name = str(index.get("_class_name"))
    # The image-to-image pipelines have the same networks.
    pipeline = name.replace("Img2Img", "")
    lacks_text_encoder = index.get("text_encoder") in (None, [None, None])
    is_refiner = bool(index.get("requires_aesthetics_score")) or (
        name == "StableDiffusionXLImg2ImgPipeline" and lacks_text_encoder
    )
    if pipeline not in _PIPELINES or is_refiner:
        known = "; ".join(f"{name} ({kinds})" for name, kinds in _PIPELINES.items())
        name = shown(name, 200)
        kinds = [kind for part, kind in _OTHER_PIPELINES.items() if part in name]
        kinds = [REFINER] if is_refiner else kinds
        raise UserError(
            f"{path}: {name}{f' ({kinds[0]})' if kinds else ''} is not supported, only {known}; "
            "name a text-to-image checkpoint of one of them"
        )
    index["_class_name"] = pipeline
    is_xl = pipeline == XL_PIPELINE
    components = [name for name in COMPONENTS if name != "text_encoder_2" or is_xl]
    for name in components:
        library, wanted = PART_CLASSES[name]
        part = index.get(name)
        if not isinstance(part, list) or part[1:] != [wanted]:
            raise UserError(
                f"{path}: {name} is {shown(str(part), 200)}, only {library}'s {wanted} is supported"
            )
    zeros = index.get(ZEROS_FOR_EMPTY_PROMPT, True)
    if not isinstance(zeros, bool):
        raise UserError(
            f"{path}: {ZEROS_FOR_EMPTY_PROMPT} = {quoted(zeros, 200)}, expected true or false"
        )
    return index, components


def _other_folder(folder: Path) -> str:
    """Names nearby folders of models: the one above a component's folder, or those inside."""
    near = (folder.absolute().parent, *sorted(path.parent for path in folder.glob(f"*/{INDEX}")))
    found = [str(path) for path in near[:5] if (path / INDEX).is_file()]
    return f"; {' and '.join(found)} {'do' if len(found) > 1 else 'does'}" if found else ""
