"""Schedulers against literal tables, closed forms and the exact solution of a Gaussian model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seediff_jax.schedulers import noise_schedule
from seediff_jax.schedulers import step as schedulers
from seediff_jax.schedulers.config import SchedulerConfig, scheduler_config
from tests.helpers.scheduler_runs import BETAS, DDIM, PLMS, RUNGE_KUTTA, normal, sample

SD14 = SchedulerConfig(kind="pndm", skip_prk_steps=True, steps_offset=1, **BETAS)


def test_noise_schedule_of_stable_diffusion():
    schedule = noise_schedule.make_noise_schedule(SD14)
    root = np.linspace(0.00085**0.5, 0.012**0.5, 1000)
    expected = np.exp(np.cumsum(np.log1p(-(root**2))))
    assert schedule.alphas_cumprod.dtype == jnp.float32
    # betas are rounded to float32, 3e-8 relative to 1 - beta, over up to 1000 factors
    np.testing.assert_allclose(schedule.alphas_cumprod, expected, rtol=2e-6)
    np.testing.assert_allclose(schedule.alphas_cumprod[-1], 0.0046600, rtol=1e-4)
    assert schedule.final_alpha_cumprod == schedule.alphas_cumprod[0]


def test_set_alpha_to_one_ends_at_clean_latents():
    schedule = noise_schedule.make_noise_schedule(
        SchedulerConfig(kind="ddim", set_alpha_to_one=True)
    )
    assert schedule.final_alpha_cumprod == 1


def test_cosine_schedule_has_the_closed_form():
    config = SchedulerConfig(kind="ddim", beta_schedule="squaredcos_cap_v2")
    alphas_cumprod = noise_schedule.make_noise_schedule(config).alphas_cumprod
    angle = (np.arange(1, 1001) / 1000 + 0.008) / 1.008 * np.pi / 2
    expected = np.cos(angle) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    # the cap on beta changes the last value alone; the betas are float32
    np.testing.assert_allclose(alphas_cumprod[:-1], expected[:-1], rtol=1e-5)
    np.testing.assert_allclose(alphas_cumprod[-1] / alphas_cumprod[-2], 0.001, rtol=1e-4)


def test_zero_snr_schedule_ends_in_pure_noise_and_starts_unchanged():
    config = SchedulerConfig(kind="ddim", rescale_betas_zero_snr=True, **BETAS)
    rescaled = noise_schedule.make_noise_schedule(config).alphas_cumprod
    plain = noise_schedule.make_noise_schedule(DDIM).alphas_cumprod
    assert rescaled[-1] == 0
    np.testing.assert_allclose(rescaled[0], plain[0], rtol=1e-6)
    assert np.all(np.diff(rescaled) < 0)


def test_ddim_timesteps_of_stable_diffusion():
    config = SD14.with_kind("ddim")
    steps = schedulers.make_steps(config, 50)
    assert steps.timesteps.dtype == np.int32
    assert steps.timesteps.tolist() == list(range(981, 0, -20))


def test_plms_makes_the_second_call_twice():
    steps = schedulers.make_steps(SD14, 50)
    assert steps.timesteps.tolist() == [981, 961, *range(961, 0, -20)]
    assert schedulers.make_steps(PLMS, 1).timesteps.tolist() == [0]


def test_runge_kutta_makes_three_steps_of_four_calls():
    steps = schedulers.make_steps(RUNGE_KUTTA, 5)
    first = [800, 700, 700, 600, 600, 500, 500, 400, 400, 300, 300, 200]
    assert steps.timesteps.tolist() == [*first, 200, 0]


def test_weights_are_those_of_the_papers_by_age_of_the_prediction():
    plms = 24 * schedulers.make_steps(PLMS, 5).weights
    assert np.round(plms, 4).tolist() == [
        [24, 0, 0, 0, 0],
        [12, 12, 0, 0, 0],  # the mean of both ends of the first step
        [36, 0, -12, 0, 0],  # the repeated call is left out from here on
        [46, -32, 0, 10, 0],
        [55, -59, 37, 0, -9],
        [55, -59, 37, -9, 0],
    ]
    runge_kutta = 6 * schedulers.make_steps(RUNGE_KUTTA, 4).weights
    assert np.round(runge_kutta[8:12, :5], 4).tolist() == [
        [6, 0, 0, 0, 0],
        [6, 0, 0, 0, 0],
        [6, 0, 0, 0, 0],
        [1, 2, 2, 1, 0],
    ]
    ages = np.flatnonzero(runge_kutta[12])
    assert ages.tolist() == [0, 4, 8, 12]  # the first calls of the three Runge-Kutta steps


@pytest.mark.parametrize(
    ("spacing", "expected"), [("trailing", [999, 749, 499, 249]), ("linspace", [999, 666, 333, 0])]
)
def test_timestep_spacing(spacing, expected):
    config = SchedulerConfig(kind="ddim", timestep_spacing=spacing)
    assert schedulers.make_steps(config, 4).timesteps.tolist() == expected


@pytest.mark.parametrize("config", [DDIM, PLMS, RUNGE_KUTTA])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_every_number_of_steps_stays_inside_the_schedule(config, spacing):
    json = {"_class_name": "Any", **BETAS, "timestep_spacing": spacing, "num_train_timesteps": 130}
    json["skip_prk_steps"] = config.skip_prk_steps
    config = scheduler_config(json, kind=config.kind)
    for num_steps in range(4, 131):
        steps = schedulers.make_steps(config, num_steps)
        extra = 0 if config.kind == "ddim" else 1 if config.skip_prk_steps else 9
        assert len(steps.timesteps) == num_steps + extra
        for levels in (steps.timesteps, steps.start_timesteps):
            assert levels.min() >= 0 and levels.max() < 130
        assert steps.end_timesteps.max() < 130


@pytest.mark.parametrize(
    ("config", "num_steps", "message"),
    [
        (DDIM, 0, "num_steps=0 must lie in 1..1000"),
        (DDIM, 1001, "num_steps=1001 must lie in 1..1000"),
        (RUNGE_KUTTA, 3, "num_steps=3 must lie in 4..1000.*skip_prk_steps=False"),
        (SchedulerConfig(kind="ddim", steps_offset=1), 1000, "timestep 1000.*use fewer steps"),
    ],
)
def test_num_steps_out_of_range_is_refused(config, num_steps, message):
    with pytest.raises(ValueError, match=message):
        schedulers.make_steps(config, num_steps)


@pytest.mark.parametrize("config", [DDIM, PLMS, RUNGE_KUTTA])
@pytest.mark.parametrize("num_steps", [4, 50])
def test_true_noise_leads_back_to_the_clean_latents(config, num_steps):
    clean, noise = normal(0), normal(1)
    schedule = noise_schedule.make_noise_schedule(config)
    first = schedulers.make_steps(config, num_steps).timesteps[0]
    latents = noise_schedule.add_noise(schedule, clean, noise, jnp.full(2, first, jnp.int32))
    got = sample(config, latents, lambda *_: noise, num_steps)
    expected = noise_schedule.add_noise(schedule, clean, noise, jnp.zeros(2, jnp.int32))
    # float32 rounding of the latents, amplified by 1 / sqrt(alphas_cumprod) = 15 at the start
    np.testing.assert_allclose(got, expected, atol=2e-5)


def test_true_velocity_leads_back_to_the_clean_latents_even_from_pure_noise():
    config = SchedulerConfig(
        kind="ddim",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        **BETAS,
    )
    clean, noise = normal(0), normal(1)
    schedule = noise_schedule.make_noise_schedule(config)

    def predict(inputs, step):
        return noise_schedule.velocity(schedule, clean, noise, jnp.full(2, step.timesteps))

    # 20 roundings of values of order 1
    np.testing.assert_allclose(sample(config, noise, predict, 20), clean, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "error_ratio", "largest_error"),
    # halving the stride: order 1 halves the error, PNDM (order 2, approached slowly) does better
    [(DDIM, 1.9, 1e-2), (PLMS, 3, 5e-4), (RUNGE_KUTTA, 3, 5e-4)],
)
def test_sampling_converges_to_the_exact_flow_of_a_gaussian_model(
    config, error_ratio, largest_error
):
    deviation = 0.5  # of the clean latents, so that the best noise prediction is known
    latents = normal(0)
    alphas_cumprod = noise_schedule.make_noise_schedule(config).alphas_cumprod

    def variance(alpha):
        return alpha * deviation**2 + 1 - alpha

    def predict(inputs, step):
        alpha = alphas_cumprod[step.timesteps]
        return jnp.sqrt(1 - alpha) * inputs / variance(alpha)

    def error(num_steps):
        start = alphas_cumprod[schedulers.make_steps(config, num_steps).timesteps[0]]
        exact = latents * jnp.sqrt(variance(alphas_cumprod[0]) / variance(start))
        return np.abs(sample(config, latents, predict, num_steps) - exact).max()

    assert error_ratio * error(500) < error(250)
    assert error(500) < largest_error


def test_clip_sample_bounds_the_predicted_clean_latents():
    config = SchedulerConfig(
        kind="ddim", clip_sample=True, clip_sample_range=0.7, set_alpha_to_one=True, **BETAS
    )
    got = sample(config, 100 * normal(0), lambda *_: normal(1), 10)
    assert np.abs(got).max() == np.float32(0.7)


def test_velocity_and_noisy_latents_give_the_clean_latents():
    schedule = noise_schedule.make_noise_schedule(DDIM)
    clean, noise, timesteps = normal(0), normal(1), jnp.array([3, 900])
    noisy = noise_schedule.add_noise(schedule, clean, noise, timesteps)
    target = noise_schedule.velocity(schedule, clean, noise, timesteps)
    angle = jnp.arccos(jnp.sqrt(schedule.alphas_cumprod[timesteps]))[:, None, None, None]
    # two rotations by the same angle: float32 rounding of values of order 1
    np.testing.assert_allclose(jnp.cos(angle) * noisy - jnp.sin(angle) * target, clean, atol=2e-6)


@pytest.mark.parametrize("config", [DDIM, PLMS, RUNGE_KUTTA])
def test_step_compiles_once_for_all_calls_and_takes_a_bfloat16_noise_pred(config):
    schedule, latents = noise_schedule.make_noise_schedule(config), normal(0)
    traces = []

    @jax.jit
    def jitted(state, latents, step):
        traces.append(step)
        noise_pred = latents.astype(jnp.bfloat16)
        return schedulers.scheduler_step(config, schedule, state, latents, noise_pred, step)

    steps = schedulers.make_steps(config, 6)
    state = schedulers.init_scheduler_state(config, latents)
    for index in range(len(steps.timesteps)):
        step = jax.tree.map(lambda leaf, index=index: jnp.asarray(leaf[index]), steps)
        latents, state = jitted(state, latents, step)
    assert len(traces) == 1
    assert latents.dtype == jnp.float32 and np.all(np.isfinite(latents))
