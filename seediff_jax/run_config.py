"""RunConfig: everything that a run of the driver is asked to make, checked before any model work.

    PromptPlan -> RunConfig -> the settings that pin its samples down

Host only. The plan says which prompt image i shows, and the image depends on `rng_seed` and i
alone; so the number of images, the batch size and the folder are no settings of a sample.
"""

import dataclasses
import hashlib
import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax

import seediff_jax
from seediff_jax.dataset import require_formats
from seediff_jax.folder_settings import VERSIONS
from seediff_jax.model import Model
from seediff_jax.pair_settings import PairSettings
from seediff_jax.prompt_plan import PromptPlan
from seediff_jax.prompts import PromptRecord
from seediff_jax.shard_layout import ShardLayout
from seediff_jax.sharding import ALL_DEVICES, MeshShape


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What to generate, with which settings, and where to put it.

    Attributes:
        plan: the prompts with their classes, and the order in which the images show them.
        class_names: of the whole run; the class at position k has the id k + 1 in every mask.
        output: folder or URL.
        num_images: images in the finished folder.
        batch_size: images at a time on each device; None is the most that fit.
        formats: names out of `formats.FORMATS`.
        soft_masks: "npz" or "png", to keep soft masks too, or None.
        seed_maps: whether to keep seed maps too.
        shard_size: samples of a shard file.
        mesh: how devices share the work, see `make_mesh`.
        partition: see `PairPrograms`.
        log_dir: see `monitor`; None for no log.
        profile: whether to write a profile there.
        revision, tokenizer, prediction_type, loras, scheduler, scheduler_options, capture: see
            `load_model`; None is the checkpoint's own.
        pair_settings: of images and masks, as in `generate`.
    """

    plan: PromptPlan
    class_names: tuple[str, ...]
    output: str | os.PathLike[str]
    num_images: int
    batch_size: int | None = 4
    formats: tuple[str, ...] = ("files",)
    soft_masks: str | None = None
    seed_maps: bool = False
    shard_size: int = 1000
    mesh: MeshShape = ALL_DEVICES
    partition: str = "shard_map"
    log_dir: str | None = None
    profile: bool = False
    model: str = "shapes"
    revision: str | None = None
    tokenizer: str | None = None
    prediction_type: str | None = None
    loras: tuple[tuple[str, float], ...] = ()
    dtype: str = "float32"
    scheduler: str | None = None
    scheduler_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    capture: str | None = None
    pair_settings: PairSettings = PairSettings()

    def __post_init__(self):
        ShardLayout(self.num_images, self.shard_size, self.batch_size or 1)
        require_formats(self.formats)
        if self.profile and self.log_dir is None:
            raise ValueError("profile needs log_dir, the folder to write it to")

    def record(self, index: int) -> PromptRecord:
        """The prompt of image `index`, which may lie beyond `num_images`."""
        return self.plan.record(index)

    def unnamed_classes(self, records: Sequence[PromptRecord]) -> list[tuple[str, ...]] | None:
        """Unnamed classes of some prompts; None if no prompt of the run has any."""
        if not self.plan.has_unnamed:
            return None
        return [record.unnamed for record in records]

    @property
    def source_options(self) -> dict[str, Any]:
        """Arguments of `read_source_config`, and of `load_model`, beside the model's name."""
        names = ("scheduler", "scheduler_options", "prediction_type", "tokenizer", "capture")
        return {name: getattr(self, name) for name in names}

    def settings(self) -> dict[str, Any]:
        """Settings of a sample that are known without the model, as JSON values."""
        pairs, masks = self.pair_settings, self.pair_settings.mask_config
        threshold, uncertain = pairs.thresholds
        return {
            "seediff_jax_version": seediff_jax.__version__,
            "model": self.model,
            "revision": self.revision,
            "tokenizer": self.tokenizer,
            "loras": [list(pair) for pair in self.loras],
            "dtype": self.dtype,
            "capture": self.capture,
            "scheduler_options": dict(self.scheduler_options),
            "rng_seed": pairs.rng_seed,
            "num_steps": pairs.num_steps,
            "guidance_scale": pairs.guidance_scale,
            "guidance_rescale": pairs.guidance_rescale,
            "negative_prompt": pairs.negative_prompt,
            "height": pairs.height,
            "width": pairs.width,
            "mask_method": masks.method,
            "affinity": masks.affinity,
            "power": masks.resolved_power,
            "background": masks.background,
            "threshold": threshold,
            "uncertain": uncertain,
            "refine_iterations": pairs.refine_iterations,
            "dilations": list(pairs.dilations),
            "refined_threshold": pairs.refined_threshold,
            **self.plan.settings(),
            "formats": list(self.formats),
            "soft_masks": self.soft_masks,
            "seed_maps": self.seed_maps,
            "shard_size": self.shard_size,
            "dry_run": pairs.dry_run,
            "class_names": list(self.class_names),
        }

    def settings_with(self, model: Model) -> dict[str, Any]:
        """All settings of a sample, as JSON values: those known before and the model's."""
        config_hash = hashlib.sha256(repr(model.config).encode()).hexdigest()
        return self.settings() | {
            "scheduler": model.scheduler_config.kind,
            "prediction_type": model.scheduler_config.prediction_type,
            "weights_hash": model.weights_hash,
            "config_hash": config_hash,
            VERSIONS: {
                name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy")
            },
        }

    def row_settings(self, model: Model) -> dict[str, Any]:
        """What stands in the record of every sample: settings, and what need not stay the same."""
        left_out = ("class_names", "formats", "shard_size")
        settings = {k: v for k, v in self.settings_with(model).items() if k not in left_out}
        # A branch of the hub may move on to a commit with the same weights in the middle of a run.
        return settings | {
            "commit": model.commit,
            "batch_size": self.batch_size,
            "model_axis": self.mesh.model,
            "device": jax.devices()[0].device_kind,
        }
