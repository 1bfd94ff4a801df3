"""Scheduler configs: reading diffusers' files, choosing another kind, and refusals."""

import dataclasses

import pytest

from seediff_jax.schedulers.config import (
    SchedulerConfig,
    scheduler_config,
    scheduler_json,
)
from seediff_jax.schedulers.registry import SCHEDULERS
from tests.helpers.published_configs import SD1_SCHEDULER

EULER_JSON = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_schedule": "scaled_linear",
    "interpolation_type": "linear",
    "use_karras_sigmas": False,
    "prediction_type": "v_prediction",
}


def test_stable_diffusion_config_is_read():
    assert scheduler_config(SD1_SCHEDULER) == SchedulerConfig(
        kind="pndm",
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        timestep_spacing="leading",
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
        skip_prk_steps=True,
    )


def test_missing_options_take_the_defaults_of_the_named_scheduler():
    ddim = scheduler_config({"_class_name": "DDIMScheduler"})
    assert ddim.set_alpha_to_one and ddim.clip_sample and ddim.beta_schedule == "linear"
    pndm = scheduler_config({"_class_name": "PNDMScheduler"})
    assert not (pndm.set_alpha_to_one or pndm.clip_sample or pndm.skip_prk_steps)


def test_override_reads_the_file_of_another_scheduler_and_never_turns_on_clipping():
    config = scheduler_config(EULER_JSON, kind="ddim")
    assert config == SchedulerConfig(
        kind="ddim",
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        set_alpha_to_one=True,
        clip_sample=False,
    )
    asked = scheduler_config({**EULER_JSON, "clip_sample": True}, kind="ddim")
    assert asked.clip_sample


def test_override_drops_options_left_over_from_another_scheduler():
    json = {**SD1_SCHEDULER, "algorithm_type": "dpmsolver++"}
    assert scheduler_config(json, kind="pndm") == scheduler_config(SD1_SCHEDULER)


def test_with_kind_keeps_the_common_options():
    config = SchedulerConfig(kind="ddim", clip_sample=True, set_alpha_to_one=True, steps_offset=1)
    assert config.with_kind("pndm") == SchedulerConfig(
        kind="pndm", clip_sample=False, set_alpha_to_one=True, steps_offset=1
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"_class_name": "HeunDiscreteScheduler"},
            "'HeunDiscreteScheduler'.*DDIMScheduler, PNDM.*choose.*euler_ancestral",
        ),
        ({"_class_name": None}, "None is not supported"),
        ({"_class_name": ["DDIMScheduler"]}, r"\['DDIMScheduler'\] is not supported"),
        ({"solver_name": "sde", "order": 2}, "unknown options order, solver_name"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid'.*'squaredcos_cap_v2'"),
        ({"prediction_type": "sample"}, "prediction_type='sample'"),
        ({"timestep_spacing": "karras"}, "timestep_spacing='karras'"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas="),
        ({"thresholding": True}, "thresholding=True is not supported, only False"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr.*use 'ddim'"),
        ({"num_train_timesteps": "1000"}, "num_train_timesteps='1000' must be of type int"),
        ({"skip_prk_steps": 1}, "skip_prk_steps=1 must be of type bool"),
        ({"steps_offset": True}, "steps_offset=True must be of type int"),
        ({"steps_offset": -1}, "steps_offset=-1 must be at least 0"),
        ({"steps_offset": 1000}, "steps_offset=1000 must be at least 0 and below"),
        ({"num_train_timesteps": 0}, "num_train_timesteps=0 must lie in 1..100000"),
        ({"num_train_timesteps": 10**12}, "=1000000000000 must lie in 1..100000"),
        ({"beta_start": 0.02}, "0 < beta_start <= beta_end < 1"),
    ],
)
def test_bad_file_is_refused_with_its_name_and_the_option(change, message):
    with pytest.raises(ValueError, match=f"folder/scheduler.json: .*{message}"):
        scheduler_config({**SD1_SCHEDULER, **change}, source="folder/scheduler.json")


@pytest.mark.parametrize(
    ("json", "kind", "message"),
    [
        (EULER_JSON, "heun", "kind='heun' is not supported; choose from 'ddim', 'pndm'"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "ddim", "no beta_schedule"),
        ({**EULER_JSON, "prediction_type": "flow_prediction"}, "ddim", "'flow_prediction'"),
        ({**EULER_JSON, "rescale_betas_zero_snr": True}, "pndm", "use 'ddim'"),
    ],
)
def test_impossible_override_is_refused(json, kind, message):
    with pytest.raises(ValueError, match=message):
        scheduler_config(json, kind=kind)


@pytest.mark.parametrize("option", ["clip_sample", "rescale_betas_zero_snr"])
def test_pndm_refuses_options_that_only_ddim_has(option):
    with pytest.raises(ValueError, match=f"{option}=True is not supported by 'pndm'"):
        SchedulerConfig(kind="pndm", **{option: True})


# As published with SDXL-Turbo and SD-Turbo: options of other schedulers are left over in them.
TURBO_JSON = {
    "_class_name": "EulerAncestralDiscreteScheduler",
    "_diffusers_version": "0.24.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "trailing",
    "trained_betas": None,
    "use_karras_sigmas": False,
}
DPM_JSON = {
    "_class_name": "DPMSolverMultistepScheduler",
    "algorithm_type": "dpmsolver++",
    "beta_schedule": "scaled_linear",
    "dynamic_thresholding_ratio": 0.995,
    "final_sigmas_type": "sigma_min",
    "flow_shift": 1.0,
    "lambda_min_clipped": -float("inf"),
    "solver_order": 2,
    "solver_type": "midpoint",
    "thresholding": False,
    "use_karras_sigmas": True,
    "use_lu_lambdas": False,
    "variance_type": None,
}


def test_options_of_other_schedulers_are_ignored():
    assert scheduler_config(TURBO_JSON) == SchedulerConfig(
        kind="euler_ancestral",
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        steps_offset=1,
        timestep_spacing="trailing",
    )
    odd = {"skip_prk_steps": True, "use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"}
    assert scheduler_config(TURBO_JSON | odd) == scheduler_config(TURBO_JSON)


def test_options_of_dpmsolver_are_read():
    assert scheduler_config(DPM_JSON) == SchedulerConfig(
        kind="dpmsolver_multistep",
        beta_schedule="scaled_linear",
        final_sigmas_type="sigma_min",
        use_karras_sigmas=True,
        timestep_spacing="linspace",
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"solver_order": 3}, "solver_order=3 is not supported, only 2"),
        (
            {"algorithm_type": "sde-dpmsolver++"},
            "algorithm_type='sde-dpmsolver..' is not",
        ),
        ({"solver_type": "heun"}, "solver_type='heun' is not supported, only 'midpoint'"),
        ({"variance_type": "learned"}, "variance_type='learned' is not supported, only None"),
        ({"lambda_min_clipped": -5.1}, "lambda_min_clipped=-5.1 is not supported, only -inf"),
        ({"use_exponential_sigmas": True}, "use_exponential_sigmas=True is not supported"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas=True is not supported"),
        ({"final_sigmas_type": "last"}, "final_sigmas_type='last' is not.*'zero', 'sigma_min'"),
        ({"use_karras_sigmas": None}, "use_karras_sigmas=None must be of type bool"),
    ],
)
def test_options_of_another_solver_are_refused(change, message):
    # There is advice, too.
    if "is not supported, only" in message:
        message += ".*; change it in the file, or choose another kind of scheduler .ddim, pndm"
    with pytest.raises(ValueError, match=message):
        scheduler_config(DPM_JSON | change)
    # Another sampler may take over, which has no such options.
    if "final_sigmas_type" not in change:
        assert scheduler_config(DPM_JSON | change, kind="ddim").kind == "ddim"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "euler", "interpolation_type": "log_linear"}, "interpolation_type='log_linear'"),
        ({"kind": "euler", "timestep_type": "continuous"}, "timestep_type='continuous'"),
        ({"kind": "euler", "sigma_max": 700.0}, "sigma_max=700.0 is not supported, only None"),
        ({"kind": "ddpm", "variance_type": "learned_range"}, "variance_type='learned_range'"),
        ({"kind": "ddpm", "variance_type": None}, "variance_type=None must be of type str"),
        (
            {"kind": "lcm", "original_inference_steps": 0},
            "original_inference_steps=0 must lie in 1",
        ),
        (
            {"kind": "lcm", "original_inference_steps": 10**12},
            "original_inference_steps=1000000000000 must lie in 1..1000",
        ),
        ({"kind": "lcm", "timestep_scaling": 0}, "timestep_scaling=0 must be above 0"),
        ({"kind": "lcm", "timestep_scaling": float("nan")}, "=nan must be above 0 and at most 1"),
        ({"kind": "lcm", "timestep_scaling": 1e5}, "=100000.0 must be above 0 and at most 10000"),
        ({"kind": "ddim", "clip_sample_range": 10**400}, "must be above 0 and at most 10000"),
        ({"kind": "ddpm", "clip_sample_range": float("inf")}, "=inf must be above 0 and at most"),
    ],
)
def test_options_that_make_another_sampler_are_refused(options, message):
    json = {"_class_name": SCHEDULERS[options.pop("kind")].class_name} | options
    with pytest.raises(ValueError, match=message):
        scheduler_config(json)


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize(
    "stored",
    [
        {"_class_name": "DPMSolverSDEScheduler", "noise_sampler_seed": None},
        {"_class_name": "DPMSolverSinglestepScheduler", "algorithm_type": "sde-dpmsolver++"},
        {"_class_name": "UniPCMultistepScheduler", "solver_order": 3, "solver_type": "bh2"},
        {"_class_name": "DDPMWuerstchenScheduler", "variance_type": "fixed_small_log"},
        {"_class_name": "HeunDiscreteScheduler", "use_exponential_sigmas": True},
    ],
)
def test_an_override_keeps_the_noise_of_any_other_class(stored, kind):
    noise = {
        "num_train_timesteps": 500,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "prediction_type": "v_prediction",
    }
    config = scheduler_config(stored | noise, kind=kind)
    assert {name: getattr(config, name) for name in noise} == noise
    plain = scheduler_config({"_class_name": SCHEDULERS[kind].class_name} | noise)
    assert dataclasses.replace(config, clip_sample=plain.clip_sample) == plain


def test_an_override_with_the_same_class_stays_strict():
    """Only options of another class are dropped; an unsupported noise is not."""
    with pytest.raises(ValueError, match="algorithm_type='sde-dpmsolver..' is not supported"):
        scheduler_config(
            DPM_JSON | {"algorithm_type": "sde-dpmsolver++"}, kind="dpmsolver_multistep"
        )
    flow = {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "beta_schedule": "?"}
    with pytest.raises(ValueError, match="use_flow_sigmas=True is not supported, only False"):
        scheduler_config(flow, kind="dpmsolver_multistep")


def test_a_kind_refuses_an_option_that_it_lacks():
    with pytest.raises(ValueError, match="use_karras_sigmas=True is not supported by 'lcm'; use"):
        SchedulerConfig(kind="lcm", use_karras_sigmas=True)
    zero_snr = SchedulerConfig(kind="euler", rescale_betas_zero_snr=True)
    with pytest.raises(ValueError, match="rescale_betas_zero_snr=True is not supported by 'pndm'"):
        zero_snr.with_kind("pndm")


def test_with_kind_drops_options_that_the_other_kind_lacks():
    karras = scheduler_config(DPM_JSON)
    assert karras.with_kind("euler") == dataclasses.replace(karras, kind="euler")
    ancestral = karras.with_kind("euler_ancestral")
    assert not ancestral.use_karras_sigmas and ancestral.final_sigmas_type == "zero"
    assert ancestral.timestep_spacing == "linspace"


def test_options_are_changed_by_their_names_and_unknown_ones_refused():
    config = SchedulerConfig(kind="euler")
    changed = config.with_options({"use_karras_sigmas": True, "timestep_spacing": "trailing"})
    expected = {"kind": "euler", "use_karras_sigmas": True, "timestep_spacing": "trailing"}
    assert changed == SchedulerConfig(**expected)
    with pytest.raises(ValueError, match="'euler' has no kind, skip_prk_steps; it has beta_end, "):
        config.with_options({"skip_prk_steps": True, "kind": "ddim"})
    with pytest.raises(ValueError, match="use_karras_sigmas='yes' must be of type bool"):
        config.with_options({"use_karras_sigmas": "yes"})


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_written_configs_read_back_equal(kind):
    config = scheduler_config({"_class_name": SCHEDULERS[kind].class_name, "beta_end": 0.012})
    config = dataclasses.replace(config, prediction_type="v_prediction", steps_offset=1)
    assert scheduler_config(scheduler_json(config)) == config
