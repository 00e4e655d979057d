"""The queue with a stand-in for the training: order, devices, failures, stopping, continuing."""

import json
import os
import signal
import sys
import threading
import time

import pytest

from metricid.comparison import queue
from metricid.comparison.plan import PlannedRun
from metricid.comparison.queue import Device, failure_of, forget_failure, is_finished, work_off
from metricid.errors import InputError
from metricid.training.signals import StopRequest

# Counts its starts, waits for a file `go`, then ends as the recipe's name says; saves on SIGTERM.
PROGRAM = """
import os, signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
device = os.environ["DEVICE"]
def note(what):
    with open(folder.parent / "events.txt", "a") as file:
        file.write(f"{what} {folder.name} {device}\\n")
def save(number, frame):
    note("saved")
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
note("start")
while not (folder.parent / "go").exists():
    time.sleep(0.01)
if "listed" in folder.name:
    print("metricid train: recipes/listed.yaml: 2 problems", file=sys.stderr)
    print("  objective.0.loss: unknown loss 'mine'", file=sys.stderr)
    print("  optim.lr: far too high\\n0%| progress\\n  nothing of it", file=sys.stderr)
    sys.exit(2)
if "bad" in folder.name:
    print("metricid train: optim.lr: far too high", file=sys.stderr)
    print("0%| progress", file=sys.stderr)
    sys.exit(2)
if "killed" in folder.name:
    os.kill(os.getpid(), signal.SIGKILL)
for name in ("results.json", "results.txt"):
    (folder / name).write_text("{}")
note("end")
"""


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """Makes runs by name; their training is the program above."""
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    monkeypatch.setattr(queue, "command", lambda recipe, folder: [sys.executable, str(file), str(folder)])
    monkeypatch.setattr(queue, "PAUSE", 0.01)
    (tmp_path / "go").touch()
    return lambda *names: [
        PlannedRun(name, 0, tmp_path / name, {"train": {"images": 8}, "name": name}) for name in names
    ]


def devices(*names):
    return [Device(name, "cpu", os.environ | {"DEVICE": name}) for name in names]


def patient():
    return StopRequest(impatient=False)


def events(folder):
    return [tuple(line.split()) for line in (folder / "events.txt").read_text().splitlines()]


def wait_for_events(folder, number):
    file = folder / "events.txt"
    while not (file.exists() and file.read_text().count("\n") >= number):
        time.sleep(0.01)


def test_runs_go_in_order_one_at_a_time(planned, tmp_path):
    ended = []
    work_off(planned("a", "b", "c"), devices("one"), patient(), lambda run: ended.append(run.entry))
    assert ended == ["a", "b", "c"]
    assert events(tmp_path) == [(what, name, "one") for name in "abc" for what in ("start", "end")]


def test_each_device_has_one_run_at_a_time(planned, tmp_path):
    runs = planned("a", "b", "c", "d")
    (tmp_path / "go").unlink()
    thread = threading.Thread(
        target=work_off, args=(runs, devices("one", "two"), patient(), lambda run: None)
    )
    thread.start()
    wait_for_events(tmp_path, 2)
    time.sleep(0.1)
    assert sorted(events(tmp_path)) == [("start", "a", "one"), ("start", "b", "two")]
    (tmp_path / "go").touch()
    thread.join()
    assert all(is_finished(run) for run in runs)
    running = set()
    for what, _, device in events(tmp_path):
        assert (device in running) == (what == "end")
        running ^= {device}


def test_a_failed_run_says_why_and_stops_no_other(planned, capsys):
    runs = planned("bad", "killed", "good")
    work_off(runs, devices("one"), patient(), lambda run: None)
    assert [failure_of(run) for run in runs] == [
        "optim.lr: far too high",
        "killed by SIGKILL (out of memory?)",
        None,
    ]
    assert [is_finished(run) for run in runs] == [False, False, True]
    assert "bad seed 0: failed: optim.lr: far too high" in capsys.readouterr().err
    forget_failure(runs[0])
    assert failure_of(runs[0]) is None


def test_a_list_of_problems_is_the_reason(planned, capsys):
    (run,) = planned("listed")
    work_off([run], devices("one"), patient(), lambda run: None)
    reason = "objective.0.loss: unknown loss 'mine'; optim.lr: far too high"
    assert failure_of(run) == reason
    assert f"listed seed 0: failed: {reason}\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("metricid train: a.yaml: 1 problem\n  name: wrong\n", "name: wrong"),
        ("metricid train: a.yaml: 1 problem\n", "a.yaml: 1 problem"),
        ("metricid train: data: 3 problems with it\n  indented\n", "data: 3 problems with it"),
        ("metricid train: a.yaml: 1 problem\n  old\nmetricid train: disk full\n  more\n", "disk full"),
        ("Traceback\n  a line\nKeyError: 'x'\n\n", "KeyError: 'x'"),
        ("", "exit code 2"),
    ],
)
def test_the_reason_of_what_a_training_said(tmp_path, text, reason):
    file = tmp_path / "output.txt"
    file.write_text(text)
    assert queue._reason(file, 2) == reason


def test_a_long_list_of_problems_is_cut(tmp_path):
    file = tmp_path / "output.txt"
    file.write_text("metricid train: a.yaml: 99 problems\n" + "  name: wrong\n" * 99)
    reason = queue._reason(file, 2)
    assert len(reason) == queue.LONGEST_REASON and reason.endswith(" ...")
    assert reason.startswith("name: wrong; name: wrong; ")


def test_a_stop_lets_the_running_save_and_starts_no_other(planned, tmp_path):
    runs = planned("a", "b")
    (tmp_path / "go").unlink()

    def interrupt():
        wait_for_events(tmp_path, 1)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with patient() as stop:
        thread = threading.Thread(target=interrupt)
        thread.start()
        work_off(runs, devices("one"), stop, lambda run: None)
    thread.join()
    assert stop.number == signal.SIGINT and signal.getsignal(signal.SIGINT) is before
    assert events(tmp_path) == [("start", "a", "one"), ("saved", "a", "one")]
    assert [failure_of(run) for run in runs] == [None, None]
    (tmp_path / "go").touch()
    work_off(runs, devices("one"), patient(), lambda run: None)
    assert all(is_finished(run) for run in runs)


def test_a_second_signal_is_counted_by_the_patient_and_ends_the_others():
    with StopRequest(impatient=False) as stop:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
    assert (stop.number, stop.count) == (signal.SIGINT, 3)
    with StopRequest() as stop:
        for number in (signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert (stop.number, stop.count) == (signal.SIGTERM, 2)


def test_a_second_signal_ends_the_trainings_at_once(planned, tmp_path):
    runs = planned("a")
    (tmp_path / "go").unlink()
    stop = patient()

    def interrupt():
        wait_for_events(tmp_path, 1)
        stop.number, stop.count = signal.SIGINT, 2

    thread = threading.Thread(target=interrupt)
    thread.start()
    work_off(runs, devices("one"), stop, lambda run: None)
    thread.join()
    assert events(tmp_path) == [("start", "a", "one")], "killed, it could save nothing"


def test_recipes_and_output_are_kept(planned, tmp_path):
    (run,) = planned("bad")
    work_off([run], devices("one"), patient(), lambda run: None)
    assert "device: cpu" in (tmp_path / "recipes" / "bad.yaml").read_text()
    assert "progress" in (run.folder / "output.txt").read_text()
    assert json.loads((run.folder / queue.FAILURE).read_text())["code"] == 2


def test_two_processes_do_not_share_a_folder(tmp_path):
    ready, end = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        with queue.locked_folder(tmp_path):
            os.write(ready[1], b".")
            os.read(end[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    with pytest.raises(InputError, match="another process works here"), queue.locked_folder(tmp_path):
        pass
    os.write(end[1], b".")
    os.waitpid(child, 0)
    with queue.locked_folder(tmp_path):
        pass


def test_a_retry_repeats_runs_whose_results_are_damaged_and_no_others(plan, results):
    whole, damaged = plan.runs()[:2]
    for run in (whole, damaged):
        results(run, 0.5)
    (damaged.folder / "results.json").write_text("{")
    for run in (whole, damaged):
        forget_failure(run)
    assert is_finished(whole) and not is_finished(damaged)
