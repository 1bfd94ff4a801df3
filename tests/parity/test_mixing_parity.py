"""Euler, DPM-Solver++, LCM and DDPM equal diffusers' schedulers after each call of a run."""

import itertools

import numpy as np
import pytest

from seediff_jax.schedulers.config import scheduler_config
from seediff_jax.schedulers.registry import SCHEDULERS
from tests.helpers.diffusers_schedulers import (
    SHAPE,
    STABLE_DIFFUSION,
    assert_trajectories_equal,
    reference_of,
    run_ours,
)

# diffusers converts torch tensors to arrays in a way that NumPy has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PREDICTIONS = pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
SPACINGS = pytest.mark.parametrize("timestep_spacing", ["leading", "trailing", "linspace"])
# Both codes interpolate timesteps in logarithms of float32 tables, 0.006 apart.
KARRAS_TOLERANCE = 1e-3


def json_of(kind, **options):
    return STABLE_DIFFUSION | {"_class_name": SCHEDULERS[kind].class_name} | options


@PREDICTIONS
@SPACINGS
@pytest.mark.parametrize("kind", ["euler", "euler_ancestral", "dpmsolver_multistep", "ddpm"])
def test_trajectory_with_the_betas_of_stable_diffusion(kind, timestep_spacing, prediction_type):
    options = {"timestep_spacing": timestep_spacing, "prediction_type": prediction_type}
    options |= {"clip_sample": False} if kind == "ddpm" else {}
    for steps_offset, num_steps in ((0, 50), (1, 50), (1, 7)):
        assert_trajectories_equal(json_of(kind, **options, steps_offset=steps_offset), num_steps)


@PREDICTIONS
@pytest.mark.parametrize("num_steps", [1, 4])
@pytest.mark.parametrize("kind", ["euler", "euler_ancestral", "dpmsolver_multistep", "ddpm"])
def test_trajectory_of_few_steps(kind, num_steps, prediction_type):
    options = {"timestep_spacing": "trailing", "prediction_type": prediction_type}
    options |= {"clip_sample": False} if kind == "ddpm" else {}
    assert_trajectories_equal(json_of(kind, **options), num_steps)


@PREDICTIONS
@pytest.mark.parametrize("num_steps", [1, 4, 8, 50])
def test_trajectory_of_lcm(num_steps, prediction_type):
    assert_trajectories_equal(json_of("lcm", prediction_type=prediction_type), num_steps)


@pytest.mark.parametrize(
    "options",
    [
        {"original_inference_steps": 25, "timestep_scaling": 0.1},
        {"clip_sample": True, "clip_sample_range": 2.0},
        {"set_alpha_to_one": False, "timestep_spacing": "trailing", "steps_offset": 1},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    ],
)
def test_trajectory_with_options_of_lcm(options):
    assert_trajectories_equal(json_of("lcm", **options), 8)


@pytest.mark.parametrize("final_sigmas_type", ["zero", "sigma_min"])
@pytest.mark.parametrize(
    ("kind", "timestep_spacing"),
    [
        *itertools.product(["euler"], ["leading", "trailing", "linspace"]),
        ("dpmsolver_multistep", "leading"),
    ],
)
@pytest.mark.parametrize("num_steps", [1, 4, 50])
def test_trajectory_with_karras_sigmas(kind, num_steps, final_sigmas_type, timestep_spacing):
    json = json_of(
        kind,
        use_karras_sigmas=True,
        final_sigmas_type=final_sigmas_type,
        timestep_spacing=timestep_spacing,
        steps_offset=1,
    )
    tolerance = KARRAS_TOLERANCE if kind == "euler" else 0.0
    assert_trajectories_equal(json, num_steps, tolerance)


@SPACINGS
def test_euler_trajectory_that_ends_at_the_smallest_sigma(timestep_spacing):
    options = {"final_sigmas_type": "sigma_min", "timestep_spacing": timestep_spacing}
    assert_trajectories_equal(json_of("euler", **options), 50)


@pytest.mark.parametrize("final_sigmas_type", ["zero", "sigma_min"])
@pytest.mark.parametrize("euler_at_final", [False, True])
@pytest.mark.parametrize("lower_order_final", [False, True])
def test_order_of_the_last_updates_of_dpmsolver(
    lower_order_final, euler_at_final, final_sigmas_type
):
    json = json_of(
        "dpmsolver_multistep",
        lower_order_final=lower_order_final,
        euler_at_final=euler_at_final,
        final_sigmas_type=final_sigmas_type,
    )
    for num_steps in (1, 2, 14, 15):
        assert_trajectories_equal(json, num_steps)


ZERO_SNR = {"rescale_betas_zero_snr": True}


@pytest.mark.parametrize("timestep_spacing", ["trailing", "linspace"])
@pytest.mark.parametrize(
    ("kind", "prediction_type"),
    [
        ("euler", "epsilon"),
        ("euler_ancestral", "epsilon"),
        ("dpmsolver_multistep", "epsilon"),
        ("dpmsolver_multistep", "v_prediction"),
    ],
)
def test_trajectory_from_zero_snr(kind, prediction_type, timestep_spacing):
    options = {"timestep_spacing": timestep_spacing, "prediction_type": prediction_type}
    for num_steps in (4, 50):
        assert_trajectories_equal(json_of(kind, **ZERO_SNR | options), num_steps)


@pytest.mark.parametrize("timestep_spacing", ["trailing", "linspace"])
@pytest.mark.parametrize("num_steps", [4, 50])
@pytest.mark.parametrize("kind", ["euler", "euler_ancestral"])
def test_euler_trajectory_of_velocities_from_zero_snr(kind, num_steps, timestep_spacing):
    """In float64, because the first update of diffusers subtracts float32 numbers up to 16384."""
    options = {"timestep_spacing": timestep_spacing, "prediction_type": "v_prediction"}
    json = json_of(kind, **ZERO_SNR | options)
    reference = reference_of(json)
    reference.set_timesteps(num_steps)
    sigmas = np.float64(reference.sigmas.numpy())
    latents, velocities, noises = _random_run(num_steps)
    _, got = run_ours(scheduler_config(json), num_steps, latents, velocities, noises)
    expected = latents * sigmas[0]
    for k, (start, end) in enumerate(itertools.pairwise(sigmas)):
        clean = expected / (start**2 + 1) - start / np.sqrt(start**2 + 1) * velocities[k]
        up = 0.0
        if kind == "euler_ancestral":
            up = end * np.sqrt(start**2 - end**2) / start
        slope = (expected - clean) / start
        expected = expected + slope * (np.sqrt(end**2 - up**2) - start) + up * noises[k]
        assert np.abs(got[k] - expected).max() < 1e-5 * expected.std()


def _random_run(num_steps):
    """Draws the latents, predictions and noises of a run."""
    random = np.random.default_rng(num_steps)
    latents = random.standard_normal(SHAPE, np.float32)
    return latents, *random.standard_normal((2, num_steps, *SHAPE), np.float32)


@pytest.mark.parametrize(
    "options",
    [
        {"variance_type": "fixed_large", "clip_sample": False},
        {"variance_type": "fixed_large", "clip_sample": False, "steps_offset": 1},
        {"variance_type": "fixed_small", "clip_sample": True},
        {"clip_sample": True, "clip_sample_range": 3.0, "prediction_type": "v_prediction"},
        {
            "clip_sample": False,
            "rescale_betas_zero_snr": True,
            "prediction_type": "v_prediction",
            "timestep_spacing": "trailing",
        },
    ],
)
def test_trajectory_with_options_of_ddpm(options):
    assert_trajectories_equal(json_of("ddpm", **options), 50)


@pytest.mark.parametrize("beta_schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("kind", ["euler", "euler_ancestral", "dpmsolver_multistep", "ddpm", "lcm"])
def test_trajectory_with_other_beta_schedules(kind, beta_schedule):
    options = {"beta_schedule": beta_schedule, "num_train_timesteps": 430}
    assert_trajectories_equal(json_of(kind, **options), 30)
