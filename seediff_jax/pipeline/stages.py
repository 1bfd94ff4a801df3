"""The stages of masks: seed map, seeds, and the soft mask of each level."""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from seediff_jax.array_typing import Array
from seediff_jax.attention_maps import AttentionMaps
from seediff_jax.dataset.strips import ClassStages
from seediff_jax.masks.config import MaskConfig
from seediff_jax.masks.expansion import expand
from seediff_jax.masks.methods import class_soft_mask
from seediff_jax.masks.seeds import find_seeds, seed_map
from seediff_jax.settings import static_part


def class_stages(
    maps: AttentionMaps, names: Sequence[str], image_size: tuple[int, int], masks: MaskConfig
) -> list[ClassStages]:
    """Computes the stages of the masks of one image, before refinement; see `Pairs.stages`.

    Args:
        maps: of one image, `cross_attention` `[layers, n0, c]` with one column per class.
        names: of the classes; there may be more columns.
        image_size: height and width of the image.
        masks: settings of one method.

    Raises:
        UserError: there are several methods, or a user's own method cannot be used.
    """
    found = jax.tree.map(np.asarray, _stages(maps, image_size, static_part(masks)))
    rows = (jax.tree.map(lambda leaf, k=k: leaf[k], found) for k in range(len(names)))
    return [
        ClassStages(name, k, *row) for k, (name, row) in enumerate(zip(names, rows, strict=True), 1)
    ]


@functools.partial(jax.jit, static_argnames=("image_size", "config"))
def _stages(
    maps: AttentionMaps, image_size: tuple[int, int], config: MaskConfig
) -> tuple[Array, Array, list[Array]]:
    """Seed maps `[c, n0]`, seeds `[c, n0]`, and per level soft masks `[c, h, w]`."""
    levels, sides = maps.self_attention, maps.sides

    def one_class(cross_attention):
        found = seed_map(cross_attention)
        seeds = find_seeds(found)
        if config.only_method != "seediff":
            return found, seeds, [class_soft_mask(cross_attention, levels, image_size, config)]
        options = {"affinity": config.affinity, "power": config.resolved.power}
        options["background"] = config.background
        parts = [{side: levels[side] for side in sides[: k + 1]} for k in range(len(sides))]
        return found, seeds, [expand(seeds, part, **options) for part in parts]

    return jax.vmap(one_class, in_axes=-1)(maps.cross_attention)
