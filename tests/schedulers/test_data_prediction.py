"""Euler, DPM-Solver++, LCM and DDPM against literal tables, oracles and a Gaussian model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seediff_jax.schedulers import noise_schedule
from seediff_jax.schedulers import step as schedulers
from seediff_jax.schedulers.config import SchedulerConfig
from seediff_jax.schedulers.registry import SCHEDULERS
from tests.helpers.scheduler_runs import BETAS, DDIM, normal, sample

KINDS = ("euler", "euler_ancestral", "dpmsolver_multistep", "lcm", "ddpm")
DEVIATION = 0.5  # of the clean latents of the Gaussian model


def config_of(kind, **options):
    return SchedulerConfig(kind=kind, **BETAS | options)


def sigma_of(step):
    """Noise level of a call of an "epsilon" model, relative to the signal."""
    return -step.clean_weights[1]


def gaussian_noise(inputs, step):
    """The best prediction of the noise in `inputs` if clean latents are Gaussian."""
    sigma = sigma_of(step)
    return sigma * jnp.sqrt(1 + sigma**2) * inputs / (DEVIATION**2 + sigma**2)


@pytest.mark.parametrize(
    ("kind", "options", "num_steps", "expected"),
    [
        ("euler", {"timestep_spacing": "linspace"}, 5, [999, 749.25, 499.5, 249.75, 0]),
        ("euler", {"timestep_spacing": "trailing"}, 1, [999]),
        ("euler_ancestral", {"timestep_spacing": "trailing"}, 4, [999, 749, 499, 249]),
        ("euler", {"steps_offset": 1}, 4, [751, 501, 251, 1]),
        ("dpmsolver_multistep", {"steps_offset": 1}, 4, [801, 601, 401, 201]),
        ("dpmsolver_multistep", {"timestep_spacing": "linspace"}, 3, [999, 666, 333]),
        ("lcm", {}, 1, [999]),
        ("lcm", {}, 4, [999, 759, 499, 259]),
        ("lcm", {}, 8, [999, 879, 759, 639, 499, 379, 259, 139]),
        ("ddpm", {"timestep_spacing": "trailing"}, 4, [999, 749, 499, 249]),
    ],
)
def test_timesteps(kind, options, num_steps, expected):
    timesteps = schedulers.make_steps(config_of(kind, **options), num_steps).timesteps
    assert timesteps.tolist() == expected
    assert timesteps.dtype == (np.float32 if "euler" in kind else np.int32)


def test_euler_starts_from_the_largest_sigma_and_scales_the_input():
    trailing = config_of("euler", timestep_spacing="trailing")
    # Known as sigma_max of Stable Diffusion, to as many digits.
    assert abs(schedulers.initial_noise_scale(trailing, 4) - 14.6146) < 1e-4
    scale = schedulers.make_steps(trailing, 4).input_scales[0]
    np.testing.assert_allclose(scale, 1 / np.sqrt(14.6146**2 + 1), rtol=1e-5)
    for kind in ("dpmsolver_multistep", "lcm", "ddpm", "ddim", "pndm"):
        assert schedulers.initial_noise_scale(config_of(kind), 4) == 1


def test_leading_spacing_starts_with_the_deviation_of_noisy_latents():
    config = config_of("euler", steps_offset=1)
    alpha = noise_schedule.make_noise_schedule(config).alphas_cumprod[981]
    # (1 - alpha) / alpha of noise and 1 of the clean latents
    scale = schedulers.initial_noise_scale(config, 50)
    np.testing.assert_allclose(scale, 1 / np.sqrt(alpha), rtol=1e-6)


def test_zero_snr_gives_euler_a_large_but_finite_sigma():
    config = config_of("euler", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    assert round(schedulers.initial_noise_scale(config, 10)) == 2**12
    for leaf in jax.tree.leaves(schedulers.make_steps(config, 10)):
        assert np.all(np.isfinite(leaf))


def test_karras_sigmas_have_evenly_spaced_seventh_roots():
    config = config_of("euler", use_karras_sigmas=True, timestep_spacing="linspace")
    steps = schedulers.make_steps(config, 9)
    roots = -np.diff(sigma_of_all(steps) ** (1 / 7))
    np.testing.assert_allclose(roots, roots.mean(), rtol=1e-4)  # differences of float32
    plain = schedulers.make_steps(config_of("euler", timestep_spacing="linspace"), 9)
    np.testing.assert_allclose(sigma_of_all(steps)[[0, -1]], sigma_of_all(plain)[[0, -1]])
    # Each timestep's own sigma: the table is interpolated between whole timesteps.
    alphas = np.float64(noise_schedule.make_noise_schedule(config).alphas_cumprod)
    table = np.sqrt((1 - alphas) / alphas)
    own = np.interp(steps.timesteps, np.arange(1000), table)
    np.testing.assert_allclose(own, sigma_of_all(steps), rtol=1e-2)  # log against linear, near 0
    assert np.any(steps.timesteps != steps.timesteps.round())


def sigma_of_all(steps):
    return np.float64(-steps.clean_weights[:, 1])


@pytest.mark.parametrize("kind", ["euler", "dpmsolver_multistep"])
@pytest.mark.parametrize("use_karras_sigmas", [False, True])
@pytest.mark.parametrize("num_steps", [1, 4, 50])
def test_true_noise_leads_back_to_the_clean_latents(kind, use_karras_sigmas, num_steps):
    config = config_of(kind, use_karras_sigmas=use_karras_sigmas, timestep_spacing="trailing")
    clean, noise = normal(0), normal(1)
    sigma = sigma_of_all(schedulers.make_steps(config, num_steps))[0]
    latents = clean + np.float32(sigma) * noise
    if kind != "euler":
        latents /= np.float32(np.sqrt(1 + sigma**2))
    got = sample(config, latents, lambda *_: noise, num_steps)
    # float32 rounding of latents of size 15, once a step
    np.testing.assert_allclose(got, clean, atol=5e-5)


@pytest.mark.parametrize("kind", [kind for kind in SCHEDULERS if SCHEDULERS[kind].is_stochastic])
@pytest.mark.parametrize("num_steps", [1, 4, 50])
def test_fresh_noise_is_removed_again_by_a_model_that_knows_the_clean_latents(kind, num_steps):
    config = config_of(kind)
    clean = normal(0)

    def predict(inputs, step):
        sigma = sigma_of(step)
        return (jnp.sqrt(1 + sigma**2) * inputs - clean) / sigma

    got = sample(config, 3 * normal(1), predict, num_steps)
    # An LCM mixes 7e-6 of its input in; the rest is rounding of noise up to 15.
    np.testing.assert_allclose(got, clean, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "error_ratio", "largest_error"),
    # halving the steps: order 1 halves the error, order 2 quarters it
    [("euler", 1.9, 3e-2), ("dpmsolver_multistep", 3.5, 1e-3)],
)
def test_sampling_converges_to_the_exact_flow_of_a_gaussian_model(kind, error_ratio, largest_error):
    options = {"use_karras_sigmas": True, "timestep_spacing": "linspace"}
    config = config_of(kind, final_sigmas_type="sigma_min", **options)
    latents = normal(0)

    def error(num_steps):
        start = sigma_of_all(schedulers.make_steps(config, num_steps))[0]
        alpha = float(noise_schedule.make_noise_schedule(config).alphas_cumprod[0])
        ends = np.sqrt((1 - alpha) / alpha), start
        end_spread, spread = (np.hypot(DEVIATION, sigma) for sigma in ends)
        if kind != "euler":
            spread, end_spread = spread / np.hypot(start, 1), end_spread * np.sqrt(alpha)
        exact = latents * np.float32(end_spread)
        got = sample(config, latents * np.float32(spread), gaussian_noise, num_steps)
        return np.abs(got - exact).max()

    assert error_ratio * error(100) < error(50)
    assert error(100) < largest_error


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("euler_ancestral", {}),
        ("ddpm", {"variance_type": "fixed_small"}),
        ("ddpm", {"variance_type": "fixed_large"}),
    ],
)
def test_stochastic_samplers_give_the_spread_of_a_gaussian_model(kind, options):
    config = config_of(kind, **options)
    scale = schedulers.initial_noise_scale(config, 250)
    got = sample(config, scale * normal(0, (1, 64, 64, 4)), gaussian_noise, 250)
    # 16384 values have a standard error of 0.003; steps of finite size add a little
    assert abs(np.std(got) - DEVIATION) < 0.015
    assert abs(np.mean(got)) < 0.015


def test_clip_sample_bounds_the_predicted_clean_latents():
    config = config_of("ddpm", clip_sample=True, clip_sample_range=0.7)
    got = sample(config, 100 * normal(0), lambda *_: normal(1), 10)
    assert np.abs(got).max() == np.float32(0.7)


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_of_steps_stays_inside_the_schedule(kind):
    most, options = (65, {"original_inference_steps": 65}) if kind == "lcm" else (129, {})
    for spacing in ("leading", "trailing", "linspace"):
        config = config_of(kind, num_train_timesteps=130, timestep_spacing=spacing, **options)
        for num_steps in range(1, most + 1):
            steps = schedulers.make_steps(config, num_steps)
            assert all(len(leaf) == num_steps for leaf in jax.tree.leaves(steps))
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(steps))
            assert steps.timesteps.min() >= 0 and steps.timesteps.max() < 130
            assert np.all(np.diff(steps.timesteps) < 0)


@pytest.mark.parametrize(
    ("config", "num_steps", "message"),
    [
        (config_of("euler"), 0, "num_steps=0 must lie in 1..1000 for 'euler'"),
        (config_of("dpmsolver_multistep"), 1000, "num_steps=1000 must lie in 1..999"),
        (config_of("lcm"), 51, "num_steps=51 must lie in 1..50 for 'lcm'"),
        (config_of("ddpm", steps_offset=1), 1000, "timestep 1000.*use fewer steps"),
        (
            config_of("ddpm", rescale_betas_zero_snr=True, timestep_spacing="trailing"),
            10,
            "timestep 999 is pure noise.*'epsilon'",
        ),
    ],
)
def test_num_steps_out_of_range_is_refused(config, num_steps, message):
    with pytest.raises(ValueError, match=message):
        schedulers.make_steps(config, num_steps)


@pytest.mark.parametrize("kind", KINDS)
def test_step_compiles_once_for_all_calls_and_takes_a_bfloat16_noise_pred(kind):
    config = config_of(kind)
    schedule, latents = noise_schedule.make_noise_schedule(config), normal(0)
    noise = normal(1) if schedulers.is_stochastic(config) else None
    traces = []

    @jax.jit
    def jitted(state, latents, step):
        traces.append(step)
        noise_pred = latents.astype(jnp.bfloat16)
        return schedulers.scheduler_step(config, schedule, state, latents, noise_pred, step, noise)

    steps = schedulers.make_steps(config, 6)
    state = schedulers.init_scheduler_state(config, latents)
    for index in range(6):
        step = jax.tree.map(lambda leaf, index=index: jnp.asarray(leaf[index]), steps)
        latents, state = jitted(state, latents, step)
    assert len(traces) == 1
    assert latents.dtype == jnp.float32 and np.all(np.isfinite(latents))


@pytest.mark.parametrize(
    ("config", "noise", "message"),
    [
        (config_of("ddpm"), None, "'ddpm' needs fresh noise"),
        (DDIM, normal(1), "'ddim' takes no noise"),
    ],
)
def test_missing_and_superfluous_noise_is_refused(config, noise, message):
    steps = schedulers.make_steps(config, 2)
    step = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), steps)
    schedule = noise_schedule.make_noise_schedule(config)
    with pytest.raises(ValueError, match=message):
        schedulers.scheduler_step(config, schedule, (), normal(0), normal(2), step, noise)
