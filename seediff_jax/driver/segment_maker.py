"""Makes the masks of given images: a PairMaker that reads images instead of generating them."""

import dataclasses
from typing import Any

import jax
import numpy as np

from seediff_jax.dataset.encoding import Sample
from seediff_jax.dataset.formats.metrics_json import COUNTS, label_counts
from seediff_jax.dataset.iou import confusion_matrix
from seediff_jax.driver.sample_maker import PairMaker, Round, class_mask, take_rows
from seediff_jax.masks.config import BACKGROUND, IGNORE_INDEX
from seediff_jax.pipeline.programs import PairRows
from seediff_jax.pipeline.segment_images import crop_all, network_size
from seediff_jax.pipeline.tiles import join, label_pixels, make_boxes, mean_scores
from seediff_jax.sampling.inputs import PairInputs


class SegmentMaker(PairMaker):
    """Makes blocks of a run whose config has images.

    A round runs the programs once for all its images, then for the k-th tile of each. The rows of a
    block have an axis of crops before all others.
    """

    def _run(self, inputs: PairInputs) -> list[PairRows]:
        config, files = self._config.sampling, self._config.images
        # The end of a run may cut a block short, which is made in full.
        indices = [int(index) % len(files) for index in inputs.indices]
        read = {index: files.read(index) for index in dict.fromkeys(indices)}
        images = [read[index] for index in indices]
        boxes = [make_boxes(image.shape[:2], config) for image in images]
        size = network_size(self._model, config)
        return [
            self._programs(inputs.replace(images=crop_all(images, boxes, k, size)))
            for k in range(self._num_calls(max(map(len, boxes))))
        ]

    def _num_calls(self, most: int) -> int:
        """Calls of a round; several hosts make as many, those that the largest image needs."""
        config = self._config.sampling
        if config.tile_side is None or jax.process_count() == 1:
            return most
        return max(len(make_boxes(size, config)) for size in self._config.images.sizes)

    def _fetch(self, made: Round) -> PairRows:
        crops = [self._programs.fetch(results) for results in made.results]
        return jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *crops)

    def _sample(self, index: int, inputs: PairInputs, rows: PairRows) -> Sample:
        config = self._config
        image, truth = config.images.read_pair(index, 1 + len(config.class_names))
        boxes = make_boxes(image.shape[:2], config.sampling)
        soft_masks = join(rows.soft_masks[: len(boxes)], boxes)
        labels = label_pixels(soft_masks, config.masks)
        whole = take_rows(rows.replace(is_finite={}), 0).replace(
            images=image,
            soft_masks=soft_masks,
            label_maps=labels,
            scores=mean_scores(soft_masks, labels),
        )
        sample = super()._sample(index, inputs, whole)
        sample.record.update(self._facts(index, sample.mask, truth))
        return sample

    def _facts(self, index: int, mask: np.ndarray, truth: np.ndarray | None) -> dict[str, Any]:
        """Which image it is, and how its mask compares with the truth."""
        facts: dict[str, Any] = {"source": self._config.images.names[index]}
        if truth is not None:
            num_labels = 1 + len(self._config.class_names)
            found = np.where(mask == IGNORE_INDEX, BACKGROUND, mask)
            facts[COUNTS] = label_counts(confusion_matrix(truth, found, num_labels))
        return facts

    def _draw_strip(self, rows: PairRows, sample: Sample) -> None:
        whole = take_rows(rows.replace(is_finite={}), 0)
        mask = class_mask(whole.label_maps, sample.record["class_ids"])
        super()._draw_strip(whole, dataclasses.replace(sample, mask=mask))
