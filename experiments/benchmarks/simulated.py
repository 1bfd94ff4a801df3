"""A simulated device in the driver, so that the work of the host can be measured alone.

    RunConfig -> make_dataset, with SimulatedDevice in place of PairPrograms -> figures

The rest is the driver itself: it tokenises prompts, starts rounds, fetches results when they are
due, encodes and writes samples, finishes shards and completes the run.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
from flax import struct
from PIL import Image

from seediff_jax.checkpoints.load import load_model
from seediff_jax.dataset.complete import complete_run
from seediff_jax.driver import make_dataset
from seediff_jax.driver.config import RunConfig
from seediff_jax.models.model import Model
from seediff_jax.pipeline.programs import PairRows
from seediff_jax.prompts.class_lists import SHAPES_CLASSES
from seediff_jax.prompts.prompt_plan import PromptPlan
from seediff_jax.prompts.prompt_record import PromptRecord
from seediff_jax.prompts.tokenizer import CLIP_LENGTH
from seediff_jax.sampling.inputs import PairInputs
from seediff_jax.sampling.sampler import STAGES

NUM_CLASSES = 2
"""Number of classes of every second sample; the others have one."""

_SEED_SIDE = 16
_WORDS = "plain dotted striped faded photo picture image shot long of".split()
# Photographs have about as much contrast in every octave.
_OCTAVES = (4, 8, 16, 32, 64, 128, 256)
_CONTRAST, _GRAIN = 17.0, 1.5


@struct.dataclass
class DueRows(PairRows):
    """Rows of the pool that are ready at a certain time.

    Attributes:
        picks: the row of the pool for each sample of the round.
        due: when the device is ready with them, in seconds of its clock.
    """

    picks: tuple[int, ...] = struct.field(pytree_node=False, default=())
    due: float = struct.field(pytree_node=False, default=0.0)


class SimulatedDevice:
    """Replaces PairPrograms: finishes one round at a time, at a given speed, in the order of calls.

    Args:
        pool: rows; a sample gets the row of its index modulo their number.
        speed: samples per second; with infinity, a round is ready as soon as it is requested.
        mesh: the mesh of the run.
        watch: called before each round with the number of samples requested before.
        clock: returns the time in seconds.
        sleep: waits for a number of seconds.
    """

    def __init__(
        self,
        pool: PairRows,
        speed: float,
        mesh: Any = None,
        *,
        watch: Callable[[int], None] = lambda asked: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.mesh, self.attention = mesh, "none, the device is simulated"
        self._pool, self._speed = pool, speed
        self._watch, self._clock, self._sleep = watch, clock, sleep
        self._free_at, self._asked = -np.inf, 0

    def __call__(self, inputs: PairInputs) -> DueRows:
        """Starts a round, which begins when the previous one is ready."""
        self._watch(self._asked)
        self._asked += len(inputs.indices)
        self._free_at = max(self._clock(), self._free_at) + len(inputs.indices) / self._speed
        picks = tuple((inputs.indices % len(self._pool.images)).tolist())
        fields = {f.name: getattr(self._pool, f.name) for f in dataclasses.fields(PairRows)}
        return DueRows(**fields, picks=picks, due=self._free_at)

    def fetch(self, results: DueRows) -> DueRows:
        """Waits until a round is due, then copies its rows, as from a device."""
        if (wait := results.due - self._clock()) > 0:
            self._sleep(wait)
        return jax.tree.map(lambda leaf: leaf[list(results.picks)], results)


def make_pool(side: int, count: int = 32) -> PairRows:
    """Draws rows whose files are about as large as those of photographs of `side` x `side`.

    Images are sums of smoothed noise; label maps have one ellipse per class.
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
        presence=rng.random(shape, np.float32),
        scores=rng.random(shape, np.float32),
        is_finite={stage: np.ones(count, bool) for stage in STAGES},
    )


def make_records(count: int) -> tuple[PromptRecord, ...]:
    """Makes different prompts in the embedded model's words; every second one has two classes."""
    names, records = SHAPES_CLASSES, []
    for k in range(count):
        classes = (names[k % len(names)], names[(k + 1) % len(names)])[: 1 + k % NUM_CLASSES]
        number = " ".join(_WORDS[int(digit)] for digit in f"{k:06d}")
        text = f"a {' and a '.join(classes)} on {number} background"
        records.append(PromptRecord(text, classes))
    return tuple(records)


def simulated_config(
    output: Path, formats: Sequence[str], num_images: int, num_prompts: int = 80, **more: Any
) -> RunConfig:
    """Makes a RunConfig for the embedded model; its log is in `log`, next to `output`."""
    return RunConfig(
        model="shapes",
        plan=PromptPlan(records=make_records(num_prompts)),
        class_names=SHAPES_CLASSES,
        output=str(output),
        formats=tuple(formats),
        num_images=num_images,
        log_dir=str(output.with_name("log")),
        **more,
    )


class Moment(NamedTuple):
    """A moment of a process, in seconds."""

    time: float
    cpu: float


class SimulatedRun(NamedTuple):
    """A run of the driver.

    Attributes:
        ready: the model was loaded, and the prompts were checked.
        first_round: the first round was started; None where nothing was missing.
        written: all samples were written, and all shards finished; None as before.
        log: last line of the log, see `Monitor.state`; None as before.
    """

    ready: Moment
    first_round: Moment | None
    written: Moment | None
    log: dict[str, Any] | None


def now() -> Moment:
    """Returns this moment."""
    return Moment(time.monotonic(), time.process_time())


def run_driver(
    config: RunConfig,
    pool: PairRows,
    speed: float = np.inf,
    watch: Callable[[int], None] = lambda asked: None,
) -> SimulatedRun:
    """Runs the driver with a `SimulatedDevice`, which has the other arguments."""
    moments: dict[str, Moment] = {}

    def make_device(
        model: Model, settings: Any, mesh: Any, partition: str, *, keeps_attention: bool
    ) -> SimulatedDevice:
        moments["ready"] = now()
        return SimulatedDevice(pool, speed, mesh, watch=watch_round)

    def watch_round(asked: int) -> None:
        moments.setdefault("first_round", now())
        watch(asked)

    def complete_folder(*arguments: Any) -> dict[str, int]:
        moments["written"] = now()
        return complete_run(*arguments)

    with (
        mock.patch.object(make_dataset, "load_model", load_simulated_model),
        mock.patch.object(make_dataset, "PairPrograms", make_device),
        mock.patch.object(make_dataset, "complete_run", complete_folder),
    ):
        make_dataset.make_dataset(config)
    log = Path(config.log_dir, "host-0000.jsonl")
    line = json.loads(log.read_text().splitlines()[-1]) if "written" in moments else None
    return SimulatedRun(moments["ready"], moments.get("first_round"), moments.get("written"), line)


def load_simulated_model(name: str, **options: Any) -> Model:
    """Loads the embedded model, with prompts as long as those of Stable Diffusion."""
    model = load_model(name, **options)
    tokenizer = dataclasses.replace(model.tokenizer, max_length=CLIP_LENGTH)
    return model.with_config(tokenizer=tokenizer)


def _smoothed_noise(rng: np.random.Generator, side: int) -> np.ndarray:
    """Draws an image, uint8 `[side, side, 3]`."""
    image = np.full((side, side, 3), 128.0) + rng.normal(0, _GRAIN, (side, side, 3))
    for octave in (k for k in _OCTAVES if k <= side):
        coarse = rng.normal(0, _CONTRAST, (octave, octave, 3))
        for channel in range(3):
            field = Image.fromarray(coarse[..., channel].astype(np.float32))
            image[..., channel] += field.resize((side, side), Image.Resampling.BICUBIC)
    return image.clip(0, 255).astype(np.uint8)


def _ellipse(rng: np.random.Generator, side: int) -> np.ndarray:
    """Draws a soft mask, float32 `[side, side]`."""
    y, x = np.mgrid[:side, :side] / side
    (cy, cx), (ry, rx) = rng.uniform(0.25, 0.75, 2), rng.uniform(0.1, 0.3, 2)
    distance = np.hypot((y - cy) / ry, (x - cx) / rx)
    return (1 / (1 + np.exp(8 * (distance - 1)))).astype(np.float32)
