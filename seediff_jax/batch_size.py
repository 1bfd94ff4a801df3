"""The batch size that fits: memory of the compiled programs against the memory of the device.

    model, PairSettings -> bytes of batches of 4 and 8 -> line -> guess -> compiled, up or down

What a program holds is asked of the compiler, which runs nothing. It is not quite linear in the
batch, since the compiler fuses more where memory is short: a guess is compiled before it is taken.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from seediff_jax.families import SD1
from seediff_jax.model import Model
from seediff_jax.models.capture import published_capture
from seediff_jax.models.config import clip_text_config, unet_config, vae_config
from seediff_jax.pair_settings import PairSettings
from seediff_jax.programs import Programs, abstract_programs, program_memory, run_bytes
from seediff_jax.sampling import SampleConfig
from seediff_jax.sharding import MODEL, local_rows_of

DEFAULT_BATCH = 4
"""Where memory is not the limit, on a CPU, or is not known."""

MAX_BATCH = 32
"""64 rows in a UNet call fill any device: beyond, a batch costs memory and gains no time."""

ROUNDS = 2
"""Batches that a device has at a time, as in `work_loop.DEPTH`."""

SMALL = (4, 8)
"""Batches that a guess is made of; of fewer images the compiler fuses otherwise."""

FREE_SHARE = 0.05
"""Share of the memory that stays free, for what the compiler's figures leave out."""

QUICK = {"exec_time_optimization_effort": -1.0}
"""Compiler options: a program of nearly the same memory in a tenth of the time."""

SD1_BATCHES = {"TPU v5 lite": 16, "TPU v6 lite": 16, "TPU v5": 32}
"""Kind of device -> batch of Stable Diffusion 1 in bfloat16, from docs/tpu_memory.md."""

MEASURED_CLASSES = 20
"""Classes of an image up to which SD1_BATCHES holds."""


class MemoryLine(NamedTuple):
    """Bytes of a batch on a device: `fixed + per_image * batch`."""

    fixed: float
    per_image: float


def auto_batch_size(
    model: Model,
    settings: PairSettings,
    mesh: Mesh,
    *,
    num_classes: int = 1,
    has_unnamed: bool = False,
) -> int:
    """The number of images that each place on the data axis takes at a time.

    It is DEFAULT_BATCH on a CPU, and else the largest power of two, up to MAX_BATCH, with which a
    run leaves FREE_SHARE of the memory free. Stable Diffusion 1 in bfloat16 was measured for TPUs;
    other programs are compiled here, for three or more batches, each in about a minute.

    Args:
        model: the model, or one with the shapes of its weights alone.
        settings: of the run.
        mesh: of the run; one of this host's places is asked for all.
        num_classes: c, the classes of an image.
        has_unnamed: whether classes are looked for that no prompt names.

    Raises:
        ValueError: not even one image fits.
    """
    device = mesh.devices[local_rows_of(mesh)[0], 0]
    if device.platform == "cpu":
        return DEFAULT_BATCH
    is_known = mesh.shape[MODEL] == 1 and device.device_kind in SD1_BATCHES
    if is_known and is_measured(model, settings, num_classes, has_unnamed):
        return SD1_BATCHES[device.device_kind]
    memory = (device.memory_stats() or {}).get("bytes_limit")
    if memory is None:
        return DEFAULT_BATCH
    return fitting_batch_size(model, settings, mesh, memory, num_classes, has_unnamed)


def fitting_batch_size(
    model: Model,
    settings: PairSettings,
    mesh: Mesh,
    memory: int,
    num_classes: int = 1,
    has_unnamed: bool = False,
) -> int:
    """As `auto_batch_size` for devices with so many bytes of memory, and always compiled."""

    def measure(batch_size: int) -> int | None:
        return batch_bytes(model, settings, mesh, batch_size, num_classes, has_unnamed)

    return search_batch_size(measure, (1 - FREE_SHARE) * memory)


def batch_bytes(
    model: Model,
    settings: PairSettings,
    mesh: Mesh,
    batch_size: int,
    num_classes: int = 1,
    has_unnamed: bool = False,
) -> int | None:
    """Most bytes on each device in a run of such batches, by the compiler; see `programs_bytes`.

    Args:
        model: the model, or one with the shapes of its weights alone.
        settings: of the run.
        mesh: of the run; one of this host's places is compiled for.
        batch_size: images on each place of the data axis.
        num_classes: c, the classes of an image.
        has_unnamed: whether classes are looked for that no prompt names.
    """
    first = local_rows_of(mesh)[0]
    own = Mesh(mesh.devices[first : first + 1], mesh.axis_names)
    programs = abstract_programs(
        own, model, batch_size, settings, num_classes=num_classes, has_unnamed=has_unnamed
    )
    return programs_bytes(programs)


def is_measured(
    model: Model, settings: PairSettings, num_classes: int = 1, has_unnamed: bool = False
) -> bool:
    """Whether SD1_BATCHES holds for these programs; the number of steps takes no memory."""
    folder = SD1.folder_configs()
    unet = unet_config(folder["unet/config.json"])
    side = unet.sample_size
    measured = (
        clip_text_config(folder["text_encoder/config.json"]),
        unet,
        vae_config(folder["vae/config.json"]),
        published_capture(unet),
        jnp.bfloat16,
        SampleConfig(num_steps=settings.num_steps, latent_size=(side, side)),
        PairSettings().mask_config,
    )
    given = (model.text_config, model.unet_config, model.vae_config, model.capture, model.dtype)
    given += (settings.sample_config(model), settings.mask_config)
    is_more = settings.refine_iterations or settings.guidance_rescale or has_unnamed
    return given == measured and not is_more and num_classes <= MEASURED_CLASSES


def programs_bytes(programs: Programs, compiler_options: Mapping[str, float] = QUICK) -> int | None:
    """Most bytes on each device in a run of such batches; None where the compiler refuses.

    Raises:
        jax.errors.JaxRuntimeError: it fails for another reason than memory.
    """
    # With options, even none, what ran before would be compiled again.
    options, weights = dict(compiler_options) or None, programs.weight_bytes
    try:
        sample = program_memory(programs.sample.compile(options), weights, True)
        masks = program_memory(programs.make_masks.compile(options), weights, False)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None
    return run_bytes(sample, masks, ROUNDS)


def fit_line(measured: Mapping[int, int]) -> MemoryLine:
    """The line through the bytes of two batches."""
    (first, low), (second, high) = sorted(measured.items())
    per_image = (high - low) / (second - first)
    return MemoryLine(low - per_image * first, per_image)


def predict_batch_size(line: MemoryLine, usable: float) -> int:
    """The largest power of two up to MAX_BATCH that a line puts into so many bytes; at least 1."""
    batch_size = MAX_BATCH
    while batch_size > 1 and line.fixed + line.per_image * batch_size > usable:
        batch_size //= 2
    return batch_size


def search_batch_size(measure: Callable[[int], int | None], usable: float) -> int:
    """The largest power of two up to MAX_BATCH whose bytes are at most `usable`.

    Args:
        measure: batch size -> bytes, or None where it cannot be compiled; called seldom.
        usable: bytes.

    Raises:
        ValueError: one image does not fit.
    """
    measured: dict[int, int | None] = {}

    def fits(batch_size: int) -> bool:
        if batch_size not in measured:
            measured[batch_size] = measure(batch_size)
        taken = measured[batch_size]
        return taken is not None and taken <= usable

    if not fits(SMALL[1]):
        batch_size = SMALL[0]
        while not fits(batch_size):
            if batch_size == 1:
                raise ValueError(_too_large(measured[1], usable))
            batch_size //= 2
        return batch_size
    fits(SMALL[0])
    line = fit_line({size: measured[size] for size in SMALL})
    batch_size = max(SMALL[1], predict_batch_size(line, usable))
    while not fits(batch_size):
        batch_size //= 2
    while batch_size < MAX_BATCH and fits(2 * batch_size):
        batch_size *= 2
    return batch_size


def _too_large(taken: int | None, usable: float) -> str:
    needed = "more than there is" if taken is None else f"{taken / 2**30:.2f} GiB"
    return (
        f"one image needs {needed}, usable are {usable / 2**30:.2f} GiB of the device; use "
        "--dtype=bfloat16, a smaller image or --capture=coarse"
    )
