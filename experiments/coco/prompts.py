"""Makes prompts of the captions and classes of the training images of COCO.

    python -m experiments.coco.prompts --data=coco --output=coco.jsonl

The first caption of an image is its prompt. Classes that are in the image, and not in the caption,
are appended, as in Dataset Diffusion (arXiv 2309.14303): "two men play on the grass; frisbee".
"""

import json
import pathlib
from collections.abc import Iterator, Sequence

from absl import logging

from experiments import prompt_lists
from experiments.segmenter.coco import CocoSamples
from seediff_jax.driver import stdio
from seediff_jax.errors import UserError
from seediff_jax.prompts.mentions import mention_finder


def make_prompts(folder: pathlib.Path, split: str) -> Iterator[prompt_lists.Prompt]:
    """Yields one prompt per image that shows a class and has a caption.

    Raises:
        UserError: a file is missing or not one of COCO.
    """
    samples = CocoSamples(folder, split)
    captions, finder, left_out = _read_captions(folder, split), mention_finder(), 0
    for index in range(len(samples)):
        names, text = samples.class_names(index), captions.get(samples.image_id(index))
        if not names or text is None:
            continue
        try:
            found = finder.find(text, names)
        except UserError:  # a word of the caption that two of the classes claim
            left_out += 1
            continue
        lacking = [name for name in names if not found[name]]
        yield f"{text}; {' '.join(lacking)}" if lacking else text, names
    if left_out:
        logging.warning("left out %d captions with a word for two classes", left_out)


def _read_captions(folder: pathlib.Path, split: str) -> dict[int, str]:
    """Image id -> its first caption, on one line and without the full stop."""
    found = sorted(folder.glob(f"annotations/captions_{split}*.json"))
    if len(found) != 1:
        raise UserError(
            f"{folder}/annotations has {len(found)} files captions_{split}*.json, expected one"
        )
    try:
        entries = json.loads(found[0].read_text(encoding="utf-8"))["annotations"]
        captions: dict[int, str] = {}
        for entry in entries:
            text = " ".join(entry["caption"].split()).rstrip(" .")
            captions.setdefault(entry["image_id"], text)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{found[0]} is not a file of COCO's captions: {error!r}") from None
    return captions


def main(argv: Sequence[str]) -> int:
    """Makes the prompts."""
    return prompt_lists.run_program("experiments.coco.prompts", __doc__, make_prompts, argv)


if __name__ == "__main__":
    stdio.run_program(main)
