"""Writes the good samples of a complete dataset to a new one, or lists them.

    records -> ClassFacts -> select -> indices, or parts of samples -> a new dataset

Parts that both datasets have are copied byte for byte.
"""

from typing import Any

import numpy as np

from seediff_jax.dataset.formats.names import (
    ATTENTION_PART,
    KEEPING,
    OTHER_METHODS_PART,
    STRIPS_PART,
)
from seediff_jax.errors import UserError, shown
from seediff_jax.files.folder import Folder, open_folder, open_parent
from seediff_jax.review.copies import Copier, copied_from, write_copy
from seediff_jax.review.criteria import class_counts, select
from seediff_jax.review.finished import Finished, open_finished, read_class_facts
from seediff_jax.review.settings import Criteria, FilterOutput
from seediff_jax.settings import stored_settings


def filter_dataset(folder: Folder, criteria: Criteria, output: FilterOutput) -> list[str]:
    """Counts the samples that meet the criteria and, where there is an output, writes them.

    Args:
        folder: of a finished dataset, which is only read.
        criteria: which samples to keep.
        output: where they go.

    Returns:
        The report in lines: counts per class, counts of all samples, and what was written.

    Raises:
        UserError: the folder is not a finished dataset, or lacks the presence that a criterion
            needs, or the output cannot be used.
        OSError: a file cannot be read or written.
    """
    source = open_finished(folder)
    facts = read_class_facts(source)
    is_judged = ~np.isnan(facts.presence)
    if criteria.min_presence is not None and len(is_judged) and not is_judged.any():
        raise UserError(
            f"min_presence={criteria.min_presence:g}: {folder} has no presence of its classes to "
            "judge, because an older release made it or its masks are those of cross_attention; "
            "leave min_presence out"
        )
    kept = select(facts, criteria)
    lines = [
        f"{source.class_names[class_id - 1]}: {after} of {before} kept"
        for class_id, (before, after) in class_counts(facts, kept).items()
    ]
    indices = facts.indices[kept]
    lines.append(f"all: {len(indices)} of {len(kept)} kept")
    if output.output is None:
        return lines
    if not len(indices):
        raise UserError("; ".join([*lines, "nothing to write: ask for less"]))
    if output.output.endswith(".txt"):
        _write_list(output.output, indices)
    else:
        settings = _new_settings(source, criteria, output)
        write_copy(Copier(source, indices), open_folder(output.output), settings)
    return [*lines, f"{output.output} has the {len(indices)} that are kept"]


def _write_list(path: str, indices: np.ndarray) -> None:
    folder, name = open_parent(path)
    content = "".join(f"{index}\n" for index in indices).encode()
    if folder.exists(name):
        if folder.size(name) != len(content) or folder.read(name) != content:
            raise UserError(f"output={shown(path)} exists already; give another name")
        return
    folder.write(name, content)


def _new_settings(source: Finished, criteria: Criteria, output: FilterOutput) -> dict[str, Any]:
    """The settings of the source, with what was filtered, and without parts that are not copied."""
    formats = list(output.formats or source.settings["format"])
    has_place = bool({*formats} & {*KEEPING})
    there = {part for each in source.formats for part in each.parts if has_place}
    soft, methods = source.settings["soft_masks"], source.method_names
    return {
        **source.settings,
        "format": formats,
        "soft_masks": soft if f"soft.{soft}" in there else None,
        "seed_maps": "seeds.npz" in there,
        "keep_attention": ATTENTION_PART in there,
        "strips": STRIPS_PART in there,
        "mask_method": methods if OTHER_METHODS_PART in there else methods[0],
        **copied_from(source, stored_settings(criteria)),
    }
