"""SchedulerConfig: the settings of a noise schedule and its sampler, read from diffusers' JSON.

Every option of the file is read, is known to have no effect, or is refused by name. Files of
diffusers also hold options of other schedulers; those have no effect.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from seediff_jax.errors import UserError, listed, shown
from seediff_jax.schedulers.registry import NO_OTHER_SIGMAS, SCHEDULERS, ZERO_SNR, Scheduler

PREDICTION_TYPES = ("epsilon", "v_prediction")
"""What a UNet can predict."""

_CHOOSE_KIND = f"choose the kind of scheduler explicitly ({', '.join(SCHEDULERS)})"
_CHOICES = {
    "kind": tuple(SCHEDULERS),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": PREDICTION_TYPES,
    "timestep_spacing": ("leading", "trailing", "linspace"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "variance_type": ("fixed_small", "fixed_large"),
}
# Options that are not fields, and the values for which the sampler is the one implemented here.
_REQUIRED_VALUES = {"trained_betas": (None,), "thresholding": (False,)}
# Options by which a class chooses among its own solvers; none changes the noise schedule.
_SOLVER = {
    "solver_order",
    "algorithm_type",
    "solver_type",
    "variance_type",
    "lambda_min_clipped",
    "use_lu_lambdas",
    "interpolation_type",
    *NO_OTHER_SIGMAS,
}
# They tune thresholding, flow sigmas and dynamic shifting, which are off.
_WITHOUT_EFFECT = {
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "flow_shift",
    "time_shift_type",
}
# A schedule is an array of all timesteps; latents have a standard deviation of 1.
_MOST_TIMESTEPS = 10**5
_WIDEST_RANGE = 10**4
_STEEPEST_SCALING = 10**4


@dataclasses.dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """A noise schedule and its sampler, with diffusers' names; hashable, a static jit argument.

    Attributes:
        kind: one of SCHEDULERS.
        prediction_type: what the UNet predicts, "epsilon" (noise) or "v_prediction" (velocity).
        timestep_spacing: "leading", "trailing" or "linspace" (table 2 of arXiv 2305.08891); LCM has
            its own spacing.
        steps_offset: added to the timesteps of "leading" spacing.
        set_alpha_to_one: whether the last update ends at clean latents, or at timestep 0's noise.
        clip_sample: whether predicted clean latents are clipped to +-`clip_sample_range`.
        skip_prk_steps: whether PNDM starts with multistep calls of increasing order, or with three
            Runge-Kutta steps of four calls each.
        rescale_betas_zero_snr: whether the last timestep is pure noise (arXiv 2305.08891).
        use_karras_sigmas: whether noise levels are spaced as in arXiv 2206.00364, equation 5.
        final_sigmas_type: whether the last update ends at "zero" noise or at that of timestep 0,
            "sigma_min".
        lower_order_final: whether the last update is of order 1 in runs of less than 15 steps.
        euler_at_final: whether the last update is of order 1 in any run.
        original_inference_steps: number of steps of the sampler that the LCM was distilled from.
        timestep_scaling: how fast an LCM's output turns from its input to its prediction.
        variance_type: noise that DDPM adds, "fixed_small" (posterior) or "fixed_large" (beta).

    Raises:
        UserError: a value is of the wrong type or out of range, or `kind` lacks the option.
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
                raise UserError(
                    f"{field.name}={shown(repr(value), 60)} must be of type {field.type.__name__}"
                )
            if field.name in _CHOICES and value not in _CHOICES[field.name]:
                choices = ", ".join(map(repr, _CHOICES[field.name]))
                raise UserError(
                    f"{field.name}={shown(repr(value), 60)} is not supported; choose from {choices}"
                )
        self._check_ranges()
        for name in _FIELDS - _options_of(self.kind):
            if (value := getattr(self, name)) != _FIELD_DEFAULTS[name]:
                able = " or ".join(repr(kind) for kind in SCHEDULERS if name in _options_of(kind))
                raise UserError(f"{name}={value!r} is not supported by {self.kind!r}; use {able}")

    def _check_ranges(self):
        if not 1 <= self.num_train_timesteps <= _MOST_TIMESTEPS:
            raise UserError(
                f"num_train_timesteps={self.num_train_timesteps} must lie in 1..{_MOST_TIMESTEPS}"
            )
        if self.rescale_betas_zero_snr and self.num_train_timesteps < 2:
            raise UserError("rescale_betas_zero_snr=True needs num_train_timesteps of 2 or more")
        if not 0 <= self.steps_offset < self.num_train_timesteps:
            raise UserError(
                f"steps_offset={self.steps_offset} must be at least 0 and below "
                f"num_train_timesteps={self.num_train_timesteps}"
            )
        for name, most in (
            ("clip_sample_range", _WIDEST_RANGE),
            ("timestep_scaling", _STEEPEST_SCALING),
        ):
            if not 0 < (value := getattr(self, name)) <= most:
                raise UserError(f"{name}={value} must be above 0 and at most {most}")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise UserError(
                f"beta_start={self.beta_start} and beta_end={self.beta_end} must satisfy "
                "0 < beta_start <= beta_end < 1"
            )
        steps, most = self.original_inference_steps, self.num_train_timesteps
        if self.kind == "lcm" and not 1 <= steps <= most:
            raise UserError(f"original_inference_steps={steps} must lie in 1..{most}")

    def with_kind(self, kind: str) -> "SchedulerConfig":
        """Returns the config for the scheduler `kind` with every option that both kinds have.

        In particular `set_alpha_to_one` and `timestep_spacing` keep their values, although a JSON
        file's defaults for them depend on the kind. Options that the kind lacks get their defaults,
        except that `rescale_betas_zero_snr=True` is refused.
        """
        lost = _FIELDS - _options_of(kind) - {ZERO_SNR}
        defaults = {name: _FIELD_DEFAULTS[name] for name in lost}
        return dataclasses.replace(self, kind=kind, **defaults)

    def with_options(self, options: Mapping[str, Any]) -> "SchedulerConfig":
        """Returns the config with other values of options that its kind has."""
        known = sorted(_options_of(self.kind) & _FIELDS)
        if unknown := sorted(options.keys() - known):
            raise UserError(
                f"scheduler_options: {self.kind!r} has no {listed(unknown)}; it has "
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
    particular = set().union(*(made.options for made in SCHEDULERS.values()))
    return _FIELDS - particular | _row(kind).options


def _row(kind: str) -> Scheduler:
    """The row of a kind; an empty one where SchedulerConfig will refuse the kind."""
    return SCHEDULERS.get(kind, Scheduler("", frozenset()))


def scheduler_config(
    json: Mapping[str, Any],
    source: str = "scheduler/scheduler_config.json",
    kind: str | None = None,
) -> SchedulerConfig:
    """Reads the contents of diffusers' `scheduler_config.json`; `source` names it in errors.

    `kind` (one of SCHEDULERS) replaces the scheduler of the file, which may then be any scheduler
    of diffusers with a `beta_schedule`: options that `kind` has are kept, others dropped, and so
    are those by which another class chooses among its own solvers. A missing option gets diffusers'
    default for the resulting scheduler, so `set_alpha_to_one` is True for DDIM and False for PNDM,
    with one exception: clipping, the default of DDIM and DDPM, is never turned on by `kind`,
    because it would ruin latents.
    """
    class_name = json.get("_class_name")
    named = next((kind for kind, made in SCHEDULERS.items() if made.class_name == class_name), None)
    if kind is None and named is None:
        known = ", ".join(made.class_name for made in SCHEDULERS.values())
        raise UserError(
            f"{source}: scheduler {shown(repr(class_name), 60)} is not supported, only "
            f"{known}; {_CHOOSE_KIND} to use one of them in its place"
        )
    if named is None and "beta_schedule" not in json:
        raise UserError(
            f"{source}: {shown(repr(class_name), 60)} has no beta_schedule, so "
            f"{kind!r} cannot take its place"
        )
    strict, kind = kind is None, kind or named
    if kind != named:
        json = {name: value for name, value in json.items() if name not in _SOLVER}
    defaults = dict(_row(kind).defaults)
    if kind != named:
        defaults.pop("clip_sample", None)
    try:
        options = _known_options(json, kind, strict)
        return SchedulerConfig(kind=kind, **{**defaults, **options})
    except ValueError as error:
        raise UserError(f"{source}: {error}") from error


def scheduler_json(config: SchedulerConfig) -> dict[str, Any]:
    """Returns the contents of diffusers' `scheduler_config.json` with the options of its kind."""
    options = _options_of(config.kind)
    values = {name: value for name, value in vars(config).items() if name in options}
    return {"_class_name": SCHEDULERS[config.kind].class_name, **values}


def _known_options(json: Mapping[str, Any], kind: str, strict: bool) -> dict[str, Any]:
    """Options of `kind` in the file; the others are refused if strict, else dropped."""
    options = {name: value for name, value in json.items() if not name.startswith("_")}
    required = _REQUIRED_VALUES | _row(kind).required
    for name, values in required.items():
        if options.pop(name, values[0]) not in values:
            advice = ""
            if name not in _REQUIRED_VALUES:
                others = ", ".join(other for other in SCHEDULERS if other != kind)
                advice = f"; change it in the file, or choose another kind of scheduler ({others})"
            given = shown(repr(json[name]), 60)
            raise UserError(f"{name}={given} is not supported, only {values[0]!r}{advice}")
    elsewhere = set().union(*(made.required for made in SCHEDULERS.values()))
    unknown = sorted(options.keys() - _FIELDS - elsewhere - _WITHOUT_EFFECT)
    if unknown and strict:
        raise UserError(f"unknown options {listed(unknown)}; {_CHOOSE_KIND} to drop them")
    # The schedule belongs to the model: a kind that does not support it must refuse it.
    known = _options_of(kind) | {ZERO_SNR}
    return {name: value for name, value in options.items() if name in known}
