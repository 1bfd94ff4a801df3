"""`generate`, the whole data flow: prompts and class names in, images with their masks out.

    prompts, classes -> tokens -> [ sample ] -> images, AttentionMaps -> [ make_masks ] -> Pairs

The two brackets are two compiled programs: another threshold never compiles the UNet again.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
from flax import struct

from seediff_jax.array_typing import Array, UInt8
from seediff_jax.attention_maps import AttentionMaps
from seediff_jax.dataset.strips import ClassStages, method_strip
from seediff_jax.errors import listed, quoted
from seediff_jax.masks.config import MaskConfig
from seediff_jax.masks.label_maps import finite_masks, make_masks
from seediff_jax.masks.own_methods import method_name
from seediff_jax.models.model import Model
from seediff_jax.pipeline.method_check import require_kept_fits, require_method
from seediff_jax.pipeline.pair import Pair
from seediff_jax.pipeline.settings import LAST_INDEX, PairScalars, PairSettings, require_range
from seediff_jax.pipeline.stages import class_stages
from seediff_jax.sampling.config import SamplingConfig, with_draws
from seediff_jax.sampling.inputs import (
    DEFAULT_SAMPLING,
    ClassLists,
    PairInputs,
    pair_inputs,
    with_token_columns,
)
from seediff_jax.sampling.noised import attend
from seediff_jax.sampling.sampler import Samples, require_finite, sample
from seediff_jax.sampling.segment_config import SegmentConfig
from seediff_jax.settings import static_part

if TYPE_CHECKING:
    from PIL.Image import Image

DEFAULT_MASKS = MaskConfig()
"""The published way to masks."""


@dataclasses.dataclass(frozen=True)
class Texts:
    """Prompts and class names of Pairs, and for each token the characters [start, end) of it.

    The prompts are in Unicode's form NFC. All instances are equal: they are a static part of Pairs,
    and compiled functions that take Pairs must not depend on them.
    """

    prompts: tuple[str, ...] = ()
    classes: tuple[tuple[str, ...], ...] = ()
    tokens: tuple[tuple[tuple[int, int], ...], ...] = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Texts)

    def __hash__(self) -> int:
        return hash(Texts)


@struct.dataclass
class Pairs:
    """Images with their masks; c is the longest list of classes, shorter ones are padded.

    `pairs[i]` is a Pair, which notebooks show as a picture; a loop goes over all of them.

    Attributes:
        images: uint8 `[b, H, W, 3]`.
        soft_masks: float32 `[b, c, H, W]` in [0, 1], refined where that was asked for; 0 for the
            padding.
        label_maps: uint8 `[b, H, W]`: 0 background, k + 1 the k-th class of the image, 255 ignore.
        attention_maps: what the masks were made from; `cross_attention` has one column per class.
        seed_counts: int32 `[b, c]`, seed locations of each class; 0 says that nothing was found.
        presence: float32 `[b, c]` in [0, 1]; low values say that the image may not show the class,
            see `make_masks`.
        texts: prompts, and the classes of each image without padding.
        token_attention: float32 `[b, layers, n0, l]`, as `cross_attention`, with one column per
            token of the prompts, for heat maps of any word.
        other_methods: by their names, the same images with masks by each method after the first.
    """

    images: Array
    soft_masks: Array
    label_maps: Array
    attention_maps: AttentionMaps
    seed_counts: Array
    presence: Array
    texts: Texts = struct.field(pytree_node=False, default=Texts())
    token_attention: Array | None = None
    other_methods: dict[str, "Pairs"] = struct.field(default_factory=dict)

    @property
    def is_class(self) -> np.ndarray:
        """Which columns are classes, bool `[b, c]`; the others are padding."""
        counts = np.array([len(classes) for classes in self.texts.classes])
        return np.arange(self.soft_masks.shape[1]) < counts[:, None]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> Pair:
        place = range(len(self))[place]
        classes = self.texts.classes[place]
        c = len(classes)
        return Pair(
            prompt=self.texts.prompts[place],
            classes=classes,
            image=np.asarray(self.images[place]),
            label_map=np.asarray(self.label_maps[place]),
            soft_masks=np.asarray(self.soft_masks[place, :c]),
            cross_attention=np.asarray(self.attention_maps.cross_attention[place, ..., :c]),
            seed_counts=np.asarray(self.seed_counts[place, :c]),
            presence=np.asarray(self.presence[place, :c]),
            tokens=self.texts.tokens[place] if self.texts.tokens else (),
            token_attention=(
                None if self.token_attention is None else np.asarray(self.token_attention[place])
            ),
            other_methods={name: other[place] for name, other in self.other_methods.items()},
        )

    def remask(self, masks: MaskConfig = DEFAULT_MASKS) -> "Pairs":
        """Makes other masks from the same attention, without sampling.

        Raises:
            UserError: the attention lacks what the method reads.
            FloatingPointError: the method gave values that are not finite.
        """
        return _with_masks(self, masks, 0)

    def stages(self, place: int, masks: MaskConfig = DEFAULT_MASKS) -> list[ClassStages]:
        """Computes how the mask of each class of an image came about, before refinement.

        `seediff_jax.dataset.strips` draws it. A method without levels has one soft mask, in the
        size of the image.

        Args:
            place: of the image.
            masks: the settings of one method.

        Raises:
            UserError: there are several methods, or a user's own method cannot be used.
        """
        place = range(len(self))[place]
        maps = jax.tree.map(lambda leaf: leaf[place], self.attention_maps)
        return class_stages(maps, self.texts.classes[place], self.images.shape[1:3], masks)

    def strip(
        self, place: int, name: str, masks: MaskConfig = DEFAULT_MASKS, *, tile: int = 256
    ) -> "Image":
        """Draws the stages of one class of an image in a row, see `method_strip`.

        Args:
            place: of the image.
            name: one of its classes, in any spelling.
            masks: the settings that its masks were made with.
            tile: longer edge of a picture in pixels.

        Raises:
            UserError: the image has no such class, or as of `stages`.
        """
        pair = self[place]
        stages = self.stages(place, masks)[pair.class_number(name)]
        return method_strip(pair.image, pair.label_map, stages, tile=tile)

    def __repr__(self) -> str:
        _, height, width, _ = self.images.shape
        texts = listed(map(quoted, self.texts.prompts), 3)
        return f"Pairs({len(self)} of {width} x {height}: {texts})"

    def _repr_html_(self) -> str:
        return "".join(f"<div>{pair._repr_html_()}</div>" for pair in self)


def generate(
    model: Model,
    prompts: Sequence[str],
    classes: Sequence[Sequence[str]] | ClassLists,
    *,
    rng_seed: int = 0,
    first_index: int = 0,
    sampling: SamplingConfig = DEFAULT_SAMPLING,
    masks: MaskConfig = DEFAULT_MASKS,
) -> Pairs:
    """Generates an image for each prompt, and its masks of the classes that the prompt names.

    Sample `first_index + i` depends on `rng_seed`, that index, its prompt and the settings, not on
    the batch that it is part of. Another shape (prompts, classes, images) or another setting that
    is not traced compiles again, see `Setting.traced`.

    Args:
        model: the model; `model.with_config(scheduler=...)` chooses another sampler.
        prompts: b texts.
        classes: the class names of each prompt, in the order of their labels from 1 on; ClassLists
            adds classes that a prompt does not name, synonyms and padding.
        rng_seed: 0 to 2**32 - 1.
        first_index: index of the first sample.
        sampling: settings of the images.
        masks: settings of the masks; `Pairs.other_methods` has those of further methods.

    Raises:
        UserError: a prompt is too long or does not name a class, a setting is out of range, the
            method of the masks cannot be used, or `capture.kept_layers` would take over 4 GiB.
        FloatingPointError: a stage of sampling, or the masks, gave values that are not finite.
    """
    require_method(model, masks, sampling)
    has_unnamed = isinstance(classes, ClassLists) and any(classes.unnamed or ())
    sampling = with_draws(sampling, has_unnamed)
    samples = _sample(model, prompts, classes, first_index, PairSettings(rng_seed, sampling))
    maps, length = samples.attention_maps, model.tokenizer.max_length
    pairs = Pairs(
        images=samples.images,
        soft_masks=None,
        label_maps=None,
        attention_maps=maps.replace(cross_attention=maps.cross_attention[..., :-length]),
        seed_counts=None,
        presence=None,
        texts=_texts(model, prompts, classes),
        token_attention=maps.cross_attention[..., -length:],
    )
    return _with_masks(pairs, masks, first_index)


def _with_masks(pairs: Pairs, masks: MaskConfig, first_index: int) -> Pairs:
    first, *rest = masks.each()
    others = {method_name(each.method): _with_masks(pairs, each, first_index) for each in rest}
    thresholds = PairSettings(masks=first).scalars().thresholds
    soft_masks, label_maps, seed_counts, presence = make_masks(
        pairs.images, pairs.attention_maps.replace(kept={}), thresholds, config=static_part(first)
    )
    if not (is_finite := np.asarray(finite_masks(soft_masks))).all():
        raise FloatingPointError(
            f"soft masks of the samples {(first_index + np.flatnonzero(~is_finite)).tolist()} by "
            f"{method_name(first.method)} are not finite"
        )
    made = {"soft_masks": soft_masks, "label_maps": label_maps, "seed_counts": seed_counts}
    return pairs.replace(**made, presence=presence, other_methods=others)


def _texts(
    model: Model, prompts: Sequence[str], classes: Sequence[Sequence[str]] | ClassLists
) -> Texts:
    lists = classes if isinstance(classes, ClassLists) else ClassLists(classes)
    unnamed = lists.unnamed or [()] * len(prompts)
    both = zip(lists.named, unnamed, strict=True)
    texts, tokens = model.tokenizer.tokenize(prompts)
    return Texts(
        tuple(texts),
        tuple((*named, *others) for named, others in both),
        tuple(tuple((start, end) for _, start, end in row) for row in tokens),
    )


def generate_images(
    model: Model,
    prompts: Sequence[str],
    *,
    rng_seed: int = 0,
    first_index: int = 0,
    sampling: SamplingConfig = DEFAULT_SAMPLING,
) -> UInt8[Array, "b H W 3"]:
    """Generates the images of `generate`, and records no attention.

    Raises:
        UserError: a prompt is too long, or a setting is out of range.
        FloatingPointError: a stage of sampling gave values that are not finite.
    """
    settings = PairSettings(rng_seed, sampling)
    return _sample(model, prompts, None, first_index, settings).images


def sample_inputs(
    model: Model, scalars: PairScalars, inputs: PairInputs, config: SamplingConfig | SegmentConfig
) -> Samples:
    """Runs the first program on prepared inputs; `config` is static."""
    if isinstance(config, SegmentConfig):
        options = {"rng_seed": scalars.rng_seed, "timesteps": scalars.timesteps}
        return attend(model, inputs, **options, config=config)
    return sample(
        model,
        inputs,
        rng_seed=scalars.rng_seed,
        guidance_scale=scalars.guidance_scale,
        guidance_rescale=scalars.guidance_rescale,
        size_condition=scalars.size_condition,
        config=config,
    )


def _sample(
    model: Model,
    prompts: Sequence[str],
    classes: Sequence[Sequence[str]] | ClassLists | None,
    first_index: int,
    settings: PairSettings,
) -> Samples:
    """Runs the first program and checks what it made."""
    count = len(prompts)
    require_range("first_index", first_index, LAST_INDEX + 1 - count)
    indices = np.arange(first_index, first_index + count, dtype=np.int32)
    inputs = pair_inputs(model, prompts, classes, indices, settings.sampling)
    if classes is not None:
        inputs = with_token_columns(inputs)
        images, columns, _ = inputs.class_token_mask.shape
        require_kept_fits(model, settings.sampling, images, columns)
    samples = sample_inputs(model, settings.scalars(), inputs, settings.static.sampling)
    require_finite(samples, indices)
    return samples
