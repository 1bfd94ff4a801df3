"""CLIP text encoder: token_ids -> TextStates (Radford et al., arXiv 2103.00020)."""

from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from seediff_jax.array_typing import Array, Int
from seediff_jax.models.attention import attend_causal
from seediff_jax.models.config import ClipTextConfig
from seediff_jax.models.layers import layer_norm


def quick_gelu(x: Array) -> Array:
    """Sigmoid approximation of GELU that OpenAI's CLIP was trained with."""
    return x * nn.sigmoid(1.702 * x)


# Torch's GELU is the exact erf form; Linen's default is the tanh approximation.
_ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": lambda x: nn.gelu(x, approximate=False)}


class ClipAttention(nn.Module):
    """Causal multi-head self-attention."""

    num_heads: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[b, l, d]` -> `[b, l, d]`."""

        def heads(name):
            y = nn.Dense(x.shape[-1], dtype=self.dtype, name=name)(x)
            return y.reshape(*y.shape[:2], self.num_heads, -1)

        query, key, value = heads("q_proj"), heads("k_proj"), heads("v_proj")
        out = attend_causal(query, key, value)
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="out_proj")(out.reshape(x.shape))


class ClipLayer(nn.Module):
    """Pre-norm transformer layer."""

    config: ClipTextConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[b, l, d]` -> `[b, l, d]`."""
        config, epsilon = self.config, self.config.layer_norm_eps
        attention = ClipAttention(config.num_attention_heads, self.dtype, name="self_attn")
        x = x + attention(layer_norm(x, epsilon, "layer_norm1"))
        return x + ClipMlp(config, self.dtype, name="mlp")(layer_norm(x, epsilon, "layer_norm2"))


class ClipMlp(nn.Module):
    """Two dense layers."""

    config: ClipTextConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[b, l, d]` -> `[b, l, d]`."""
        activation = _ACTIVATIONS[self.config.hidden_act]
        y = activation(nn.Dense(self.config.intermediate_size, dtype=self.dtype, name="fc1")(x))
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="fc2")(y)


class TextStates(NamedTuple):
    """States of a text encoder that Stable Diffusion reads.

    Attributes:
        last: float32 `[b, l, d]`, after the final layer norm; for Stable Diffusion 1 and 2.
        penultimate: float32 `[b, l, d]`, before the last layer; for Stable Diffusion XL.
        pooled: float32 `[b, p]`, the projected end token; None if the encoder has no projection.
    """

    last: Array
    penultimate: Array
    pooled: Array | None


class ClipTextModel(nn.Module):
    """The encoder; states that are not used are not computed."""

    config: ClipTextConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, token_ids: Int[Array, "b l"]) -> TextStates:
        """int32 `[b, l]` -> states, for l up to `max_position_embeddings`."""
        config = self.config

        def embed(count, name):
            return nn.Embed(count, config.hidden_size, dtype=self.dtype, name=name)

        positions = jnp.arange(token_ids.shape[1])
        x = embed(config.vocab_size, "token_embedding")(token_ids)
        x = x + embed(config.max_position_embeddings, "position_embedding")(positions)[None]
        penultimate = x
        for i in range(config.num_hidden_layers):
            penultimate, x = x, ClipLayer(config, self.dtype, name=f"layers_{i}")(x)
        last, pooled = layer_norm(x, config.layer_norm_eps, "final_layer_norm"), None
        if config.projection_dim is not None:
            end = last[jnp.arange(len(last)), end_positions(token_ids, config.eos_token_id)]
            project = nn.Dense(
                config.projection_dim, use_bias=False, dtype=self.dtype, name="text_projection"
            )
            pooled = project(end).astype(jnp.float32)
        return TextStates(last.astype(jnp.float32), penultimate.astype(jnp.float32), pooled)


def end_positions(token_ids: Int[Array, "b l"], eos_token_id: int) -> Int[Array, " b"]:
    """Position of each row's end token by transformers' rule.

    Old configs give 2 as the id for every vocabulary; there the largest id ends a text.
    """
    if eos_token_id == 2:
        return jnp.argmax(token_ids, axis=-1)
    return jnp.argmax(token_ids == eos_token_id, axis=-1)
