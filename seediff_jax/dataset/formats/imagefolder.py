"""The image folders of Hugging Face `datasets`, with a card, ready to be uploaded to the hub."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from seediff_jax.dataset.formats.base import (
    Format,
    Made,
    Read,
    Records,
    json_text,
    stem,
    write_lines,
)
from seediff_jax.masks.config import IGNORE_INDEX

_COLUMNS = ("index", "prompt", "classes", "class_ids")

_CARD = """\
---
task_categories:
- image-segmentation
tags:
- synthetic
configs:
- config_name: default
  data_files:
  - split: train
    path: train/**
---

# Images and masks by SeeDiff

Images that a diffusion model generated from text prompts, with masks that
[SeeDiff](https://arxiv.org/abs/2507.19808) read from its attention. Nobody checked them.

A value of a mask is the id of a class in `id2label.json`; 0 is background, {ignore} is ignored.
"""


class ImageFolder(Format):
    """`imagefolder/train`: images, masks, `metadata.jsonl`; next to it `id2label.json` and a card.

    Masks are grey pictures of class ids, because `datasets` gives pictures as they are stored.
    """

    name = "imagefolder"
    parts = ("image.jpg", "mask_grey.png")
    sample_paths = {
        "imagefolder/train/images/{}.jpg": "image.jpg",
        "imagefolder/train/masks/{}.png": "mask_grey.png",
    }

    def write_run(self, records: Records, read: Read, shards: Sequence[int], scratch: Path) -> Made:
        """Writes the table of the samples, the names of the classes and the card."""
        del read, shards
        names = dict(enumerate(("background", *self.class_names)))
        texts = {
            "README.md": [_CARD.format(ignore=IGNORE_INDEX)],
            "id2label.json": [json.dumps(names, indent=2) + "\n"],
            "train/metadata.jsonl": _table(records),
        }
        files = {}
        for name, lines in texts.items():
            files |= write_lines(scratch, f"imagefolder/{name}", lines)
        return files


def _table(records: Records) -> Iterator[str]:
    """Lines of `metadata.jsonl`."""
    for record in records():
        name = stem(record["index"])
        files = {"image_file_name": f"images/{name}.jpg", "mask_file_name": f"masks/{name}.png"}
        yield json_text(files | {column: record[column] for column in _COLUMNS}) + "\n"
