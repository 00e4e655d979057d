"""The short trial that turns a time into images."""

import os
from dataclasses import replace

import pytest

from metricid.comparison.entries import Entry
from metricid.comparison.trial import measure_speeds
from metricid.errors import InputError


def test_speeds_are_measured_and_an_objective_that_fails_is_told_with_its_reason(plan):
    entries = (Entry("good", [{"loss": "softmax"}]), Entry("bad", [{"loss": "triplet", "margin": "x"}]))
    plan = replace(plan, entries=entries)
    runs = [plan.run(entry, 0) for entry in entries]
    speeds, failures = measure_speeds(runs, "cpu", os.environ)
    assert list(speeds) == ["good"] and speeds["good"] > 0
    assert list(failures) == ["bad"] and "objective.0.margin: expected a number" in failures["bad"]
    assert "\n" not in failures["bad"]
    assert not plan.folder.exists()
    with pytest.raises(InputError, match="the trial failed: bad: .*objective.0.margin"):
        measure_speeds(runs[1:], "cpu", os.environ)
