"""From a RunConfig to a finished dataset folder: load, check, generate batch after batch, write.

RunConfig -> load_model -> generate -> DatasetWriter
"""

from collections.abc import Iterable, Sequence

import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

from seediff_jax.class_columns import class_columns
from seediff_jax.dataset import DatasetWriter, require_resumable
from seediff_jax.model import Model, load_model
from seediff_jax.noise import latent_size
from seediff_jax.pictures import method_strip
from seediff_jax.pipeline import Pairs, generate
from seediff_jax.prompt_tokens import encode_prompts
from seediff_jax.prompts import PromptRecord
from seediff_jax.run_config import RunConfig
from seediff_jax.schedulers import make_steps
from seediff_jax.seeds import find_seeds, seed_map


def make_dataset(config: RunConfig) -> None:
    """Makes the samples that the output folder does not have yet, and its pictures for people.

    Raises:
        ValueError: a prompt does not suit the model, or the folder another run.
        OSError: the folder cannot be written.
    """
    require_resumable(config.output, config.settings())
    model = load_model(
        config.model,
        dtype=config.dtype,
        scheduler=config.scheduler,
        prediction_type=config.prediction_type,
        tokenizer=config.tokenizer,
        revision=config.revision,
        loras=config.loras,
        capture=config.capture,
    )
    _require_fit(model, config)
    writer = DatasetWriter(config.output, config.settings_with(model))
    missing = [i for i in range(config.num_images) if i not in writer.rows]
    done = config.num_images - len(missing)
    print(
        f"{config.num_images} images of {len(config.plan)} prompts with {model.model_id} on "
        f"{jax.devices()[0].device_kind}, {done} of them there already"
    )
    with tqdm(total=config.num_images, initial=done, unit="image") as progress:
        for first in batch_starts(missing, config.batch_size):
            progress.update(_write_batch(writer, config, first, _generate(model, config, first)))
    writer.finish()
    empty = sum(bool(row["empty"]) for row in writer.rows.values())
    print(
        f"{len(writer.rows)} images with masks are in {config.output} "
        f"({empty} with an empty mask); look at {config.output / 'contact_sheet.png'}"
    )


def batch_starts(missing: Iterable[int], batch_size: int) -> list[int]:
    """First indices of the batches that hold `missing`.

    Batches begin at multiples of `batch_size`: rounding may depend on the place in a batch, and so
    a run that was stopped ends with the same files, to the bit, as one that was not.
    """
    return sorted({index // batch_size * batch_size for index in missing})


def _require_fit(model: Model, config: RunConfig) -> None:
    steps = make_steps(model.scheduler_config, config.num_steps)
    model.capture.recorded_calls(len(steps.timesteps))
    latent_size(model, config.height, config.width)
    prompts = [record.prompt for record in config.plan.records]
    encode_prompts(model, [*prompts, config.negative_prompt])
    named = [record.named for record in config.plan.records]
    unnamed = _unnamed_classes(config, config.plan.records)
    class_columns(model, prompts, named, unnamed, config.plan.synonyms)


def _generate(model: Model, config: RunConfig, first: int) -> Pairs:
    """Generates a full batch from index `first` on, though it may end beyond the last image."""
    records = [config.record(first + k) for k in range(config.batch_size)]
    return generate(
        model,
        [record.prompt for record in records],
        [record.named for record in records],
        unnamed_classes=_unnamed_classes(config, records),
        synonyms=config.plan.synonyms,
        rng_seed=config.rng_seed,
        first_index=first,
        num_steps=config.num_steps,
        guidance_scale=config.guidance_scale,
        guidance_rescale=config.guidance_rescale,
        negative_prompt=config.negative_prompt,
        height=config.height,
        width=config.width,
        mask_config=config.mask_config,
        threshold=config.thresholds[0],
        uncertain=config.thresholds[1],
        refine_iterations=config.refine_iterations,
        dilations=config.dilations,
        refined_threshold=config.refined_threshold,
        num_classes=config.plan.max_classes,
    )


def _unnamed_classes(
    config: RunConfig, records: Sequence[PromptRecord]
) -> list[tuple[str, ...]] | None:
    """Unnamed classes of some prompts; None if no prompt of the run has any."""
    if not config.plan.has_unnamed:
        return None
    return [record.unnamed for record in records]


def _write_batch(writer: DatasetWriter, config: RunConfig, first: int, pairs: Pairs) -> int:
    """Writes the samples of a batch that the run asks for and lacks; returns their number."""
    images, label_maps = np.asarray(pairs.images), np.asarray(pairs.label_maps)
    seed_counts = np.asarray(pairs.seed_counts)
    wanted = range(first, min(first + config.batch_size, config.num_images))
    new = [index for index in wanted if index not in writer.rows]
    for index in new:
        record, k = config.record(index), index - first
        if index == 0 and config.mask_config.method == "seediff":
            mask = writer.mask(label_maps[0], record.classes)
            writer.write_picture("strip.png", _draw_strip(pairs, images[0], mask))
        writer.write(
            index,
            images[k],
            label_maps[k],
            prompt=record.prompt,
            classes=record.classes,
            seed_counts=seed_counts[k, : len(record.classes)].tolist(),
        )
    return len(new)


def _draw_strip(pairs: Pairs, image: np.ndarray, mask: np.ndarray) -> Image.Image:
    """The method on the first class of a batch's first image."""
    seeds = jax.jit(lambda maps: find_seeds(seed_map(maps)))(
        pairs.attention_maps.cross_attention[0, :, :, 0]
    )
    return method_strip(image, np.asarray(seeds), np.asarray(pairs.soft_masks[0, 0]), mask)
