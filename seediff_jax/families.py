"""What a single file does not say: the configs of Stable Diffusion 1.x, 2.x and XL.

Each family is written down as the JSON files of its diffusers folder, as published.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]
PREDICTION_TYPES = ("epsilon", "v_prediction")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A family of models that differ in their weights alone.

    Attributes:
        name: for people.
        text_encoders: component -> the prefix of its tensors in a single file.
        configs: file of a diffusers folder -> its content.
        sample_sizes: side of the latents for each prediction type.
        prediction_type: what the UNet predicts, None where the tensors do not tell.
        pad_tokens: folder of a tokenizer -> the token that fills a prompt up; None is its own.
    """

    name: str
    text_encoders: Mapping[str, str]
    configs: Mapping[str, Json]
    sample_sizes: Mapping[str, int]
    prediction_type: str | None = "epsilon"
    pad_tokens: Mapping[str, str | None] = dataclasses.field(
        default_factory=lambda: {"tokenizer": None}
    )

    def folder_configs(self, prediction_type: str | None = None) -> dict[str, Json]:
        """Contents of the JSON files of a diffusers folder, by their names.

        Raises:
            ValueError: neither the argument nor the family says what the UNet predicts.
        """
        chosen = prediction_type or self.prediction_type
        if chosen is None:
            raise ValueError(
                f"{self.name}: its tensors do not tell what the UNet predicts; give "
                "prediction_type (--prediction_type): 'epsilon' for the base models of 512 x 512, "
                "'v_prediction' for those of 768 x 768"
            )
        if chosen not in PREDICTION_TYPES:
            choices = ", ".join(map(repr, PREDICTION_TYPES))
            raise ValueError(f"prediction_type={chosen!r} is not supported; choose from {choices}")
        changes = {
            "unet/config.json": {"sample_size": self.sample_sizes[chosen]},
            "scheduler/scheduler_config.json": {"prediction_type": chosen},
        }
        return {name: {**json, **changes.get(name, {})} for name, json in self.configs.items()}


_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
_CLIP_L = {
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "max_position_embeddings": 77,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "vocab_size": 49408,
}
# 23 of the 24 layers of OpenCLIP ViT-H: the last one is not used.
_CLIP_H = _CLIP_L | {
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
}
_CLIP_BIG_G = _CLIP_L | {
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
    "eos_token_id": 2,
}
_UNET_1 = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "norm_num_groups": 32,
}
_UNET_2 = _UNET_1 | {
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
_UNET_XL = _UNET_1 | {
    "sample_size": 128,
    "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
    "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
    "block_out_channels": [320, 640, 1280],
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_VAE = {
    "_class_name": "AutoencoderKL",
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
}
_NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
}
_PNDM = _NOISE | {
    "_class_name": "PNDMScheduler",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
}
_DDIM = _NOISE | {
    "_class_name": "DDIMScheduler",
    "clip_sample": False,
    "set_alpha_to_one": False,
}
_EULER = _NOISE | {
    "_class_name": "EulerDiscreteScheduler",
    "interpolation_type": "linear",
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}

SD1 = Family(
    name="Stable Diffusion 1.x",
    text_encoders={"text_encoder": "cond_stage_model.transformer."},
    configs={
        "model_index.json": _INDEX,
        "text_encoder/config.json": _CLIP_L,
        "unet/config.json": _UNET_1,
        "vae/config.json": _VAE,
        "scheduler/scheduler_config.json": _PNDM,
    },
    sample_sizes={"epsilon": 64, "v_prediction": 64},
)
SD2 = Family(
    name="Stable Diffusion 2.x",
    text_encoders={"text_encoder": "cond_stage_model.model."},
    configs={
        "model_index.json": _INDEX | {"scheduler": ["diffusers", "DDIMScheduler"]},
        "text_encoder/config.json": _CLIP_H,
        "unet/config.json": _UNET_2,
        "vae/config.json": _VAE,
        "scheduler/scheduler_config.json": _DDIM,
    },
    sample_sizes={"epsilon": 64, "v_prediction": 96},
    prediction_type=None,
    # OpenCLIP fills up with zeros.
    pad_tokens={"tokenizer": "!"},
)
SDXL = Family(
    name="Stable Diffusion XL",
    text_encoders={
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
    configs={
        "model_index.json": _INDEX
        | {
            "_class_name": "StableDiffusionXLPipeline",
            "force_zeros_for_empty_prompt": True,
            "scheduler": ["diffusers", "EulerDiscreteScheduler"],
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
        },
        "text_encoder/config.json": _CLIP_L,
        "text_encoder_2/config.json": _CLIP_BIG_G,
        "unet/config.json": _UNET_XL,
        "vae/config.json": _VAE | {"scaling_factor": 0.13025},
        "scheduler/scheduler_config.json": _EULER,
    },
    sample_sizes={"epsilon": 128, "v_prediction": 128},
    pad_tokens={"tokenizer": None, "tokenizer_2": "!"},
)
FAMILIES = {"sd1": SD1, "sd2": SD2, "sdxl": SDXL}
