"""Masks of given images: open-vocabulary segmentation by a diffusion model, without training.

    images, classes -> crops, prompts -> [ attend ] -> AttentionMaps -> [ mask_rows ] -> soft masks
    soft masks of crops -> soft masks and label maps of the images

The brackets are the two compiled programs; the second is that of a run.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from seediff_jax.errors import UserError, quoted
from seediff_jax.masks.config import MaskConfig
from seediff_jax.masks.own_methods import method_name
from seediff_jax.models.model import Model
from seediff_jax.pipeline.generate import DEFAULT_MASKS, sample_inputs
from seediff_jax.pipeline.method_check import require_method
from seediff_jax.pipeline.pair import Pair
from seediff_jax.pipeline.programs import MASKS, PairRows, mask_rows
from seediff_jax.pipeline.settings import LAST_INDEX, PairSettings, require_range
from seediff_jax.pipeline.tiles import Box, cut, join, label_pixels, make_boxes, mean_scores
from seediff_jax.prompts.names import require_classes
from seediff_jax.sampling.config import with_draws
from seediff_jax.sampling.inputs import ClassLists, image_prompts, pair_inputs
from seediff_jax.sampling.noise import latent_size
from seediff_jax.sampling.noised import require_timesteps
from seediff_jax.sampling.sampler import Samples, require_finite
from seediff_jax.sampling.segment_config import SegmentConfig

DEFAULT_SEGMENT = SegmentConfig()
"""The default settings."""

_mask_rows = jax.jit(mask_rows, static_argnames="settings")


def segment(
    model: Model,
    images: Sequence[np.ndarray],
    classes: Sequence[str] | Sequence[Sequence[str]],
    *,
    rng_seed: int = 0,
    first_index: int = 0,
    batch_size: int = 8,
    config: SegmentConfig = DEFAULT_SEGMENT,
    masks: MaskConfig = DEFAULT_MASKS,
) -> list[Pair]:
    """Finds classes in given images, by the attention of noised UNet calls.

    Every class gets a soft mask that is stretched to [0, 1], so the list of an image should name
    what the image shows. With one list for all images, classes that an image may not show are left
    out by default, see `presence_draws` and `masks.min_presence`. The result for image
    `first_index + i` depends on `rng_seed`, that index, the image, its classes and the settings.

    Args:
        model: the model.
        images: n images, uint8 `[H, W, 3]` of any size; or one array `[n, H, W, 3]`.
        classes: names to look for in all images, or a list of names for each image.
        rng_seed: 0 to 2**32 - 1, of the noise.
        first_index: index of the first image.
        batch_size: number of images at a time.
        config: settings of the UNet calls, and of tiles.
        masks: settings of the masks; `Pair.other_methods` has those of further methods.

    Returns:
        For each image, masks of its own size; label k + 1 is the k-th of its classes.

    Raises:
        UserError: an image is not uint8 with three colours, there are no classes or too many for
            a prompt, a setting is out of range, or the method of the masks cannot be used.
        FloatingPointError: a stage gave values that are not finite.
    """
    count, lists = len(images), _class_lists(classes, len(images))
    config = with_draws(config, may_lack=all(isinstance(each, str) for each in classes))
    for place, image in enumerate(images):
        _require_image(image, place)
    require_method(model, masks, config)
    require_range("first_index", first_index, LAST_INDEX + 1 - count)
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size} must be 1 or more")
    prompts, most = image_prompts(lists, config.template), max(map(len, lists), default=0)
    found: list[Pair] = []
    for start in range(0, count, batch_size):
        rows = range(start, min(start + batch_size, count))
        # The last batch is filled with one of its images, so that all run the same programs.
        padded = [*rows, *[start] * (min(batch_size, count) - len(rows))]
        found += _segment_batch(
            model,
            [np.asarray(images[row]) for row in padded],
            [prompts[row] for row in padded],
            ClassLists([lists[row] for row in padded], num_classes=most),
            [first_index + row for row in padded],
            PairSettings(rng_seed, config, masks),
        )[: len(rows)]
    return found


def _segment_batch(
    model: Model,
    images: list[np.ndarray],
    prompts: list[str],
    classes: ClassLists,
    indices: list[int],
    settings: PairSettings,
) -> list[Pair]:
    """Segments a batch: calls the programs for all images, then for the k-th tile of each."""
    config, masks, made = settings.sampling, settings.masks, []
    size = network_size(model, config)
    static = settings.static
    boxes = [make_boxes(image.shape[:2], config) for image in images]
    for k in range(max(map(len, boxes))):
        own, crops = settings.of_tiles if k else settings, crop_all(images, boxes, k, size)
        options = {"rng_seed": own.rng_seed, "config": own.sampling}
        samples = attend_images(model, crops, prompts, classes, indices, **options)
        rows = jax.tree.map(np.asarray, _mask_rows(None, own.scalars(), samples, settings=static))
        if not (is_finite := rows.is_finite[MASKS]).all():
            bad = np.asarray(indices)[~is_finite].tolist()
            raise FloatingPointError(f"soft masks of the samples {bad} are not finite")
        made.append(rows)
        if not k:
            cross_attention = np.asarray(samples.attention_maps.cross_attention)
    rows = stack_crops(made)
    found = []
    for i, (image, names) in enumerate(zip(images, classes.named, strict=True)):
        c, own = len(names), jax.tree.map(lambda leaf, i=i: leaf[i], rows)
        first, *others = (
            Pair(
                prompt=prompts[i],
                classes=tuple(names),
                image=image,
                label_map=each.label_map,
                soft_masks=each.soft_masks,
                cross_attention=cross_attention[i, ..., :c],
                seed_counts=own.seed_counts[0, :c],
                presence=each.presence,
                network_size=size,
            )
            for each in join_crops(own, boxes[i], masks, c)
        )
        by_name = dict(zip(map(method_name, masks.methods[1:]), others, strict=True))
        found.append(dataclasses.replace(first, other_methods=by_name))
    return found


def stack_crops(made: Sequence[PairRows]) -> PairRows:
    """Joins the rows of all calls, on the host: an axis of crops comes after that of images."""
    return jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *made)


class JoinedMasks(NamedTuple):
    """The masks of an image by one method; c is the number of its classes, without padding.

    Attributes:
        soft_masks: float32 `[c, H, W]`.
        label_map: uint8 `[H, W]`.
        scores: float32 `[c]`.
        presence: float32 `[c]`, in the whole image.
    """

    soft_masks: np.ndarray
    label_map: np.ndarray
    scores: np.ndarray
    presence: np.ndarray


def join_crops(
    rows: PairRows, boxes: Sequence[Box], masks: MaskConfig, num_classes: int
) -> Iterator[JoinedMasks]:
    """Joins the masks of the crops of an image, one method after the other.

    `rows` has a row for each crop, as NumPy arrays; those beyond `boxes` are not read.
    """
    for k, one in enumerate(masks.each()):
        crops, presence = rows.soft_masks, rows.presence
        if k:
            crops, presence = rows.other_soft_masks[:, k - 1], rows.other_presence[:, k - 1]
        soft_masks = join(crops[: len(boxes), :num_classes], boxes)
        labels = label_pixels(soft_masks, one)
        scores = mean_scores(soft_masks, labels)
        yield JoinedMasks(soft_masks, labels, scores, presence[0, :num_classes])


def attend_images(
    model: Model,
    images: np.ndarray,
    prompts: Sequence[str],
    classes: Sequence[Sequence[str]] | ClassLists,
    indices: Sequence[int],
    *,
    rng_seed: int = 0,
    config: SegmentConfig = DEFAULT_SEGMENT,
) -> Samples:
    """Reads the attention of images of a size that the networks take, see `noised.attend`.

    Args:
        model: the model.
        images: uint8 `[b, H, W, 3]`.
        prompts: b texts; the template of the config is not read.
        classes: the class names of each prompt, as of `generate`.
        indices: of the images, `[b]`, each 0 to 2**31 - 1; the noise depends on them.
        rng_seed: 0 to 2**32 - 1, of the noise.
        config: settings of the UNet calls.

    Raises:
        UserError: a prompt is too long or does not name a class, or a setting is out of range.
        FloatingPointError: a stage gave values that are not finite.
    """
    require_timesteps(model, config)
    latent_size(model, *images.shape[1:3])
    settings = PairSettings(rng_seed, config)
    inputs = pair_inputs(model, prompts, classes, indices, config).replace(images=images)
    samples = sample_inputs(model, settings.scalars(), inputs, settings.static.sampling)
    require_finite(samples, np.asarray(indices))
    return samples


def network_size(model: Model, config: SegmentConfig) -> tuple[int, int]:
    """Height and width in pixels to which images are resized.

    Raises:
        UserError: the networks do not take images of the size that the config asks for.
    """
    height, width = latent_size(model, config.height, config.width)
    factor = model.vae_config.downsampling
    return factor * height, factor * width


def crop_all(
    images: Sequence[np.ndarray], boxes: Sequence[Sequence[Box]], k: int, size: tuple[int, int]
) -> np.ndarray:
    """Cuts box k out of each image, or its last one if it has fewer: uint8 `[b, h, w, 3]`."""
    pairs = zip(images, boxes, strict=True)
    return np.stack([cut(image, own[min(k, len(own) - 1)], size) for image, own in pairs])


def _class_lists(
    classes: Sequence[str] | Sequence[Sequence[str]], count: int
) -> list[tuple[str, ...]]:
    """The names of each image, from one list for all or from one for each."""
    if isinstance(classes, str):
        raise UserError(f"classes={quoted(classes)} must be a list of names")
    if all(isinstance(each, str) for each in classes):
        return [require_classes(classes, "segment")] * count
    if len(classes) != count:
        raise UserError(f"got {count} images but {len(classes)} lists of classes")
    return [require_classes(names, f"image {place}") for place, names in enumerate(classes)]


def _require_image(image: np.ndarray, place: int) -> None:
    shape, kind = np.shape(image), getattr(image, "dtype", type(image).__name__)
    if len(shape) != 3 or shape[2] != 3 or 0 in shape or kind != np.uint8:
        raise UserError(f"image {place} is {kind} of shape {list(shape)}; expected uint8 [H, W, 3]")
