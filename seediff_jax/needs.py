"""What a run needs: measured by a trial round, or from a rate that the user knows.

no rate   model -> programs -> trial round -> time, disk; memory, of the compiled programs
a rate    configs alone, checked -> compiled -> memory; disk, of what is there or is typical
"""

from seediff_jax.batch_size import batch_bytes, programs_bytes
from seediff_jax.disk_space import stored_sample_bytes, typical_sample_bytes
from seediff_jax.make_dataset import prepare, require_fit, require_prompts_fit, with_batch_size
from seediff_jax.model import Model
from seediff_jax.planning import Needs, class_counts
from seediff_jax.programs import abstract_model, lower_programs
from seediff_jax.regenerate import measure
from seediff_jax.run_config import RunConfig
from seediff_jax.sharding import DATA, make_mesh
from seediff_jax.sources import find_source, read_source_config, require_loras
from seediff_jax.storage import Folder


def measured_needs(config: RunConfig) -> tuple[RunConfig, Needs]:
    """Makes a trial round on this machine, and throws it away.

    Returns:
        The config with its batch size, and what the run needs.

    Raises:
        ValueError: as a run does before its first round.
    """
    config, model, programs = prepare(config)
    measured = measure(config, model, programs)
    if config.partition == "shard_map":  # what ran is not compiled again
        sizes = (config.plan.max_classes, config.plan.has_unnamed)
        batch = config.batch_size * programs.mesh.shape[DATA]
        device_bytes = programs_bytes(lower_programs(programs, model, batch, *sizes), {})
    else:
        device_bytes = _device_bytes(config, model)
    return config, Needs(
        rate=config.batch_size / measured.seconds,
        sample_bytes=measured.sample_bytes,
        disk_source="as in a trial round",
        device_bytes=max(device_bytes or 0, measured.device_bytes or 0),
    )


def given_needs(config: RunConfig, folder: Folder, rate: float) -> tuple[RunConfig, Needs]:
    """What a run needs at a given rate; no weight is read, but all is checked that can be then.

    Args:
        config: of the run.
        folder: where it writes.
        rate: images a second of one row of the mesh.

    Returns:
        The config with its batch size, and what the run needs.

    Raises:
        ValueError: the model's configs, the prompts and the settings do not go together.
    """
    model = _weightless_model(config)
    config = with_batch_size(config, model, make_mesh(config.mesh))
    sample_bytes, source = stored_sample_bytes(config, folder), "as those that are there"
    if sample_bytes is None:
        sample_bytes, source = _typical_bytes(config, model), "as photographs take"
    return config, Needs(
        rate=rate,
        sample_bytes=sample_bytes,
        disk_source=source,
        device_bytes=_device_bytes(config, model),
    )


def _weightless_model(config: RunConfig) -> Model:
    source = find_source(config.model, config.revision, weights=False)
    model_config = read_source_config(source, **config.source_options)
    require_loras(model_config, config.loras)
    model = abstract_model(model_config, config.dtype)
    require_fit(model, config)
    require_prompts_fit(model, config)
    return model


def _typical_bytes(config: RunConfig, model: Model) -> float:
    height, width = config.pair_settings.sample_config(model).latent_size
    num_classes = sum(class_counts(config).values()) / config.num_images
    return typical_sample_bytes(
        config, height * width * model.vae_config.downsampling**2, num_classes
    )


def _device_bytes(config: RunConfig, model: Model) -> int | None:
    sizes = (config.batch_size, config.plan.max_classes, config.plan.has_unnamed)
    return batch_bytes(model, config.pair_settings, make_mesh(config.mesh), *sizes)
