"""The noise schedule: the signal left at each training timestep, and the timesteps of a run.

The table is computed on the host in NumPy, so that the samplers can compute their own tables from
it while JAX traces.
"""

import math

import jax.numpy as jnp
import numpy as np
from flax import struct

from seediff_jax.array_typing import Array, Float, Int, typechecked
from seediff_jax.errors import UserError
from seediff_jax.schedulers.config import SchedulerConfig
from seediff_jax.schedulers.registry import SCHEDULERS


@struct.dataclass
class NoiseSchedule:
    """Share of signal left at every training timestep.

    Attributes:
        alphas_cumprod: float32 `[T]`, falling from nearly 1 to nearly 0.
        final_alpha_cumprod: float32 `[]`, where the last update of a sampling run arrives.
    """

    alphas_cumprod: Array
    final_alpha_cumprod: Array


def make_noise_schedule(config: SchedulerConfig) -> NoiseSchedule:
    """Computes the table on the host, in float64 from float32 betas, and rounds it to float32."""
    table = jnp.asarray(host_alphas_cumprod(config))
    final = jnp.ones((), jnp.float32) if config.set_alpha_to_one else table[0]
    return NoiseSchedule(alphas_cumprod=table, final_alpha_cumprod=final)


def host_alphas_cumprod(config: SchedulerConfig) -> np.ndarray:
    """The table `alphas_cumprod` of `make_noise_schedule` as a NumPy array, float32 `[T]`."""
    count, start, end = config.num_train_timesteps, config.beta_start, config.beta_end
    if config.beta_schedule == "linear":
        betas = np.linspace(start, end, count)
    elif config.beta_schedule == "scaled_linear":
        betas = np.linspace(math.sqrt(start), math.sqrt(end), count) ** 2
    else:
        signal = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - signal[1:] / signal[:-1], 0.999)
    # diffusers rounds the betas: its 1 - 0.999 is off by 1e-5, and so must ours be.
    alphas_cumprod = np.cumprod(1 - betas.astype(np.float32), dtype=np.float64)
    if config.rescale_betas_zero_snr:
        root = np.sqrt(alphas_cumprod)
        alphas_cumprod = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return alphas_cumprod.astype(np.float32)


def spaced_timesteps(config: SchedulerConfig, num_steps: int) -> np.ndarray:
    """Timesteps of the steps, float64 `[num_steps]`, descending (table 2 of arXiv 2305.08891).

    They are whole numbers, except for the Euler samplers with "linspace" spacing. A UserError if
    one lies beyond the schedule.
    """
    count = config.num_train_timesteps
    # DPM-Solver++ cuts the schedule into one step more and leaves out the last.
    extra = 1 if config.kind == "dpmsolver_multistep" else 0
    if config.timestep_spacing == "linspace":
        ascending = np.linspace(0, count - 1, num_steps + extra)[extra:]
        ascending = ascending if SCHEDULERS[config.kind].holds_sigmas else ascending.round()
    elif config.timestep_spacing == "leading":
        stride = count // (num_steps + extra)
        ascending = np.arange(extra, num_steps + extra) * stride + config.steps_offset
    else:
        # Rounding can give arange one value too many, which diffusers keeps as a timestep of -1.
        ascending = np.arange(count, 0, -count / num_steps)[:num_steps][::-1].round() - 1
    if ascending[-1] >= count:
        raise UserError(
            f"num_steps={num_steps} with steps_offset={config.steps_offset} asks for timestep "
            f"{ascending[-1]}, beyond the last, {count - 1}; use fewer steps"
        )
    return ascending[::-1].astype(np.float64)


def require_signal(config: SchedulerConfig, timesteps: np.ndarray, alphas: np.ndarray) -> None:
    """Raises a UserError if an "epsilon" model cannot predict clean latents at a timestep of a run.

    Its prediction is divided by the square root of the signal share, which must not be 0.

    Args:
        config: the scheduler.
        timesteps: of the UNet calls, `[calls]`.
        alphas: share of signal at each of them, `[calls]`.
    """
    if config.prediction_type == "epsilon" and alphas.min() < np.finfo(np.float32).tiny:
        timestep = timesteps[alphas.argmin()]
        raise UserError(
            f"timestep {timestep} is pure noise (rescale_betas_zero_snr="
            f"{config.rescale_betas_zero_snr}), in which a model of prediction_type='epsilon' sees "
            "nothing; use another timestep_spacing, or a model of prediction_type='v_prediction'"
        )


@typechecked
def add_noise(
    schedule: NoiseSchedule,
    latents: Float[Array, "b h w c"],
    noise: Float[Array, "b h w c"],
    timesteps: Int[Array, " b"],
) -> Float[Array, "b h w c"]:
    """Diffuses clean float32 latents to `timesteps`, each in 0..T-1."""
    alpha = schedule.alphas_cumprod[timesteps][:, None, None, None]
    return jnp.sqrt(alpha) * latents + jnp.sqrt(1 - alpha) * noise


@typechecked
def velocity(
    schedule: NoiseSchedule,
    latents: Float[Array, "b h w c"],
    noise: Float[Array, "b h w c"],
    timesteps: Int[Array, " b"],
) -> Float[Array, "b h w c"]:
    """Training target of a "v_prediction" UNet for clean float32 latents (arXiv 2202.00512).

    It is sqrt(alpha) * noise - sqrt(1 - alpha) * latents.
    """
    return add_noise(schedule, noise, -latents, timesteps)
