"""The small recipe inside a folder of its own."""

import pytest
from small_recipe import Small


@pytest.fixture
def small(tmp_path):
    return Small(tmp_path)
