"""Times the masks: relative to a plain loop in NumPy, and as a share of sampling.

    python -m experiments.benchmarks.mask_kernels [--sides=16,32 --unet_call_seconds=1]

The plain loop is tests/reference.py, which loops over the seeds as the authors' release does. The
target is to be at least 50 times as fast, with levels 16, 32 and 64 and 512 x 512 pixels.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from experiments.benchmarks.measuring import (
    best_seconds,
    in_own_process,
    machine_line,
    print_table,
    use_cores,
)
from experiments.benchmarks.unet_call import measure_ours
from seediff_jax.attention_maps import AttentionMaps
from seediff_jax.masks.config import MaskConfig, Thresholds
from seediff_jax.masks.label_maps import make_masks
from tests import reference
from tests.helpers import random_attention

THRESHOLD = np.float32(0.5)


def measure(sides: list[int], image_side: int, classes: int, repeats: int) -> dict[str, Any]:
    """Times the compiled kernels and the plain loop on the same attention of one image."""
    cross, self_attention = random_attention.random_attention(0, sides, classes)
    maps = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], AttentionMaps(cross, self_attention))
    image = jnp.zeros((1, image_side, image_side, 3), jnp.uint8)

    def ours():
        masks = make_masks(image, maps, Thresholds(*3 * [THRESHOLD]), config=MaskConfig())
        return np.asarray(masks[1])[0]

    start = time.perf_counter()
    each = [reference.soft_mask(cross[..., k], self_attention, image_side) for k in range(classes)]
    soft_masks_done = time.perf_counter()
    expected = reference.label_map(np.stack(each), THRESHOLD)
    done = time.perf_counter()
    return {
        "equal": float(np.mean(ours() == expected)),
        "ours": best_seconds(ours, repeats),
        "plain": done - start,
        "plain_soft_masks": soft_masks_done - start,
    }


def _row(classes: int, figures: dict[str, Any], sampling: float) -> tuple[str, ...]:
    ours = figures["ours"]
    return (
        f"{classes}",
        f"{1e3 * ours:.1f}",
        f"{figures['plain']:.2f}",
        f"{figures['plain'] / ours:.0f}",
        f"{figures['plain_soft_masks'] / ours:.0f}",
        f"{100 * ours / sampling:.3f} %",
        f"{100 * figures['equal']:.3f} %",
    )


def main(_) -> None:
    """Measures for one and for two classes, and a UNet call where its seconds are not given."""
    values = flags.FLAGS
    use_cores(values.cores)
    print(f"{machine_line()}\n")
    unet_call = (
        values.unet_call_seconds
        or in_own_process(measure_ours, config="sd1", captured=True, repeats=3)["seconds"]
    )
    sampling = values.num_steps * unet_call
    rows = []
    for classes in (1, 2):
        figures = in_own_process(
            measure,
            sides=[int(side) for side in values.sides],
            image_side=values.image_side,
            classes=classes,
            repeats=values.repeats,
        )
        rows.append(_row(classes, figures, sampling))
    header = ("classes", "ours, ms", "plain loop, s", "times faster")
    header += (
        "times faster, soft masks only",
        f"of sampling ({values.num_steps} x {unet_call:.2f} s)",
    )
    header += ("equal pixels",)
    print_table(header, rows)


if __name__ == "__main__":
    flags.DEFINE_list("sides", ["16", "32", "64"], "Levels of attention.")
    flags.DEFINE_integer("image_side", 512, "Side of the image in pixels.", lower_bound=1)
    flags.DEFINE_integer("num_steps", 50, "Steps of the sampling to compare with.", lower_bound=1)
    flags.DEFINE_float(
        "unet_call_seconds", None, "Seconds of one UNet call, batch 2; measured if not given."
    )
    flags.DEFINE_integer("cores", 2, "CPU cores to use.", lower_bound=1)
    flags.DEFINE_integer(
        "repeats", 10, "Timed calls of our kernels; the fastest counts.", lower_bound=1
    )
    app.run(main)
