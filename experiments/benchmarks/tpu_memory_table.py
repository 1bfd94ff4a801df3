"""docs/tpu_memory.md, written of docs/tpu_memory.json; needs no libtpu."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.benchmarks.measuring import GIB, markdown_table
from seediff_jax.batch_size import FREE_SHARE, MAX_BATCH, ROUNDS
from seediff_jax.programs import ProgramMemory, run_bytes

DOCS = Path(__file__).parents[2] / "docs"
JSON_FILE, MARKDOWN_FILE = DOCS / "tpu_memory.json", DOCS / "tpu_memory.md"

PROGRAMS = ("sample", "make_masks")
Figures = Mapping[str, Any]

_TEXT = """\
# Memory of a TPU chip against the batch size

Stable Diffusion 1.4 in bfloat16, 512 x 512 pixels, 50 PNDM steps with guidance, the published
layers recorded, one class an image. Nothing was run and no TPU was there: the figures are those of
the TPU compiler ({versions}), which
`experiments/benchmarks/tpu_memory.py` asks ahead of time. They say that the programs compile and
what memory they take, not how fast they are.

HBM that programs may take, in GiB a chip: {available}.

{memory}

All columns are GiB a chip. The first five are those of the sampling program, with all weights of
the model; masks are all that is there while masks are made. A run has {rounds} batches on a chip at
a time, one at work and one ready to follow; the results of both have their place from the start. A
batch fits if the compiler takes it and a run with it is within the HBM.

`--batch_size=auto` takes the largest power of two up to {most} with which a run leaves {free} of
the HBM free: {picks}.

## Compiler effort

The table above was compiled with an execution time effort of -1, which takes a tenth of the time.
The same at the default effort, at which runs are compiled:

{efforts}

## Devices

The batch of a chip is sampled by that chip alone. FLOPs are those of a chip, by the compiler, which
counts one UNet call of a loop; collectives are instructions that exchange data between chips.

{split}
"""


def key_of(topology: str, batch: int, effort: str) -> str:
    """Key of a result in the JSON file."""
    return f"{topology}/{batch}/{effort}"


def total_bytes(figures: Figures) -> int | None:
    """Bytes of a run with this batch; None if the compiler refused it."""
    if any("memory" not in figures.get(name, ()) for name in PROGRAMS):
        return None
    return run_bytes(*(_memory(figures[name]) for name in PROGRAMS), ROUNDS)


def picked_batch(content: Figures, topology: str) -> int:
    """The batch that `--batch_size=auto` has to pick, by what was measured; 0 if none fits."""
    usable = (1 - FREE_SHARE) * GIB * content["available_gib"][topology]
    taken = {
        figures["batch"]: total_bytes(figures) or usable + 1
        for figures in content["results"].values()
        if figures["topology"] == topology and figures["effort"] == "quick"
    }
    powers = (2**k for k in range(MAX_BATCH.bit_length()))
    return max((batch for batch in powers if taken.get(batch, usable + 1) <= usable), default=0)


def render(content: Figures) -> str:
    """The Markdown file of the content of the JSON file."""
    results = sorted(content["results"].values(), key=lambda figures: figures["batch"])
    results.sort(key=lambda figures: [*content["available_gib"]].index(figures["topology"]))
    quick = [figures for figures in results if figures["effort"] == "quick"]
    full = [figures for figures in results if figures["effort"] == "full"]
    compiled = [figures for figures in quick if "needed_gib" not in figures["sample"]]
    names = content["available_gib"]
    return _TEXT.format(
        versions=", ".join(f"{name} {number}" for name, number in content["versions"].items()),
        available=", ".join(f"{gib} ({name})" for name, gib in names.items()),
        free=f"{FREE_SHARE:.0%}",
        most=MAX_BATCH,
        rounds=ROUNDS,
        picks=", ".join(f"{picked_batch(content, name)} ({name})" for name in names),
        memory=markdown_table(
            ("slice", "images a chip", "weights and arguments", "results", "temporaries", "code")
            + ("sampling", "masks", "a run", "fits", "compiled in, s"),
            [_memory_row(figures, names[figures["topology"]]) for figures in quick],
        ),
        efforts=markdown_table(
            ("slice", "images a chip", "a run, GiB", "at effort -1, GiB", "compiled in, s"),
            [_effort_row(figures, content["results"]) for figures in full],
        ),
        split=markdown_table(
            ("slice", "chips", "images a chip", "TFLOP, sampling", "TFLOP, masks", "collectives"),
            [_split_row(figures) for figures in compiled],
        ),
    )


def _memory(part: Figures) -> ProgramMemory:
    return ProgramMemory(**part["memory"])


def _gib(value: float) -> str:
    return f"{value / GIB:.2f}"


def _memory_row(figures: Figures, available_gib: float) -> tuple[str, ...]:
    start = (figures["topology"], str(figures["batch"]))
    if "needed_gib" in figures["sample"]:
        needed = f"no, {figures['sample']['needed_gib']} of temporaries"
        return (*start, *["" for _ in range(7)], needed, "")
    memory, masks = _memory(figures["sample"]), _memory(figures["make_masks"])
    parts = (memory.arguments + memory.idle, memory.outputs - memory.aliased)
    parts += (memory.temporaries, memory.code, memory.total, masks.total, total_bytes(figures))
    fits = "yes" if total_bytes(figures) <= available_gib * GIB else "no"
    return (*start, *map(_gib, parts), fits, _seconds(figures))


def _seconds(figures: Figures) -> str:
    return f"{sum(figures[name]['seconds'] for name in PROGRAMS):.0f}"


def _effort_row(figures: Figures, results: Figures) -> tuple[str, ...]:
    quick = results[key_of(figures["topology"], figures["batch"], "quick")]
    sums = (total_bytes(one) for one in (figures, quick))
    start = (figures["topology"], str(figures["batch"]))
    return (*start, *("refused" if one is None else _gib(one) for one in sums), _seconds(figures))


def _split_row(figures: Figures) -> tuple[str, ...]:
    parts = [figures[name] for name in PROGRAMS]
    collectives = sorted({name for part in parts for name in part["collectives"]})
    flops = (f"{part['flops'] / 1e12:.4f}" for part in parts)
    numbers = (figures["topology"], str(figures["chips"]), str(figures["batch"]))
    return (*numbers, *flops, ", ".join(collectives) or "none")
