"""Writes a dataset of images with pixel masks, generated from text prompts by SeeDiff.

Without flags it writes one image of every class of the embedded model "shapes".
An output folder that a run with the same settings began is completed, never redone; --num_images,
--batch_size and --compilation_cache may differ: they change no image beyond rounding.

  seediff
  seediff --model=/models/stable-diffusion-v1-4 --classes=voc --num_images=2000 --output=outputs/voc
  seediff --model=/models/stable-diffusion-v1-4 --prompts=prompts.jsonl --dtype=bfloat16
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from seediff_jax.class_lists import CLASS_LISTS
from seediff_jax.commands import (
    define_debug_flag,
    define_source_flags,
    kinds,
    run_command,
    run_program,
    source_options,
    use_compilation_cache,
)
from seediff_jax.expansion import AFFINITIES
from seediff_jax.formats import FORMATS
from seediff_jax.hosts import join_hosts
from seediff_jax.libtpu import widen_compiler_stack
from seediff_jax.make_dataset import make_dataset
from seediff_jax.masks import METHODS, MaskConfig
from seediff_jax.modes import regenerate_sample, tell_plan, verify_folder
from seediff_jax.monitor import require_log_dir
from seediff_jax.pair_settings import REFINED_THRESHOLD, PairSettings
from seediff_jax.prompt_sources import DEFAULT_TEMPLATE, PromptSource, count_images, make_plan
from seediff_jax.run_config import RunConfig
from seediff_jax.sharding import PARTITIONS, parse_mesh
from seediff_jax.storage import open_folder

SOME_FAILED = 3
"""Exit status of a complete run of which some samples failed."""

CACHE = "~/.cache/seediff_jax/xla"


def define_flags() -> flags.FlagValues:
    """Defines the flags, apart from absl's global ones: importing this module registers none."""
    values = flags.FlagValues()
    parts = (_define_content, _define_sampling, _define_masks, _define_output, _define_run)
    for define in (define_source_flags, *parts, _define_modes, define_debug_flag):
        define(values)
    return values


def _define_content(values: flags.FlagValues) -> None:
    text, names, whole = kinds(values, "string", "list", "integer")
    many, switch = kinds(values, "multi_string", "bool")
    text("prompts", None, "Prompt file: .txt, .jsonl, .csv, or a .json of Dataset Diffusion.")
    lists = f"Class names with commas between, one of the lists {', '.join(CLASS_LISTS)}, or a "
    lists += ".txt file with a name a line: what to look for in --prompts, or else to make prompts "
    names("classes", None, lists + "of.")
    unnamed = "Classes to look for in every image though no prompt names them, commas between."
    names("unnamed_classes", None, unnamed)
    template = f'Prompt for a class; by default "{DEFAULT_TEMPLATE}". Takes {{subclass}}, too; can '
    many("template", None, template + "be repeated, or be a .txt file with a template a line.")
    subclasses = "File with the words for {subclass}: .txt with `dog: puppy, terrier` lines, or "
    text("subclasses", None, subclasses + ".json; by default the built-in ones of VOC and COCO.")
    images = "Images in all, going round the prompts; by default one round."
    whole("num_images", None, images, lower_bound=1)
    each = "Images in succession that show the same prompt; by default 1."
    whole("images_per_prompt", None, each, lower_bound=1)
    switch("shuffle", False, "Show the prompts in a random order, the same in each round.")
    shuffle = "Seed of that order; by default --seed."
    whole("shuffle_seed", None, shuffle, lower_bound=0, upper_bound=2**32 - 1)
    balance = "Repeat prompts of the classes that were shown least, so that all are shown equally."
    switch("balance_classes", False, balance)


def _define_sampling(values: flags.FlagValues) -> None:
    text, whole, number, enum = kinds(values, "string", "integer", "float", "enum")
    seed = "Seed of all noise; image i depends on the seed and on i alone."
    whole("seed", 0, seed, lower_bound=0, upper_bound=2**32 - 1)
    whole("num_steps", 50, "Denoising steps.", lower_bound=1)
    guidance = "How strongly the prompt guides; up to 1 there is no guidance."
    number("guidance_scale", 7.5, guidance, lower_bound=0)
    rescale = "How far guidance gives up the contrast that it adds, 0..1; 0.7 suits v models."
    number("guidance_rescale", 0.0, rescale, lower_bound=0, upper_bound=1)
    text("negative_prompt", "", "What to guide away from.")
    for name in ("height", "width"):
        size = f"{name.capitalize()} of the images in pixels; by default what the model makes."
        whole(name, None, size, lower_bound=1)
    dtypes = ["float32", "bfloat16", "float16"]
    enum("dtype", "float32", dtypes, "Precision of the networks.")


def _define_masks(values: flags.FlagValues) -> None:
    whole, number, enum = kinds(values, "integer", "float", "enum")
    names, switch, text = kinds(values, "list", "bool", "string")
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


def _define_output(values: flags.FlagValues) -> None:
    text, names, enum, switch, whole = kinds(values, "string", "list", "enum", "bool", "integer")
    text("output", None, "Folder or URL to write; by default outputs/ and the model's name.")
    listed = f"What to write, with commas between: {', '.join(FORMATS)}."
    names("format", ["files"], listed)
    soft = "Keep soft masks too, as arrays or as pictures of 16 bits."
    enum("soft_masks", None, ["npz", "png"], soft)
    switch("seed_maps", False, "Keep the seed maps too.")
    whole("shard_size", 1000, "Images of a shard file.", lower_bound=1)


def _define_modes(values: flags.FlagValues) -> None:
    whole, number, switch = kinds(values, "integer", "float", "bool")
    switch("plan", False, "Tell what would be made, how long it takes and what it needs; no more.")
    number("rate", None, "Images a second on a device, for --plan, which else measures it.", 1e-9)
    switch("dry_run", False, "Do everything but the UNet's calls: images are decoded noise.")
    switch("verify", False, "Read all of --output again and list what is not as it was written.")
    switch("repair", False, "The same, and forget what is damaged, so that it is made again.")
    again = "Make the sample of this index again and compare it with the stored one."
    whole("regenerate", None, again, lower_bound=0)


def _define_run(values: flags.FlagValues) -> None:
    text, whole, enum, switch = kinds(values, "string", "integer", "enum", "bool")
    size = "Images at a time on each device; auto takes the most that fit."
    text("batch_size", "4", size)
    mesh = "How devices share the work: data is samples, model splits weights that are too large "
    text("mesh", "data:-1", mesh + "for one device, as in data:-1,model:2.")
    enum("partition", "shard_map", [*PARTITIONS], "How JAX runs the programs on all devices.")
    logs = "Local folder for a log of JSON lines and curves for TensorBoard; by default none."
    text("log_dir", None, logs)
    switch("profile", False, "Write a JAX profile of one round of the run to --log_dir.")
    address = "host:port of process 0; TPU pods, GKE, Slurm and Open MPI need none of these three."
    text("coordinator", None, address)
    whole("num_processes", None, "Processes of the run.", lower_bound=1)
    whole("process_id", None, "Which of them this is, from 0.", lower_bound=0)
    cache = "Folder that keeps compiled programs between runs; empty to keep none."
    text("compilation_cache", CACHE, cache)


def make_config(values: flags.FlagValues) -> RunConfig:
    """Turns parsed flags into a RunConfig.

    Raises:
        ValueError: the flags contradict one another or the prompts.
        FileNotFoundError: there is no such prompt file.
    """
    require_log_dir(values.log_dir)
    source = _make_source(values)
    plan, class_names = make_plan(source)
    return RunConfig(
        plan=plan,
        class_names=class_names,
        output=_output(values),
        num_images=count_images(plan, source, values.num_images),
        batch_size=_batch_size(values.batch_size),
        formats=tuple(values.format),
        soft_masks=values.soft_masks,
        seed_maps=values.seed_maps,
        shard_size=values.shard_size,
        mesh=parse_mesh(values.mesh),
        partition=values.partition,
        log_dir=values.log_dir,
        profile=values.profile,
        model=values.model,
        dtype=values.dtype,
        capture=values.capture,
        **source_options(values),
        pair_settings=_make_pair_settings(values),
    )


def _make_pair_settings(values: flags.FlagValues) -> PairSettings:
    try:
        dilations = tuple(int(text) for text in values.dilations)
    except ValueError:
        raise ValueError(f"dilations={values.dilations} must be whole numbers") from None
    return PairSettings(
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
        dry_run=values.dry_run,
        refined_threshold=values.refined_threshold,
    )


def _batch_size(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"batch_size={text} must be a whole number from 1 on, or auto")
    return int(text)


def _output(values: flags.FlagValues) -> str:
    name = Path(values.model).name.removesuffix(".safetensors")
    return values.output or str(Path("outputs") / name)


def _make_source(values: flags.FlagValues) -> PromptSource:
    if values.shuffle_seed is not None and not values.shuffle:
        raise ValueError(f"--shuffle_seed={values.shuffle_seed} needs --shuffle")
    shuffle_seed = values.seed if values.shuffle_seed is None else values.shuffle_seed
    return PromptSource(
        model=values.model,
        prompts=values.prompts,
        classes=values.classes,
        unnamed_classes=values.unnamed_classes or (),
        templates=values.template or (),
        subclasses=values.subclasses,
        images_per_prompt=values.images_per_prompt,
        shuffle_seed=shuffle_seed if values.shuffle else None,
        balance_classes=values.balance_classes,
    )


def main(argv: Sequence[str]) -> int:
    """Runs the driver on a command line and returns the exit status; errors are one line each."""
    return run_command("seediff", __doc__, define_flags(), argv, _work)


def _require_one_mode(values: flags.FlagValues) -> None:
    verify = "repair" if values.repair else "verify"
    chosen = {"plan": values.plan, verify: values.verify or values.repair}
    chosen["regenerate"] = values.regenerate is not None
    names = [f"--{name}" for name, is_chosen in chosen.items() if is_chosen]
    if len(names) > 1:
        raise ValueError(f"{' and '.join(names)} are different things to do; give one at a time")
    if values.rate is not None and not values.plan:
        raise ValueError(f"--rate={values.rate:g} needs --plan, which tells the time at that rate")


def _work(values: flags.FlagValues) -> int:
    _require_one_mode(values)
    if values.verify or values.repair:
        return verify_folder(open_folder(_output(values)), values.repair)
    widen_compiler_stack()
    join_hosts(values.coordinator, values.num_processes, values.process_id)
    config = make_config(values)
    if values.compilation_cache:
        use_compilation_cache(values.compilation_cache)
    if values.regenerate is not None:
        return regenerate_sample(config, values.regenerate)
    if values.plan:
        return tell_plan(config, values.rate)
    return SOME_FAILED if make_dataset(config) else 0


def run() -> None:
    """Console entry."""
    run_program(main)


if __name__ == "__main__":
    run()
