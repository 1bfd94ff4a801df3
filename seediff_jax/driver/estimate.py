"""Estimates what a run needs, from a trial round or from a rate that the user knows.

no rate   model -> programs -> trial round -> time and disk; compiled programs -> memory
a rate    configs alone -> compiled programs -> memory; existing or typical samples -> disk
"""

import math
import tempfile
from pathlib import Path

import jax

from seediff_jax.checkpoints.lora import lora_merges
from seediff_jax.dataset.layout import ShardLayout
from seediff_jax.dataset.resume import count_existing, require_resumable
from seediff_jax.driver.config import RunConfig
from seediff_jax.driver.hosts import gather, is_first
from seediff_jax.driver.make_dataset import (
    configured_model,
    prepare,
    require_fit,
    require_prompts_fit,
    with_batch_size,
)
from seediff_jax.driver.plan import (
    Estimate,
    class_counts,
    describe_plan,
    stored_sample_bytes,
    typical_sample_bytes,
)
from seediff_jax.driver.regenerate import make_block
from seediff_jax.files.folder import Folder, open_folder
from seediff_jax.models.capture import layer_sizes
from seediff_jax.models.model import Model
from seediff_jax.pipeline.batch_size import batch_bytes, programs_bytes
from seediff_jax.pipeline.memory import abstract_model, lower_programs
from seediff_jax.pipeline.mesh import local_rows_of, make_mesh
from seediff_jax.pipeline.settings import DATA
from seediff_jax.sampling.noise import latent_size


def measure_run(config: RunConfig) -> tuple[RunConfig, Estimate]:
    """Estimates what a run needs from a trial round on this machine, which is thrown away.

    Returns:
        The config with its batch size, and the estimate.

    Raises:
        UserError: as a run does before its first round.
    """
    config, model, programs = prepare(config)
    with tempfile.TemporaryDirectory() as scratch:
        seconds, failures = make_block(config, model, programs, 0, open_folder(scratch))
        files = [path for path in Path(scratch).rglob("*") if path.is_file()]
        written = sum(path.stat().st_size for path in files if path.name != "strip.png")
    made = min(config.batch_size, config.num_images) - len(failures)
    stats = jax.local_devices()[0].memory_stats() or {}  # a CPU has none
    if config.partition == "shard_map":  # the programs that ran are compiled already
        sizes = (config.plan.max_classes, config.plan.has_unnamed)
        batch = config.batch_size * programs.mesh.shape[DATA]
        lowered = lower_programs(programs, model, config.sampling, batch, *sizes)
        device_bytes = programs_bytes(lowered, {})
    else:
        device_bytes = _device_bytes(config, model)
    return config, Estimate(
        rate=config.batch_size / seconds,
        sample_bytes=written / max(made, 1),
        disk_source="measured in a trial round",
        device_bytes=max(device_bytes or 0, stats.get("peak_bytes_in_use") or 0),
    )


def estimate_run(config: RunConfig, folder: Folder, rate: float) -> tuple[RunConfig, Estimate]:
    """Estimates what a run needs at a given rate; reads no weights, but checks all configs.

    The rate is in images per second of one row of the mesh; the run writes to `folder`.

    Returns:
        The config with its batch size, and the estimate.

    Raises:
        UserError: the model's configs, the prompts and the settings do not fit together.
    """
    model = _weightless_model(config)
    config = with_batch_size(config, model, make_mesh(config.mesh))
    sample_bytes, source = stored_sample_bytes(config, folder), "measured on existing samples"
    if sample_bytes is None:
        sample_bytes, source = _typical_bytes(config, model), "estimated for photographs"
    return config, Estimate(
        rate=rate,
        sample_bytes=sample_bytes,
        disk_source=source,
        device_bytes=_device_bytes(config, model),
    )


def _weightless_model(config: RunConfig) -> Model:
    model_config = configured_model(config).config
    lora_merges(config.loras, model_config)  # refuses those that do not fit; reads no weight
    model = abstract_model(model_config, config.dtype)
    require_fit(model, config)
    require_prompts_fit(model, config)
    return model


def _typical_bytes(config: RunConfig, model: Model) -> float:
    height, width = latent_size(model, config.sampling.height, config.sampling.width)
    num_classes = sum(class_counts(config).values()) / config.num_images
    sizes = layer_sizes(model.unet_config, (height, width))
    locations = [math.prod(sizes[name]) for name in model.capture.self_layers]
    cross = len(model.capture.cross_layers) * min(locations, default=0) * num_classes
    evidence = 2 * height * width * num_classes * bool(config.sampling.presence_draws)
    return typical_sample_bytes(
        config,
        height * width * model.config.vae.downsampling**2,
        num_classes,
        attention_bytes=2 * (cross + evidence + sum(n**2 for n in locations)),  # of float16
    )


def _device_bytes(config: RunConfig, model: Model) -> int | None:
    sizes = (config.batch_size, config.plan.max_classes, config.plan.has_unnamed)
    return batch_bytes(model, config.pair_settings, make_mesh(config.mesh), *sizes)


def print_plan(config: RunConfig, rate: float | None) -> int:
    """Prints what a run would make and need; returns the exit status."""
    folder = open_folder(config.output)
    require_resumable(folder, config.settings())
    layout = ShardLayout(config.num_images, config.shard_size, config.batch_size or 1)
    existing = count_existing(folder, layout)
    rows = gather(len(local_rows_of(make_mesh(config.mesh))))
    if rate is None:
        config, estimate = measure_run(config)
    else:
        config, estimate = estimate_run(config, folder, rate)
    if is_first():
        print(describe_plan(config, rows, existing, estimate))
    return 0
