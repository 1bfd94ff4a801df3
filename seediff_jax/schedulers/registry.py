"""The registry of schedulers: one row per kind, with its options as diffusers names them.

To add a scheduler, add a row to SCHEDULERS and a function to `data_prediction.MIXING_STEPS`, which
computes the weights of its updates. `--scheduler`, the reader of `scheduler_config.json` and the
tests follow from the row. Loads no other library.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Scheduler:
    """The properties of a kind of scheduler.

    Attributes:
        class_name: its name in diffusers.
        options: fields of SchedulerConfig that this kind has and others may lack.
        defaults: values of fields that its file leaves out, where they differ from SchedulerConfig.
        required: options that are not fields, with the values for which the sampler is the one
            implemented here; the first of them is diffusers' default.
        is_stochastic: whether every update adds fresh noise.
        holds_sigmas: whether its latents are clean latents plus noise of standard deviation sigma.
    """

    class_name: str
    options: frozenset[str]
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    required: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    is_stochastic: bool = False
    holds_sigmas: bool = False


_CLIP = {"clip_sample", "clip_sample_range"}
ZERO_SNR = "rescale_betas_zero_snr"
NO_OTHER_SIGMAS = {"use_exponential_sigmas": (False,), "use_beta_sigmas": (False,)}

SCHEDULERS = {
    "ddim": Scheduler(
        "DDIMScheduler",
        frozenset({"set_alpha_to_one", ZERO_SNR} | _CLIP),
        defaults={"set_alpha_to_one": True, "clip_sample": True},
    ),
    "pndm": Scheduler("PNDMScheduler", frozenset({"set_alpha_to_one", "skip_prk_steps"})),
    "euler": Scheduler(
        "EulerDiscreteScheduler",
        frozenset({"use_karras_sigmas", "final_sigmas_type", ZERO_SNR}),
        defaults={"timestep_spacing": "linspace"},
        required=NO_OTHER_SIGMAS
        | {
            "interpolation_type": ("linear",),
            "timestep_type": ("discrete",),
            "sigma_min": (None,),
            "sigma_max": (None,),
        },
        holds_sigmas=True,
    ),
    "euler_ancestral": Scheduler(
        "EulerAncestralDiscreteScheduler",
        frozenset({ZERO_SNR}),
        defaults={"timestep_spacing": "linspace"},
        is_stochastic=True,
        holds_sigmas=True,
    ),
    "dpmsolver_multistep": Scheduler(
        "DPMSolverMultistepScheduler",
        frozenset(
            {
                *("use_karras_sigmas", "final_sigmas_type", "lower_order_final"),
                *("euler_at_final", ZERO_SNR),
            }
        ),
        defaults={"timestep_spacing": "linspace"},
        required=NO_OTHER_SIGMAS
        | {
            "solver_order": (2,),
            # The further values belong to other solvers; diffusers reads them as the first.
            "algorithm_type": ("dpmsolver++", "deis"),
            "solver_type": ("midpoint", "bh1", "bh2", "logrho"),
            "variance_type": (None,),
            "lambda_min_clipped": (-float("inf"),),
            "use_lu_lambdas": (False,),
            "use_flow_sigmas": (False,),
            "use_dynamic_shifting": (False,),
        },
    ),
    "lcm": Scheduler(
        "LCMScheduler",
        frozenset(
            {"set_alpha_to_one", "original_inference_steps", "timestep_scaling", ZERO_SNR} | _CLIP
        ),
        defaults={
            "set_alpha_to_one": True,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
        },
        is_stochastic=True,
    ),
    "ddpm": Scheduler(
        "DDPMScheduler",
        frozenset({"variance_type", ZERO_SNR} | _CLIP),
        defaults={"clip_sample": True},
        is_stochastic=True,
    ),
}
"""The schedulers by the kind that `--scheduler` names."""
