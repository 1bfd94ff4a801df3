"""What tests of runs in many blocks on many devices ask of a folder and of the processes."""

import json

from seediff_jax.dataset.layout import ShardLayout
from seediff_jax.dataset.resume import find_existing
from seediff_jax.files.folder import open_folder
from tests.helpers.crashes import tree

IMAGES = 24
SHARD_SIZE = 5


def files(folder):
    return {name: content for name, content in tree(open_folder(folder)).items() if content}


def samples_of(folder):
    """Indices of the samples that are there."""
    layout = ShardLayout(IMAGES, SHARD_SIZE, 1)
    return set(find_existing(open_folder(folder), layout).nonzero()[0].tolist())


def written(log_dir):
    """Samples that all hosts together wrote, by their logs."""
    logs = [path.read_text().splitlines() for path in log_dir.glob("*.jsonl")]
    return sum(json.loads(lines[-1])["written"] for lines in logs)


def lines_of(process):
    """The lines of the program on stderr, without progress and what libraries say."""
    return [line for line in process.err.splitlines() if line.startswith("seediff: ")]
