"""The programs that measure an embedded model, from the command line to the files, in tiny size."""

import json

import jax
import pytest
from PIL import Image

from experiments import ablation
from experiments.stickers import benchmark, evaluate
from experiments.stickers.sprites import CLASSES
from seediff_jax.checkpoints.diffusers_folder import save_model
from tests.helpers.sticker_runs import SIDE, make_small_model, write_sprites


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Flags that name a model with random weights and drawings of squares."""
    folder = tmp_path_factory.mktemp("programs")
    save_model(make_small_model(folder / "tokenizer"), folder / "export")
    sprites = write_sprites(folder / "sprites.npz")
    return [f"--model={folder / 'export'}", f"--sprites={sprites}", "--num_steps=2"]


@pytest.fixture(autouse=True)
def as_in_a_program():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.slow
def test_evaluate_writes_every_figure_and_a_sheet(flags, tmp_path, capsys):
    sizes = ["--singles=19", "--pairs=4", "--rendered=8", "--judge_steps=4", "--judge_scenes=16"]
    output, sheet = tmp_path / "results.json", tmp_path / "sheet.png"
    argv = ["evaluate", *flags, *sizes, f"--output={output}", f"--sheet={sheet}"]
    assert evaluate.main(argv) == 0
    results = json.loads(output.read_text())
    assert set(results["generated, one"]["recognised"]) == {"mean", *CLASSES}
    rendered = ("rendered, one object", "rendered, two objects")
    for name in (*rendered, *(f"{each}, unseen style" for each in rendered), "generated, two"):
        assert all(0 <= row["mean"] <= 1 for row in results[name]["iou"].values())
    assert 0 <= results["segmenter IoU"] <= 1
    with Image.open(sheet) as picture:
        assert picture.size == (8 * SIDE, 6 * SIDE)
    assert len(sheet.with_suffix(".txt").read_text().splitlines()) == 6
    assert "recognised" in capsys.readouterr().out


@pytest.mark.slow
def test_the_benchmark_measures_every_row(flags, tmp_path, capsys):
    sizes = ["--num_pairs=8", "--train_steps=2", "--train_batch_size=8", "--num_test=16"]
    argv = ["benchmark", *flags, *sizes, f"--run_dir={tmp_path}"]
    assert benchmark.main(argv) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["rows"]) == [row.name for row in benchmark.ROWS]
    assert all(len(runs) == 3 for runs in results["rows"].values())
    table = (tmp_path / "results.md").read_text()
    assert table == capsys.readouterr().out and table.count("\n") == 2 + len(benchmark.ROWS)
    assert benchmark.main(argv) == 0
    assert capsys.readouterr().out == table
    assert benchmark.main([*argv, "--num_steps=3"]) == 2
    assert "num_steps=2 (now 3)" in capsys.readouterr().err


@pytest.mark.slow
def test_the_ablation_measures_every_row(flags, tmp_path, capsys):
    sizes = ["--num_images=8", "--judge_steps=2", "--judge_scenes=16"]
    argv = ["ablation", "--study=stickers", *flags, *sizes, f"--run_dir={tmp_path}"]
    assert ablation.main(argv) == 0
    results = json.loads((tmp_path / "ablation.json").read_text())
    assert [row["name"] for row in results] == [row.name for row in ablation.ROWS]
    assert all(row["generated"]["sampling s"] > 0 for row in results)
    assert (tmp_path / "ablation.svg").read_text().startswith("<svg")
    assert capsys.readouterr().out == (tmp_path / "ablation.md").read_text()
