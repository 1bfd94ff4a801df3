"""Studio: makes the samples, masks and downloads of the demo; independent of the page.

    prompt, classes -> [ sample ] -> Sampled -> [ mask ] -> Result -> pictures, zip, command line

A Sampled keeps its attention, so other masks need no sampling.
"""

import dataclasses
import hashlib
import io
import json
import shlex
import threading
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

from seediff_jax.checkpoints.load import load_model
from seediff_jax.dataset.encoding import Sample, encode
from seediff_jax.dataset.pictures import fit, labelled_overlay
from seediff_jax.dataset.strips import stage_pictures
from seediff_jax.driver.config import ModelSource, RunConfig
from seediff_jax.driver.make_dataset import require_fit, require_prompts_fit
from seediff_jax.driver.sample_maker import class_mask
from seediff_jax.errors import UserError, quoted
from seediff_jax.masks.config import MaskConfig
from seediff_jax.pipeline.generate import Pairs, generate
from seediff_jax.prompts.class_files import is_class_file
from seediff_jax.prompts.prompt_source import make_plan
from seediff_jax.prompts.settings import PromptSource
from seediff_jax.sampling.config import SamplingConfig
from seediff_jax.sampling.inputs import ClassLists
from seediff_jax.settings import function_name, is_tuple, settings_of

LONGEST_EDGE = 512
"""Pixels of the pictures on the page; smaller images are enlarged."""


@dataclasses.dataclass(frozen=True, eq=False)
class Sampled:
    """One image with its attention, and the settings that it follows from."""

    pairs: Pairs
    config: RunConfig


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """What the page shows of an image and its masks.

    Attributes:
        image: as a Pillow image, enlarged.
        overlay: the mask over it, with a legend.
        stages: caption and uint8 `[H, W, 3]` of each stage of each class.
        summary: a line per class: share of the image and seeds.
        command: the command line that makes the same.
        archive: a zip file with image, mask, overlay, classes, settings and command.
    """

    image: Any
    overlay: Any
    stages: list[tuple[str, Any]]
    summary: str
    command: str
    archive: bytes


class Studio:
    """The model of the demo, loaded once.

    Args:
        source: the model.

    Raises:
        UserError: it cannot be loaded.
    """

    def __init__(self, source: ModelSource):
        self.source = source
        self._model = load_model(source.model, **source.load_options)
        self._lock = threading.Lock()  # one image at a time: two need twice the memory

    def sample(
        self, prompt: str, classes: str, rng_seed: int, sampling: Mapping[str, Any]
    ) -> Sampled:
        """Makes one image and keeps its attention.

        Args:
            prompt: the text.
            classes: names separated by commas, or a list's name; where it is blank, the classes
                are found in the prompt, as on the command line.
            rng_seed: 0 to 2**32 - 1.
            sampling: arguments of SamplingConfig.

        Raises:
            UserError: a setting is out of range, or the model cannot draw this.
        """
        names = tuple(name.strip() for name in classes.split(",") if name.strip())
        if any(map(is_class_file, names)):
            raise UserError(f"classes={quoted(classes)} names a file; this page takes names")
        if not prompt.strip():
            raise UserError("the prompt is empty; describe an image, as in: a photo of a cat")
        source = PromptSource(model=self.source.model, texts=(prompt,), classes=names or None)
        plan, class_names = make_plan(source)
        config = RunConfig(
            **vars(self.source),
            rng_seed=rng_seed,
            plan=plan,
            class_names=class_names,
            num_images=1,
            sampling=SamplingConfig(**sampling),
            prompts=source,
        )
        require_fit(self._model, config)
        require_prompts_fit(self._model, config)
        record = plan.record(0)
        lists = ClassLists(named=[record.named], synonyms=plan.synonyms)
        with self._lock:
            pairs = generate(
                self._model,
                [record.prompt],
                lists,
                rng_seed=config.rng_seed,
                sampling=config.sampling,
                masks=config.masks,
            )
        return Sampled(pairs, config)

    def mask(self, sampled: Sampled, masks: MaskConfig) -> Result:
        """Makes new masks of an image without sampling.

        Raises:
            UserError: the method needs attention that the model does not record.
        """
        config = dataclasses.replace(sampled.config, masks=masks)
        require_fit(self._model, config)
        pairs = sampled.pairs.remask(masks)
        pair = pairs[0]
        ids = [config.class_names.index(name) + 1 for name in pair.classes]
        names = dict(enumerate(pair.classes, 1))
        stages = [
            (f"{each.name}, {caption}", picture)
            for each in pairs.stages(0, masks)
            for caption, picture in stage_pictures(pair.image, pair.label_map, each)[1:]
        ]
        areas = [(pair.label_map == label).mean() for label in names]
        rows = zip(pair.classes, areas, pair.seed_counts, pair.presence, strict=True)
        summary = "\n".join(
            f"{name}: {area:.1%} of the image, {seeds} seeds, presence {presence:.2f}"
            if area
            else f"{name}: not found"
            for name, area, seeds, presence in rows
        )
        command = command_line(config)
        sample = Sample(0, pair.image, class_mask(pair.label_map, ids), record={})
        return Result(
            image=fit(pair.image, LONGEST_EDGE),
            overlay=labelled_overlay(pair.image, pair.label_map, names, LONGEST_EDGE),
            stages=stages,
            summary=summary,
            command=command,
            archive=self._archive(sample, config, command),
        )

    def _archive(self, sample: Sample, config: RunConfig, command: str) -> bytes:
        settings = config.settings_with(self._model)
        files = encode(sample, ("image.png", "mask.png", "overlay.png")).files | {
            "classes.txt": "".join(f"{name}\n" for name in config.class_names),
            "settings.json": json.dumps(settings, indent=1, ensure_ascii=False) + "\n",
            "command.txt": command + "\n",
        }
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:  # PNG files are compressed already
            for name, data in files.items():
                archive.writestr(name, data)
        return content.getvalue()


def command_line(config: RunConfig) -> str:
    """Writes the command that makes the same image and mask.

    Its folder is named after its settings, because a folder has one run.
    """
    parts = (config.prompts, config, config.sampling, config.masks)
    words = [word for part in parts for word in _changed(part)]
    name = hashlib.sha256("\0".join(words).encode()).hexdigest()[:8]
    return shlex.join(["seediff", *words, f"--output=outputs/demo_{name}"])


def _changed(config: Any) -> Iterator[str]:
    """Flags of the settings that differ from their defaults."""
    fields = {field.name: field for field in dataclasses.fields(config)}
    for name, made in settings_of(config).items():
        field, value = fields[name], getattr(config, name)
        default = field.default
        if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if not made.flag or value == default:
            continue
        if name == "scheduler_options":
            value = ",".join(f"{key}={json.dumps(option)}" for key, option in value.items())
        if name == "loras":
            yield from (f"--{made.flag}={path}:{weight:g}" for path, weight in value)
        elif made.repeated:
            yield from (f"--{made.flag}={text}" for text in value)
        elif callable(value):
            yield f"--{made.flag}={function_name(value)}"
        elif isinstance(value, bool):
            yield f"--{'' if value else 'no'}{made.flag}"
        elif is_tuple(config, name):
            yield f"--{made.flag}={','.join(map(str, value))}"
        else:
            yield f"--{made.flag}={value}"
