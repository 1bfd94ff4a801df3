"""Nine random samples in three shards, one of them failed, and a plain driver of the formats."""

import json
import shutil

import numpy as np

from seediff_jax.encoding import Sample, encode
from seediff_jax.formats import FORMATS

CLASS_NAMES = ("cat", "dog", "zebra")
SHARD_SIZE = 3
FAILED = 4
NO_CLASS, ONLY_IGNORED = 6, 7
OPTIONS = {"soft": "npz", "seeds": True}
SIZES = ((24, 16), (16, 24), (9, 35))


def smooth(rng, height, width, channels):
    """Waves of random directions, uint8: like photographs, with little at high frequencies."""
    y, x, _ = np.ogrid[:height, :width, :1]
    waves = [
        np.cos(rng.uniform(-0.3, 0.3, channels) * y + rng.uniform(-0.3, 0.3, channels) * x + phase)
        for phase in rng.uniform(0, 6, 4)
    ]
    return (127.5 + 31 * np.sum(waves, axis=0)).astype(np.uint8)


def make_sample(index):
    """Sample `index`: its mask has pieces of several classes, with ignored pixels among them."""
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
        "empty": [CLASS_NAMES[k - 1] for k in ids if not (mask == k).any()],
    }
    return Sample(
        index,
        smooth(rng, height, width, 3),
        mask,
        record,
        soft_masks=rng.random((len(ids), height, width), np.float32),
        seed_maps=rng.random((len(ids), 4, 3), np.float32),
    )


SAMPLES = {index: make_sample(index) for index in range(9) if index != FAILED}


def write_run(name, folder, samples=SAMPLES, *, soft=None, seeds=False, shard_size=SHARD_SIZE):
    """Writes the samples in a format as a run does; returns `folder`."""
    form = FORMATS[name](CLASS_NAMES, soft, seeds)
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

    keep(form.closing_files(records, lambda _, path: (folder / path).read_bytes(), shards, scratch))
    return folder


def tree(folder):
    """Content of all files by relative path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
