"""Compares our PNG encoder with Pillow's, in CPU time and in bytes.

    python -m experiments.benchmarks.png [--side=512] [--repeats=5]

The images have the spectrum of photographs. CPU time is that of this process, which has one thread
here; of the repeats the fastest counts.
"""

import io
import time
import zlib

import numpy as np
from absl import app, flags
from PIL import Image

from experiments.benchmarks.measuring import machine_line, print_table
from experiments.benchmarks.simulated import make_pool
from seediff_jax.dataset.png import encode_png

_SIDE = flags.DEFINE_integer("side", 512, "Height and width.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Measurements of each encoder.", lower_bound=1)


def _encode_with_pillow(pixels: np.ndarray, **options: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", **options)
    return content.getvalue()


ENCODERS = {
    "seediff_jax": encode_png,
    "Pillow, run lengths": lambda x: _encode_with_pillow(
        x, compress_level=1, compress_type=zlib.Z_RLE
    ),
    "Pillow, level 1": lambda x: _encode_with_pillow(x, compress_level=1),
    "Pillow, level 6 (its default)": lambda x: _encode_with_pillow(x, compress_level=6),
}


def main(_) -> None:
    """Measures and prints."""
    images, rows = make_pool(_SIDE.value, 6).images, {}
    for name, encode in ENCODERS.items():
        seconds, size = [], 0
        for _ in range(_REPEATS.value):
            start = time.process_time()
            size = sum(len(encode(image)) for image in images)
            seconds.append(time.process_time() - start)
        rows[name] = (1e3 * min(seconds) / len(images), size / len(images) / 1024)
    first = rows["seediff_jax"]
    print(machine_line())
    print_table(
        ["encoder", "CPU ms", "of ours", "KiB", "of ours"],
        [
            [name, f"{ms:.1f}", f"{ms / first[0]:.2f}", f"{kib:.0f}", f"{kib / first[1]:.2f}"]
            for name, (ms, kib) in rows.items()
        ],
    )


if __name__ == "__main__":
    app.run(main)
