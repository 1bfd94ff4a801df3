"""Numbers in sentences for people: "1 shard", "3 shards", "2.5 GiB", "4.0 hours"."""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number of things; their plural ends in "s" unless another one is given."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """A time in a unit of which there are two or more."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return counted(round(seconds), "second")


def size(count: float) -> str:
    """A number of bytes."""
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count / 2**10:.1f} KiB"
