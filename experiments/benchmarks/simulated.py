"""A simulated device in the driver, so that what the host does can be measured alone.

    RunConfig -> make_dataset, with SimulatedDevice in place of PairPrograms -> figures

All else is the driver's own: prompts are tokenised, rounds started, results fetched when they are
due, encoded, written, sealed and closed.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from flax import struct
from PIL import Image

from seediff_jax import make_dataset
from seediff_jax.model import Model, load_model
from seediff_jax.pair_inputs import PairInputs
from seediff_jax.prompts import SHAPES_CLASSES, PromptRecord
from seediff_jax.run_config import RunConfig
from seediff_jax.sampling import STAGES
from seediff_jax.sharding import PairRows
from seediff_jax.tokenizer import CLIP_LENGTH

NUM_CLASSES = 2
"""Classes of every second sample; the others have one."""

_SEED_SIDE = 16
_WORDS = "plain dotted striped faded photo picture image shot long of".split()
# Photographs have about as much contrast in every octave.
_OCTAVES = (4, 8, 16, 32, 64, 128, 256)
_CONTRAST, _GRAIN = 17.0, 1.5


@struct.dataclass
class DueRows(PairRows):
    """Rows that are not there before their time: those of the pool, and which of them.

    Attributes:
        picks: row of the pool for each sample of the round.
        due: when the device has made them, in seconds of its clock.
    """

    picks: tuple[int, ...] = struct.field(pytree_node=False, default=())
    due: float = struct.field(pytree_node=False, default=0.0)


class SimulatedDevice:
    """Stands in for PairPrograms: one round at a time at a given speed, in the order of calls.

    Args:
        pool: rows, of which a sample gets that of its index modulo their number.
        speed: samples a second; infinity makes a round as soon as it is asked for.
        mesh: of the run.
        clock: seconds.
        sleep: waits for some seconds.

    Attributes:
        first_call: time and CPU seconds of this process when the first round was asked for.
    """

    def __init__(
        self,
        pool: PairRows,
        speed: float,
        mesh: Any = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.mesh, self.first_call = mesh, None
        self._pool, self._speed = pool, speed
        self._clock, self._sleep = clock, sleep
        self._free_at = -np.inf

    def __call__(self, inputs: PairInputs) -> DueRows:
        """Starts a round, which begins when the one before is made."""
        now = self._clock()
        if self.first_call is None:
            self.first_call = now, time.process_time()
        self._free_at = max(now, self._free_at) + len(inputs.indices) / self._speed
        picks = tuple((inputs.indices % len(self._pool.images)).tolist())
        fields = {f.name: getattr(self._pool, f.name) for f in dataclasses.fields(PairRows)}
        return DueRows(**fields, picks=picks, due=self._free_at)

    def fetch(self, results: DueRows) -> DueRows:
        """Waits until a round is due, and copies its rows, as from a device."""
        if (wait := results.due - self._clock()) > 0:
            self._sleep(wait)
        return jax.tree.map(lambda leaf: leaf[list(results.picks)], results)


def make_pool(side: int, count: int = 32) -> PairRows:
    """Draws rows whose files are about as large as those of photographs of `side` x `side`.

    Images are sums of smoothed noise, label maps have an ellipse a class.
    """
    rng = np.random.default_rng(0)
    images = np.stack([_smoothed_noise(rng, side) for _ in range(count)])
    soft = np.stack([[_ellipse(rng, side) for _ in range(NUM_CLASSES)] for _ in range(count)])
    labels = np.where(soft.max(1) > 0.5, soft.argmax(1) + 1, 0).astype(np.uint8)
    shape = (count, NUM_CLASSES)
    return PairRows(
        images=images,
        label_maps=labels,
        soft_masks=soft,
        seed_maps=rng.random((*shape, _SEED_SIDE**2), np.float32),
        seed_counts=rng.integers(1, 100, shape, np.int32),
        scores=rng.random(shape, np.float32),
        is_finite={stage: np.ones(count, bool) for stage in STAGES},
    )


def make_records(count: int) -> tuple[PromptRecord, ...]:
    """Makes different prompts in words of the embedded model, every second with two classes."""
    names, records = SHAPES_CLASSES, []
    for k in range(count):
        classes = (names[k % len(names)], names[(k + 1) % len(names)])[: 1 + k % NUM_CLASSES]
        number = " ".join(_WORDS[int(digit)] for digit in f"{k:06d}")
        text = f"a {' and a '.join(classes)} on {number} background"
        records.append(PromptRecord(text, classes))
    return tuple(records)


def simulated_config(output: Path, formats: Sequence[str], num_images: int, **more: Any):
    """A RunConfig with the tokenizer of the embedded model; its log is in `log` beside `output`."""
    return RunConfig(
        records=more.pop("records", None) or make_records(64),
        class_names=SHAPES_CLASSES,
        output=str(output),
        formats=tuple(formats),
        num_images=num_images,
        log_dir=str(output.with_name("log")),
        **more,
    )


def run_driver(
    config: RunConfig, make_device: Callable[[Any], SimulatedDevice]
) -> tuple[SimulatedDevice | None, dict[str, Any]]:
    """Runs the driver with a simulated device.

    Args:
        config: from `simulated_config`.
        make_device: called with the mesh.

    Returns:
        The device, and the last line of the log, see `Monitor.state`.
    """
    devices = []

    def programs(model, settings, mesh, *_):
        devices.append(make_device(mesh))
        return devices[0]

    with (
        mock.patch.object(make_dataset, "PairPrograms", programs),
        mock.patch.object(make_dataset, "load_model", _load_model),
    ):
        make_dataset.make_dataset(config)
    lines = Path(config.log_dir, "host-0000.jsonl").read_text().splitlines()
    return devices[0], json.loads(lines[-1])


def _load_model(name: str, **options: Any) -> Model:
    """The embedded model with prompts as long as those of Stable Diffusion."""
    model = load_model(name, **options)
    tokenizer = dataclasses.replace(model.tokenizer, max_length=CLIP_LENGTH)
    return model.replace(tokenizer=tokenizer)


def _smoothed_noise(rng: np.random.Generator, side: int) -> np.ndarray:
    """An image, uint8 `[side, side, 3]`."""
    image = np.full((side, side, 3), 128.0) + rng.normal(0, _GRAIN, (side, side, 3))
    for octave in (k for k in _OCTAVES if k <= side):
        coarse = rng.normal(0, _CONTRAST, (octave, octave, 3))
        for channel in range(3):
            field = Image.fromarray(coarse[..., channel].astype(np.float32))
            image[..., channel] += field.resize((side, side), Image.Resampling.BICUBIC)
    return image.clip(0, 255).astype(np.uint8)


def _ellipse(rng: np.random.Generator, side: int) -> np.ndarray:
    """A soft mask, float32 `[side, side]`."""
    y, x = np.mgrid[:side, :side] / side
    (cy, cx), (ry, rx) = rng.uniform(0.25, 0.75, 2), rng.uniform(0.1, 0.3, 2)
    distance = np.hypot((y - cy) / ry, (x - cx) / rx)
    return (1 / (1 + np.exp(8 * (distance - 1)))).astype(np.float32)
