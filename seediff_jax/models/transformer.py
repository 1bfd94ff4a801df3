"""The UNet's transformers: an image attends to itself and to the text.

Every module returns `(x, records)`, where records has the head-summed attention of recorded layers
by name.
"""

import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax.typing import DTypeLike

from seediff_jax.array_typing import Array
from seediff_jax.models.attention import Attention
from seediff_jax.models.capture import CaptureConfig
from seediff_jax.models.config import UNetConfig
from seediff_jax.models.layers import group_norm, layer_norm


@struct.dataclass
class TokenColumns:
    """Tokens whose cross-attention is recorded, and the columns that it is projected on.

    Attributes:
        weights: float32 `[r, l, k]`, of the l tokens of the text in each of k columns, for the last
            r rows of the batch; r = 0 records nothing.
        watched: `[r, o, d]`, embeddings of another text that the rows are compared with but do not
            read, or None.
        watched_weights: float32 `[r, o, k]`, of its tokens, or None.
        totals: name of a self-attention layer -> float32 `[r, n, n]`, what its record is added to.
    """

    weights: Array
    watched: Array | None = None
    watched_weights: Array | None = None
    totals: dict[str, Array] = struct.field(default_factory=dict)


Records = dict[str, Array]
"""Name of a recorded layer -> its attention, summed over the heads: `[r, n, n]`, or `[r, n, k]` for
cross-attention. That of kept layers has an axis of heads before n and is not summed."""


class FeedForward(nn.Module):
    """Gated GELU and a dense layer (Shazeer, arXiv 2002.05202)."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[b, n, c]` -> `[b, n, c]`."""
        width = x.shape[-1]
        y = nn.Dense(8 * width, dtype=self.dtype, name="net_0_proj")(x)
        y, gate = jnp.split(y, 2, axis=-1)
        # Exact erf form, as in torch; Linen's default is the tanh approximation.
        y = y * nn.gelu(gate, approximate=False)
        return nn.Dense(width, dtype=self.dtype, name="net_2")(y)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each pre-normed and residual."""

    num_heads: int
    layer: str
    capture: CaptureConfig
    dtype: DTypeLike
    attention: str = "auto"

    @nn.compact
    def __call__(self, x: Array, text: Array, columns: TokenColumns) -> tuple[Array, Records]:
        """`[b, n, c]`, `[b, l, d]` -> `[b, n, c]` and records of the last rows."""
        rows, records = columns.weights.shape[0], {}

        def attend(name, y, context, watched=None):
            full_name = f"{self.layer}.{name}"
            recorded_rows = rows if self.capture.records(full_name) else 0
            options = {"choice": self.attention, "name": name}
            options["keeps_heads"] = full_name in self.capture.kept_layers
            attention = Attention(self.num_heads, self.dtype, **options)
            total = columns.totals.get(full_name)
            return attention(y, y if context is None else context, recorded_rows, watched, total)

        y, probs = attend("attn1", layer_norm(x, 1e-5, "norm1"), None)
        x = x + y
        if probs:
            (records[f"{self.layer}.attn1"],) = probs
        y, probs = attend("attn2", layer_norm(x, 1e-5, "norm2"), text, columns.watched)
        x = x + y
        if probs:
            weights = (columns.weights, columns.watched_weights)
            projected = [
                jnp.einsum("b...nl,blk->b...nk", one, of_tokens, precision="highest")
                for one, of_tokens in zip(probs, weights, strict=False)
            ]
            records[f"{self.layer}.attn2"] = sum(projected[1:], projected[0])
        return x + FeedForward(self.dtype, name="ff")(layer_norm(x, 1e-5, "norm3")), records


class Transformer(nn.Module):
    """Spatial transformer: an image as a sequence of its locations, row major."""

    num_heads: int
    depth: int
    config: UNetConfig
    layer: str
    capture: CaptureConfig
    dtype: DTypeLike
    attention: str = "auto"

    @nn.compact
    def __call__(self, x: Array, text: Array, columns: TokenColumns) -> tuple[Array, Records]:
        """`[b, h, w, c]`, `[b, l, d]` -> `[b, h, w, c]` and records."""
        b, h, w, c = x.shape
        records: Records = {}
        # diffusers builds this one norm with 1e-6, all others of the UNet with the config's value.
        y = group_norm(x, self.config.norm_num_groups, 1e-6, "norm")
        y = self._project("proj_in", y).reshape(b, h * w, c)
        for i in range(self.depth):
            layer, name = f"{self.layer}.transformer_blocks.{i}", f"transformer_blocks_{i}"
            block = TransformerBlock(
                self.num_heads, layer, self.capture, self.dtype, self.attention, name=name
            )
            y, new = block(y, text, columns)
            records |= new
        return x + self._project("proj_out", y.reshape(b, h, w, c)), records

    def _project(self, name: str, x: Array) -> Array:
        if self.config.use_linear_projection:
            return nn.Dense(x.shape[-1], dtype=self.dtype, name=name)(x)
        return nn.Conv(x.shape[-1], (1, 1), dtype=self.dtype, name=name)(x)
