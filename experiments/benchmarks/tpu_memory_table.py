"""Makes docs/tpu_memory.md from docs/tpu_memory.json and docs/tpu_unet.json; needs no libtpu."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.benchmarks.measuring import GIB, markdown_table
from experiments.benchmarks.tpu_unet_table import render_calls, render_parts
from seediff_jax.pipeline.batch_size import FREE_SHARE, MAX_BATCH, ROUNDS
from seediff_jax.pipeline.memory import ProgramMemory, run_bytes

DOCS = Path(__file__).parents[2] / "docs"
JSON_FILE, MARKDOWN_FILE = DOCS / "tpu_memory.json", DOCS / "tpu_memory.md"

PROGRAMS = ("sample", "make_masks")
Figures = Mapping[str, Any]

_TEXT = """\
# Memory of a TPU chip by batch size

Stable Diffusion 1.4 in bfloat16, 512 x 512 pixels, 50 PNDM steps with guidance, the published
layers recorded, one class per image. Nothing was run and there was no TPU: the figures come from
the TPU compiler ({versions}), by
`experiments/benchmarks/tpu_memory.py`. They say that the programs compile and how much memory they
take, not how fast they are.

HBM that programs may take, in GiB per chip: {available}.

{memory}

Rows with "auto" use the default attention of a run, those with "xla" that of `--attention=xla`.
The "xla" rows, and v5e with 64 images, were compiled when bfloat16 norms still read their input
twice, which needs more memory. All columns are GiB per chip. Up to "sampling" they are those of the
sampling program, with all weights of the model; "masks" is the memory in use while masks are made.
A run has {rounds} batches on a chip at a time, one being computed and one ready to follow, and
reserves the results of both from the start. A batch fits if the compiler accepts it and a run with
it is within the HBM.

`--batch_size=auto` takes the largest power of two up to {most} with which a run leaves {free} of
the HBM free: {picks}.

## One UNet call

The same UNet in bfloat16 with guidance, by `experiments/benchmarks/tpu_unet.py`, at an effort of
-1. "Roofline" is the compiler's estimate: for each operation the longer of its times for bytes and
for FLOPs, summed over all operations. A kernel counts with the bytes that its blocks copy. A
recorded call adds its self-attention to that of earlier calls, as sampling does; what recording
adds is relative to the same call with nothing recorded.

{calls}

The FLOPs of 8 images take 65.2 ms on a v5e chip at peak. The recorded call takes longer because of
the bytes that it moves: the table has the operands and results of all instructions, by part. The
second matrix of feed-forward layers and the projections of attention are bound by memory.

{parts}

## Compiler effort

The table above was compiled with an execution time effort of -1, which takes a tenth of the time.
The same at the default effort, at which runs are compiled:

{efforts}

## Devices

Each chip samples its own batch. FLOPs are per chip and by the compiler, which counts one UNet call
per loop. Collectives are instructions that exchange data between chips.

{split}
"""


def key_of(topology: str, batch: int, effort: str, attention: str) -> str:
    """Returns the key of a result in the JSON file."""
    return f"{topology}/{batch}/{effort}/{attention}"


def total_bytes(figures: Figures) -> int | None:
    """Returns the bytes of a run with this batch; None if the compiler refused it."""
    if any("memory" not in figures.get(name, ()) for name in PROGRAMS):
        return None
    return run_bytes(*(_memory(figures[name]) for name in PROGRAMS), ROUNDS)


def picked_batch(content: Figures, topology: str) -> int:
    """Returns the batch that `--batch_size=auto` must choose by these figures; 0 if none fits.

    Figures of the default attention count, or those of XLA's, which takes more, where there are no
    others.
    """
    usable = (1 - FREE_SHARE) * GIB * content["available_gib"][topology]
    quick = [
        figures
        for figures in content["results"].values()
        if (figures["topology"], figures["effort"]) == (topology, "quick")
    ]
    attention = min((figures["attention"] for figures in quick), default="auto")
    taken = {
        figures["batch"]: total_bytes(figures) or usable + 1
        for figures in quick
        if figures["attention"] == attention
    }
    powers = (2**k for k in range(MAX_BATCH.bit_length()))
    return max((batch for batch in powers if taken.get(batch, usable + 1) <= usable), default=0)


def render(content: Figures, calls: Figures) -> str:
    """Formats the content of both JSON files as Markdown."""
    results = sorted(content["results"].values(), key=lambda figures: figures["batch"])
    results.sort(key=lambda figures: figures["attention"])
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
        calls=render_calls(calls),
        parts=render_parts(calls["results"]["v5e:1x1/8/auto/recorded"]),
        picks=", ".join(
            f"{picked} ({name})" for name in names if (picked := picked_batch(content, name))
        ),
        memory=markdown_table(
            ("slice", "images per chip", "attention", "weights and arguments", "results")
            + ("temporaries", "code")
            + ("sampling", "masks", "a run", "fits", "compiled in, s"),
            [_memory_row(figures, names[figures["topology"]]) for figures in quick],
        ),
        efforts=markdown_table(
            ("slice", "images per chip", "attention", "a run, GiB", "at effort -1, GiB")
            + ("compiled in, s",),
            [_effort_row(figures, content["results"]) for figures in full],
        ),
        split=markdown_table(
            ("slice", "chips", "images per chip", "attention", "TFLOP, sampling", "TFLOP, masks")
            + ("collectives",),
            [_split_row(figures) for figures in compiled],
        ),
    )


def _memory(part: Figures) -> ProgramMemory:
    return ProgramMemory(**part["memory"])


def _gib(value: float) -> str:
    return f"{value / GIB:.2f}"


def _memory_row(figures: Figures, available_gib: float) -> tuple[str, ...]:
    start = (figures["topology"], str(figures["batch"]), figures["attention"])
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
    quick = results[key_of(figures["topology"], figures["batch"], "quick", figures["attention"])]
    sums = (total_bytes(one) for one in (figures, quick))
    start = (figures["topology"], str(figures["batch"]), figures["attention"])
    return (*start, *("refused" if one is None else _gib(one) for one in sums), _seconds(figures))


def _split_row(figures: Figures) -> tuple[str, ...]:
    parts = [figures[name] for name in PROGRAMS]
    collectives = sorted({name for part in parts for name in part["collectives"]})
    flops = (f"{part['flops'] / 1e12:.4f}" for part in parts)
    numbers = (figures["topology"], str(figures["chips"]), str(figures["batch"]))
    return (*numbers, figures["attention"], *flops, ", ".join(collectives) or "none")
