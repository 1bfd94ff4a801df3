"""Frozen model configs, read from the JSON files of a diffusers folder.

A config names what changes the program; it is hashable, so `jax.jit` takes it as a static argument.
Every key of a JSON file is either understood, known to be without effect at its given value, or an
error that names it: a checkpoint never runs as something it is not.
"""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from seediff_jax.models.bounds import check_bounds


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipTextConfig:
    """CLIP text encoder (`text_encoder/config.json`); widths and lengths are counts."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """UNet2DCondition (`unet/config.json`).

    `num_attention_heads` is a count for each block, coarse to fine in the order of
    `down_block_types`; JSON files give it under the misleading name `attention_head_dim`.
    `sample_size` is the latent side.
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class VaeConfig:
    """AutoencoderKL (`vae/config.json`); latents are multiplied by `scaling_factor`."""

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

    @property
    def downsampling(self) -> int:
        """Image side over latent side."""
        return 2 ** (len(self.block_out_channels) - 1)


_CLIP_WITHOUT_EFFECT = {
    "attention_dropout": (0, 0.0),
    "dropout": (0, 0.0),
    "model_type": ("clip_text_model",),
}
# Of no effect on the hidden states that Stable Diffusion reads, whatever their value.
_CLIP_IGNORED = {
    "architectures", "bos_token_id", "chunk_size_feed_forward", "dtype", "eos_token_id",
    "gradient_checkpointing", "id2label", "initializer_factor", "initializer_range",
    "is_encoder_decoder", "label2id", "output_attentions", "output_hidden_states", "pad_token_id",
    "problem_type", "projection_dim", "pruned_heads", "return_dict", "tie_word_embeddings",
    "torch_dtype", "torchscript", "transformers_version", "use_bfloat16", "use_cache",
}  # fmt: skip
_UNET_WITHOUT_EFFECT = {
    "act_fn": ("silu", "swish"),
    "addition_embed_type": (None,),
    "addition_embed_type_num_heads": (64,),
    "addition_time_embed_dim": (None,),
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
    "projection_class_embeddings_input_dim": (None,),
    "resnet_out_scale_factor": (1, 1.0),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
    "upcast_attention": (False, True, None),  # logits and softmax are float32 in any case
}
_VAE_WITHOUT_EFFECT = {
    "act_fn": ("silu", "swish"),
    "force_upcast": (True, False),  # the dtype is chosen by whoever loads the model
    "latents_mean": (None,),
    "latents_std": (None,),
    "shift_factor": (None,),
}
_VAE_IGNORED = {"sample_size"}
_DOWN_BLOCKS = ("CrossAttnDownBlock2D", "DownBlock2D")
_UP_BLOCKS = ("CrossAttnUpBlock2D", "UpBlock2D")


def clip_text_config(json: Mapping[str, Any], source: str = "text_encoder/config.json"):
    """Reads a ClipTextConfig from parsed JSON.

    Raises:
        ValueError: a key is missing, unknown, or asks for something that is not supported.
    """
    fields = _known_fields(ClipTextConfig, json, source, _CLIP_WITHOUT_EFFECT, _CLIP_IGNORED)
    config = _build(ClipTextConfig, fields, source)
    _require_one_of(source, "hidden_act", config.hidden_act, ("quick_gelu", "gelu"))
    _require_divisible(source, "hidden_size", config.hidden_size, config.num_attention_heads)
    return config


def unet_config(json: Mapping[str, Any], source: str = "unet/config.json") -> UNetConfig:
    """Reads a UNetConfig from parsed JSON.

    Raises:
        ValueError: a key is missing, unknown, or asks for something that is not supported.
    """
    json = dict(json)
    # diffusers stores the head COUNT under `attention_head_dim` unless the other key is given.
    heads = json.pop("num_attention_heads", None) or json.pop("attention_head_dim", 8)
    json.pop("attention_head_dim", None)
    layers = json.pop("transformer_layers_per_block", 1)
    fields = _known_fields(UNetConfig, json, source, _UNET_WITHOUT_EFFECT, set())
    blocks = fields.get("down_block_types")
    count = len(blocks) if isinstance(blocks, tuple) else 0  # _build names what it is
    fields["num_attention_heads"] = _per_block(source, "attention_head_dim", heads, count)
    fields["transformer_layers_per_block"] = _per_block(
        source, "transformer_layers_per_block", layers, count
    )
    config = _build(UNetConfig, fields, source)
    _check_unet(config, source)
    return config


def vae_config(json: Mapping[str, Any], source: str = "vae/config.json") -> VaeConfig:
    """Reads a VaeConfig from parsed JSON.

    Raises:
        ValueError: a key is missing, unknown, or asks for something that is not supported.
    """
    json = dict(json)
    blocks = {key: json.pop(key, None) for key in ("down_block_types", "up_block_types")}
    fields = _known_fields(VaeConfig, json, source, _VAE_WITHOUT_EFFECT, _VAE_IGNORED)
    config = _build(VaeConfig, fields, source)
    for key, block in (("down_block_types", "DownEncoder"), ("up_block_types", "UpDecoder")):
        kinds = blocks[key]
        count = len(config.block_out_channels)
        for kind in () if kinds is None else _per_block(source, key, kinds, count):
            _require_one_of(source, key, kind, (f"{block}Block2D",))
    for channels in config.block_out_channels:
        _require_divisible(source, "block_out_channels", channels, config.norm_num_groups)
    return config


def clip_text_json(config: ClipTextConfig) -> dict[str, Any]:
    """The inverse of `clip_text_config`."""
    kind = {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"}
    return {**kind, **dataclasses.asdict(config)}


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


def _known_fields(cls, json, source, without_effect, ignored) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(cls)}
    fields = {}
    for key, value in json.items():
        if key in names:
            fields[key] = tuple(value) if isinstance(value, list) else value
        elif key in without_effect:
            _require_one_of(source, key, value, without_effect[key])
        elif not key.startswith("_") and key not in ignored:
            raise ValueError(
                f"{source}: unknown option {key!r} = {value!r}; this package would run the "
                f"checkpoint without it. Supported options: {', '.join(sorted(names))}"
            )
    return fields


def _build(cls, fields, source):
    required = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
    if missing := sorted(required - fields.keys()):
        raise ValueError(f"{source}: missing options {', '.join(missing)}")
    for field in dataclasses.fields(cls):
        value = fields.get(field.name, field.default)
        is_list = typing.get_origin(field.type) is tuple
        wanted = typing.get_args(field.type)[0] if is_list else field.type
        items = value if is_list and isinstance(value, tuple) else (value,)
        if isinstance(value, tuple) != is_list or not all(_is(item, wanted) for item in items):
            kind = f"a list of {wanted.__name__}" if is_list else f"one {wanted.__name__}"
            raise ValueError(f"{source}: {field.name} = {value!r}, needed {kind}")
    config = cls(**fields)
    check_bounds(config, source)
    return config


def _is(value, wanted) -> bool:
    if wanted is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return isinstance(value, wanted)


def _per_block(source, key, value, num_blocks) -> tuple[int, ...]:
    if not isinstance(value, int | list | tuple):
        raise ValueError(f"{source}: {key} = {value!r}, needed a number or a list of them")
    values = (value,) * num_blocks if isinstance(value, int) else tuple(value)
    if len(values) != num_blocks:
        raise ValueError(
            f"{source}: {key} = {value!r} has {len(values)} items, needed {num_blocks}"
        )
    return values


def _check_unet(config: UNetConfig, source: str) -> None:
    count = len(config.down_block_types)
    for key in ("up_block_types", "block_out_channels"):
        if len(getattr(config, key)) != count:
            raise ValueError(
                f"{source}: {key} has {len(getattr(config, key))} items, needed {count}"
            )
    for block in config.down_block_types:
        _require_one_of(source, "down_block_types", block, _DOWN_BLOCKS)
    for block in config.up_block_types:
        _require_one_of(source, "up_block_types", block, _UP_BLOCKS)
    depths = zip(config.up_block_types, config.transformer_layers_per_block[::-1], strict=True)
    if not any(block == "CrossAttnUpBlock2D" and depth for block, depth in depths):
        raise ValueError(
            f"{source}: no CrossAttnUpBlock2D with a transformer, so there is no attention to read "
            "masks from"
        )
    for channels, heads in zip(config.block_out_channels, config.num_attention_heads, strict=True):
        _require_divisible(source, "block_out_channels", channels, config.norm_num_groups)
        _require_divisible(source, "block_out_channels", channels, heads)


def _require_one_of(source, key, value, allowed) -> None:
    # `1 == True` in Python: compare types too, so that a stray boolean is not taken for a number.
    if not any(
        value == item and isinstance(value, bool) == isinstance(item, bool) for item in allowed
    ):
        listed = ", ".join(repr(item) for item in allowed)
        raise ValueError(f"{source}: {key} = {value!r} is not supported; supported: {listed}")


def _require_divisible(source, key, value, divisor) -> None:
    if divisor < 1 or value % divisor:
        raise ValueError(f"{source}: {key} = {value} is not a multiple of {divisor}")
