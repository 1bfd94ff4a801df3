"""Nine random samples in three shards, one of which failed, and a plain driver of the formats."""

import json
import shutil

import numpy as np

from seediff_jax.dataset.encoding import Sample, encode
from seediff_jax.dataset.formats import FORMATS
from seediff_jax.dataset.formats.names import kept_parts
from seediff_jax.dataset.strips import ClassStages

CLASS_NAMES = ("cat", "dog", "zebra")
METHODS = ("seediff", "cross_attention", "own.module:mask")
SHARD_SIZE = 3
FAILED = 4
NO_CLASS, ONLY_IGNORED = 6, 7
OPTIONS = {"soft": "npz", "seeds": True, "attention": True, "methods": True, "strips": True}
SIZES = ((24, 16), (16, 24), (9, 35))


def smooth(rng, height, width, channels):
    """Draws random waves, uint8; like those of photographs, their high frequencies are weak."""
    y, x, _ = np.ogrid[:height, :width, :1]
    waves = [
        np.cos(rng.uniform(-0.3, 0.3, channels) * y + rng.uniform(-0.3, 0.3, channels) * x + phase)
        for phase in rng.uniform(0, 6, 4)
    ]
    return (127.5 + 31 * np.sum(waves, axis=0)).astype(np.uint8)


def make_stages(rng, class_id, n):
    """Makes the stages of a class, with seeds as fine as the image."""
    seed_map = rng.random(n, np.float32)
    levels = [rng.random((4, 4), np.float32), rng.random((8, 8), np.float32)]
    return ClassStages(CLASS_NAMES[class_id - 1], class_id, seed_map, seed_map > 0.5, levels)


def make_sample(index):
    """Makes sample `index`, whose mask has areas of several classes, and ignored pixels."""
    rng = np.random.default_rng(index)
    height, width = SIZES[index % 3]
    ids = rng.permutation([1, 2, 3])[: 1 + index % 3]
    mask = rng.choice([0, 255, *ids], (height, width)).astype(np.uint8)
    mask[: height // 2, : width // 3] = ids[0]
    if index in (NO_CLASS, ONLY_IGNORED):
        mask[:] = 0 if index == NO_CLASS else 255
    record = {
        "index": index,
        "prompt": f"ein Tier für {index}",
        "classes": [CLASS_NAMES[k - 1] for k in ids],
        "class_ids": ids.tolist(),
        "seed_counts": rng.integers(0, 99, len(ids)).tolist(),
        "ignored_fraction": 0.25 if (mask == 255).any() else 0.0,
        "empty": [CLASS_NAMES[k - 1] for k in ids if not (mask == k).any()],
        "other_methods": {
            name: {"scores": (rng.integers(0, 9, len(ids)) / 8).tolist()} for name in METHODS[1:]
        },
    }
    return Sample(
        index,
        smooth(rng, height, width, 3),
        mask,
        record,
        soft_masks=rng.random((len(ids), height, width), np.float32),
        seed_maps=rng.random((len(ids), 4, 3), np.float32),
        other_masks=np.stack([mask[::-1], mask[:, ::-1]]),
        attention={
            "cross_attention": rng.random((2, 12, len(ids)), np.float32),
            "self_attention_4": rng.random((12, 12), np.float32),
        },
        stages=[make_stages(rng, int(k), height * width) for k in ids],
    )


SAMPLES = {index: make_sample(index) for index in range(9) if index != FAILED}


def write_run(
    name,
    folder,
    samples=SAMPLES,
    *,
    soft=None,
    seeds=False,
    attention=False,
    methods=False,
    strips=False,
    shard_size=SHARD_SIZE,
):
    """Writes the samples in a format as a run does; returns `folder`."""
    kept = {"soft_masks": soft, "seed_maps": seeds, "keep_attention": attention}
    kept["strips"] = strips
    kept["mask_method"] = list(METHODS) if methods else METHODS[0]
    form = FORMATS[name](CLASS_NAMES, kept_parts(kept))
    form.require_available()
    scratch = folder.with_name(folder.name + "_scratch")
    shards = sorted({index // shard_size for index in samples})

    def keep(made):
        for path, file in made.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(file, folder / path)

    for number in shards:
        staged = []
        for index in [index for index in sorted(samples) if index // shard_size == number]:
            encoded = encode(samples[index], form.parts)
            for path, part in form.sample_files(index).items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(encoded.files[part])
            staged.append(encode(samples[index], form.shard_parts))
        keep(form.write_shard(number, iter(staged), scratch))

    def records():
        for index in sorted(samples):
            yield json.loads(json.dumps(samples[index].record))

    keep(form.write_run(records, lambda _, path: (folder / path).read_bytes(), shards, scratch))
    return folder


def tree(folder):
    """Reads all files, by relative path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
