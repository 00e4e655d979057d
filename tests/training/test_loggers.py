"""The log of a run as a file: whole lines, or an error that says so."""

import json
import resource

import pytest

from metricid.errors import InputError
from metricid.report.run_files import read_log
from metricid.training.loggers import JsonlLog

STEP = {
    "step": 1,
    "images": 8,
    "lr": 0.1,
    "loss": 1.0,
    "terms": {},
    "images_per_second": 8.0,
    "wait_share": 0.0,
}


@pytest.fixture
def files_end_at():
    """Sets a size at which the system ends every file of this process, as a full disk or a quota does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_line_that_fits_in_part_is_an_error_and_a_resumed_run_cuts_it_off(tmp_path, files_end_at):
    file = tmp_path / "log.jsonl"
    log = JsonlLog(file)
    log.write("step", **STEP)
    kept = log.position()
    files_end_at(kept + 10)
    with pytest.raises(InputError, match=r"log\.jsonl: the log cannot be written"):
        log.write("step", **STEP)
    log.close()
    assert file.stat().st_size == kept + 10
    read = read_log(file)
    assert (len(read.windows), read.damaged) == (1, 0), "a line that is not complete yet is no damage"
    log = JsonlLog(file, kept)
    assert [json.loads(line) for line in file.read_text().splitlines()] == [{"event": "step", **STEP}]
    log.close()
