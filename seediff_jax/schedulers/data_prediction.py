"""Euler, Euler ancestral, DPM-Solver++ (2M), LCM and DDPM: every update is one weighted sum.

    clean = clean_weights . (latents, prediction)                   clipped if the config says so
    next  = latents_weights * latents + weights . (clean of this call and of the k before)
            + noise_scales * noise

The functions in `MIXING_STEPS` compute the weights on the host in float64; the samplers differ only
in these tables. Conventions are those of diffusers' schedulers:

    euler                Karras et al., arXiv 2206.00364, algorithm 2 without churn
    euler_ancestral      k-diffusion's sample_euler_ancestral
    dpmsolver_multistep  Lu et al., arXiv 2211.01095, algorithm 2
    lcm                  Luo et al., arXiv 2310.04378, algorithm 3
    ddpm                 Ho et al., arXiv 2006.11239, algorithm 2 and equations 6 and 7

With sigma^2 = (1 - alpha) / alpha for a share of signal alpha = alphas_cumprod, Euler latents are
clean + sigma noise, and the UNet reads them times sqrt(alpha). Other latents are that product.
"""

import jax.numpy as jnp
import numpy as np
from flax import struct

from seediff_jax.array_typing import Array
from seediff_jax.schedulers.config import SchedulerConfig
from seediff_jax.schedulers.noise_schedule import (
    host_alphas_cumprod,
    require_signal,
    spaced_timesteps,
)
from seediff_jax.schedulers.registry import SCHEDULERS

_KARRAS_RHO = 7
_LCM_DATA_VARIANCE = 0.25
# Where lower_order_final no longer has an effect.
_MANY_STEPS = 15


@struct.dataclass
class MixingSteps:
    """All UNet calls of a sampling run, in order; also one of them, without the leading axis.

    Attributes:
        timesteps: int32 `[calls]`, or float32 for the Euler samplers; the UNet's input.
        input_scales: float32 `[calls]`, factors from the latents to the UNet's input.
        clean_weights: float32 `[calls, 2]`, weights of the latents and of the UNet's output in the
            predicted clean latents.
        latents_weights: float32 `[calls]`, weight of the latents in the next ones.
        weights: float32 `[calls, 1 + k]`, of this and the k last predicted clean latents.
        noise_scales: float32 `[calls]`, standard deviation of the added noise.
    """

    timesteps: np.ndarray | Array
    input_scales: np.ndarray | Array
    clean_weights: np.ndarray | Array
    latents_weights: np.ndarray | Array
    weights: np.ndarray | Array
    noise_scales: np.ndarray | Array


def initial_sigma(config: SchedulerConfig, num_steps: int) -> float:
    """The standard deviation of the noise that an Euler sampler starts from."""
    _, sigmas = _spaced_sigmas(config, num_steps)
    # Timesteps of "leading" spacing stop short of pure noise, so the clean latents count too.
    return float(np.hypot(sigmas[0], 1.0 if config.timestep_spacing == "leading" else 0.0))


def init_mixing_state(config: SchedulerConfig, latents: Array) -> tuple[Array, ...]:
    """The state before the first call: zeros for each prediction that is remembered."""
    return (jnp.zeros_like(latents),) if config.kind == "dpmsolver_multistep" else ()


def mixing_step(
    config: SchedulerConfig,
    state: tuple[Array, ...],
    latents: Array,
    noise_pred: Array,
    step: MixingSteps,
    noise: Array | None,
) -> tuple[Array, tuple[Array, ...]]:
    """Makes the update of one UNet call; arguments and results as of `scheduler_step`."""
    clean = step.clean_weights[0] * latents + step.clean_weights[1] * noise_pred
    if config.clip_sample:
        clean = jnp.clip(clean, -config.clip_sample_range, config.clip_sample_range)
    recent = (clean, *state)
    if step.weights.shape[-1] != len(recent):
        raise ValueError(
            f"the weights of {config.kind!r} are for {step.weights.shape[-1]} predictions, but "
            f"{len(recent)} are there; init_mixing_state says how many are remembered"
        )
    latents = step.latents_weights * latents
    latents += sum(step.weights[age] * recent[age] for age in range(len(recent)))
    if noise is not None:
        latents += step.noise_scales * noise
    return latents, recent[: len(state)]


def _make_table(
    config: SchedulerConfig,
    timesteps: np.ndarray,
    alphas: np.ndarray,
    *,
    latents_weights: np.ndarray,
    weights: np.ndarray,
    noise_scales: np.ndarray | float = 0.0,
) -> MixingSteps:
    """Adds what follows from the noise levels of the calls, their `alphas`, and rounds it."""
    signal, noise = np.sqrt(alphas), np.sqrt(1 - alphas)
    input_scales = signal if SCHEDULERS[config.kind].holds_sigmas else np.ones(len(alphas))
    if config.prediction_type == "v_prediction":
        clean_weights = np.stack([signal * input_scales, -noise], axis=1)
    else:
        require_signal(config, timesteps, alphas)
        clean_weights = np.stack([input_scales / signal, -noise / signal], axis=1)
    return MixingSteps(
        timesteps=timesteps,
        input_scales=np.float32(input_scales),
        clean_weights=np.float32(clean_weights),
        latents_weights=np.float32(latents_weights),
        weights=np.float32(weights),
        noise_scales=np.float32(np.broadcast_to(noise_scales, len(alphas))),
    )


def _spaced_sigmas(config: SchedulerConfig, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps `[num_steps]`, and sigmas `[num_steps + 1]` with that of the result last."""
    alphas = host_alphas_cumprod(config).astype(np.float64)
    if config.rescale_betas_zero_snr:
        alphas[-1] = 2.0**-24  # as in diffusers, so that sigma is finite
    table, places = np.sqrt((1 - alphas) / alphas), np.arange(len(alphas))
    is_euler = SCHEDULERS[config.kind].holds_sigmas
    # Rounded before they are used, because diffusers interpolates at rounded timesteps.
    timesteps = spaced_timesteps(config, num_steps).astype(np.float32)
    sigmas = np.interp(timesteps, places, table)
    if config.use_karras_sigmas:
        first, last = (sigmas[0], sigmas[-1]) if is_euler else (table[-1], table[0])
        # Evenly spaced in their seventh root (arXiv 2206.00364, equation 5).
        roots = np.linspace(first ** (1 / _KARRAS_RHO), last ** (1 / _KARRAS_RHO), num_steps)
        sigmas = roots**_KARRAS_RHO
        timesteps = np.interp(np.log(sigmas), np.log(table), places).astype(np.float32)
        # diffusers forgets to round the timesteps of the cosine schedule, and then cuts them off.
        if not is_euler and config.beta_schedule != "squaredcos_cap_v2":
            timesteps = timesteps.round()
    final = table[0] if config.final_sigmas_type == "sigma_min" else 0.0
    sigmas = np.append(sigmas, final).astype(np.float32).astype(np.float64)
    return timesteps if is_euler else timesteps.astype(np.int32), sigmas


def _euler_steps(config: SchedulerConfig, num_steps: int) -> MixingSteps:
    timesteps, sigmas = _spaced_sigmas(config, num_steps)
    start, end = sigmas[:-1], sigmas[1:]
    ratio, noise_scales = end / start, 0.0
    if config.kind == "euler_ancestral":
        # Steps to a lower noise level and adds fresh noise up to the wanted one.
        noise_scales = end * np.sqrt(1 - ratio**2)
        ratio = ratio**2
    return _make_table(
        config,
        timesteps,
        1 / (start**2 + 1),
        latents_weights=ratio,
        weights=1 - ratio[:, None],
        noise_scales=noise_scales,
    )


def _dpmsolver_steps(config: SchedulerConfig, num_steps: int) -> MixingSteps:
    timesteps, sigmas = _spaced_sigmas(config, num_steps)
    start, end = sigmas[:-1], sigmas[1:]
    signal, end_signal = 1 / np.sqrt(start**2 + 1), 1 / np.sqrt(end**2 + 1)
    # Prediction at the middle of the step, extrapolated linearly in log sigma from the last call.
    extrapolation = np.zeros(num_steps)
    is_short = config.lower_order_final and num_steps < _MANY_STEPS
    final_alone = is_short or config.euler_at_final or config.final_sigmas_type == "zero"
    for k in range(1, num_steps - final_alone):
        width, last_width = np.log(start[k] / end[k]), np.log(start[k - 1] / start[k])
        extrapolation[k] = width / (2 * last_width)
    both = np.stack([1 + extrapolation, -extrapolation], axis=1)
    return _make_table(
        config,
        timesteps,
        signal**2,
        latents_weights=(end * end_signal) / (start * signal),
        weights=(end_signal * (1 - end / start))[:, None] * both,
    )


def _lcm_steps(config: SchedulerConfig, num_steps: int) -> MixingSteps:
    count = config.original_inference_steps
    distilled = np.arange(count, 0, -1) * (config.num_train_timesteps // count) - 1
    picks = np.linspace(0, count, num_steps, endpoint=False).astype(np.int32)
    timesteps = distilled[picks]
    alphas = host_alphas_cumprod(config)[timesteps].astype(np.float64)
    end_alphas = np.append(alphas[1:], 1.0)
    scaled = timesteps * config.timestep_scaling
    skip = _LCM_DATA_VARIANCE / (scaled**2 + _LCM_DATA_VARIANCE)
    return _make_table(
        config,
        timesteps.astype(np.int32),
        alphas,
        latents_weights=np.sqrt(end_alphas) * skip,
        weights=np.sqrt(end_alphas * (1 - skip))[:, None],
        noise_scales=np.sqrt(1 - end_alphas),
    )


def _ddpm_steps(config: SchedulerConfig, num_steps: int) -> MixingSteps:
    timesteps = spaced_timesteps(config, num_steps).astype(np.int32)
    # Differences of numbers near 1 are those of diffusers only if they are float32 too.
    alphas = host_alphas_cumprod(config)[timesteps]
    end_alphas = np.append(alphas[1:], np.float32(1))
    betas = 1 - alphas / end_alphas
    variances = betas
    if config.variance_type == "fixed_small":
        variances = betas * (1 - end_alphas) / (1 - alphas)
    return _make_table(
        config,
        timesteps,
        alphas,
        latents_weights=np.sqrt(1 - betas) * (1 - end_alphas) / (1 - alphas),
        weights=(np.sqrt(end_alphas) * betas / (1 - alphas))[:, None],
        # An update from timestep 0 adds no noise. A last update from a later timestep does with
        # "fixed_large", as in diffusers.
        noise_scales=np.sqrt(variances) * (timesteps > 0),
    )


MIXING_STEPS = {
    "euler": _euler_steps,
    "euler_ancestral": _euler_steps,
    "dpmsolver_multistep": _dpmsolver_steps,
    "lcm": _lcm_steps,
    "ddpm": _ddpm_steps,
}
"""For each kind of `registry.SCHEDULERS`: lists the UNet calls of a run, see `make_steps`."""
