"""The contract between the UNet, which fills AttentionMaps, and the mask kernels, their readers."""

from flax import struct

from seediff_jax.arrays import Array


@struct.dataclass
class AttentionMaps:
    """Attention probabilities of one UNet call, or their mean over the steps of a sampling run.

    Heads are summed, so a row of `self_attention` sums to the number of heads of its layer. All
    values are float32, whatever the precision of the UNet.

    Attributes:
        cross_attention: float32 `[b, layers, n0, l]`: every recorded cross-attention layer of the
            seed level (n0 locations), one column a text token; or `[b, layers, n0, c]`, one column
            a class, where the tokens were projected on the classes while recording.
        self_attention: `{side: float32 [b, n, n]}` with n = side * side: one recorded layer a
            level, query locations by key locations. Where images are no squares, a level is keyed
            by its height, and its width is n / height.
    """

    cross_attention: Array
    self_attention: dict[int, Array]

    @property
    def sides(self) -> tuple[int, ...]:
        """Sides (heights) of the recorded levels, coarse to fine; the first is the seed level."""
        return tuple(sorted(self.self_attention))
