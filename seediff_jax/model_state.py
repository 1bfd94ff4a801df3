"""Model: one pytree of weights with its static configs.

What is loaded or made: `seediff_jax.model`; what it computes: `seediff_jax.networks`.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import DTypeLike

from seediff_jax.model_config import ModelConfig
from seediff_jax.models.capture import CaptureConfig
from seediff_jax.models.config import ClipTextConfig, UNetConfig, VaeConfig
from seediff_jax.scheduler_configs import SchedulerConfig
from seediff_jax.tokenizer import Tokenizer


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
