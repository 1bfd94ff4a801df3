"""Makes the masks of given images: a PairMaker that reads images instead of generating them."""

import dataclasses

import jax
import numpy as np

from seediff_jax.dataset.encoding import Sample
from seediff_jax.dataset.formats.metrics_json import COUNTS, label_counts
from seediff_jax.dataset.iou import confusion_matrix
from seediff_jax.driver.sample_maker import PairMaker, Round, class_mask, take_rows
from seediff_jax.masks.config import BACKGROUND, IGNORE_INDEX
from seediff_jax.pipeline.programs import PairRows
from seediff_jax.pipeline.segment_images import crop_all, join_crops, network_size, stack_crops
from seediff_jax.pipeline.tiles import make_boxes
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
        whole = inputs.replace(images=crop_all(images, boxes, 0, size))
        tile = inputs.replace(evidence_token_ids=None)
        return [self._programs(whole)] + [
            self._programs(tile.replace(images=crop_all(images, boxes, k, size)), is_tile=True)
            for k in range(1, self._num_calls(max(map(len, boxes))))
        ]

    def _num_calls(self, most: int) -> int:
        """Calls of a round; several hosts all make as many as the largest image needs."""
        config = self._config.sampling
        if config.tile_side is None or jax.process_count() == 1:
            return most
        return max(len(make_boxes(size, config)) for size in self._config.images.sizes)

    def _fetch(self, made: Round) -> PairRows:
        return stack_crops([self._programs.fetch(results) for results in made.results])

    def _sample(self, index: int, inputs: PairInputs, rows: PairRows) -> Sample:
        config, files = self._config, self._config.images
        num_labels = 1 + len(config.class_names)
        image, truth = files.read_pair(index, num_labels)
        boxes = make_boxes(image.shape[:2], config.sampling)
        joined = join_crops(rows, boxes, config.masks, len(config.record(index).classes))
        first = next(joined)
        whole = take_rows(rows.replace(is_finite={}), 0).replace(
            images=image,
            soft_masks=first.soft_masks,
            label_maps=first.label_map,
            scores=first.scores,
        )
        # Soft masks of a large image take much memory; those of one method at a time are enough.
        if others := [(each.label_map, each.scores) for each in joined]:
            labels, scores = map(np.stack, zip(*others, strict=True))
            whole = whole.replace(other_label_maps=labels, other_scores=scores)
        sample = super()._sample(index, inputs, whole)
        sample.record["source"] = files.names[index]
        if truth is not None:
            others = sample.record.get("other_methods", {}).values()
            masks = (sample.mask, *(() if sample.other_masks is None else sample.other_masks))
            for facts, mask in zip((sample.record, *others), masks, strict=True):
                found = np.where(mask == IGNORE_INDEX, BACKGROUND, mask)
                facts[COUNTS] = label_counts(confusion_matrix(truth, found, num_labels))
        return sample

    def _draw_strip(self, rows: PairRows, sample: Sample) -> None:
        whole = take_rows(rows.replace(is_finite={}), 0)
        mask = class_mask(whole.label_maps, sample.record["class_ids"])
        super()._draw_strip(whole, dataclasses.replace(sample, mask=mask))
