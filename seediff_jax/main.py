"""Writes a dataset of images with pixel masks, generated from text prompts by SeeDiff.

Without flags it writes one image of every class of the embedded model "shapes".
An output folder that a run with the same settings began is completed, never redone; --num_images,
--batch_size and --compilation_cache may differ: they change no image beyond rounding.

  seediff
  seediff --model=/models/stable-diffusion-v1-4 --classes=voc --num_images=2000 --output=outputs/voc
  seediff --model=/models/stable-diffusion-v1-4 --prompts=prompts.jsonl --dtype=bfloat16
"""

import functools
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from seediff_jax.expansion import AFFINITIES
from seediff_jax.make_dataset import make_dataset
from seediff_jax.masks import METHODS, MaskConfig
from seediff_jax.pipeline import REFINED_THRESHOLD
from seediff_jax.run_config import CLASS_LISTS, DEFAULT_TEMPLATE, RunConfig, make_records
from seediff_jax.scheduler_configs import CLASS_NAMES

CACHE = "~/.cache/seediff_jax/xla"
USER_ERROR, INTERRUPTED = 2, 130


def define_flags() -> flags.FlagValues:
    """Defines the flags, apart from absl's global ones: importing this module registers none."""
    values = flags.FlagValues()
    for define in (_define_content, _define_sampling, _define_masks, _define_run):
        define(values)
    return values


def _define_content(values: flags.FlagValues) -> None:
    text, names, whole = _kinds(values, "string", "list", "integer")
    text("model", "shapes", '"shapes" (embedded), a folder or a Hugging Face hub id.')
    lines = 'Prompt file: .txt, or .jsonl with {"prompt": "...", "classes": [...]} in each line.'
    text("prompts", None, lines)
    lists = f"Class names with commas between, or one of the lists {', '.join(CLASS_LISTS)}: "
    names("classes", None, lists + "what to look for in --prompts, or else to make prompts of.")
    unnamed = "Classes to look for in every image though no prompt names them, commas between."
    names("unnamed_classes", None, unnamed)
    text("template", None, f'Prompt for a class; by default "{DEFAULT_TEMPLATE}".')
    images = "Images in all, going round the prompts; by default one a prompt."
    whole("num_images", None, images, lower_bound=1)
    text("output", None, "Folder to write; by default outputs/ and the model's name.")


def _define_sampling(values: flags.FlagValues) -> None:
    text, whole, number, enum = _kinds(values, "string", "integer", "float", "enum")
    seed = "Seed of all noise; image i depends on the seed and on i alone."
    whole("seed", 0, seed, lower_bound=0, upper_bound=2**32 - 1)
    whole("num_steps", 50, "Denoising steps.", lower_bound=1)
    guidance = "How strongly the prompt guides; 1 is no guidance."
    number("guidance_scale", 7.5, guidance, lower_bound=0)
    rescale = "How far guidance gives up the contrast that it adds, 0..1; 0.7 suits v models."
    number("guidance_rescale", 0.0, rescale, lower_bound=0, upper_bound=1)
    text("negative_prompt", "", "What to guide away from.")
    for name in ("height", "width"):
        size = f"{name.capitalize()} of the images in pixels; by default what the model makes."
        whole(name, None, size, lower_bound=1)
    enum("scheduler", None, [*CLASS_NAMES], "Sampler; by default the model's own.")
    dtypes = ["float32", "bfloat16", "float16"]
    enum("dtype", "float32", dtypes, "Precision of the networks.")


def _define_masks(values: flags.FlagValues) -> None:
    whole, number, enum = _kinds(values, "integer", "float", "enum")
    names, switch, text = _kinds(values, "list", "bool", "string")
    capture = "Attention layers to record: published, coarse (without the finest level) or a JSON "
    text("capture", None, capture + "file with lists of layers; by default the model's own.")
    enum("mask_method", "seediff", [*METHODS], "From attention to mask.")
    affinity = "Similarity that spreads the seeds of seediff."
    enum("affinity", "cosine", [*AFFINITIES], affinity)
    power = "Applications of the affinity, or exponent; by default what the method published."
    whole("power", None, power, lower_bound=1)
    switch("background", True, "Take away from seediff masks what resembles the background.")
    threshold = "A pixel is of a class above it, 0..1; by default what the method published."
    number("threshold", None, threshold, lower_bound=0, upper_bound=1)
    uncertain = "Pixels from here up to the threshold become 255, ignore; by default none, except "
    uncertain += "with exponentiation at its published threshold."
    number("uncertain", None, uncertain, lower_bound=0, upper_bound=1)
    refine = "Steps of pixel-adaptive refinement, which pulls masks to the edges of the image."
    whole("refine_iterations", 0, refine, lower_bound=0)
    refined = "Takes the place of the threshold after refinement."
    number("refined_threshold", REFINED_THRESHOLD, refined, lower_bound=0, upper_bound=1)
    names("dilations", ["1"], "Distances in pixels of the neighbours in it, as in 1,2,4.")


def _define_run(values: flags.FlagValues) -> None:
    text, whole = _kinds(values, "string", "integer")
    whole("batch_size", 4, "Images at a time.", lower_bound=1)
    cache = "Folder that keeps compiled programs between runs; empty to keep none."
    text("compilation_cache", CACHE, cache)


def _kinds(values: flags.FlagValues, *kinds: str) -> list[Callable[..., Any]]:
    """absl's DEFINE functions of these kinds, for flags of `values` alone."""
    return [
        functools.partial(getattr(flags, f"DEFINE_{kind}"), flag_values=values) for kind in kinds
    ]


def help_text(values: flags.FlagValues) -> str:
    """The module's description and a paragraph a flag."""
    paragraphs = []
    for flag in (values[name] for name in values):
        name = f"[no]{flag.name}" if flag.boolean else flag.name
        default = "" if flag.default is None else "=" + flag.default_as_str.strip("'")
        text = textwrap.fill(flag.help, 92)
        paragraphs.append(f"  --{name}{default}\n{textwrap.indent(text, ' ' * 6)}")
    return f"{__doc__}\nFlags, with their defaults:\n\n" + "\n".join(paragraphs)


def make_config(values: flags.FlagValues) -> RunConfig:
    """Turns parsed flags into a RunConfig.

    Raises:
        ValueError: the flags contradict one another or the prompts.
        FileNotFoundError: there is no such prompt file.
    """
    records, class_names = make_records(
        values.model,
        values.prompts,
        values.classes,
        values.template,
        values.unnamed_classes or (),
    )
    try:
        dilations = tuple(int(text) for text in values.dilations)
    except ValueError:
        raise ValueError(f"dilations={values.dilations} must be whole numbers") from None
    return RunConfig(
        records=records,
        class_names=class_names,
        output=Path(values.output or Path("outputs") / Path(values.model).name),
        num_images=values.num_images or len(records),
        batch_size=values.batch_size,
        model=values.model,
        dtype=values.dtype,
        scheduler=values.scheduler,
        capture=values.capture,
        rng_seed=values.seed,
        num_steps=values.num_steps,
        guidance_scale=values.guidance_scale,
        guidance_rescale=values.guidance_rescale,
        negative_prompt=values.negative_prompt,
        height=values.height,
        width=values.width,
        mask_config=MaskConfig(
            method=values.mask_method,
            affinity=values.affinity,
            power=values.power,
            background=values.background,
        ),
        threshold=values.threshold,
        uncertain=values.uncertain,
        refine_iterations=values.refine_iterations,
        dilations=dilations,
        refined_threshold=values.refined_threshold,
    )


def _use_compilation_cache(folder: str) -> None:
    """Keeps compiled programs in `folder`; a folder that cannot be written costs only time."""
    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"no compilation cache, {path} cannot be made: {error.strerror}", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def main(argv: Sequence[str]) -> int:
    """Runs the driver on a command line and returns the exit status; errors are one line each."""
    values = define_flags()
    if {"--help", "-help", "-h", "--helpfull"} & set(argv[1:]):
        print(help_text(values))
        return 0
    try:
        unknown = values(list(argv))[1:]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no flag; every argument is --name=value")
        config = make_config(values)
        if values.compilation_cache:
            _use_compilation_cache(values.compilation_cache)
        make_dataset(config)
        return 0
    except flags.Error as error:
        return _fail(f"{error} (--help lists the flags)")
    except OSError as error:
        place = f"{error.filename}: " if error.filename and error.strerror else ""
        return _fail(f"{place}{error.strerror or error}")
    except (ValueError, ArithmeticError) as error:
        return _fail(str(error))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _fail("the device's memory is too small; try a smaller --batch_size or bfloat16")
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED


def _fail(message: str) -> int:
    print(f"seediff: {message}", file=sys.stderr)
    return USER_ERROR


def run() -> None:
    """Console entry."""
    try:
        status = main(sys.argv)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads the output, as `head` does, has seen enough; Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    sys.exit(status)


if __name__ == "__main__":
    run()
