"""RunConfig: all settings of a run, checked before any model is loaded.

    flags -> ModelSource, RunSettings, Task; SamplingConfig, MaskConfig, PromptSource
    PromptPlan + all of them -> RunConfig -> the settings that determine its samples

Quick to import, so that a bad flag is refused at once: it loads neither JAX nor NumPy. The plan
says which prompt image i shows, and the noise of image i depends only on `rng_seed` and i. The
number of images, the batch size and the folder are therefore not settings of a sample.
"""

import dataclasses
import hashlib
import importlib.metadata
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import seediff_jax
from seediff_jax.dataset.formats.names import FORMAT_NAMES, SOFT, kept_parts, require_place
from seediff_jax.dataset.settings_file import COMMAND, FORM, PRECISION, VERSIONS
from seediff_jax.driver.flag_parsers import parse_batch_size, parse_loras, parse_scheduler_options
from seediff_jax.errors import UserError, shown
from seediff_jax.files.paths import url_scheme
from seediff_jax.masks.config import MaskConfig, require_presence
from seediff_jax.masks.own_methods import own_method_sources
from seediff_jax.pipeline.settings import (
    ALL_DEVICES,
    LAST_INDEX,
    LAST_SEED,
    PARTITIONS,
    MeshShape,
    PairSettings,
    parse_mesh,
)
from seediff_jax.prompts.embedded_models import (
    DEFAULT_MODEL,
    EMBEDDED_MODELS,
    require_known_words,
)
from seediff_jax.prompts.settings import PromptSource
from seediff_jax.sampling.config import SamplingConfig, with_draws
from seediff_jax.sampling.segment_config import SegmentConfig
from seediff_jax.schedulers.config import PREDICTION_TYPES
from seediff_jax.schedulers.registry import SCHEDULERS
from seediff_jax.settings import check_settings, setting, stored_settings

if TYPE_CHECKING:
    from seediff_jax.models.model import Model
    from seediff_jax.prompts.prompt_plan import PromptPlan
    from seediff_jax.prompts.prompt_record import PromptRecord

DTYPES = ("float32", "bfloat16", "float16")
"""Precisions of the networks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSource:
    """The model to load, and changes to it; see `load_model`."""

    model: str = setting(
        DEFAULT_MODEL,
        f"{' or '.join(EMBEDDED_MODELS)} (both come with the package), a folder, a .safetensors "
        "file or a Hugging Face hub id.",
        path=True,
    )
    revision: str | None = setting(None, "Branch, tag or commit of a hub id.")
    tokenizer: str | None = setting(
        None,
        "Folder or hub id to take the tokenizer from; by default the model's own, or for a "
        ".safetensors file that of openai/clip-vit-large-patch14. For XL, which has two "
        "tokenizers, both are replaced; if the folder has only one, it is used for both.",
        path=True,
    )
    vae: str | None = setting(
        None,
        "VAE to use in place of the model's own: a .safetensors file, or the folder of a VAE or a "
        "model.",
        path=True,
    )
    scheduler: str | None = setting(
        None, "Sampler; by default the model's own.", choices=tuple(SCHEDULERS), stored=False
    )
    scheduler_options: Mapping[str, Any] = setting(
        dict,
        "Options of the sampler to change, with the names of diffusers, as in "
        "use_karras_sigmas=true,timestep_spacing=trailing.",
        parse=parse_scheduler_options,
    )
    prediction_type: str | None = setting(
        None,
        "What the UNet predicts; by default what the model's files say. A .safetensors file of "
        "Stable Diffusion 2.x may not say it.",
        choices=PREDICTION_TYPES,
        stored=False,
    )
    loras: tuple[tuple[str, float], ...] = setting(
        (),
        "LoRA file to merge and its weight, as in style.safetensors:0.8; can be repeated.",
        flag="lora",
        repeated=True,
        parse=parse_loras,
        path=True,
    )
    dtype: str = setting("float32", "Precision of the networks.", choices=DTYPES)
    capture: str | None = setting(
        None,
        "Which attention is recorded: published (the layers of the paper), coarse (without the "
        "finest level), later_half (the model's choice, in the second half of the UNet calls), "
        "two_levels (seeds from two levels), or a JSON file with lists of layers; by default the "
        "model's choice.",
        path=True,
    )

    def __post_init__(self):
        check_settings(self)
        if not self.model:
            raise UserError('model="" is empty; give a name, a folder, a file or a hub id')

    @property
    def source_options(self) -> dict[str, Any]:
        """Arguments of `read_source_config`, besides the model's name."""
        names = ("scheduler", "scheduler_options", "prediction_type", "tokenizer", "vae", "capture")
        return {name: getattr(self, name) for name in names}

    @property
    def load_options(self) -> dict[str, Any]:
        """Arguments of `load_model`, besides the model's name."""
        names = ("dtype", "revision", "loras")
        return self.source_options | {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputSettings:
    """What a run writes."""

    rng_seed: int = setting(
        0,
        "Seed of the noise. The noise of image i depends only on the seed and on i.",
        flag="seed",
        least=0,
        most=LAST_SEED,
    )
    output: str | None = setting(
        None,
        "Folder or URL to write to; by default outputs/NAME, with the name of the model.",
        stored=False,
        path=True,
    )
    formats: tuple[str, ...] = setting(
        ("files",), "Formats to write, separated by commas.", flag="format", choices=FORMAT_NAMES
    )
    soft_masks: str | None = setting(
        None, "Also write soft masks, as arrays or as 16-bit images.", choices=SOFT
    )
    seed_maps: bool = setting(False, "Also write seed maps.")
    keep_attention: bool = setting(
        False,
        "Also write the attention, in float16; `seediff remask` makes other masks from it. It "
        "takes 36 MB per image of Stable Diffusion 1 at 512 x 512; --plan prints the size.",
    )
    strips: bool = setting(
        False,
        "Also draw how each mask came about: image, seeds, soft mask of each level, mask.",
    )
    shard_size: int = setting(1000, "Number of images per shard file.", least=1, most=10**6)


def default_output(source: str) -> str:
    """The default output folder: outputs/ and the name of a model or a folder."""
    place = source if url_scheme(source) else os.path.abspath(source)  # "." has no name
    name = os.path.basename(place.rstrip("/")).removesuffix(".safetensors")
    return os.path.join("outputs", name or "run")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostSettings:
    """How devices and hosts share the work of a run; changes no sample beyond rounding."""

    batch_size: int | None = setting(
        4,
        "Number of images per batch on each device; auto chooses the largest that fits.",
        least=1,
        most=4096,
        stored=False,
        parse=parse_batch_size,
        text="4",
    )
    mesh: MeshShape = setting(
        ALL_DEVICES,
        "How devices share the work: the axis data divides samples, the axis model divides weights "
        "that are too large for one device, as in data:-1,model:2. -1 takes all other devices.",
        stored=False,
        parse=parse_mesh,
        text="data:-1",
    )
    partition: str = setting(
        "shard_map", "How JAX runs the programs on all devices.", stored=False, choices=PARTITIONS
    )
    log_dir: str | None = setting(
        None,
        "Local folder for a log as JSON lines and TensorBoard curves; by default there is none.",
        stored=False,
        path=True,
    )
    profile: bool = setting(
        False,
        "Write a JAX profile of one round to --log_dir.",
        stored=False,
        needs=("log_dir=FOLDER, the folder to write it to", lambda run: run.log_dir is not None),
    )
    compilation_cache: str | None = setting(
        None,
        "Folder or URL that keeps compiled programs between runs; an empty value keeps none. By "
        "default JAX_COMPILATION_CACHE_DIR, or ~/.cache/seediff_jax/xla if that is not set.",
        stored=False,
        path=True,
        may_be_empty=True,
    )
    coordinator: str | None = setting(
        None,
        "host:port of process 0. Give --coordinator, --num_processes and --process_id together; "
        "they are not needed on TPU pods, GKE, Slurm and Open MPI.",
        stored=False,
    )
    num_processes: int | None = setting(
        None, "Number of processes of the run.", least=1, most=10**6, stored=False
    )
    process_id: int | None = setting(
        None, "Number of this process, from 0.", least=0, most=10**6, stored=False
    )
    start_timeout: int = setting(
        300,
        "Seconds that hosts wait for one another at the start.",
        least=1,
        most=86400,
        stored=False,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings(HostSettings, OutputSettings):
    """A run's own settings.

    Raises:
        UserError: a value is out of range, or a setting lacks another one that it needs.
    """

    def __post_init__(self):
        check_settings(self)
        if self.log_dir is not None and url_scheme(self.log_dir):
            raise UserError(
                f"log_dir={shown(self.log_dir)} must be a local folder, as in log_dir=/tmp/log; "
                "objects in a bucket cannot be appended to"
            )
        require_place(self.formats, kept_parts(stored_settings(self)))
        names = ("coordinator", "num_processes", "process_id")
        if len({getattr(self, name) is None for name in names}) > 1:
            given = ", ".join(f"{name}={getattr(self, name)}" for name in names)
            raise UserError(f"{given}: give all three, or none where the cluster is recognised")
        if self.process_id is not None and self.process_id >= self.num_processes:
            raise UserError(f"process_id={self.process_id} must lie in 0..{self.num_processes - 1}")
        if self.coordinator is not None and not re.fullmatch(r".+:\d{1,5}", self.coordinator):
            text = shown(self.coordinator, 200)
            raise UserError(f"coordinator={text} must be host:port, as in 10.0.0.1:9876")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What to do with the dataset; by default the run makes its missing samples.

    Raises:
        UserError: more than one task is given.
    """

    plan: bool = setting(
        False, "Only print what the run would make, how long it takes and what it needs."
    )
    rate: float | None = setting(
        None,
        "Images per second on each device, for --plan; by default it is measured.",
        least=1e-9,
        most=1e9,
        needs=("plan=true, which uses the rate", lambda task: task.plan),
    )
    verify: bool = setting(
        False, "Read all files of --output and list those that are missing, damaged or changed."
    )
    repair: bool = setting(
        False,
        "Like --verify, and delete damaged files. Run the original command afterwards to make "
        "them again.",
    )
    regenerate: int | None = setting(
        None,
        "Make the sample with this index again and compare it with the stored one.",
        least=0,
        most=LAST_INDEX,
    )

    def __post_init__(self):
        check_settings(self)
        verify = "repair" if self.repair else "verify"
        chosen = {"plan": self.plan, verify: self.verify or self.repair}
        chosen["regenerate"] = self.regenerate is not None
        names = [f"--{name}" for name, is_chosen in chosen.items() if is_chosen]
        if len(names) > 1:
            raise UserError(f"{' and '.join(names)} are different tasks; give one of them")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(ModelSource, RunSettings):
    """What a run makes, with which settings, and where it writes.

    Attributes:
        plan: the prompts with their classes, and the order in which the images show them.
        class_names: of the whole run; the class at position k has the id k + 1 in every mask.
        num_images: images in the complete folder.
        sampling: settings of the images; a SegmentConfig where images are given.
        masks: settings of the masks.
        prompts: settings that the plan was made from, for settings.json; None where Python code
            made the plan.
        images: the ImageFiles to segment, image i with prompt i; None to generate images.
    """

    plan: "PromptPlan"
    class_names: tuple[str, ...]
    num_images: int
    sampling: SamplingConfig | SegmentConfig = SamplingConfig()
    masks: MaskConfig = MaskConfig()
    prompts: PromptSource | None = None
    images: Any = None

    def __post_init__(self):
        ModelSource.__post_init__(self)
        RunSettings.__post_init__(self)
        require_place(self.formats, self.kept_parts)
        sampling = with_draws(self.sampling, self.plan.has_unnamed)
        object.__setattr__(self, "sampling", sampling)
        if isinstance(self.sampling, SamplingConfig):
            require_known_words(self.model, self.sampling.negative_prompt, "negative prompt")
        require_presence(self.masks, self.sampling.presence_draws)

    @property
    def kept_parts(self) -> tuple[str, ...]:
        """Parts of a sample that are kept in addition to image and mask."""
        return kept_parts(stored_settings(self) | stored_settings(self.masks))

    @property
    def pair_settings(self) -> PairSettings:
        """The settings of the two programs."""
        return PairSettings(self.rng_seed, self.sampling, self.masks)

    def record(self, index: int) -> "PromptRecord":
        """The prompt of image `index`, which may lie beyond `num_images`."""
        return self.plan.record(index)

    def unnamed_classes(self, records: "Sequence[PromptRecord]") -> list[tuple[str, ...]] | None:
        """Unnamed classes of some prompts; None if no prompt of the run has any."""
        if not self.plan.has_unnamed:
            return None
        return [record.unnamed for record in records]

    def settings(self) -> dict[str, Any]:
        """Settings of a sample that are known without the model, as JSON values."""
        return {
            "form": FORM,
            "seediff_jax_version": seediff_jax.__version__,
            **stored_settings(self),
            **stored_settings(self.sampling),
            **stored_settings(self.masks),
            **self.masks.recorded(self.sampling.presence_draws),
            **own_method_sources(self.masks.methods),
            **self.plan.settings(),
            **({} if self.images is None else self.images.settings),
            "class_names": list(self.class_names),
            COMMAND: self._command(),
        }

    def _command(self) -> dict[str, Any] | None:
        """Flags that cannot be derived from the other settings; `stored_command` reads them."""
        if self.prompts is None:
            return None
        names = ("scheduler", "prediction_type")
        return stored_settings(self.prompts) | {name: getattr(self, name) for name in names}

    def settings_with(self, model: "Model") -> dict[str, Any]:
        """All settings of a sample, as JSON values: `settings` and those of the model."""
        from seediff_jax.driver.arithmetic import precision_settings, rounding_settings

        config_hash = hashlib.sha256(repr(model.config).encode()).hexdigest()
        return self.settings() | {
            "scheduler": model.scheduler_config.kind,
            "prediction_type": model.scheduler_config.prediction_type,
            "weights_hash": model.weights_hash,
            "config_hash": config_hash,
            PRECISION: precision_settings(),
            VERSIONS: rounding_settings()
            | {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy")},
        }
