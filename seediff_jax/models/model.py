"""Model: a pytree of weights with its static config, and the functions of its networks.

    token_ids -> encode_text -> text_embeddings -> predict_noise -> noise_pred, AttentionMaps
    images -> encode_images -> latents -> decode_latents -> images

Every function is compiled with the model as its first argument; the weights can be sharded.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax.typing import DTypeLike

from seediff_jax.array_typing import Array, Float, Int, Real, typechecked
from seediff_jax.attention_maps import AttentionMaps
from seediff_jax.errors import UserError
from seediff_jax.models import config as configs
from seediff_jax.models.capture import CaptureConfig
from seediff_jax.models.clip import ClipTextModel
from seediff_jax.models.conditioning import NO_CONDITIONS, Conditions, zero_conditions
from seediff_jax.models.transformer import TokenColumns
from seediff_jax.models.unet import UNet
from seediff_jax.models.vae import AutoencoderKL
from seediff_jax.prompts.tokenizer import Tokenizer
from seediff_jax.schedulers.config import SchedulerConfig

COMPONENTS = ("text_encoder", "text_encoder_2", "unet", "vae")
"""Parts of a model that have weights: folders of a checkpoint and keys of the params."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything in a model except its weights; hashable.

    Stable Diffusion XL has a second text encoder, which projects, with its own tokenizer, which
    differs from the first only in its padding.

    Attributes:
        force_zeros_for_empty_prompt: an empty negative prompt is embedded as zeros.
        attention: which implementation computes attention, one of `attention_choice.ATTENTION`.
            A forced choice applies to the UNet; to the VAE, whose only head is wide, only if "xla".
    """

    text_encoder: configs.ClipTextConfig
    unet: configs.UNetConfig
    vae: configs.VaeConfig
    scheduler: SchedulerConfig
    tokenizer: Tokenizer
    capture: CaptureConfig
    text_encoder_2: configs.ClipTextConfig | None = None
    tokenizer_2: Tokenizer | None = None
    force_zeros_for_empty_prompt: bool = False
    attention: str = "auto"

    @property
    def is_xl(self) -> bool:
        """Whether it is Stable Diffusion XL."""
        return self.text_encoder_2 is not None

    @property
    def components(self) -> tuple[str, ...]:
        """Parts with weights: folders of the checkpoint and keys of the params."""
        return tuple(name for name in COMPONENTS if name != "text_encoder_2" or self.is_xl)

    @property
    def image_side(self) -> int:
        """Side of the images that the model was trained on, in pixels."""
        return self.unet.sample_size * self.vae.downsampling

    def dtype_of(self, component: str, dtype: DTypeLike) -> DTypeLike:
        """Returns the dtype of a component of a model of `dtype`.

        The VAE of Stable Diffusion XL overflows in float16 unless its config says otherwise.
        """
        is_float32 = component == "vae" and self.is_xl and self.vae.force_upcast
        return jnp.float32 if is_float32 else dtype


def make_modules(config: ModelConfig, dtype: DTypeLike = jnp.float32) -> dict[str, nn.Module]:
    """The Linen modules of a model of `dtype`, under the keys of the params."""
    of_vae = "xla" if config.attention == "xla" else "auto"
    modules = {
        "text_encoder": ClipTextModel(config.text_encoder, dtype),
        "unet": UNet(config.unet, config.capture, dtype, config.attention),
        "vae": AutoencoderKL(config.vae, config.dtype_of("vae", dtype), of_vae),
    }
    if config.is_xl:
        modules["text_encoder_2"] = ClipTextModel(config.text_encoder_2, dtype)
    return modules


def init_params(config: ModelConfig, rng: Array) -> dict[str, Any]:
    """Random float32 params for training; `jax.eval_shape` of it gives only their shapes."""
    modules = make_modules(config)
    # Shapes of parameters do not depend on these sides; they are the smallest possible.
    latent_side = 2 ** (len(config.unet.block_out_channels) - 1)
    image_side = config.vae.downsampling
    token_ids = jnp.zeros((1, 1), jnp.int32)
    latents = jnp.zeros((1, latent_side, latent_side, config.unet.in_channels))
    text = jnp.zeros((1, 1, config.unet.cross_attention_dim))
    columns, conditions = TokenColumns(jnp.zeros((1, 1, 1))), zero_conditions(config.unet, 1)
    inputs = {
        "text_encoder": (token_ids,),
        "text_encoder_2": (token_ids,),
        "unet": (latents, jnp.zeros(1, jnp.int32), text, columns, conditions),
        "vae": (jnp.zeros((1, image_side, image_side, config.vae.in_channels)),),
    }
    rngs = dict(zip(modules, jax.random.split(rng, len(modules)), strict=True))
    return {name: m.init(rngs[name], *inputs[name])["params"] for name, m in modules.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where the weights of a model come from.

    All instances are equal. A Provenance is a static part of a Model, so if they differed,
    `jax.jit` would compile a program again for other weights of the same architecture.

    Attributes:
        model_id: the name of the model, as given to `load_model`.
        weights_hash: XXH3 (128 bits) of the stored weights, see `param_loading.add_to_hash`.
        commit: commit of the hub's repository; None for other sources.
    """

    model_id: str = ""
    weights_hash: str = ""
    commit: str | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Provenance)

    def __hash__(self) -> int:
        return hash(Provenance)


@struct.dataclass
class Model:
    """A model: its weights and its config.

    `model.with_config(scheduler=..., capture=...)` is the same model with another sampler or other
    recorded layers.

    Attributes:
        params: Linen params under the names of `config.components`; matrices and convolution
            kernels in `dtype` (a VAE that overflows in float16: float32), vectors (norms, biases)
            in float32.
        config: networks, tokenizers, scheduler and recorded layers.
        dtype: of the computation; norms, softmax and AttentionMaps are always float32.
        provenance: where the weights come from. Compiled functions do not see it: a Model that one
            returns has the provenance of the first Model that it was called with.
    """

    params: dict[str, Any]
    config: ModelConfig = struct.field(pytree_node=False)
    dtype: np.dtype = struct.field(pytree_node=False)
    provenance: Provenance = struct.field(pytree_node=False, default=Provenance())

    def with_config(self, **changes: Any) -> "Model":
        """Returns the model with other values of some fields of its ModelConfig."""
        return self.replace(config=dataclasses.replace(self.config, **changes))

    text_config = property(lambda self: self.config.text_encoder, doc="`config.text_encoder`.")
    unet_config = property(lambda self: self.config.unet, doc="`config.unet`.")
    vae_config = property(lambda self: self.config.vae, doc="`config.vae`.")
    scheduler_config = property(lambda self: self.config.scheduler, doc="`config.scheduler`.")
    capture = property(lambda self: self.config.capture, doc="`config.capture`.")
    tokenizer = property(lambda self: self.config.tokenizer, doc="`config.tokenizer`.")
    model_id = property(lambda self: self.provenance.model_id, doc="`provenance.model_id`.")
    weights_hash = property(
        lambda self: self.provenance.weights_hash, doc="`provenance.weights_hash`."
    )
    commit = property(lambda self: self.provenance.commit, doc="`provenance.commit`.")

    def __repr__(self) -> str:
        numbers = sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(self.params))
        origin = "".join(
            f", {field.name}={value!r}"
            for field in dataclasses.fields(Provenance)
            if (value := getattr(self.provenance, field.name))
        )
        config, capture = self.config, self.config.capture
        return (
            f"Model({', '.join(self.params)}: {numbers:,} weights, {self.dtype}{origin}\n"
            f"  {'Stable Diffusion XL' if config.is_xl else 'Stable Diffusion'}, UNet of widths "
            f"{config.unet.block_out_channels}, images of {config.image_side} pixels\n"
            f"  {config.scheduler.kind} ({config.scheduler.prediction_type}), records "
            f"{len(capture.cross_layers)} cross-attention and {len(capture.self_layers)} "
            "self-attention layers)"
        )


@typechecked
@jax.jit
def encode_text(model: Model, token_ids: Int[Array, "b *encoders l"]) -> Float[Array, "b l d"]:
    """Embeds token ids as float32 `[b, l, d]`.

    Args:
        model: the model.
        token_ids: int32 `[b, l]` of `model.tokenizer`; `[b, 2, l]` for Stable Diffusion XL, which
            has two text encoders and tokenizers (`sampling.inputs.encode_prompts`).

    Raises:
        UserError: there are more tokens than the text encoder has positions, or they are for
            another number of text encoders.
    """
    return encode_text_and_pool(model, token_ids)[0]


@typechecked
@jax.jit
def encode_text_and_pool(
    model: Model, token_ids: Int[Array, "b *encoders l"]
) -> tuple[Float[Array, "b l d"], Float[Array, "b p"] | None]:
    """Embeds token ids as `encode_text` does, and pools them if the UNet reads that.

    Stable Diffusion 1 and 2 read the last states of their text encoder. XL reads the penultimate
    states of both, concatenated, and the pooled ones of the second (arXiv 2307.01952, section 2.1).
    """
    config = model.config
    longest = config.text_encoder.max_position_embeddings
    if token_ids.shape[-1] > longest:
        raise UserError(f"got {token_ids.shape[-1]} tokens, the text encoder reads up to {longest}")
    if token_ids.shape[1:-1] != ((2,) if config.is_xl else ()):
        needed = "[b, 2, l]" if config.is_xl else "[b, l]"
        raise UserError(f"token ids have shape {token_ids.shape}, this model needs {needed}")

    if not config.is_xl:
        return _apply(model, "text_encoder", token_ids).last, None
    first = _apply(model, "text_encoder", token_ids[:, 0])
    second = _apply(model, "text_encoder_2", token_ids[:, 1])
    return jnp.concatenate([first.penultimate, second.penultimate], axis=-1), second.pooled


@typechecked
@jax.jit
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
        model: its `capture` says which layers are recorded.
        latents: float32 `[b, h, w, c]`, of any height and width, scaled as by `encode_images`.
        timesteps: int32 or float32 `[b]`, in 0..T-1 of the noise schedule.
        text_embeddings: float32 `[b, l, d]`, from `encode_text`.
        columns: which rows are recorded, and the columns that their cross-attention is projected
            on. By default all rows and one column per token.
        conditions: read by the UNets of Stable Diffusion XL and of latent consistency models.

    Returns:
        float32 `[b, h, w, c]`, noise or velocity by the scheduler's `prediction_type`, and the
        AttentionMaps of the recorded rows.

    Raises:
        UserError: axes or conditions do not fit the model or one another; latents to be recorded
            are so small that two recorded levels have the same height.
    """
    if columns is None:
        b, tokens, _ = text_embeddings.shape
        columns = TokenColumns(
            jnp.broadcast_to(jnp.eye(tokens, dtype=jnp.float32)[None], (b, tokens, tokens))
        )
    return _apply(model, "unet", latents, timesteps, text_embeddings, columns, conditions)


@typechecked
@jax.jit
def decode_latents(model: Model, latents: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
    """Turns latents, scaled as the UNet's, into float32 images `[b, H, W, 3]`.

    Their range is [-1, 1], which the decoder may overshoot a little; nothing is clipped here.

    Raises:
        UserError: the latents have the wrong number of channels.
    """
    channels = model.config.vae.latent_channels
    if latents.shape[-1] != channels:
        raise UserError(f"latents have {latents.shape[-1]} channels, this VAE takes {channels}")
    latents = latents / model.config.vae.scaling_factor
    return _apply(model, "vae", latents, method="decode")


@typechecked
@jax.jit
def encode_images(model: Model, images: Float[Array, "b H W 3"]) -> Float[Array, "b h w c"]:
    """Turns images in [-1, 1] into the mean of their latents, scaled as the UNet's, float32.

    Raises:
        UserError: height or width is not a multiple of the VAE's downsampling.
    """
    _, height, width, _ = images.shape
    factor = model.config.vae.downsampling
    if height % factor or width % factor:
        raise UserError(f"images are {height} x {width}, but must be multiples of {factor}")
    mean, _ = _apply(model, "vae", images, method="encode")
    return mean * model.config.vae.scaling_factor


def _apply(model: Model, name: str, *inputs: Any, **options: Any) -> Any:
    module = make_modules(model.config, model.dtype)[name]
    return module.apply({"params": model.params[name]}, *inputs, **options)
