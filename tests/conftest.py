"""What all tests share: real data where it is there, and quiet, small machines."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # tests import onnxruntime themselves, too
# The same examples in every run, so that a failure belongs to a change; others: --hypothesis-profile=explore.
settings.register_profile("same", derandomize=True)
settings.register_profile("explore", derandomize=False)
settings.load_profile("same")
# A program that a test starts; and conftests, of which the search for doctests would take one for another.
collect_ignore = ["search/kill_at_every_step.py"]
collect_ignore_glob = ["*conftest.py"]
pytest.register_assert_rewrite("search.store_contract")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real research data (`METRICID_DATA`); tests that need it are skipped without."""
    root = os.environ.get("METRICID_DATA")
    if not root:
        pytest.skip("METRICID_DATA is not set")
    return Path(root)
