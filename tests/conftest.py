"""What all tests share: real data where it is there, and quiet, small machines."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
collect_ignore = ["search/kill_at_every_step.py"]  # a program that a test starts


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real research data (`METRICID_DATA`); tests that need it are skipped without."""
    root = os.environ.get("METRICID_DATA")
    if not root:
        pytest.skip("METRICID_DATA is not set")
    return Path(root)
