"""The noise schedule and the samplers DDIM and PNDM, as pure functions over prepared tables.

`make_noise_schedule` and `make_steps` run on the host, once, before the loop. `make_steps` lists
every UNet call of a run (PNDM makes more calls than steps) with all that the call needs; its
result is the `xs` of a `lax.scan` whose body calls the UNet and then `scheduler_step`. Nothing
counts calls: which earlier noise predictions a PNDM call combines is in the table, as weights.

DDIM: Song et al., arXiv 2010.02502, with eta = 0. PNDM: Liu et al., arXiv 2202.09778; with
`skip_prk_steps` its linear multistep half alone, PLMS. Conventions are those of diffusers'
DDIMScheduler and PNDMScheduler.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import struct

from seediff_jax.arrays import Array, Float, Int, typechecked
from seediff_jax.scheduler_configs import SchedulerConfig, scheduler_config

__all__ = [
    "NoiseSchedule",
    "PndmState",
    "SchedulerConfig",
    "Steps",
    "add_noise",
    "init_scheduler_state",
    "make_noise_schedule",
    "make_steps",
    "scheduler_config",
    "scheduler_step",
    "velocity",
]


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
    table = jnp.asarray(alphas_cumprod, jnp.float32)
    final = jnp.ones((), jnp.float32) if config.set_alpha_to_one else table[0]
    return NoiseSchedule(alphas_cumprod=table, final_alpha_cumprod=final)


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
    """Training target of a "v_prediction" UNet for clean float32 latents (arXiv 2202.00512)."""
    alpha = schedule.alphas_cumprod[timesteps][:, None, None, None]
    return jnp.sqrt(alpha) * noise - jnp.sqrt(1 - alpha) * latents


@struct.dataclass
class Steps:
    """All UNet calls of a sampling run, in order; also one of them, without the leading axis.

    Attributes:
        timesteps: int32 `[calls]`, the UNet's input.
        start_timesteps: int32 `[calls]`, the noise level that the update leaves.
        end_timesteps: int32 `[calls]`, the noise level where it arrives; negative: the final one.
        starts_anew: bool `[calls]`, the update leaves from the current latents, not from those of
            the call before (a Runge-Kutta step leaves four times from the same latents).
        weights: float32 `[calls, 1 + k]`, weights of this and the k last noise predictions.
    """

    timesteps: np.ndarray | Array
    start_timesteps: np.ndarray | Array
    end_timesteps: np.ndarray | Array
    starts_anew: np.ndarray | Array
    weights: np.ndarray | Array


@struct.dataclass
class PndmState:
    """What PNDM carries from call to call.

    Attributes:
        start_latents: float32 `[b, h, w, c]`, where the last update left from.
        history: float32 `[k, b, h, w, c]`, the last k noise predictions, newest first.
    """

    start_latents: Array
    history: Array


class _Call(NamedTuple):
    timestep: int
    start: int
    end: int
    starts_anew: bool
    weights: dict[int, float]  # by age in calls; this call's noise prediction has age 0


def make_steps(config: SchedulerConfig, num_steps: int) -> Steps:
    """Lists the UNet calls of a run of `num_steps` steps.

    DDIM makes `num_steps` calls, PNDM one more (from two steps on), or nine more with its
    Runge-Kutta steps.

    Raises:
        ValueError: `num_steps` is out of range, or asks for a timestep beyond the schedule.
    """
    fewest = 4 if config.kind == "pndm" and not config.skip_prk_steps else 1
    if not fewest <= num_steps <= config.num_train_timesteps:
        raise ValueError(
            f"num_steps={num_steps} must lie in {fewest}..{config.num_train_timesteps} for "
            f"{config.kind!r}" + (" with skip_prk_steps=False" if fewest > 1 else "")
        )
    timesteps = _spaced_timesteps(config, num_steps)
    if timesteps[0] >= config.num_train_timesteps:
        raise ValueError(
            f"num_steps={num_steps} with steps_offset={config.steps_offset} asks for timestep "
            f"{timesteps[0]}, beyond the last, {config.num_train_timesteps - 1}; use fewer steps"
        )
    stride = config.num_train_timesteps // num_steps
    if config.kind == "ddim":
        calls = [_Call(t, t, t - stride, True, {0: 1.0}) for t in timesteps]
    elif config.skip_prk_steps:
        calls = _plms_calls(timesteps, stride)
    else:
        calls = _runge_kutta_calls(timesteps, stride)
    weights = np.zeros((len(calls), 1 + _history_length(config)), np.float32)
    for row, call in zip(weights, calls, strict=True):
        row[list(call.weights)] = list(call.weights.values())
    return Steps(
        timesteps=np.array([call.timestep for call in calls], np.int32),
        start_timesteps=np.array([call.start for call in calls], np.int32),
        end_timesteps=np.array([call.end for call in calls], np.int32),
        starts_anew=np.array([call.starts_anew for call in calls]),
        weights=weights,
    )


def _spaced_timesteps(config: SchedulerConfig, num_steps: int) -> list[int]:
    """Timesteps of the steps, descending (table 2 of arXiv 2305.08891)."""
    count = config.num_train_timesteps
    if config.timestep_spacing == "linspace":
        ascending = np.linspace(0, count - 1, num_steps).round()
    elif config.timestep_spacing == "leading":
        ascending = np.arange(num_steps) * (count // num_steps) + config.steps_offset
    else:
        # Rounding can give arange one value too many, which diffusers keeps as a timestep of -1.
        ascending = np.arange(count, 0, -count / num_steps)[:num_steps][::-1].round() - 1
    return [int(t) for t in ascending[::-1]]


def _history_length(config: SchedulerConfig) -> int:
    """Age of the oldest noise prediction that a call combines."""
    if config.kind == "ddim":
        return 0
    return 4 if config.skip_prk_steps else 12


# Weights of the newest predictions, newest first, once 1, 2, 3, 4 are known (Adams-Bashforth).
_MULTISTEP = (
    (1,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def _multistep_call(timestep: int, stride: int, index: int, kept: list[int]) -> _Call:
    """Call number `index`, combining the newest four of the `kept` calls (itself the last)."""
    newest = kept[: -len(_MULTISTEP) - 1 : -1]
    weights = zip((index - call for call in newest), _MULTISTEP[len(newest) - 1], strict=True)
    return _Call(timestep, timestep, timestep - stride, True, dict(weights))


def _plms_calls(timesteps: list[int], stride: int) -> list[_Call]:
    """The first step is made twice, the second time with the mean of its two ends' predictions."""
    first, *rest = timesteps
    calls, kept = [_multistep_call(first, stride, 0, [0])], [0]
    if rest:
        calls.append(_Call(rest[0], rest[0] + stride, rest[0], False, {0: 0.5, 1: 0.5}))
    for timestep in rest:
        kept.append(len(calls))
        calls.append(_multistep_call(timestep, stride, len(calls), kept))
    return calls


def _runge_kutta_calls(timesteps: list[int], stride: int) -> list[_Call]:
    """Three Runge-Kutta steps, then multistep calls that build on the steps' first calls."""
    calls, kept, half = [], [], stride // 2
    for start, end in zip(timesteps[:3], timesteps[1:4], strict=True):
        kept.append(len(calls))
        # For an odd stride, diffusers arrives one timestep off the next call's; kept for equality.
        calls += [
            _Call(start, start, start - half, True, {0: 1.0}),
            _Call(end + half, start, end + half, False, {0: 1.0}),
            _Call(end + half, start, end, False, {0: 1.0}),
            _Call(end, start, end, False, {0: 1 / 6, 1: 1 / 3, 2: 1 / 3, 3: 1 / 6}),
        ]
    for timestep in timesteps[3:]:
        kept.append(len(calls))
        calls.append(_multistep_call(timestep, stride, len(calls), kept))
    return calls


def init_scheduler_state(config: SchedulerConfig, latents: Array) -> PndmState | tuple[()]:
    """State before the first call, for float32 latents `[b, h, w, c]`; DDIM has none."""
    if config.kind == "ddim":
        return ()
    history = jnp.zeros((_history_length(config), *latents.shape), jnp.float32)
    return PndmState(start_latents=latents, history=history)


@typechecked
def scheduler_step(
    config: SchedulerConfig,
    schedule: NoiseSchedule,
    state: PndmState | tuple[()],
    latents: Float[Array, "b h w c"],
    noise_pred: Float[Array, "b h w c"],
    step: Steps,
) -> tuple[Float[Array, "b h w c"], PndmState | tuple[()]]:
    """Makes the update of one UNet call.

    Args:
        config: static.
        schedule: of the same config.
        state: from `init_scheduler_state` or the call before.
        latents: float32, the UNet's input.
        noise_pred: the UNet's output, noise or velocity as `config.prediction_type` says.
        step: one row of `make_steps`.

    Returns:
        The float32 latents of the next call (after the last, the result) and its state.
    """
    noise_pred = noise_pred.astype(jnp.float32)
    if config.kind == "ddim":
        return _ddim_update(config, schedule, latents, noise_pred, step), state
    recent = jnp.concatenate([noise_pred[None], state.history])
    noise_pred = jnp.sum(step.weights[:, None, None, None, None] * recent, axis=0)
    start = jnp.where(step.starts_anew, latents, state.start_latents)
    latents = _ddim_update(config, schedule, start, noise_pred, step)
    return latents, PndmState(start_latents=start, history=recent[:-1])


def _ddim_update(
    config: SchedulerConfig, schedule: NoiseSchedule, latents: Array, noise_pred: Array, step: Steps
) -> Array:
    """Moves latents between two noise levels (eq. 12 of DDIM; eq. 9 of PNDM is the same)."""
    alpha = schedule.alphas_cumprod[step.start_timesteps]
    end_alpha = jnp.where(
        step.end_timesteps < 0,
        schedule.final_alpha_cumprod,
        schedule.alphas_cumprod[step.end_timesteps],
    )
    if config.prediction_type == "epsilon":
        clean = (latents - jnp.sqrt(1 - alpha) * noise_pred) / jnp.sqrt(alpha)
        noise = noise_pred
    else:
        clean = jnp.sqrt(alpha) * latents - jnp.sqrt(1 - alpha) * noise_pred
        noise = jnp.sqrt(alpha) * noise_pred + jnp.sqrt(1 - alpha) * latents
    if config.clip_sample:
        clean = jnp.clip(clean, -config.clip_sample_range, config.clip_sample_range)
    return jnp.sqrt(end_alpha) * clean + jnp.sqrt(1 - end_alpha) * noise
