"""Model: one pytree of weights with its static configs, and the four things that it computes.

    token_ids -> encode_text -> text_embeddings -> predict_noise -> noise_pred, AttentionMaps
    images -> encode_images -> latents -> decode_latents -> images

Every function is compiled with the model as its first argument; its weights can be sharded.
"""

import importlib.resources
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from seediff_jax import checkpoints
from seediff_jax.arrays import Array, Float, Int, typechecked
from seediff_jax.attention_maps import AttentionMaps
from seediff_jax.hub import fetch, is_hub_id
from seediff_jax.leaves import Leaves, WeightsDigest, in_order
from seediff_jax.model_config import ModelConfig, make_modules, read_model_config
from seediff_jax.models.capture import CaptureConfig
from seediff_jax.models.config import ClipTextConfig, UNetConfig, VaeConfig
from seediff_jax.scheduler_configs import SchedulerConfig
from seediff_jax.tokenizer import Tokenizer
from seediff_jax.weight_files import CONVERT

_EMBEDDED = ("shapes",)
_DTYPES = ("float32", "bfloat16", "float16")


@struct.dataclass
class Model:
    """Weights (leaves) and everything static of a model.

    Attributes:
        params: Linen params under "text_encoder", "unet" and "vae"; matrices and convolution
            kernels in `dtype`, vectors (norms, biases) in float32.
        text_config: config of the CLIP text encoder.
        unet_config: config of the UNet.
        vae_config: config of the VAE.
        scheduler_config: noise schedule and sampler.
        capture: the attention layers that `predict_noise` records.
        tokenizer: the checkpoint's tokenizer.
        dtype: of the computation; norms, softmax and AttentionMaps are float32 in any case.
        model_id: what it was loaded from, as given to `load_model`.
        weights_hash: SHA-256 of the stored weights, see `leaves.WeightsDigest`.
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
        )


def load_model(
    name_or_path: str | os.PathLike[str],
    *,
    dtype: DTypeLike = jnp.float32,
    scheduler: str | None = None,
    sharding: jax.sharding.Sharding | None = None,
) -> Model:
    """Loads a Stable Diffusion model.

    Args:
        name_or_path: "shapes", the model that comes with the package; a diffusers folder with
            safetensors; a folder of `save_orbax`; or a model of the Hugging Face hub,
            "owner/model", of which the needed files are downloaded, or taken from its cache.
        dtype: float32, bfloat16 or float16, of the weights and the computation.
        scheduler: "ddim" or "pndm" instead of the sampler that the checkpoint names, with its noise
            schedule; needed where that sampler is another one.
        sharding: of every weight, each of which goes there as soon as it is read; by default JAX's
            default device.

    Raises:
        ValueError: there is no such model, it is of a kind that is not supported, or its files are
            damaged, incomplete, pickles, or contradict one another, or its
            weights are beyond float16.
    """
    if jnp.dtype(dtype).name not in _DTYPES:
        raise ValueError(f"dtype {jnp.dtype(dtype).name} is not one of {', '.join(_DTYPES)}")
    folder = _find_folder(name_or_path)
    config = read_model_config(folder, scheduler)
    leaves = checkpoints.read_leaves(folder, config)
    return _put_together(config, leaves, dtype, sharding, str(name_or_path))


def make_model(
    config: ModelConfig, params: dict[str, Any], *, dtype: DTypeLike = jnp.float32, model_id: str
) -> Model:
    """Puts a model together from its halves, as `load_model` does with those of a folder.

    Args:
        config: the static half.
        params: the weights, under "text_encoder", "unet" and "vae".
        dtype: of the weights and the computation.
        model_id: its name, written beside what it generates.
    """
    leaves = in_order(flatten_dict(params))
    del params  # so that a leaf is freed once it is cast, where no one else holds it
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
    checkpoints.write_folder(Path(folder), model.config, model.params, dtype)


def save_orbax(model: Model, folder: str | os.PathLike[str]) -> None:
    """Writes an orbax folder, which `load_model` can load; each weight keeps its dtype.

    Raises:
        ValueError: the folder exists.
    """
    checkpoints.write_orbax(Path(folder), model.config, model.params)


@jax.jit
@typechecked
def encode_text(model: Model, token_ids: Int[Array, "b l"]) -> Float[Array, "b l d"]:
    """Embeds token ids, int32 `[b, l]`, as float32 `[b, l, d]`.

    Raises:
        ValueError: there are more tokens than the text encoder has positions.
    """
    longest = model.text_config.max_position_embeddings
    if token_ids.shape[1] > longest:
        raise ValueError(f"{token_ids.shape[1]} tokens given, the text encoder reads {longest}")
    return _module(model, "text_encoder").apply(_variables(model, "text_encoder"), token_ids)


@jax.jit
@typechecked
def predict_noise(
    model: Model,
    latents: Float[Array, "b h w c"],
    timesteps: Int[Array, " b"],
    text_embeddings: Float[Array, "b l d"],
    token_weights: Float[Array, "r l k"] | None = None,
) -> tuple[Float[Array, "b h w c"], AttentionMaps]:
    """One UNet call.

    Args:
        model: the model; its `capture` says which layers are recorded.
        latents: float32 `[b, h, w, c]`, of any side; scaled as the VAE's (`encode_images`).
        timesteps: int32 `[b]`, in 0..T-1 of the noise schedule.
        text_embeddings: float32 `[b, l, d]`, from `encode_text`.
        token_weights: float32 `[r, l, k]`: the last r rows are recorded, their cross-attention
            projected from l tokens to k columns. By default all rows and all tokens, unchanged.

    Returns:
        float32 `[b, h, w, c]`, what the scheduler's `prediction_type` says, and the AttentionMaps
        of the recorded rows.

    Raises:
        ValueError: axes do not fit the model or one another; latents that are to be recorded are
            not square, or so small that two recorded levels have one side.
    """
    if token_weights is None:
        b, tokens, _ = text_embeddings.shape
        token_weights = jnp.broadcast_to(jnp.eye(tokens)[None], (b, tokens, tokens))
    variables = _variables(model, "unet")
    return _module(model, "unet").apply(
        variables, latents, timesteps, text_embeddings, token_weights
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


def _module(model: Model, name: str):
    return make_modules(model.config, model.dtype)[name]


def _variables(model: Model, name: str) -> dict[str, Any]:
    return {"params": model.params[name]}


def _put_together(
    config: ModelConfig,
    leaves: Leaves,
    dtype: DTypeLike,
    sharding: jax.sharding.Sharding | None,
    model_id: str,
) -> Model:
    """Places the leaves one by one, so that there is no second copy of them all."""
    digest, placed = WeightsDigest(), {}
    for path, leaf in leaves:
        digest.add(path, leaf)
        cast = _cast(leaf, dtype)
        if cast.dtype == jnp.float16 and not np.isfinite(cast).all():
            raise ValueError(
                f"{model_id}: {'/'.join(path)} is beyond the range of float16; load the model in "
                "bfloat16 or float32"
            )
        # Waits, lest weights pile up here while they are on their way.
        placed[path] = jax.device_put(cast, sharding).block_until_ready()
    return Model(
        params=unflatten_dict(placed),
        text_config=config.text_encoder,
        unet_config=config.unet,
        vae_config=config.vae,
        scheduler_config=config.scheduler,
        capture=config.capture,
        tokenizer=config.tokenizer,
        dtype=jnp.dtype(dtype),
        model_id=model_id,
        weights_hash=digest.hexdigest(),
    )


def _cast(leaf: Any, dtype: DTypeLike) -> Any:
    with np.errstate(over="ignore"):  # infinity is reported with the weight's name
        return leaf.astype(dtype if leaf.ndim > 1 else jnp.float32, copy=False)


def _find_folder(name_or_path: str | os.PathLike[str]) -> Path:
    path, name = Path(name_or_path), str(name_or_path)
    if name in _EMBEDDED:
        # pip and Bazel both install the package as plain files.
        return Path(str(importlib.resources.files("seediff_jax"))) / "assets" / name
    if path.is_dir():
        return path
    if path.is_file():
        how = CONVERT.format(loader="from_single_file", source=name)
        raise ValueError(f"{path} is a file; a diffusers folder is needed; {how}")
    if is_hub_id(name):
        return fetch(name)
    raise ValueError(
        f"there is no model {name!r}: neither {', '.join(map(repr, _EMBEDDED))}, nor a folder, nor "
        "the 'owner/model' of the Hugging Face hub"
    )
