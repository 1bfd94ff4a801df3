"""The samplers, as pure functions over prepared tables.

`make_noise_schedule` and `make_steps` run on the host, once, before the loop. `make_steps` lists
every UNet call of a run with all that the call needs; its result is the `xs` of a `lax.scan` whose
body scales the latents by `scale_input`, calls the UNet and then `scheduler_step`. The loop starts
from standard normal noise times `initial_noise_scale`. Stochastic samplers are given fresh noise.

Two families of updates: `ddim_pndm` mixes noise predictions, `mixing_samplers` predictions of the
clean latents.
"""

import jax.numpy as jnp

from seediff_jax.arrays import Array, Float, typechecked
from seediff_jax.ddim_pndm import (
    PndmState,
    Steps,
    ddim_pndm_step,
    init_ddim_pndm_state,
    make_ddim_pndm_steps,
)
from seediff_jax.mixing_samplers import (
    STOCHASTIC_KINDS,
    MixingSteps,
    init_mixing_state,
    initial_sigma,
    make_mixing_steps,
    mixing_step,
)
from seediff_jax.noise_schedules import (
    NoiseSchedule,
    add_noise,
    make_noise_schedule,
    velocity,
)
from seediff_jax.scheduler_configs import SIGMA_KINDS, SchedulerConfig, scheduler_config

__all__ = [
    "MixingSteps",
    "NoiseSchedule",
    "PndmState",
    "SchedulerConfig",
    "Steps",
    "add_noise",
    "init_scheduler_state",
    "initial_noise_scale",
    "is_stochastic",
    "make_noise_schedule",
    "make_steps",
    "scale_input",
    "scheduler_config",
    "scheduler_step",
    "velocity",
]

_DDIM_PNDM = ("ddim", "pndm")

State = PndmState | tuple[Array, ...]
"""What a sampler carries from call to call; empty for most."""


def make_steps(config: SchedulerConfig, num_steps: int) -> Steps | MixingSteps:
    """Lists the UNet calls of a run of `num_steps` steps.

    PNDM makes one call more than steps (from two steps on), or nine more with its Runge-Kutta
    steps; the others make as many calls as steps.

    Raises:
        ValueError: `num_steps` is out of range, or asks for a timestep beyond the schedule.
    """
    fewest = 4 if config.kind == "pndm" and not config.skip_prk_steps else 1
    most = config.num_train_timesteps
    if config.kind == "lcm":
        most = config.original_inference_steps
    elif config.kind == "dpmsolver_multistep":
        most -= 1
    if not fewest <= num_steps <= most:
        raise ValueError(
            f"num_steps={num_steps} must lie in {fewest}..{most} for {config.kind!r}"
            + (" with skip_prk_steps=False" if fewest > 1 else "")
        )
    make = make_ddim_pndm_steps if config.kind in _DDIM_PNDM else make_mixing_steps
    return make(config, num_steps)


def is_stochastic(config: SchedulerConfig) -> bool:
    """Whether `scheduler_step` needs fresh noise."""
    return config.kind in STOCHASTIC_KINDS


def initial_noise_scale(config: SchedulerConfig, num_steps: int) -> float:
    """What the standard normal noise is multiplied by to give the first latents."""
    return initial_sigma(config, num_steps) if config.kind in SIGMA_KINDS else 1.0


def scale_input(config: SchedulerConfig, latents: Array, step: Steps | MixingSteps) -> Array:
    """Scales latents as the UNet knows them; only the Euler samplers hold them otherwise."""
    return step.input_scales * latents if config.kind in SIGMA_KINDS else latents


def init_scheduler_state(config: SchedulerConfig, latents: Array) -> State:
    """State before the first call, for float32 latents `[b, h, w, c]`."""
    init = init_ddim_pndm_state if config.kind in _DDIM_PNDM else init_mixing_state
    return init(config, latents)


@typechecked
def scheduler_step(
    config: SchedulerConfig,
    schedule: NoiseSchedule,
    state: State,
    latents: Float[Array, "b h w c"],
    noise_pred: Float[Array, "b h w c"],
    step: Steps | MixingSteps,
    noise: Float[Array, "b h w c"] | None = None,
) -> tuple[Float[Array, "b h w c"], State]:
    """Makes the update of one UNet call.

    Args:
        config: static.
        schedule: of the same config.
        state: from `init_scheduler_state` or the call before.
        latents: float32, of which `scale_input` made the UNet's input.
        noise_pred: the UNet's output, noise or velocity as `config.prediction_type` says.
        step: one row of `make_steps`.
        noise: float32, standard normal, of this call alone; for stochastic samplers.

    Returns:
        The float32 latents of the next call (after the last, the result) and its state.

    Raises:
        ValueError: a stochastic sampler is given no noise, or another one is given some.
    """
    if (noise is not None) != is_stochastic(config):
        given = "no noise" if noise is None else "noise"
        raise ValueError(f"{given} given; {', '.join(STOCHASTIC_KINDS)} need it, others take none")
    noise_pred = noise_pred.astype(jnp.float32)
    if config.kind in _DDIM_PNDM:
        return ddim_pndm_step(config, schedule, state, latents, noise_pred, step)
    return mixing_step(config, state, latents, noise_pred, step, noise)
