"""The samplers, as pure functions over prepared tables.

`make_noise_schedule` and `make_steps` run on the host, once, before the loop. `make_steps` lists
every UNet call of a run with everything that its update needs. The list is the `xs` of a `lax.scan`
whose body scales the latents by `scale_input`, calls the UNet and then `scheduler_step`. The loop
starts from standard normal noise times `initial_noise_scale`. Stochastic samplers also read fresh
noise.

There are two families of updates: `ddim_pndm` mixes noise predictions, `data_prediction` mixes
predictions of the clean latents. `registry` lists the schedulers and says how to add one.
"""

import jax.numpy as jnp
import numpy as np

from seediff_jax.array_typing import Array, Float, typechecked
from seediff_jax.errors import UserError
from seediff_jax.schedulers.config import SchedulerConfig
from seediff_jax.schedulers.data_prediction import (
    MIXING_STEPS,
    MixingSteps,
    init_mixing_state,
    initial_sigma,
    mixing_step,
)
from seediff_jax.schedulers.ddim_pndm import (
    PndmState,
    Steps,
    ddim_pndm_step,
    init_ddim_pndm_state,
    make_ddim_pndm_steps,
)
from seediff_jax.schedulers.noise_schedule import NoiseSchedule
from seediff_jax.schedulers.registry import SCHEDULERS

_DDIM_PNDM = {"ddim": make_ddim_pndm_steps, "pndm": make_ddim_pndm_steps}
_STEPS = _DDIM_PNDM | MIXING_STEPS

State = PndmState | tuple[Array, ...]
"""What a sampler carries from call to call; empty for most samplers."""


def make_steps(config: SchedulerConfig, num_steps: int) -> Steps | MixingSteps:
    """Lists the UNet calls of a run of `num_steps` steps; host only, and without a model.

    PNDM makes one call more than steps (from two steps on), or nine more with its Runge-Kutta
    steps; the others make as many calls as steps. This also checks that a scheduler, its options
    and a prediction type are compatible.

    Raises:
        UserError: `num_steps` is out of range, or needs a timestep beyond the schedule; an
            "epsilon" model is asked for clean latents at pure noise; an update is not finite; or
            a scheduler of `registry.SCHEDULERS` has no updates here.
    """
    if (make := _STEPS.get(config.kind)) is None:
        raise UserError(
            f"the scheduler {config.kind!r} has no updates; choose from {', '.join(_STEPS)}, or "
            "add a function for it to data_prediction.MIXING_STEPS"
        )
    fewest = 4 if config.kind == "pndm" and not config.skip_prk_steps else 1
    most = config.num_train_timesteps
    if config.kind == "lcm":
        most = config.original_inference_steps
    elif config.kind == "dpmsolver_multistep":
        most -= 1
    if not fewest <= num_steps <= most:
        raise UserError(
            f"num_steps={num_steps} must lie in {fewest}..{most} for {config.kind!r}"
            + (" with skip_prk_steps=False" if fewest > 1 else "")
        )
    with np.errstate(all="ignore"):
        steps = make(config, num_steps)
        numbers = [*vars(steps).values(), initial_noise_scale(config, num_steps)]
    if not all(np.isfinite(values).all() for values in numbers):
        raise UserError(
            f"{config.kind!r} has no finite updates in {num_steps} steps of this noise schedule "
            f"(beta_start={config.beta_start}, beta_end={config.beta_end}, "
            f"num_train_timesteps={config.num_train_timesteps}); use other betas, "
            "timestep_spacing or num_steps"
        )
    return steps


def is_stochastic(config: SchedulerConfig) -> bool:
    """Tells whether `scheduler_step` needs fresh noise."""
    return SCHEDULERS[config.kind].is_stochastic


def initial_noise_scale(config: SchedulerConfig, num_steps: int) -> float:
    """Returns the factor from standard normal noise to the first latents."""
    return initial_sigma(config, num_steps) if SCHEDULERS[config.kind].holds_sigmas else 1.0


def scale_input(config: SchedulerConfig, latents: Array, step: Steps | MixingSteps) -> Array:
    """Scales latents to the UNet's input; only the latents of Euler samplers have another scale."""
    return step.input_scales * latents if SCHEDULERS[config.kind].holds_sigmas else latents


def init_scheduler_state(config: SchedulerConfig, latents: Array) -> State:
    """Makes the state before the first call, for float32 latents `[b, h, w, c]`."""
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
    """Makes the update of one UNet call; returns the latents of the next call and its state.

    Args:
        config: static.
        schedule: of the same config.
        state: from `init_scheduler_state` or the call before.
        latents: float32; `scale_input` turned them into the UNet's input.
        noise_pred: the UNet's output, noise or velocity as `config.prediction_type` says.
        step: one row of `make_steps`.
        noise: float32, standard normal, drawn for this call; only for stochastic samplers.
    """
    if (noise is not None) != is_stochastic(config):
        needed = "needs fresh noise" if noise is None else "takes no noise"
        raise ValueError(f"{config.kind!r} {needed}")
    noise_pred = noise_pred.astype(jnp.float32)
    if config.kind in _DDIM_PNDM:
        return ddim_pndm_step(config, schedule, state, latents, noise_pred, step)
    return mixing_step(config, state, latents, noise_pred, step, noise)
