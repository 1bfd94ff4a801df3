"""The image folders of Hugging Face `datasets`, with a card, ready to be uploaded to the hub."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

from seediff_jax.dataset.formats.base import (
    Format,
    Read,
    Records,
    json_text,
    scratch_file,
    stem,
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

    def sample_files(self, index: int) -> dict[str, str]:
        """Maps relative paths of the files of a sample to its parts."""
        return {
            f"imagefolder/train/images/{stem(index)}.jpg": "image.jpg",
            f"imagefolder/train/masks/{stem(index)}.png": "mask_grey.png",
        }

    def write_run(
        self, records: Records, read: Read, shards: Sequence[int], scratch: Path
    ) -> dict[str, Path]:
        """Writes the table of the samples, the names of the classes and the card."""
        del read, shards
        names = dict(enumerate(("background", *self.class_names)))
        texts = {
            "imagefolder/README.md": _CARD.format(ignore=IGNORE_INDEX),
            "imagefolder/id2label.json": json.dumps(names, indent=2) + "\n",
        }
        paths = {}
        with contextlib.ExitStack() as stack:
            for path, text in texts.items():
                paths[path] = stack.enter_context(scratch_file(scratch, path))
                paths[path].write_text(text, encoding="utf-8", newline="\n")
            path = "imagefolder/train/metadata.jsonl"
            paths[path] = stack.enter_context(scratch_file(scratch, path))
            file = stack.enter_context(open(paths[path], "w", encoding="ascii", newline="\n"))
            for record in records():
                name = stem(record["index"])
                row = {
                    "image_file_name": f"images/{name}.jpg",
                    "mask_file_name": f"masks/{name}.png",
                }
                row |= {column: record[column] for column in _COLUMNS}
                file.write(json_text(row) + "\n")
        return paths
