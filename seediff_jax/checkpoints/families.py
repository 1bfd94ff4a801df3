"""Published configs of Stable Diffusion 1.x, 2.x and XL, which a single file does not hold."""

import dataclasses
from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A family of models that differ only in their weights.

    Attributes:
        name: for messages.
        text_encoders: component -> the prefix of its tensors in a single file.
        configs: file of a diffusers folder -> its content.
        sample_sizes: side of the latents for each prediction type.
        prediction_type: what the UNet predicts; None if models of the family differ in it.
        pad_tokens: folder of a tokenizer -> its padding token; None is the tokenizer's own.
    """

    name: str
    text_encoders: Mapping[str, str]
    configs: Mapping[str, Json]
    sample_sizes: Mapping[str, int]
    prediction_type: str | None = "epsilon"
    pad_tokens: Mapping[str, str | None]

    def folder_configs(self, prediction_type: str) -> dict[str, Json]:
        """Returns the contents of the JSON files of a diffusers folder by name."""
        changes = {
            "unet/config.json": {"sample_size": self.sample_sizes[prediction_type]},
            "scheduler/scheduler_config.json": {"prediction_type": prediction_type},
        }
        return {name: {**json, **changes.get(name, {})} for name, json in self.configs.items()}


def _clip(width: int, num_layers: int, **more: Any) -> Json:
    return {
        "hidden_act": "gelu",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "max_position_embeddings": 77,
        "num_attention_heads": width // 64,
        "num_hidden_layers": num_layers,
        "vocab_size": 49408,
        **more,
    }


_CLIP_L = _clip(768, 12, hidden_act="quick_gelu")
_CLIP_H = _clip(1024, 23)  # of the 24 layers of OpenCLIP ViT-H the last one is not used
_CLIP_BIG_G = _clip(1280, 32, projection_dim=1280, eos_token_id=2)
_UNET_1 = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
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
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
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
_PNDM = _NOISE | {"_class_name": "PNDMScheduler", "set_alpha_to_one": False, "skip_prk_steps": True}
_DDIM = _NOISE | {"_class_name": "DDIMScheduler", "set_alpha_to_one": False, "clip_sample": False}
_EULER = _NOISE | {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}


def _configs(scheduler: Json, **components: Json) -> dict[str, Json]:
    files = {f"{name}/config.json": json for name, json in components.items()}
    return files | {"scheduler/scheduler_config.json": scheduler}


SD1 = Family(
    name="Stable Diffusion 1.x",
    text_encoders={"text_encoder": "cond_stage_model.transformer."},
    configs=_configs(_PNDM, text_encoder=_CLIP_L, unet=_UNET_1, vae=_VAE),
    sample_sizes={"epsilon": 64, "v_prediction": 64},
    pad_tokens={"tokenizer": None},
)
SD2 = Family(
    name="Stable Diffusion 2.x",
    text_encoders={"text_encoder": "cond_stage_model.model."},
    configs=_configs(_DDIM, text_encoder=_CLIP_H, unet=_UNET_2, vae=_VAE),
    sample_sizes={"epsilon": 64, "v_prediction": 96},
    prediction_type=None,
    pad_tokens={"tokenizer": "!"},  # OpenCLIP pads with zeros
)
SDXL = Family(
    name="Stable Diffusion XL",
    text_encoders={
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
    configs=_configs(
        _EULER,
        text_encoder=_CLIP_L,
        text_encoder_2=_CLIP_BIG_G,
        unet=_UNET_XL,
        vae=_VAE | {"scaling_factor": 0.13025},
    ),
    sample_sizes={"epsilon": 128, "v_prediction": 128},
    pad_tokens={"tokenizer": None, "tokenizer_2": "!"},
)
FAMILIES = {"sd1": SD1, "sd2": SD2, "sdxl": SDXL}
