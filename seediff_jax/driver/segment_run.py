"""A run of `seediff segment`: makes its RunConfig, checks its images, prints its mean IoU."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from seediff_jax.dataset.formats.metrics_json import METRICS
from seediff_jax.dataset.image_files import ImageFiles
from seediff_jax.dataset.resume import require_resumable
from seediff_jax.dataset.settings_file import COMMAND, read_settings
from seediff_jax.driver.config import ModelSource, RunConfig, RunSettings
from seediff_jax.errors import UserError
from seediff_jax.files.folder import open_folder
from seediff_jax.files.text import read_entries
from seediff_jax.masks.config import MaskConfig
from seediff_jax.masks.own_methods import method_name
from seediff_jax.prompts.prompt_source import make_image_plan
from seediff_jax.prompts.settings import ImageSource
from seediff_jax.sampling.config import with_draws
from seediff_jax.sampling.segment_config import SegmentConfig


def make_config(
    source: ModelSource,
    images: ImageSource,
    sampling: SegmentConfig,
    masks: MaskConfig,
    run: RunSettings,
) -> RunConfig:
    """Lists the images and makes their prompts.

    Raises:
        UserError: images, classes and settings do not fit together, or ask for something that
            segmentation cannot do.
        OSError: a folder or file cannot be read.
    """
    for name in ("keep_attention", "strips"):
        if getattr(run, name):
            raise UserError(
                f"{name}=true is not possible here: attention is of crops, not of whole images"
            )
    chosen = None
    if images.image_names is not None:
        chosen = tuple(name for _, name in read_entries(Path(images.image_names)))
    truth = None if images.truth is None else open_folder(images.truth)
    files = ImageFiles(open_folder(images.images), truth, chosen)
    plan, class_names = make_image_plan(
        source.model,
        files.names,
        sampling.template,
        images.classes,
        images.image_classes,
        images.class_ids,
    )
    return RunConfig(
        **vars(source),
        **vars(run),
        plan=plan,
        class_names=class_names,
        num_images=len(files),
        sampling=with_draws(sampling, may_lack=images.image_classes is None),
        masks=masks,
        images=files,
    )


def check_images(config: RunConfig) -> None:
    """Reads all images and truths once, unless a run with the same settings has done so.

    Raises:
        UserError: one of them cannot be used, or the folder holds samples of another run.
    """
    folder, settings = open_folder(config.output), config.settings()
    require_resumable(folder, settings)
    try:
        stored = read_settings(folder)
    except (UserError, OSError):
        stored = {}
    if all(stored.get(name) == settings[name] for name in settings.keys() - {COMMAND}):
        return
    with tqdm(total=len(config.images), desc="reading images", unit="image") as progress:
        config.images.check(1 + len(config.class_names), progress.update)


def describe_metrics(config: RunConfig) -> str:
    """What `metrics.json` of a complete run says, in one line per method."""
    found = json.loads(open_folder(config.output).read(METRICS))
    first, *others = map(method_name, config.masks.methods)

    def line(facts: Mapping[str, Any]) -> str:
        value = "none" if facts["mean_iou"] is None else f"{facts['mean_iou']:.4f}"
        seen = sum(iou is not None for iou in facts["iou"].values())
        images = found["images"]
        return f"mean IoU {value} over {seen} labels of {images} images, background included"

    if not others:
        return line(found)
    parts = {first: found} | {name: found["other_methods"][name] for name in others}
    return "\n".join(f"{name}: {line(facts)}" for name, facts in parts.items())
