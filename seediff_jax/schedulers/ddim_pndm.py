"""DDIM and PNDM: updates between two noise levels by a mix of noise predictions.

`make_ddim_pndm_steps` lists every UNet call of a run (PNDM makes more calls than steps) with
everything that its update needs, including the weights of earlier noise predictions, so the loop
does not count calls.

DDIM: Song et al., arXiv 2010.02502, with eta = 0. PNDM: Liu et al., arXiv 2202.09778; with
`skip_prk_steps` only its linear multistep part, PLMS. Conventions are those of diffusers'
DDIMScheduler and PNDMScheduler.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import struct

from seediff_jax.array_typing import Array
from seediff_jax.schedulers.config import SchedulerConfig
from seediff_jax.schedulers.noise_schedule import (
    NoiseSchedule,
    host_alphas_cumprod,
    require_signal,
    spaced_timesteps,
)


@struct.dataclass
class Steps:
    """All UNet calls of a sampling run, in order; also one of them, without the leading axis.

    Attributes:
        timesteps: int32 `[calls]`, the UNet's input.
        start_timesteps: int32 `[calls]`, the noise level before the update.
        end_timesteps: int32 `[calls]`, the noise level after it; negative for the final one.
        starts_anew: bool `[calls]`, whether the update starts from the current latents, or from
            the same latents as the last update (the four updates of a Runge-Kutta step).
        weights: float32 `[calls, 1 + k]`, weights of this and the last k noise predictions.
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
        start_latents: float32 `[b, h, w, c]`, where the last update started.
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


def make_ddim_pndm_steps(config: SchedulerConfig, num_steps: int) -> Steps:
    """Lists the UNet calls of a run of `num_steps` steps; see `make_steps`."""
    timesteps = [int(t) for t in spaced_timesteps(config, num_steps)]
    stride = config.num_train_timesteps // num_steps
    if config.kind == "ddim":
        calls = [_Call(t, t, t - stride, True, {0: 1.0}) for t in timesteps]
    elif config.skip_prk_steps:
        calls = _plms_calls(timesteps, stride)
    else:
        calls = _runge_kutta_calls(timesteps, stride)
    starts = np.array([call.start for call in calls], np.int32)
    require_signal(config, starts, host_alphas_cumprod(config)[starts])
    weights = np.zeros((len(calls), 1 + _history_length(config)), np.float32)
    for row, call in zip(weights, calls, strict=True):
        row[list(call.weights)] = list(call.weights.values())
    return Steps(
        timesteps=np.array([call.timestep for call in calls], np.int32),
        start_timesteps=starts,
        end_timesteps=np.array([call.end for call in calls], np.int32),
        starts_anew=np.array([call.starts_anew for call in calls]),
        weights=weights,
    )


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
        # For an odd stride, diffusers ends one timestep off the next call's start; kept for parity.
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


def init_ddim_pndm_state(config: SchedulerConfig, latents: Array) -> PndmState | tuple[()]:
    """Makes the state before the first call, for float32 latents `[b, h, w, c]`; empty for DDIM."""
    if config.kind == "ddim":
        return ()
    history = jnp.zeros((_history_length(config), *latents.shape), jnp.float32)
    return PndmState(start_latents=latents, history=history)


def ddim_pndm_step(
    config: SchedulerConfig,
    schedule: NoiseSchedule,
    state: PndmState | tuple[()],
    latents: Array,
    noise_pred: Array,
    step: Steps,
) -> tuple[Array, PndmState | tuple[()]]:
    """Makes the update of one UNet call; arguments and results as of `scheduler_step`."""
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
