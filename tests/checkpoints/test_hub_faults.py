"""Names that the Hugging Face hub cannot have are not asked of it."""

import pytest

from seediff_jax.checkpoints.hub import is_hub_id
from seediff_jax.checkpoints.sources import find_source
from seediff_jax.errors import UserError


@pytest.mark.parametrize(
    "name",
    [f"owner/{'x' * 300}", "übung/model", "a..b/c", "a--b/c", "a/b.git", "-a/b", "a/b-", "a/b/c"],
)
def test_a_name_that_the_hub_refuses_is_no_model(name):
    assert not is_hub_id(name)
    with pytest.raises(UserError, match="there is no model"):
        find_source(name)


@pytest.mark.parametrize("name", ["CompVis/stable-diffusion-v1-4", "a/b", "a_b/c.d-e"])
def test_names_of_the_hub_are_known(name):
    assert is_hub_id(name)
