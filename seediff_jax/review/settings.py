"""Settings of the commands that read a complete dataset. Loads no other library."""

import dataclasses

from seediff_jax.dataset.formats.names import FORMAT_NAMES
from seediff_jax.errors import UserError
from seediff_jax.settings import check_settings, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Criteria:
    """Criteria for samples to keep. All classes of a sample must meet them.

    Raises:
        UserError: a value is out of range, or settings contradict each other.
    """

    min_score: float | None = setting(None, "Smallest score of each class.", least=0, most=1)
    min_presence: float | None = setting(
        None,
        "Smallest presence of each class, see docs/masks.md. Classes whose presence is null are "
        "not judged.",
        least=0,
        most=1,
    )
    quantile: float | None = setting(
        None,
        "Share of samples to keep: the best of those that meet the other criteria. The score of a "
        "sample is the score of its worst class.",
        least=0,
        most=1,
    )
    per_class: bool = setting(
        False,
        "Apply --quantile to each class alone, so that difficult classes remain.",
        needs=("quantile=SHARE, as in quantile=0.75", lambda asked: asked.quantile is not None),
    )
    min_area: float | None = setting(
        None, "Smallest area of each class, as a fraction of the image.", least=0, most=1
    )
    max_area: float | None = setting(
        None, "Largest area of each class, as a fraction of the image.", least=0, most=1
    )
    drop_empty: bool = setting(False, "Drop samples in which a class has no pixels.")

    def __post_init__(self):
        check_settings(self)
        if None not in (self.min_area, self.max_area) and self.min_area > self.max_area:
            raise UserError(
                f"min_area={self.min_area:g} is more than max_area={self.max_area:g}; no class "
                "can meet both"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """What a report shows, and where it goes."""

    output: str | None = setting(
        None,
        "A .html file with everything in it, or a folder for a page and its thumbnails. By default "
        "report.html in the dataset, or the folder report for more than 500 samples.",
        path=True,
    )
    worst: int | None = setting(
        None,
        "Number of samples to show, lowest scores first; by default all.",
        least=1,
        most=10**6,
    )
    thumbnail: int = setting(192, "Longer edge of the thumbnails in pixels.", least=16, most=1024)

    def __post_init__(self):
        check_settings(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterOutput:
    """Where the kept samples go."""

    output: str | None = setting(
        None,
        "New folder or URL for a dataset of the kept samples, or a .txt file for their indices. By "
        "default they are only counted.",
        stored=False,
        path=True,
    )
    formats: tuple[str, ...] | None = setting(
        None,
        "Formats of the new dataset, separated by commas; by default those of the source.",
        flag="format",
        choices=FORMAT_NAMES,
        needs=(
            "output=FOLDER, a new dataset to write",
            lambda asked: asked.output is not None and not asked.output.endswith(".txt"),
        ),
    )

    def __post_init__(self):
        check_settings(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RemaskOutput:
    """Where the samples with other masks go."""

    output: str | None = setting(
        None,
        "New folder or URL to write to; by default the dataset's own name with _remasked.",
        stored=False,
        path=True,
    )
    formats: tuple[str, ...] | None = setting(
        None,
        "Formats of the new dataset, separated by commas; by default those of the source.",
        flag="format",
        choices=FORMAT_NAMES,
    )

    def __post_init__(self):
        check_settings(self)
