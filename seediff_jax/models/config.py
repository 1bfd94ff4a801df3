"""Frozen model configs, read from the JSON files of a diffusers folder.

A config has everything that changes the program; it is hashable, so `jax.jit` takes it as a static
argument. Every key of a JSON file is read, known to have no effect at its value, or refused, so
a checkpoint never runs as another model.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from seediff_jax.errors import UserError
from seediff_jax.models.json_options import (
    known_fields,
    make_config,
    per_block,
    require_divisible,
    require_one_of,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipTextConfig:
    """CLIP text encoder (`text_encoder/config.json`); widths and lengths are counts.

    With a `projection_dim` the encoder also pools: it projects the state of the end token, which is
    the first `eos_token_id`, or the largest id if `eos_token_id` is 2, as in older files.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int | None = None
    eos_token_id: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """UNet2DCondition (`unet/config.json`).

    `num_attention_heads` is a count per block, coarse to fine in the order of `down_block_types`;
    JSON files have it under the misleading name `attention_head_dim`. `sample_size` is the side of
    the latents.

    With `addition_embed_type` "text_time" (Stable Diffusion XL) the UNet also reads pooled text and
    the sizes of the image, each as a sinusoidal embedding of width `addition_time_embed_dim`; with
    a `time_cond_proj_dim` (latent consistency models) it reads the guidance scale.
    """

    sample_size: int
    in_channels: int
    out_channels: int
    down_block_types: tuple[str, ...]
    up_block_types: tuple[str, ...]
    block_out_channels: tuple[int, ...]
    num_attention_heads: tuple[int, ...]
    transformer_layers_per_block: tuple[int, ...]
    cross_attention_dim: int
    layers_per_block: int = 2
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    use_linear_projection: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None
    time_cond_proj_dim: int | None = None

    @property
    def pooled_text_dim(self) -> int:
        """Width of the pooled text that the UNet reads; 0 if it reads none."""
        if self.addition_embed_type is None:
            return 0
        return self.projection_class_embeddings_input_dim - 6 * self.addition_time_embed_dim


@dataclasses.dataclass(frozen=True, kw_only=True)
class VaeConfig:
    """AutoencoderKL (`vae/config.json`); latents are multiplied by `scaling_factor`.

    `force_upcast` says that float16 overflows; only Stable Diffusion XL heeds it.
    """

    in_channels: int
    out_channels: int
    latent_channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int = 1
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    force_upcast: bool = True

    @property
    def downsampling(self) -> int:
        """Image side over latent side."""
        return 2 ** (len(self.block_out_channels) - 1)


_CLIP_WITHOUT_EFFECT = {
    "attention_dropout": (0, 0.0),
    "dropout": (0, 0.0),
    "model_type": ("clip_text_model",),
}
# Without effect, at any value, on the hidden states that Stable Diffusion reads.
_CLIP_IGNORED = {
    "architectures", "bos_token_id", "chunk_size_feed_forward", "dtype",
    "gradient_checkpointing", "id2label", "initializer_factor", "initializer_range",
    "is_encoder_decoder", "label2id", "output_attentions", "output_hidden_states", "pad_token_id",
    "problem_type", "pruned_heads", "return_dict", "tie_word_embeddings",
    "torch_dtype", "torchscript", "transformers_version", "use_bfloat16", "use_cache",
}  # fmt: skip
_UNET_WITHOUT_EFFECT = {
    "act_fn": ("silu", "swish"),
    "addition_embed_type_num_heads": (64,),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dropout": (0, 0.0),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "mid_block_only_cross_attention": (None,),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1, 1.0),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
    "upcast_attention": (False, True, None),  # logits and softmax are float32 in any case
}
_VAE_WITHOUT_EFFECT = {
    "act_fn": ("silu", "swish"),
    "latents_mean": (None,),
    "latents_std": (None,),
    "shift_factor": (None,),
}
_VAE_IGNORED = {"sample_size"}
_DOWN_BLOCKS = ("CrossAttnDownBlock2D", "DownBlock2D")
_UP_BLOCKS = ("CrossAttnUpBlock2D", "UpBlock2D")


def clip_text_config(
    json: Mapping[str, Any], source: str = "text_encoder/config.json", *, projects: bool = False
) -> ClipTextConfig:
    """Reads a ClipTextConfig from parsed JSON; `source` names it in errors.

    `projects` is for a CLIPTextModelWithProjection; a CLIPTextModel ignores `projection_dim` and
    `eos_token_id`.

    Raises:
        UserError: a key is missing, unknown, or asks for something that is not supported.
    """
    pooling = {"projection_dim": 512, "eos_token_id": 49407}  # with transformers' defaults
    json = {key: value for key, value in json.items() if projects or key not in pooling}
    json = {**pooling, **json} if projects else json
    fields = known_fields(ClipTextConfig, json, source, _CLIP_WITHOUT_EFFECT, _CLIP_IGNORED)
    config = make_config(ClipTextConfig, fields, source)
    require_one_of(source, "hidden_act", config.hidden_act, ("quick_gelu", "gelu"))
    require_divisible(source, "hidden_size", config.hidden_size, config.num_attention_heads)
    if projects and (config.projection_dim is None or config.eos_token_id is None):
        raise UserError(f"{source}: projection_dim and eos_token_id must be numbers")
    return config


def unet_config(json: Mapping[str, Any], source: str = "unet/config.json") -> UNetConfig:
    """Reads a UNetConfig from parsed JSON, like `clip_text_config`."""
    json = dict(json)
    # diffusers stores the head COUNT under `attention_head_dim` unless the other key is given.
    heads = json.pop("num_attention_heads", None) or json.pop("attention_head_dim", 8)
    json.pop("attention_head_dim", None)
    layers = json.pop("transformer_layers_per_block", 1)
    fields = known_fields(UNetConfig, json, source, _UNET_WITHOUT_EFFECT, set())
    blocks = fields.get("down_block_types")
    count = len(blocks) if isinstance(blocks, tuple) else 0  # make_config names what it is
    fields["num_attention_heads"] = per_block(source, "attention_head_dim", heads, count)
    fields["transformer_layers_per_block"] = per_block(
        source, "transformer_layers_per_block", layers, count
    )
    config = make_config(UNetConfig, fields, source)
    _check_unet(config, source)
    return config


def vae_config(json: Mapping[str, Any], source: str = "vae/config.json") -> VaeConfig:
    """Reads a VaeConfig from parsed JSON, like `clip_text_config`."""
    json = dict(json)
    blocks = {key: json.pop(key, None) for key in ("down_block_types", "up_block_types")}
    fields = known_fields(VaeConfig, json, source, _VAE_WITHOUT_EFFECT, _VAE_IGNORED)
    config = make_config(VaeConfig, fields, source)
    for key, block in (("down_block_types", "DownEncoder"), ("up_block_types", "UpDecoder")):
        kinds = blocks[key]
        count = len(config.block_out_channels)
        for kind in () if kinds is None else per_block(source, key, kinds, count):
            require_one_of(source, key, kind, (f"{block}Block2D",))
    for channels in config.block_out_channels:
        require_divisible(source, "block_out_channels", channels, config.norm_num_groups)
    return config


def clip_text_json(config: ClipTextConfig) -> dict[str, Any]:
    """The inverse of `clip_text_config`."""
    suffix = "WithProjection" if config.projection_dim else ""
    kind = {"architectures": [f"CLIPTextModel{suffix}"], "model_type": "clip_text_model"}
    return kind | {k: v for k, v in dataclasses.asdict(config).items() if v is not None}


def unet_json(config: UNetConfig) -> dict[str, Any]:
    """The inverse of `unet_config`."""
    json = {"_class_name": "UNet2DConditionModel", **dataclasses.asdict(config)}
    json["attention_head_dim"] = json.pop("num_attention_heads")
    return json


def vae_json(config: VaeConfig) -> dict[str, Any]:
    """The inverse of `vae_config`."""
    count = len(config.block_out_channels)
    blocks = {
        "down_block_types": ["DownEncoderBlock2D"] * count,
        "up_block_types": ["UpDecoderBlock2D"] * count,
    }
    return {"_class_name": "AutoencoderKL", **blocks, **dataclasses.asdict(config)}


def _check_unet(config: UNetConfig, source: str) -> None:
    count = len(config.down_block_types)
    for key in ("up_block_types", "block_out_channels"):
        if len(getattr(config, key)) != count:
            raise UserError(
                f"{source}: {key} has {len(getattr(config, key))} items, expected {count}"
            )
    for block in config.down_block_types:
        require_one_of(source, "down_block_types", block, _DOWN_BLOCKS)
    for block in config.up_block_types:
        require_one_of(source, "up_block_types", block, _UP_BLOCKS)
    depths = zip(config.up_block_types, config.transformer_layers_per_block[::-1], strict=True)
    if not any(block == "CrossAttnUpBlock2D" and depth for block, depth in depths):
        raise UserError(
            f"{source}: no CrossAttnUpBlock2D with a transformer, so there is no attention to read "
            "masks from"
        )
    for channels, heads in zip(config.block_out_channels, config.num_attention_heads, strict=True):
        require_divisible(source, "block_out_channels", channels, config.norm_num_groups)
        require_divisible(source, "block_out_channels", channels, heads)
    _check_sinusoids(config, source)
    _check_added_conditions(config, source)


def _check_sinusoids(config: UNetConfig, source: str) -> None:
    """Sinusoidal embeddings have as many sines as cosines, at more than one frequency."""
    for key, width in (
        ("block_out_channels", config.block_out_channels[0]),
        ("addition_time_embed_dim", config.addition_time_embed_dim),
        ("time_cond_proj_dim", config.time_cond_proj_dim),
    ):
        if width is not None and (width % 2 or width < 4):
            raise UserError(f"{source}: {key} = {width}, expected an even number of at least 4")


def _check_added_conditions(config: UNetConfig, source: str) -> None:
    kind = config.addition_embed_type
    require_one_of(source, "addition_embed_type", kind, (None, "text_time"))
    for key in ("addition_time_embed_dim", "projection_class_embeddings_input_dim"):
        width = getattr(config, key)
        if (width is None) != (kind is None):
            raise UserError(f"{source}: {key} = {width} does not go with {kind!r} conditions")
    if config.pooled_text_dim < (kind is not None):
        raise UserError(
            f"{source}: projection_class_embeddings_input_dim = "
            f"{config.projection_class_embeddings_input_dim} must be above 6 x "
            f"addition_time_embed_dim = {config.addition_time_embed_dim}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockPlan:
    """A block of the UNet.

    Attributes:
        name: diffusers' name, for example `up_blocks.1`.
        level: how often the image was halved before the block.
        channels: width of the block's outputs.
        num_resnets: number of ResNet blocks.
        num_transformers: number of ResNet blocks, from the first, that a transformer follows.
        depth: transformer blocks per transformer.
        num_heads: attention heads.
        resize: "down" or "up" at the end of the block, or None.
    """

    name: str
    level: int
    channels: int
    num_resnets: int
    num_transformers: int
    depth: int
    num_heads: int
    resize: str | None = None


def block_plans(config: UNetConfig) -> tuple[BlockPlan, ...]:
    """The down blocks, fine to coarse, the mid block, and the up blocks, coarse to fine."""
    last = len(config.block_out_channels) - 1

    def plan(name, level, num_resnets, num_transformers, resize=None):
        return BlockPlan(
            name=name,
            level=level,
            channels=config.block_out_channels[level],
            num_resnets=num_resnets,
            num_transformers=num_transformers,
            depth=config.transformer_layers_per_block[level],
            num_heads=config.num_attention_heads[level],
            resize=resize,
        )

    plans = []
    for i, kind in enumerate(config.down_block_types):
        count = config.layers_per_block
        attending = count if kind == "CrossAttnDownBlock2D" else 0
        plans.append(plan(f"down_blocks.{i}", i, count, attending, "down" if i < last else None))
    # The last ResNet block of the mid block has no transformer after it.
    plans.append(plan("mid_block", last, 2, 1))
    for i, kind in enumerate(config.up_block_types):
        count = config.layers_per_block + 1
        attending = count if kind == "CrossAttnUpBlock2D" else 0
        plans.append(plan(f"up_blocks.{i}", last - i, count, attending, "up" if i < last else None))
    return tuple(plans)
