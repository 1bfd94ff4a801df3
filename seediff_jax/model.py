"""Model: one pytree of weights with its static configs, and the four things that it computes.

    token_ids -> encode_text -> text_embeddings -> predict_noise -> noise_pred, AttentionMaps
    images -> encode_images -> latents -> decode_latents -> images

Every function is compiled with the model as its first argument; its weights can be sharded.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from seediff_jax.arrays import Array, Float, Int, Real, typechecked
from seediff_jax.attention_maps import AttentionMaps
from seediff_jax.checkpoints import write_folder, write_orbax
from seediff_jax.hub import commit_of
from seediff_jax.leaves import Leaves, WeightsDigest, in_order, make_leaf
from seediff_jax.model_config import ModelConfig, make_modules
from seediff_jax.models.capture import CaptureConfig
from seediff_jax.models.conditioning import NO_CONDITIONS, Conditions
from seediff_jax.models.config import ClipTextConfig, UNetConfig, VaeConfig
from seediff_jax.models.transformer import TokenColumns
from seediff_jax.scheduler_configs import SchedulerConfig
from seediff_jax.sources import find_source, read_source_config, read_source_leaves
from seediff_jax.tokenizer import Tokenizer

_DTYPES = ("float32", "bfloat16", "float16")


Placement = jax.sharding.Sharding | Callable[[tuple[int, ...]], jax.sharding.Sharding]
"""Where weights go: one sharding of all, or one for each shape."""


@struct.dataclass
class Model:
    """Weights (leaves) and everything static of a model.

    Attributes:
        params: Linen params under the names of `config.components`; matrices and convolution
            kernels in `dtype` (a VAE that overflows in float16: float32), vectors (norms, biases)
            in float32.
        text_config: config of the CLIP text encoder.
        unet_config: config of the UNet.
        vae_config: config of the VAE.
        scheduler_config: noise schedule and sampler.
        capture: the attention layers that `predict_noise` records.
        tokenizer: the checkpoint's tokenizer.
        dtype: of the computation; norms, softmax and AttentionMaps are float32 in any case.
        model_id: what it was loaded from, as given to `load_model`.
        weights_hash: XXH3 of the stored weights, see `leaves.WeightsDigest`.
        text_config_2: config of the second text encoder of Stable Diffusion XL.
        tokenizer_2: its tokenizer.
        force_zeros_for_empty_prompt: an empty negative prompt is embedded as zeros.
        commit: of the hub's repository that it was loaded from, whatever branch or tag was asked
            for; None for other sources.
    """

    params: dict[str, Any]
    text_config: ClipTextConfig = struct.field(pytree_node=False)
    unet_config: UNetConfig = struct.field(pytree_node=False)
    vae_config: VaeConfig = struct.field(pytree_node=False)
    scheduler_config: SchedulerConfig = struct.field(pytree_node=False)
    capture: CaptureConfig = struct.field(pytree_node=False)
    tokenizer: Tokenizer = struct.field(pytree_node=False)
    dtype: np.dtype = struct.field(pytree_node=False)
    model_id: str = struct.field(pytree_node=False)
    weights_hash: str = struct.field(pytree_node=False)
    text_config_2: ClipTextConfig | None = struct.field(pytree_node=False, default=None)
    tokenizer_2: Tokenizer | None = struct.field(pytree_node=False, default=None)
    force_zeros_for_empty_prompt: bool = struct.field(pytree_node=False, default=False)
    commit: str | None = struct.field(pytree_node=False, default=None)

    @property
    def config(self) -> ModelConfig:
        """The static half that a checkpoint holds."""
        return ModelConfig(
            text_encoder=self.text_config,
            unet=self.unet_config,
            vae=self.vae_config,
            scheduler=self.scheduler_config,
            tokenizer=self.tokenizer,
            capture=self.capture,
            text_encoder_2=self.text_config_2,
            tokenizer_2=self.tokenizer_2,
            force_zeros_for_empty_prompt=self.force_zeros_for_empty_prompt,
        )


def load_model(
    name_or_path: str | os.PathLike[str],
    *,
    dtype: DTypeLike = jnp.float32,
    scheduler: str | None = None,
    scheduler_options: Mapping[str, Any] | None = None,
    prediction_type: str | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    loras: Sequence[tuple[str | os.PathLike[str], float]] = (),
    capture: str | CaptureConfig | None = None,
    sharding: Placement | None = None,
) -> Model:
    """Loads a Stable Diffusion model.

    Args:
        name_or_path: "shapes", the model that comes with the package; a diffusers folder with
            safetensors; a single .safetensors file in the layout of the original releases; a folder
            of `save_orbax`; or a model of the Hugging Face hub, "owner/model", of which the needed
            files are downloaded, or taken from its cache.
        dtype: float32, bfloat16 or float16, of the weights and the computation.
        scheduler: one of `scheduler_configs.CLASS_NAMES` instead of the sampler that the checkpoint
            names, with its noise schedule; needed where that sampler is none of them.
        scheduler_options: attributes of its SchedulerConfig to change, as in
            `{"use_karras_sigmas": True}`.
        prediction_type: "epsilon" or "v_prediction" instead of what the checkpoint says; needed
            for a single file of Stable Diffusion 2.x, which does not say it.
        tokenizer: folder or hub id of a tokenizer, or of a model with one, instead of the
            checkpoint's own, of Stable Diffusion XL both, a single one taking both places; a single
            file has none, and by default the hub is asked for that of
            "openai/clip-vit-large-patch14".
        revision: branch, tag or commit of a model of the hub.
        loras: LoRA files (.safetensors of kohya or diffusers) that are merged into the weights,
            each with the number that its change is multiplied by.
        capture: attention layers to record: "published", "coarse" (without the finest level), a
            JSON file with lists of layers, or a CaptureConfig; by default the folder's
            `capture.json`, or what was published.
        sharding: of every weight, or a function from a weight's shape to its sharding; each goes
            there as soon as it is read. By default JAX's default device.

    Raises:
        ValueError: there is no such model, it is of a kind that is not supported, its files are
            damaged, incomplete, pickles, or contradict one another, a LoRA does not fit it, or its
            weights are beyond float16.
    """
    if jnp.dtype(dtype).name not in _DTYPES:
        raise ValueError(f"dtype {jnp.dtype(dtype).name} is not one of {', '.join(_DTYPES)}")
    source = find_source(name_or_path, revision)
    config = read_source_config(
        source,
        scheduler=scheduler,
        scheduler_options=scheduler_options,
        prediction_type=prediction_type,
        tokenizer=tokenizer,
        capture=capture,
    )
    leaves = read_source_leaves(source, config, dtype, loras)
    model = _put_together(config, leaves, dtype, sharding, str(name_or_path))
    return model.replace(commit=commit_of(source))


def make_model(
    config: ModelConfig, params: dict[str, Any], *, dtype: DTypeLike = jnp.float32, model_id: str
) -> Model:
    """Puts a model together from its halves, as `load_model` does with those of a folder.

    Args:
        config: the static half.
        params: the weights, under the names of `config.components`.
        dtype: of the weights and the computation.
        model_id: its name, written beside what it generates.
    """
    arrays = in_order(flatten_dict(params))
    del params  # so that a leaf is freed once it is cast, where no one else holds it
    leaves = (
        (path, make_leaf(path, array, config.dtype_of(path[0], dtype))) for path, array in arrays
    )
    return _put_together(config, leaves, dtype, None, model_id)


def save_model(
    model: Model, folder: str | os.PathLike[str], *, dtype: DTypeLike = jnp.float32
) -> None:
    """Writes a diffusers folder, which diffusers and `load_model` can load.

    Args:
        model: the model.
        folder: must not exist, or be empty; it appears when it is complete.
        dtype: of the written weights; float16 halves the size.

    Raises:
        ValueError: the folder exists, or weights are not finite in `dtype`.
    """
    write_folder(Path(folder), model.config, model.params, dtype)


def save_orbax(model: Model, folder: str | os.PathLike[str]) -> None:
    """Writes an orbax folder, which `load_model` can load; each weight keeps its dtype.

    Raises:
        ValueError: the folder exists.
    """
    write_orbax(Path(folder), model.config, model.params)


@jax.jit
@typechecked
def encode_text(model: Model, token_ids: Int[Array, "b *encoders l"]) -> Float[Array, "b l d"]:
    """Embeds token ids as float32 `[b, l, d]`.

    Args:
        model: the model.
        token_ids: int32 `[b, l]` of `model.tokenizer`; `[b, 2, l]` for Stable Diffusion XL, whose
            two text encoders have a tokenizer each (`prompt_tokens.encode_prompts`).

    Raises:
        ValueError: there are more tokens than the text encoder has positions, or they are not for
            as many text encoders as the model has.
    """
    return encode_text_and_pool(model, token_ids)[0]


@jax.jit
@typechecked
def encode_text_and_pool(
    model: Model, token_ids: Int[Array, "b *encoders l"]
) -> tuple[Float[Array, "b l d"], Float[Array, "b p"] | None]:
    """Embeds token ids as `encode_text` does, and pools them where the UNet reads that.

    Stable Diffusion 1 and 2 read the last states of their text encoder. XL reads the penultimate
    states of both, side by side, and what the second pools (arXiv 2307.01952, section 2.1).
    """
    config, longest = model.config, model.text_config.max_position_embeddings
    if token_ids.shape[-1] > longest:
        raise ValueError(f"{token_ids.shape[-1]} tokens given, the text encoder reads {longest}")
    if token_ids.shape[1:-1] != ((2,) if config.is_xl else ()):
        needed = "[b, 2, l]" if config.is_xl else "[b, l]"
        raise ValueError(f"token ids have shape {token_ids.shape}, this model needs {needed}")

    def encode(name, token_ids):
        return _module(model, name).apply(_variables(model, name), token_ids)

    if not config.is_xl:
        return encode("text_encoder", token_ids).last, None
    first = encode("text_encoder", token_ids[:, 0])
    second = encode("text_encoder_2", token_ids[:, 1])
    return jnp.concatenate([first.penultimate, second.penultimate], axis=-1), second.pooled


@jax.jit
@typechecked
def predict_noise(
    model: Model,
    latents: Float[Array, "b h w c"],
    timesteps: Real[Array, " b"],
    text_embeddings: Float[Array, "b l d"],
    columns: TokenColumns | None = None,
    conditions: Conditions = NO_CONDITIONS,
) -> tuple[Float[Array, "b h w c"], AttentionMaps]:
    """One UNet call.

    Args:
        model: the model; its `capture` says which layers are recorded.
        latents: float32 `[b, h, w, c]`, of any height and width, scaled as the VAE's
            (`encode_images`).
        timesteps: int32 or float32 `[b]`, in 0..T-1 of the noise schedule.
        text_embeddings: float32 `[b, l, d]`, from `encode_text`.
        columns: which rows are recorded, and the columns that their cross-attention is projected
            on. By default all rows and one column a token.
        conditions: what the UNets of Stable Diffusion XL and of latent consistency models read
            beside the text, see Conditions.

    Returns:
        float32 `[b, h, w, c]`, what the scheduler's `prediction_type` says, and the AttentionMaps
        of the recorded rows.

    Raises:
        ValueError: axes or conditions do not fit the model or one another; latents that are to
            be recorded are so small that two recorded levels have one height.
    """
    if columns is None:
        b, tokens, _ = text_embeddings.shape
        columns = TokenColumns(jnp.broadcast_to(jnp.eye(tokens)[None], (b, tokens, tokens)))
    variables = _variables(model, "unet")
    return _module(model, "unet").apply(
        variables, latents, timesteps, text_embeddings, columns, conditions
    )


@jax.jit
@typechecked
def decode_latents(model: Model, latents: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
    """Turns latents, scaled as the UNet's, into float32 images `[b, H, W, 3]`.

    Their range is [-1, 1], which the decoder may overshoot a little; nothing is clipped here.

    Raises:
        ValueError: the latents have the wrong number of channels.
    """
    channels = model.vae_config.latent_channels
    if latents.shape[-1] != channels:
        raise ValueError(f"latents have {latents.shape[-1]} channels, this VAE takes {channels}")
    latents = latents / model.vae_config.scaling_factor
    return _module(model, "vae").apply(_variables(model, "vae"), latents, method="decode")


@jax.jit
@typechecked
def encode_images(model: Model, images: Float[Array, "b H W 3"]) -> Float[Array, "b h w c"]:
    """Turns images in [-1, 1] into the mean of their latents, scaled as the UNet's, float32.

    Raises:
        ValueError: height or width is no multiple of the VAE's downsampling.
    """
    _, height, width, _ = images.shape
    factor = model.vae_config.downsampling
    if height % factor or width % factor:
        raise ValueError(f"images are {height} x {width}, needed are multiples of {factor}")
    mean, _ = _module(model, "vae").apply(_variables(model, "vae"), images, method="encode")
    return mean * model.vae_config.scaling_factor


def model_of(
    config: ModelConfig, params: Any, dtype: DTypeLike, model_id: str, weights_hash: str
) -> Model:
    """A Model of weights that are in their place, or of their shapes alone."""
    return Model(
        params=params,
        text_config=config.text_encoder,
        unet_config=config.unet,
        vae_config=config.vae,
        scheduler_config=config.scheduler,
        capture=config.capture,
        tokenizer=config.tokenizer,
        dtype=jnp.dtype(dtype),
        model_id=model_id,
        weights_hash=weights_hash,
        text_config_2=config.text_encoder_2,
        tokenizer_2=config.tokenizer_2,
        force_zeros_for_empty_prompt=config.force_zeros_for_empty_prompt,
    )


def _module(model: Model, name: str):
    return make_modules(model.config, model.dtype)[name]


def _variables(model: Model, name: str) -> dict[str, Any]:
    return {"params": model.params[name]}


def _put_together(
    config: ModelConfig,
    leaves: Leaves,
    dtype: DTypeLike,
    sharding: Placement | None,
    model_id: str,
) -> Model:
    """Places the leaves one by one, so that there is no second copy of them all."""
    digest, placed = WeightsDigest(), {}
    for path, leaf in leaves:
        digest.add(path, leaf)
        if leaf.overflows:
            raise ValueError(
                f"{model_id}: {'/'.join(path)} is beyond the range of float16; load the model in "
                "bfloat16 or float32"
            )
        # Waits, lest weights pile up here while they are on their way.
        placed[path] = _place(leaf.array, sharding).block_until_ready()
    return model_of(config, unflatten_dict(placed), dtype, model_id, digest.hexdigest())


def _place(leaf: np.ndarray, sharding: Placement | None) -> Array:
    if callable(sharding):
        sharding = sharding(leaf.shape)
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    # device_put would compare the weight among all hosts first.
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])
