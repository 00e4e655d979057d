"""Starting a process group: what `torchrun` sets, and what is wrong without it."""

import pytest
import torch

from metricid.errors import InputError
from metricid.training.distributed import pick_device, start_world

TORCHRUN = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 without RANK, MASTER_ADDR, MASTER_PORT; start with torchrun"),
        ({"WORLD_SIZE": "two", **TORCHRUN}, "not all numbers; start with torchrun, or unset WORLD_SIZE"),
    ],
)
def test_half_of_the_variables_is_refused(monkeypatch, variables, message):
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        start_world("cpu")


def test_one_gpu_for_all_ranks_is_refused(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", **TORCHRUN}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="all 2 processes would share cuda:1; use device=cuda"):
        start_world("cuda:1")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:9999", "xpu", ""])
def test_a_name_of_no_device_is_refused(name):
    with pytest.raises(InputError, match="none of auto, cpu, cuda"):
        pick_device(name)
