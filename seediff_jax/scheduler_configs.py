"""SchedulerConfig: the settings of a noise schedule and its sampler, read from diffusers' JSON.

As with the models, every option of the file is understood, or known to be without effect, or an
error that names it. diffusers' files carry options of other schedulers along; those are without
effect.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

CLASS_NAMES = {
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "dpmsolver_multistep": "DPMSolverMultistepScheduler",
    "lcm": "LCMScheduler",
    "ddpm": "DDPMScheduler",
}
"""Kinds of scheduler and the names that diffusers gives them."""

SIGMA_KINDS = ("euler", "euler_ancestral")
"""Kinds whose latents are the clean ones plus noise of deviation sigma, at any noise level."""

_CHOOSE_KIND = f"choose the kind of scheduler explicitly ({', '.join(CLASS_NAMES)})"
_CHOICES = {
    "kind": tuple(CLASS_NAMES),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon", "v_prediction"),
    "timestep_spacing": ("leading", "trailing", "linspace"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "variance_type": ("fixed_small", "fixed_large"),
}
_CLIP = {"clip_sample", "clip_sample_range"}
_ZERO_SNR = "rescale_betas_zero_snr"
# The options that only some kinds have; all others are of every kind.
_OPTIONS = {
    "ddim": {"set_alpha_to_one", _ZERO_SNR} | _CLIP,
    "pndm": {"set_alpha_to_one", "skip_prk_steps"},
    "euler": {"use_karras_sigmas", "final_sigmas_type", _ZERO_SNR},
    "euler_ancestral": {_ZERO_SNR},
    "dpmsolver_multistep": {
        "use_karras_sigmas",
        "final_sigmas_type",
        "lower_order_final",
        "euler_at_final",
        _ZERO_SNR,
    },
    "lcm": {"set_alpha_to_one", "original_inference_steps", "timestep_scaling", _ZERO_SNR} | _CLIP,
    "ddpm": {"variance_type", _ZERO_SNR} | _CLIP,
}
# Options that are no field, and the values that make the sampler the one that is written here.
_REQUIRED_VALUES = {"trained_betas": (None,), "thresholding": (False,)}
_NO_OTHER_SIGMAS = {"use_exponential_sigmas": (False,), "use_beta_sigmas": (False,)}
_REQUIRED_VALUES_OF = {
    "euler": _NO_OTHER_SIGMAS
    | {
        "interpolation_type": ("linear",),
        "timestep_type": ("discrete",),
        "sigma_min": (None,),
        "sigma_max": (None,),
    },
    "dpmsolver_multistep": _NO_OTHER_SIGMAS
    | {
        "solver_order": (2,),
        # The further values are other solvers' words, which diffusers reads as the first.
        "algorithm_type": ("dpmsolver++", "deis"),
        "solver_type": ("midpoint", "bh1", "bh2", "logrho"),
        "variance_type": (None,),
        "lambda_min_clipped": (-float("inf"),),
        "use_lu_lambdas": (False,),
        "use_flow_sigmas": (False,),
        "use_dynamic_shifting": (False,),
    },
}
# Options by which a class chooses among its own solvers; none changes the noise.
_SOLVER = {
    "solver_order",
    "algorithm_type",
    "solver_type",
    "variance_type",
    "lambda_min_clipped",
    "use_lu_lambdas",
    "interpolation_type",
    *_NO_OTHER_SIGMAS,
}
# They tune thresholding, flow sigmas and dynamic shifting, which are off.
_WITHOUT_EFFECT = {
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "flow_shift",
    "time_shift_type",
}
_DEFAULTS = {
    "ddim": {"set_alpha_to_one": True, "clip_sample": True},
    "euler": {"timestep_spacing": "linspace"},
    "euler_ancestral": {"timestep_spacing": "linspace"},
    "dpmsolver_multistep": {"timestep_spacing": "linspace"},
    "lcm": {
        "set_alpha_to_one": True,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
    },
    "ddpm": {"clip_sample": True},
}
# A schedule is an array of all timesteps; latents have a standard deviation of 1.
_MOST_TIMESTEPS = 10**5
_WIDEST_RANGE = 10**4
_STEEPEST_SCALING = 10**4


@dataclasses.dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """A noise schedule and its sampler, in diffusers' words; hashable, a static jit argument.

    Attributes:
        kind: one of CLASS_NAMES.
        prediction_type: what the UNet predicts, "epsilon" (noise) or "v_prediction" (velocity).
        timestep_spacing: "leading", "trailing" or "linspace" (table 2 of arXiv 2305.08891); LCM has
            a spacing of its own.
        steps_offset: added to the timesteps of "leading" spacing.
        set_alpha_to_one: the last update arrives at clean latents, else at timestep 0's noise.
        clip_sample: the predicted clean latents are clipped to +-`clip_sample_range`.
        skip_prk_steps: PNDM starts with multistep calls of growing order instead of three
            Runge-Kutta steps of four calls.
        rescale_betas_zero_snr: the last timestep is pure noise (arXiv 2305.08891).
        use_karras_sigmas: noise levels are spaced as in arXiv 2206.00364, equation 5.
        final_sigmas_type: the last update arrives at "zero" noise or at that of timestep 0,
            "sigma_min".
        lower_order_final: the last update is of order 1 in runs of less than 15 steps.
        euler_at_final: the last update is of order 1 in any run.
        original_inference_steps: steps of the sampler that the LCM was distilled from.
        timestep_scaling: how fast an LCM's output turns from its input to its prediction.
        variance_type: noise that DDPM adds, "fixed_small" (posterior) or "fixed_large" (beta).

    Raises:
        ValueError: a value is of the wrong type or out of range, or `kind` lacks the option.
    """

    kind: str
    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    set_alpha_to_one: bool = False
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    skip_prk_steps: bool = False
    rescale_betas_zero_snr: bool = False
    use_karras_sigmas: bool = False
    final_sigmas_type: str = "zero"
    lower_order_final: bool = True
    euler_at_final: bool = False
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0
    variance_type: str = "fixed_small"

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            wanted = (int, float) if field.type is float else field.type
            if not isinstance(value, wanted) or isinstance(value, bool) != (field.type is bool):
                raise ValueError(f"{field.name}={value!r} must be of type {field.type.__name__}")
            if field.name in _CHOICES and value not in _CHOICES[field.name]:
                choices = ", ".join(map(repr, _CHOICES[field.name]))
                raise ValueError(f"{field.name}={value!r} is not supported; choose from {choices}")
        self._check_ranges()
        for name in _FIELDS - _options_of(self.kind):
            if (value := getattr(self, name)) != _FIELD_DEFAULTS[name]:
                able = " or ".join(repr(kind) for kind in CLASS_NAMES if name in _options_of(kind))
                raise ValueError(f"{name}={value!r} is not supported by {self.kind!r}; use {able}")

    def _check_ranges(self):
        if not 1 <= self.num_train_timesteps <= _MOST_TIMESTEPS:
            raise ValueError(
                f"num_train_timesteps={self.num_train_timesteps} must lie in 1..{_MOST_TIMESTEPS}"
            )
        if not 0 <= self.steps_offset < self.num_train_timesteps:
            raise ValueError(
                f"steps_offset={self.steps_offset} must be at least 0 and below "
                f"num_train_timesteps={self.num_train_timesteps}"
            )
        for name, most in (
            ("clip_sample_range", _WIDEST_RANGE),
            ("timestep_scaling", _STEEPEST_SCALING),
        ):
            if not 0 < (value := getattr(self, name)) <= most:
                raise ValueError(f"{name}={value} must be above 0 and at most {most}")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"beta_start={self.beta_start} and beta_end={self.beta_end} must satisfy "
                "0 < beta_start <= beta_end < 1"
            )
        steps, most = self.original_inference_steps, self.num_train_timesteps
        if self.kind == "lcm" and not 1 <= steps <= most:
            raise ValueError(f"original_inference_steps={steps} must lie in 1..{most}")

    def with_kind(self, kind: str) -> "SchedulerConfig":
        """Returns the config for the scheduler `kind`, every option kept that it has, too.

        In particular `set_alpha_to_one` and `timestep_spacing` keep their values, though a JSON
        file's defaults for them depend on the kind. What the kind lacks takes its default, except
        that it refuses a schedule with `rescale_betas_zero_snr` that it cannot walk.
        """
        lost = _FIELDS - _options_of(kind) - {_ZERO_SNR}
        defaults = {name: _FIELD_DEFAULTS[name] for name in lost}
        return dataclasses.replace(self, kind=kind, **defaults)

    def with_options(self, options: Mapping[str, Any]) -> "SchedulerConfig":
        """Returns the config with other values of some attributes.

        Raises:
            ValueError: the kind has no such option, or not with this value.
        """
        known = sorted(_options_of(self.kind) & _FIELDS)
        if unknown := sorted(options.keys() - known):
            raise ValueError(
                f"scheduler_options: {self.kind!r} has no {', '.join(unknown)}; it has "
                f"{', '.join(known)}"
            )
        return dataclasses.replace(self, **options)


_FIELD_DEFAULTS = {
    field.name: field.default
    for field in dataclasses.fields(SchedulerConfig)
    if field.name != "kind"
}
_FIELDS = set(_FIELD_DEFAULTS)


def _options_of(kind: str) -> set[str]:
    """Fields of SchedulerConfig that diffusers' class of this kind has."""
    return _FIELDS - set().union(*_OPTIONS.values()) | _OPTIONS.get(kind, set())


def scheduler_config(
    json: Mapping[str, Any],
    source: str = "scheduler/scheduler_config.json",
    kind: str | None = None,
) -> SchedulerConfig:
    """Reads the contents of diffusers' `scheduler_config.json`; `source` names it in errors.

    `kind` (one of CLASS_NAMES) overrides the scheduler that the file names, which may then be any
    scheduler of diffusers with a `beta_schedule`: the options that `kind` knows are kept, the
    others dropped, and so are those by which another class chooses among its own solvers. An
    option that the file leaves out takes diffusers' default for the resulting scheduler, so
    `set_alpha_to_one` is True for DDIM and False for PNDM, with one exception: clipping, the
    default of DDIM and DDPM, is never turned on by an override, as it would ruin latents.

    Raises:
        ValueError: an unsupported scheduler or value, or an unknown option.
    """
    class_name = json.get("_class_name")
    named = next((kind for kind, name in CLASS_NAMES.items() if name == class_name), None)
    if kind is None and named is None:
        raise ValueError(
            f"{source}: scheduler {class_name!r} is not supported, only "
            f"{', '.join(CLASS_NAMES.values())}; {_CHOOSE_KIND} to use one of them in its place"
        )
    if named is None and "beta_schedule" not in json:
        raise ValueError(
            f"{source}: {class_name!r} has no beta_schedule, so {kind!r} cannot take its place"
        )
    strict, kind = kind is None, kind or named
    if kind != named:
        json = {name: value for name, value in json.items() if name not in _SOLVER}
    defaults = dict(_DEFAULTS.get(kind, {}))
    if kind != named:
        defaults.pop("clip_sample", None)
    try:
        options = _known_options(json, kind, strict)
        return SchedulerConfig(kind=kind, **{**defaults, **options})
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def scheduler_json(config: SchedulerConfig) -> dict[str, Any]:
    """The contents of diffusers' `scheduler_config.json`: the options of its kind alone."""
    options = _options_of(config.kind)
    values = {name: value for name, value in vars(config).items() if name in options}
    return {"_class_name": CLASS_NAMES[config.kind], **values}


def _known_options(json: Mapping[str, Any], kind: str, strict: bool) -> dict[str, Any]:
    """Options of `kind` that the file sets; checks the others, drops them if not strict."""
    options = {name: value for name, value in json.items() if not name.startswith("_")}
    required = _REQUIRED_VALUES | _REQUIRED_VALUES_OF.get(kind, {})
    for name, values in required.items():
        if options.pop(name, values[0]) not in values:
            advice = ""
            if name not in _REQUIRED_VALUES:
                others = ", ".join(other for other in CLASS_NAMES if other != kind)
                advice = f"; change it in the file, or choose another kind of scheduler ({others})"
            raise ValueError(f"{name}={json[name]!r} is not supported, only {values[0]!r}{advice}")
    elsewhere = set().union(*_REQUIRED_VALUES_OF.values())
    unknown = sorted(options.keys() - _FIELDS - elsewhere - _WITHOUT_EFFECT)
    if unknown and strict:
        raise ValueError(f"unknown options {', '.join(unknown)}; {_CHOOSE_KIND} to drop them")
    # A schedule is no matter of the sampler: a kind that cannot walk this one has to say so.
    known = _options_of(kind) | {_ZERO_SNR}
    return {name: value for name, value in options.items() if name in known}
