"""A flag that has no effect beside the others is refused; one that has an effect is not.

What has an effect is found by doing the work: the programs of masks, images of a small model,
prompts of a plan.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seediff_jax.attention_maps import AttentionMaps
from seediff_jax.checkpoints.load import make_model
from seediff_jax.driver import cli
from seediff_jax.driver.config import HostSettings, ModelSource, OutputSettings, RunConfig
from seediff_jax.driver.subcommands import SUBCOMMANDS
from seediff_jax.errors import UserError
from seediff_jax.main import GROUPS, define_flags, make_config, read_command_line
from seediff_jax.masks.config import MaskConfig, require_presence
from seediff_jax.masks.label_maps import make_masks
from seediff_jax.pipeline.generate import generate_images
from seediff_jax.prompts.prompt_plan import PromptPlan
from seediff_jax.prompts.prompt_record import PromptRecord
from seediff_jax.sampling.config import SamplingConfig
from seediff_jax.settings import require_effective, setting_type, settings_of, static_part
from tests.helpers.random_attention import random_attention
from tests.helpers.random_models import one_level_config, random_params


def is_refused(config):
    try:
        require_effective(config)
        if isinstance(config, MaskConfig):
            require_presence(config, presence_draws=0)
    except UserError:
        return True
    return False


# Another value of each field than the default.
MASKS = {
    "method": ("cross_attention", "exponentiation"),
    "affinity": ("transition",),
    "power": (3,),
    "background": (False,),
    "threshold": (0.35,),
    "uncertain": (0.2,),
    "min_presence": (0.9,),
    "refine_iterations": (2,),
    "refined_threshold": (0.6,),
    "dilations": ((2,),),
}
MASK_VALUES = [(name, value) for name, values in MASKS.items() for value in values]


@pytest.fixture(scope="module")
def program_of():
    """The operations that make masks, and their constants: equal ones make equal masks."""
    cross, self_attention = random_attention(0, (4, 8))
    levels = {side: jnp.asarray(level[None], jnp.float32) for side, level in self_attention.items()}
    maps = AttentionMaps(jnp.asarray(cross[None]), levels)
    images = np.zeros((1, 16, 16, 3), np.uint8)

    @functools.cache
    def program_of(config):
        thresholds = jax.tree.map(np.float32, config.thresholds)
        make = functools.partial(make_masks.__wrapped__, config=static_part(config))
        traced = jax.make_jaxpr(lambda *arrays: make(*arrays, thresholds))(images, maps)
        return str(traced.jaxpr), tuple(np.asarray(each).tobytes() for each in traced.consts)

    return program_of


@pytest.mark.parametrize("first", MASK_VALUES, ids=lambda pair: f"{pair[0]}={pair[1]}")
def test_two_settings_of_masks_each_change_masks_beside_the_other_or_are_refused(program_of, first):
    others = MASK_VALUES[MASK_VALUES.index(first) + 1 :]
    for chosen in [(first,), *((first, other) for other in others if other[0] != first[0])]:
        config = MaskConfig(**dict(chosen))
        without = [MaskConfig(**dict(pair for pair in chosen if pair != left)) for left in chosen]
        is_pointless = any(program_of(config) == program_of(other) for other in without)
        assert is_pointless == is_refused(config), chosen


def test_all_settings_of_masks_are_among_those():
    assert set(MASKS) == set(settings_of(MaskConfig))


GUIDANCE = {"negative_prompt": "dog", "guidance_rescale": 0.7, "guidance_interval": (0.0, 0.5)}


@pytest.fixture(scope="module")
def images_of(tmp_path_factory):
    config = one_level_config(tmp_path_factory.mktemp("model") / "tokenizer")
    model = make_model(config, random_params(config), model_id="small")

    @functools.cache
    def images_of(sampling):
        return np.asarray(generate_images(model, ["a cat"], sampling=sampling)).tobytes()

    return images_of


def test_settings_of_guidance_change_images_where_there_is_guidance(images_of):
    plain = SamplingConfig(num_steps=2)
    for name, value in GUIDANCE.items():
        config = dataclasses.replace(plain, **{name: value})
        assert images_of(config) != images_of(plain) and not is_refused(config), name


def test_settings_of_guidance_change_nothing_and_are_refused_where_there_is_none(images_of):
    plain = SamplingConfig(num_steps=2, guidance_scale=1.0)
    assert images_of(dataclasses.replace(plain, **GUIDANCE)) == images_of(plain)
    for name, value in GUIDANCE.items():
        assert is_refused(dataclasses.replace(plain, **{name: value})), name


# A command line of prompts is refused, or every flag of it changes prompts, classes or ids.
PROMPTS = {
    "--classes": "cat,person,dog,car",
    "--unnamed_classes": "boat",
    "--template": "one {class}",
    "--num_images": "9",
    "--images_per_prompt": "2",
    "--shuffle": "true",
    "--shuffle_seed": "7",
    "--balance_classes": "true",
    "--class_ids": "coco",
    "--subclasses": "dog: cur, tyke",
}


@pytest.fixture
def shown_by(tmp_path):
    kinds = tmp_path / "kinds.txt"
    kinds.write_text(PROMPTS["--subclasses"])

    def shown_by(names):
        values = PROMPTS | {"--subclasses": kinds}
        options = {"--classes": "person,dog,car"} | {name: values[name] for name in names}
        flags = define_flags()
        flags(["seediff", "--model=a/b", *(f"{name}={text}" for name, text in options.items())])
        try:
            config = make_config(read_command_line(flags))
        except UserError:
            return None
        records = tuple(config.record(index) for index in range(20))
        return records, config.class_names, config.num_images

    return shown_by


@pytest.mark.parametrize("name", PROMPTS)
def test_settings_of_prompts_beside_each_other_one_change_them_or_are_refused(shown_by, name):
    for other in [None, *PROMPTS]:
        beside = () if other is None else (other,)
        without = shown_by(beside)
        if other == name or without is None:
            continue
        assert shown_by((name, *beside)) != without, (name, other)


@pytest.mark.parametrize(
    ("options", "has_effect"),
    [
        ("--classes=cat,boat --balance_classes", False),
        ("--balance_classes", False),
        ("--classes=cat --template=one_{class} --balance_classes", False),
        ("--classes=cat,boat --template=a_{subclass} --balance_classes", True),
        ("--classes=cat,boat --balance_classes --images_per_prompt=2 --num_images=9", True),
        ("--prompt=cat --prompt=cat_boat --balance_classes", True),
        ("--prompts=x.csv --balance_classes", True),
        ("--prompt=cat --shuffle", False),
        ("--prompt=cat --prompt=boat --shuffle", True),
        ("--classes=cat --shuffle", False),
        ("--classes=voc --shuffle", True),
        ("--classes=x.txt --shuffle", True),
        ("--classes=cat --template=a_{subclass} --shuffle", True),
        ("--classes=cat --template={class} --template=a_{class} --shuffle", True),
        ("--prompts=x.csv --shuffle --shuffle_seed=3", True),
        ("--shuffle", True),
    ],
)
def test_orders_need_prompts_that_they_can_change(options, has_effect):
    flags = define_flags()
    flags(["seediff", *options.split()])
    if has_effect:
        read_command_line(flags)
    else:
        with pytest.raises(UserError, match="(shuffle|balance_classes)=true needs .* no effect"):
            read_command_line(flags)


# Groups whose settings are recorded, or else have the effect that is said here.
OTHER_GROUPS = (ModelSource, OutputSettings, HostSettings)
NOT_RECORDED = {
    "scheduler": "recorded with the model's other choices, once it is loaded",
    "prediction_type": "likewise",
    "output": "where the files are",
    "batch_size": "memory and speed",
    "mesh": "likewise",
    "partition": "likewise",
    "log_dir": "a log",
    "profile": "a profile",
    "compilation_cache": "time to compile",
    "coordinator": "which hosts meet; the three are given together",
    "num_processes": "likewise",
    "process_id": "likewise",
    "start_timeout": "how long they wait; one host refuses it when it finds no other",
}
OTHER_VALUES = {
    "model": "a/b",
    "scheduler_options": {"steps_offset": 1},
    "loras": (("a.safetensors", 0.5),),
    "dtype": "bfloat16",
    "rng_seed": 1,
    "formats": ("files", "voc"),
    "soft_masks": "npz",
    "shard_size": 7,
}


def test_every_setting_of_model_output_and_hosts_is_recorded_or_has_a_stated_effect():
    plan = PromptPlan(records=(PromptRecord("a cat", ("cat",)),))
    options = {"plan": plan, "class_names": ("cat",), "num_images": 1}
    unchanged = RunConfig(**options).settings()
    names = [name for group in OTHER_GROUPS for name in settings_of(group)]
    assert NOT_RECORDED.keys() | OTHER_VALUES.keys() <= {*names}
    for name in set(names) - NOT_RECORDED.keys():
        is_bool = setting_type(RunConfig, name)[0] is bool
        changed = {name: OTHER_VALUES.get(name, True if is_bool else "x")}
        assert RunConfig(**options | changed).settings() != unchanged, name
    for name in NOT_RECORDED:
        assert not settings_of(RunConfig)[name].stored, name


@pytest.mark.parametrize(
    ("group", "flags", "needs"),
    [
        ("run", "--profile", "--log_dir=FOLDER"),
        ("run", "--rate=2", "--plan=true"),
        ("run", "--shuffle_seed=0", "--shuffle=true"),
        ("run", "--negative_prompt=x --guidance_scale=1", "a guidance_scale above 1"),
        ("run", "--power=2 --mask_method=cross_attention", "--mask_method=seediff or"),
        ("run", "--nobackground --mask_method=exponentiation", "--mask_method=seediff"),
        ("run", "--nobackground --mask_method=cross_attention,exponentiation", "--mask_method="),
        ("run", "--refined_threshold=0.7", "--refine_iterations=NUMBER above 0"),
        ("run", "--dilations=1,2", "--refine_iterations=NUMBER above 0"),
        ("filter", "--per_class", "--quantile=SHARE"),
        ("filter", "--format=coco --output=x.txt", "--output=FOLDER"),
        ("resume", "--profile", "--log_dir=FOLDER"),
    ],
)
def test_a_flag_that_needs_another_one_is_refused_and_says_which(capsys, group, flags, needs):
    groups = GROUPS if group == "run" else SUBCOMMANDS[group].groups

    def work(values):
        for config_type in groups.values():
            more = {"model": "a/b"} if config_type is GROUPS["Prompts and classes"] else {}
            cli.read_settings(values, config_type, **more)

    assert cli.run_command("seediff", "doc", groups, ["seediff", *flags.split()], work) == 2
    told = capsys.readouterr().err
    assert f" needs {needs}" in told and told.endswith(", or it has no effect\n")
    assert told.startswith(f"seediff: {flags.split()[0].replace('--no', '--').partition('=')[0]}=")


def test_a_flag_that_has_an_effect_on_one_of_several_methods_is_not_refused():
    for method in ("seediff", "module:function"):
        methods = ("cross_attention", method)
        require_effective(MaskConfig(method=methods, background=False, affinity="transition"))
    require_effective(MaskConfig(method=("cross_attention", "exponentiation"), power=2))


def test_a_flag_at_its_default_is_never_refused():
    for config_type in (*GROUPS.values(), *SUBCOMMANDS["filter"].groups.values()):
        more = {"model": "a/b"} if config_type is GROUPS["Prompts and classes"] else {}
        require_effective(config_type(**more))
