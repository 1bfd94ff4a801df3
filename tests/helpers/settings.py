"""Options by the names of their fields, given to the dataclass that each of them belongs to."""

from seediff_jax.masks.config import MaskConfig
from seediff_jax.pipeline.settings import PairSettings
from seediff_jax.sampling.config import SamplingConfig
from seediff_jax.settings import settings_of


def split_options(options):
    """Arguments of generate(): sampling, masks, and whatever is a setting of neither."""
    options = dict(options)
    for argument, kind in (("sampling", SamplingConfig), ("masks", MaskConfig)):
        names = [name for name in settings_of(kind) if name in options]
        options[argument] = kind(**{name: options.pop(name) for name in names})
    return options


def pair_settings(**options):
    """PairSettings of options of any kind."""
    return PairSettings(**split_options(options))
