"""The config of an adapter of peft, and the file next to it, must belong together."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from seediff_jax.checkpoints.lora import lora_merges
from seediff_jax.checkpoints.parameters import parameters
from seediff_jax.checkpoints.peft_config import Adapter, _make_adapter
from seediff_jax.errors import UserError
from tests.helpers.random_models import small_config

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return small_config(tmp_path_factory.mktemp("tokenizer") / "tokenizer")


def adapter(folder, config, rank, options):
    """Writes an adapter of one layer as peft does."""
    (shape,) = (p.stored_shape for p in parameters(config).values() if p.name == f"{LAYER}.weight")
    tensors = {
        f"base_model.model.{LAYER}.lora_A.weight": np.zeros((rank, shape[1]), np.float32),
        f"base_model.model.{LAYER}.lora_B.weight": np.zeros((shape[0], rank), np.float32),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    content = {"peft_type": "LORA", "lora_alpha": 8, **options}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    return folder / "adapter_model.safetensors"


@pytest.mark.parametrize("options", [{"r": 64}, {"r": 2, "rank_pattern": {"to_q": 64}}])
def test_a_config_that_says_another_rank_is_of_another_adapter(tmp_path, config, options):
    file = adapter(tmp_path, config, 2, options)
    with pytest.raises(UserError, match="has rank 2, but the config of the adapter 64"):
        lora_merges([(file, 1.0)], config)


@pytest.mark.parametrize("options", [{"r": 2}, {"r": 64, "rank_pattern": {"to_q": 2}}, {}])
def test_a_config_that_says_the_rank_of_the_file_is_taken(tmp_path, config, options):
    file = adapter(tmp_path, config, 2, options)
    assert len(lora_merges([(file, 1.0)], config)) == 1


@pytest.mark.parametrize("pattern", [[2], {"to_(q|k)": 2}, {"to_q": "2"}, {"to_q": True}])
def test_patterns_of_ranks_are_read_as_strictly_as_those_of_alphas(pattern):
    with pytest.raises(UserError, match="rank_pattern|to_q"):
        _make_adapter({"lora_alpha": 8, "rank_pattern": pattern}, "adapter_config.json")


def test_the_rank_stabilised_scale_of_64_and_alpha_8():
    plain = _make_adapter({"lora_alpha": 8, "r": 64}, "adapter_config.json")
    assert plain == Adapter({"": 8.0}, {"": 64}, False) and plain.scale(LAYER, 64) == 0.125
    assert _make_adapter({"lora_alpha": 8, "use_rslora": True}, "").scale(LAYER, 64) == 1.0
