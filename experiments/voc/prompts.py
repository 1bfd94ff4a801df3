"""Makes prompts of the classes that each training image of VOC shows.

    python -m experiments.voc.prompts --data=VOCdevkit/VOC2012 --output=voc.jsonl

Of the label maps, only the list of classes is used: "a photo of a dog and a person".
"""

import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from experiments import prompt_lists
from experiments.segmenter.folders import open_samples
from experiments.training.scenes import caption
from seediff_jax.driver import stdio
from seediff_jax.masks.config import BACKGROUND, IGNORE_INDEX

_SPELLINGS = {
    "diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "tv",
}  # fmt: skip


def make_prompts(folder: pathlib.Path, split: str) -> Iterator[prompt_lists.Prompt]:
    """Yields one prompt per image that shows a class."""
    samples = open_samples(folder, split)
    for index in range(len(samples)):
        ids = np.unique(samples.read(index)[1]).tolist()
        names = [samples.label_names[k] for k in ids if k not in (BACKGROUND, IGNORE_INDEX)]
        if names:
            yield caption("a photo of", [_SPELLINGS.get(n, n) for n in names]), names


def main(argv: Sequence[str]) -> int:
    """Makes the prompts."""
    return prompt_lists.run_program("experiments.voc.prompts", __doc__, make_prompts, argv)


if __name__ == "__main__":
    stdio.run_program(main)
