"""SeeDiff in JAX/Flax: a text prompt in, an image and its pixel masks out.

    prompts, classes
        |  prompts, sampling.inputs
    token_ids, class_token_mask
        |  sampling: models (text encoder, UNet, VAE) in a scan over the scheduler's steps
    images, AttentionMaps {cross_attention [b, layers, n0, c], self_attention {side: [b, n, n]}}
        |  masks.seeds: seed_map, find_seeds
    seeds of each class at the coarsest level
        |  masks.expansion: expand, level by level
    soft_masks
        |  masks.refinement (optional), masks.label_maps
    label_maps

`generate` does all of it; every stage is also a function of its own:

    whole runs    load_model, save_model, Model, generate, generate_images, Pairs, Pair, ClassLists
    given images  segment, SegmentConfig
    settings      SamplingConfig, SizeCondition, MaskConfig, CaptureConfig
    networks      encode_prompts, encode_text, encode_text_and_pool, predict_noise, decode_latents,
                  encode_images, Conditions, AttentionMaps
    masks         soft_mask, class_soft_mask, seed_map, find_seeds, expand, refine, label_map,
                  min_max, resize_cubic, BACKGROUND, IGNORE_INDEX
    schedulers    SchedulerConfig, scheduler_config, make_noise_schedule, make_steps,
                  initial_noise_scale, init_scheduler_state, scale_input, scheduler_step

Method: SeeDiff, arXiv 2507.19808. Names are imported when they are first used, so `import
seediff_jax` is quick. The programs are `seediff`, see `seediff --help`, `seediff_jax.segment` and
`seediff_jax.convert`.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seediff_jax.attention_maps import AttentionMaps
    from seediff_jax.checkpoints.diffusers_folder import save_model
    from seediff_jax.checkpoints.load import load_model
    from seediff_jax.masks.config import BACKGROUND, IGNORE_INDEX, MaskConfig
    from seediff_jax.masks.expansion import expand
    from seediff_jax.masks.image_ops import min_max, resize_cubic
    from seediff_jax.masks.label_maps import label_map
    from seediff_jax.masks.methods import class_soft_mask, soft_mask
    from seediff_jax.masks.refinement import refine
    from seediff_jax.masks.seeds import find_seeds, seed_map
    from seediff_jax.models.capture import CaptureConfig
    from seediff_jax.models.conditioning import Conditions
    from seediff_jax.models.model import (
        Model,
        decode_latents,
        encode_images,
        encode_text,
        encode_text_and_pool,
        predict_noise,
    )
    from seediff_jax.pipeline.generate import Pairs, generate, generate_images
    from seediff_jax.pipeline.pair import Pair
    from seediff_jax.pipeline.segment_images import segment
    from seediff_jax.sampling.config import SamplingConfig, SizeCondition
    from seediff_jax.sampling.inputs import ClassLists, encode_prompts
    from seediff_jax.sampling.segment_config import SegmentConfig
    from seediff_jax.schedulers.config import SchedulerConfig, scheduler_config
    from seediff_jax.schedulers.noise_schedule import make_noise_schedule
    from seediff_jax.schedulers.step import (
        init_scheduler_state,
        initial_noise_scale,
        make_steps,
        scale_input,
        scheduler_step,
    )

__version__ = "0.1.0"

_PUBLIC = {
    "attention_maps": ("AttentionMaps",),
    "checkpoints.diffusers_folder": ("save_model",),
    "checkpoints.load": ("load_model",),
    "masks.expansion": ("expand",),
    "masks.label_maps": ("label_map",),
    "masks.config": ("BACKGROUND", "IGNORE_INDEX", "MaskConfig"),
    "masks.image_ops": ("min_max", "resize_cubic"),
    "masks.methods": ("class_soft_mask", "soft_mask"),
    "masks.refinement": ("refine",),
    "masks.seeds": ("find_seeds", "seed_map"),
    "models.capture": ("CaptureConfig",),
    "models.conditioning": ("Conditions",),
    "models.model": (
        "Model",
        "decode_latents",
        "encode_images",
        "encode_text",
        "encode_text_and_pool",
        "predict_noise",
    ),
    "pipeline.generate": ("Pairs", "generate", "generate_images"),
    "pipeline.pair": ("Pair",),
    "pipeline.segment_images": ("segment",),
    "sampling.config": ("SamplingConfig", "SizeCondition"),
    "sampling.inputs": ("ClassLists", "encode_prompts"),
    "sampling.segment_config": ("SegmentConfig",),
    "schedulers.config": ("SchedulerConfig", "scheduler_config"),
    "schedulers.noise_schedule": ("make_noise_schedule",),
    "schedulers.step": (
        "init_scheduler_state",
        "initial_noise_scale",
        "make_steps",
        "scale_input",
        "scheduler_step",
    ),
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    """Imports a public name at its first use (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


class _Package(types.ModuleType):
    """The package; its public names are never replaced by the program of the same name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _MODULE_OF and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
