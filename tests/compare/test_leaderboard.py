"""Made-up results through the leaderboard and everything that is written of it."""

import csv
import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from metricid.comparison.entries import Entry
from metricid.comparison.leaderboard import notes, rank
from metricid.comparison.outcomes import known_measures, read_outcomes
from metricid.comparison.page import render
from metricid.comparison.plan import Plan
from metricid.comparison.writers import markdown, text_table, values, write_all
from metricid.training.run_folder import write_json

RATES = {"softmax": [0.60, 0.70, 0.80], "supcon": [0.61, 0.69, 0.78], "arcface": [0.50, 0.61, 0.70]}


def board_of(plan, results, rates, by="rank-1"):
    for run in plan.runs():
        value = rates[run.entry][run.seed]
        if value is not None:
            results(run, value, unsupported=["TAR@FAR=0.001"])
    return rank(plan, read_outcomes(plan), by)


def test_the_best_is_first_and_noise_is_called_noise(plan, results):
    board = board_of(plan, results, RATES)
    assert [row.name for row in board.rows] == ["softmax", "supcon", "arcface"]
    assert [row.difference.verdict for row in board.rows] == ["best", "noise", "worse"]
    assert board.columns == ["rank-1", "mAP", "TAR@FAR=0.1", "TAR@FAR=0.01"]
    assert board.rows[0].measures["rank-1"].value == pytest.approx(0.7)
    assert board.rows[0].measures["rank-1"].half == pytest.approx(0.24841, abs=1e-5)  # 4.30265 * 0.1 / sqrt 3
    assert (board.rows[0].memory.value, board.rows[0].speed.value) == (512, 100)
    first = notes(board)[0]
    assert "softmax has the highest rank-1" in first
    assert "Inside the noise of it: supcon" in first and "Worse than it at 95 %: arcface." in first
    row = next(line for line in markdown(board).splitlines() if line.startswith("| arcface"))
    assert "| 60.33 ± 24.88 | 30.17 ± 12.44 | 90.00 ± 0.00 |" in row
    assert "-9.67 ± 1.43, worse" in row


def test_one_seed_knows_no_noise(plan, results):
    one = Plan(plan.folder, plan.recipe, plan.entries, (0,), 96)
    board = board_of(one, results, RATES)
    assert [row.difference.verdict for row in board.rows] == ["best", "unknown", "unknown"]
    assert "the noise is unknown" in notes(board)[0] and "±" not in markdown(board).split("\n\n- ")[0]


def test_a_rate_without_support_is_shown_only_if_there_is_no_other_and_marked(plan, results):
    for run in plan.runs():
        results(run, 0.5, unsupported=["TAR@FAR=0.1", "TAR@FAR=0.01", "TAR@FAR=0.001"])
    board = rank(plan, read_outcomes(plan), "rank-1")
    assert board.columns == ["rank-1", "mAP", "TAR@FAR=0.1"]
    assert "90.00* ± 0.00" in markdown(board) and "do not quote it" in markdown(board)


def test_failures_and_missing_runs_are_told(plan, results):
    rates = {"softmax": [0.6, 0.7, None], "supcon": [None, 0.69, 0.78], "arcface": [None] * 3}
    lost = next(run for run in plan.runs() if run.entry == "arcface")
    write_json(lost.folder / "failure.json", {"reason": "out of | memory", "code": -9})
    board = board_of(plan, results, rates)
    assert [(row.name, row.finished, row.waiting) for row in board.rows] == [
        ("supcon", 2, 1),
        ("softmax", 2, 1),
        ("arcface", 0, 2),
    ]
    assert board.rows[1].difference.count == 1 and board.rows[2].difference is None
    assert notes(board)[0] == "Not complete: 4 of 9 runs have results."
    assert "- arcface, seed 0: out of \\| memory" in markdown(board)
    assert "failed: arcface, seed 0: out of | memory" in text_table(board)


def test_objectives_whose_trial_failed_are_told_with_the_reason_everywhere(plan, results):
    trial = {"softmax": 81.5, "supcon": 60.0}
    plan = replace(plan, budget=60.0, trial=trial, left_out={"arcface": "a tensor of <7> TB"})
    board = board_of(plan, results, RATES)
    told = "The trial of arcface failed (a tensor of {}), so it had no say in the number of images."
    assert told.format("<7> TB") in text_table(board)
    assert told.format("&lt;7> TB") in markdown(board)
    assert told.format("&lt;7&gt; TB") in render(board)
    assert values(board)["trial_failures"] == {"arcface": "a tensor of <7> TB"}


def test_nothing_yet_is_a_leaderboard_too(plan):
    board = rank(plan, read_outcomes(plan), "rank-1")
    assert board.columns == [] and board.finished == 0
    assert "0 of 9 runs" in markdown(board) and "<table" in render(board)


def test_the_files_hold_the_same_numbers(plan, results):
    board = board_of(plan, results, RATES, by="mAP")
    write_all(board, render(board))
    told = json.loads((plan.folder / "leaderboard.json").read_text())
    assert told == values(board)
    lines = list(csv.DictReader((plan.folder / "leaderboard.csv").open()))
    for line, row in zip(lines, told["rows"], strict=True):
        assert line["objective"] == row["objective"] and line["verdict"] == row["against_best"]["verdict"]
        assert float(line["mAP"]) == pytest.approx(row["measures"]["mAP"]["mean"], rel=1e-5)
        assert [float(v) for v in line["rank-1 by seed"].split()] == RATES[row["objective"]]
    assert (plan.folder / "leaderboard.md").read_text() == markdown(board)


class Page(HTMLParser):
    """Counts what a page has."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.ids, self.text = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.tags.append(tag)
        self.links += [named[key] for key in ("href", "src") if key in named]
        self.ids += [named["id"]] if "id" in named else []

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_and_loads_nothing(plan, results):
    hostile = "<script>alert(1)</script>"
    plan = Plan(
        plan.folder, plan.recipe, (*plan.entries, Entry(hostile, [{"loss": "cosface"}])), (0, 1, 2), 96
    )
    for run in plan.runs():
        results(run, RATES.get(run.entry, [0.1, 0.2, 0.3])[run.seed])
        lines = [
            {
                "event": "step",
                "step": step,
                "images": 8 * step,
                "lr": 0.1,
                "loss": 2 / step,
                "terms": {"softmax": 2 / step, "late": "nan" if step < 5 else 1.0},
                "images_per_second": 9.0,
                "wait_share": 0.1,
            }
            for step in range(1, 13)
        ]
        metrics = {"rank-1": 0.5 + run.seed / 10}
        lines += [{"event": "validation", "step": 6, "results": [{"protocol": "reid", "metrics": metrics}]}]
        (run.folder / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    text = render(rank(plan, read_outcomes(plan), "rank-1"))
    page = Page(text)
    assert page.tags.count("script") == 1 and hostile not in text
    assert set(page.links) - {"data:,"} == {f"#{name}" for name in page.ids if f"#{name}" in page.links}
    assert "http:" not in text and "https:" not in text and "default-src 'none'" in text
    assert {"leaderboard", "intervals", "validation", "losses", "recipe"} <= set(page.ids)
    assert page.tags.count("tr") == 1 + 4
    # A chart for each measure, one of validations, one of losses for each objective.
    assert text.count('role="img"') == 4 + 1 + 4
    assert "softmax ends at 60.0%" in text  # of the validation: the mean of 0.5, 0.6 and 0.7


def test_measures_to_rank_by_are_those_of_which_more_is_better():
    names = known_measures(["reid", "verification"])
    assert {"rank-1", "mAP", "TAR@FAR=0.01", "AUC"} <= set(names)
    assert not [name for name in names if "EER" in name or "threshold" in name or "nearest" in name]
    assert "identification rank-1" in known_measures(["reid", "identification"])
