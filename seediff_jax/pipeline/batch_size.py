"""Chooses the batch size that fits: compares the programs' memory with the device's.

    model, PairSettings -> bytes of batches of 4 and 8 -> line -> guess -> compiled, up or down

The compiler reports the memory of a program without running it. Memory is not quite linear in the
batch, because the compiler fuses more where memory is short; so every guess is compiled too.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from seediff_jax.checkpoints.families import SD1
from seediff_jax.errors import UserError
from seediff_jax.models.capture import published_capture
from seediff_jax.models.config import clip_text_config, unet_config, vae_config
from seediff_jax.models.model import Model
from seediff_jax.pipeline.memory import Programs, abstract_programs, program_memory, run_bytes
from seediff_jax.pipeline.mesh import local_rows_of
from seediff_jax.pipeline.settings import MODEL, PairSettings
from seediff_jax.sampling.guidance import uses_guidance
from seediff_jax.sampling.noise import latent_size
from seediff_jax.sampling.segment_config import SegmentConfig

DEFAULT_BATCH = 4
"""Used where memory is not the limit (on a CPU) or is not known."""

MAX_BATCH = 32
"""64 rows in a UNet call fill any device; larger batches cost memory and save no time."""

ROUNDS = 2
"""Number of batches on a device at a time, as in `work_loop.DEPTH`."""

SMALL = (4, 8)
"""Batch sizes that a guess is based on; smaller batches are fused differently."""

FREE_SHARE = 0.05
"""Share of the memory to leave free for what the compiler's figures omit."""

# JAX 0.11.1 and later only have levels, of which 9 is the lowest.
_HAS_EFFORT = jax.__version_info__ < (0, 11, 1)
QUICK = {"exec_time_optimization_effort": -1.0} if _HAS_EFFORT else {"optimization_level": 9}
"""Compiler options for a program with nearly the same memory in a tenth of the time."""

SD1_BATCHES = {"TPU v4": 32, "TPU v5 lite": 32, "TPU v5": 32, "TPU v6 lite": 32}
"""Kind of device -> batch size of Stable Diffusion 1 in bfloat16, from docs/tpu_memory.md."""

MEASURED_CLASSES = 20
"""Most classes per image for which SD1_BATCHES holds."""


def auto_batch_size(
    model: Model,
    settings: PairSettings,
    mesh: Mesh,
    *,
    num_classes: int = 1,
    has_unnamed: bool = False,
) -> int:
    """Chooses the number of images per batch at each place of the data axis.

    On a CPU it is DEFAULT_BATCH; elsewhere it is the largest power of two, up to MAX_BATCH, that
    leaves FREE_SHARE of the memory free. Stable Diffusion 1 in bfloat16 was measured for TPUs;
    other programs are compiled here for three or more batch sizes, about a minute each.

    Args:
        model: the model, or one with only the shapes of its weights.
        settings: of the run.
        mesh: of the run; one place of this host represents all.
        num_classes: c, the number of classes per image.
        has_unnamed: whether a run looks for classes that no prompt names.

    Raises:
        UserError: not even one image fits.
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
    """As `auto_batch_size`, for devices with `memory` bytes; always compiles."""

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
    """Returns the peak bytes per device in a run, see `programs_bytes`.

    `batch_size` is that of one place of the data axis; the rest is as of `auto_batch_size`.
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
    """Whether SD1_BATCHES applies to these programs; the number of steps does not affect memory."""
    if isinstance(settings.sampling, SegmentConfig):
        return False
    folder = SD1.folder_configs("epsilon")
    unet, sampling = unet_config(folder["unet/config.json"]), settings.sampling
    plain = dataclasses.replace(sampling, num_steps=50, height=None, width=None)
    return (
        model.text_config == clip_text_config(folder["text_encoder/config.json"])
        and model.unet_config == unet
        and model.vae_config == vae_config(folder["vae/config.json"])
        and model.capture == published_capture(unet)
        and model.dtype == jnp.bfloat16
        and model.config.attention == "auto"
        and latent_size(model, sampling.height, sampling.width) == (unet.sample_size,) * 2
        and uses_guidance(model, sampling)
        and not sampling.guidance_rescale
        and dataclasses.replace(settings, sampling=plain).static == PairSettings().static
        and not has_unnamed
        and num_classes <= MEASURED_CLASSES
    )


def programs_bytes(programs: Programs, compiler_options: Mapping[str, float] = QUICK) -> int | None:
    """Returns the peak bytes per device in a run; None where the compiler runs out of memory.

    Raises:
        jax.errors.JaxRuntimeError: it fails for another reason than memory.
    """
    # Given any options, even an empty dict, JAX recompiles programs that ran before.
    options, weights = dict(compiler_options) or None, programs.weight_bytes
    try:
        sample = program_memory(programs.sample.compile(options), weights, True)
        masks = program_memory(programs.make_masks.compile(options), weights, False)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None
    return run_bytes(sample, masks, ROUNDS)


def predict_batch_size(measured: Mapping[int, int], usable: float) -> int:
    """Predicts the largest power of two up to MAX_BATCH that fits, but at least 1.

    A line is drawn through the bytes of two batch sizes that were measured.
    """
    (first, low), (second, high) = sorted(measured.items())
    per_image = (high - low) / (second - first)
    batch_size = MAX_BATCH
    while batch_size > 1 and low + per_image * (batch_size - first) > usable:
        batch_size //= 2
    return batch_size


def search_batch_size(measure: Callable[[int], int | None], usable: float) -> int:
    """Finds the largest power of two up to MAX_BATCH whose bytes are at most `usable`.

    Args:
        measure: batch size -> bytes, or None where it cannot be compiled; called rarely.
        usable: bytes.

    Raises:
        UserError: one image does not fit.
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
                raise UserError(_too_large(measured[1], usable))
            batch_size //= 2
        return batch_size
    batch_size = SMALL[1]
    if fits(SMALL[0]):  # else its bytes may be unknown, and no line can be drawn
        batch_size = max(batch_size, predict_batch_size(measured, usable))
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
