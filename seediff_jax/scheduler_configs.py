"""SchedulerConfig: the settings of a noise schedule and its sampler, read from diffusers' JSON.

As with the models, every option of the file is understood, or known to be without effect, or an
error that names it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

CLASS_NAMES = {"ddim": "DDIMScheduler", "pndm": "PNDMScheduler"}
"""Kinds of scheduler and the names that diffusers gives them."""

_CHOOSE_KIND = f"choose the kind of scheduler explicitly ({' or '.join(CLASS_NAMES)})"
_CHOICES = {
    "kind": tuple(CLASS_NAMES),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon", "v_prediction"),
    "timestep_spacing": ("leading", "trailing", "linspace"),
}
_REQUIRED_VALUES = {"trained_betas": None, "thresholding": False}
# They tune thresholding, which is off.
_WITHOUT_EFFECT = {"dynamic_thresholding_ratio", "sample_max_value"}
_DEFAULTS = {"ddim": {"set_alpha_to_one": True, "clip_sample": True}}
# A schedule is an array of all timesteps; latents have a standard deviation of 1.
_MOST_TIMESTEPS = 10**5
_WIDEST_RANGE = 10**4


@dataclasses.dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """A noise schedule and its sampler, in diffusers' words; hashable, a static jit argument.

    Attributes:
        kind: "ddim" or "pndm".
        prediction_type: what the UNet predicts, "epsilon" (noise) or "v_prediction" (velocity).
        timestep_spacing: "leading", "trailing" or "linspace" (table 2 of arXiv 2305.08891).
        steps_offset: added to the timesteps of "leading" spacing.
        set_alpha_to_one: the last update arrives at clean latents, else at timestep 0's noise.
        clip_sample: DDIM clips the predicted clean latents to +-`clip_sample_range`.
        skip_prk_steps: PNDM starts with multistep calls of growing order instead of three
            Runge-Kutta steps of four calls.
        rescale_betas_zero_snr: DDIM only; the last timestep is pure noise (arXiv 2305.08891).
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

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            wanted = (int, float) if field.type is float else field.type
            if not isinstance(value, wanted) or isinstance(value, bool) != (field.type is bool):
                raise ValueError(f"{field.name}={value!r} must be of type {field.type.__name__}")
            if field.name in _CHOICES and value not in _CHOICES[field.name]:
                choices = ", ".join(map(repr, _CHOICES[field.name]))
                raise ValueError(f"{field.name}={value!r} is not supported; choose from {choices}")
        in_bounds = (
            1 <= self.num_train_timesteps <= _MOST_TIMESTEPS
            and 0 <= self.steps_offset < self.num_train_timesteps
            and 0 < self.clip_sample_range <= _WIDEST_RANGE
        )
        if not in_bounds:
            raise ValueError(
                f"num_train_timesteps={self.num_train_timesteps} must be at least 1 and at most "
                f"{_MOST_TIMESTEPS}, steps_offset={self.steps_offset} at least 0 and below it, "
                f"clip_sample_range={self.clip_sample_range} above 0 and at most {_WIDEST_RANGE}"
            )
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"beta_start={self.beta_start} and beta_end={self.beta_end} must satisfy "
                "0 < beta_start <= beta_end < 1"
            )
        for option in ("clip_sample", "rescale_betas_zero_snr"):
            if self.kind == "pndm" and getattr(self, option):
                raise ValueError(f"{option}=True is not supported by 'pndm'; use 'ddim'")

    def with_kind(self, kind: str) -> "SchedulerConfig":
        """Returns the config for the scheduler `kind`, every other option kept.

        In particular `set_alpha_to_one` keeps its value, though a JSON file's default for it
        depends on the kind. PNDM does not clip, so there `clip_sample` becomes False.
        """
        clip_sample = self.clip_sample and kind != "pndm"
        return dataclasses.replace(self, kind=kind, clip_sample=clip_sample)


def scheduler_config(
    json: Mapping[str, Any],
    source: str = "scheduler/scheduler_config.json",
    kind: str | None = None,
) -> SchedulerConfig:
    """Reads the contents of diffusers' `scheduler_config.json`; `source` names it in errors.

    `kind` ("ddim" or "pndm") overrides the scheduler that the file names, which may then be any
    scheduler of diffusers with a `beta_schedule`: the options that `kind` knows are kept, the
    others dropped. An option that the file leaves out takes diffusers' default for the resulting
    scheduler, so `set_alpha_to_one` is True for DDIM and False for PNDM, with one exception:
    clipping, DDIM's default, is never turned on by an override, as it would ruin latents.

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
    options = _known_options(json, source, strict=kind is None)
    kind = kind or named
    defaults = dict(_DEFAULTS.get(kind, {}))
    if kind != named:
        defaults["clip_sample"] = False
    if kind == "pndm":
        options["clip_sample"] = False
    try:
        return SchedulerConfig(kind=kind, **{**defaults, **options})
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _known_options(json: Mapping[str, Any], source: str, strict: bool) -> dict[str, Any]:
    """Fields of SchedulerConfig that the file sets; checks the others, drops them if not strict."""
    options = {name: value for name, value in json.items() if not name.startswith("_")}
    for name, value in _REQUIRED_VALUES.items():
        if options.pop(name, value) != value:
            raise ValueError(f"{source}: {name}={json[name]!r} is not supported, only {value!r}")
    known = {field.name for field in dataclasses.fields(SchedulerConfig)} - {"kind"}
    unknown = sorted(options.keys() - known - _WITHOUT_EFFECT)
    if unknown and strict:
        raise ValueError(
            f"{source}: unknown options {', '.join(unknown)}; {_CHOOSE_KIND} to drop them"
        )
    return {name: value for name, value in options.items() if name in known}
