"""The report at the end of a training: what is in it, and that a run never depends on it."""

import errno
import json
import os
import re

import pytest

from metricid.cli.main import main
from metricid.training import validation


def page_of(small):
    return (small.run / "report.html").read_text(encoding="utf-8")


def results_of(small):
    return json.loads((small.run / "results.json").read_text())["results"]


@pytest.fixture
def embedded(monkeypatch):
    """The number of images of each table that was embedded."""
    tables, original = [], validation.embed_images

    def embed_images(embedder, source, table, **options):
        tables.append(len(table))
        return original(embedder, source, table, **options)

    monkeypatch.setattr(validation, "embed_images", embed_images)
    return tables


def test_a_training_ends_with_a_page_of_its_results(small, embedded):
    protocols = ["identification", "verification"]
    small.set(evaluation__protocols=protocols, evaluation__baselines=["pixels", "random"])
    outcome = small.train()
    page, results = page_of(small), results_of(small)
    assert [r["protocol"] for r in results] == protocols * 3
    for result in results:
        for name, value in result["metrics"].items():
            if not name.startswith("threshold"):
                assert f"{100 * value:.2f}%" in page, (result["subject"], name)
    assert "small (best.pt), flip-sum" in page
    assert "computed again" not in page  # the lists agree with the table
    assert page.count('class="query"') == 18
    assert page.count("<img ") > 18
    assert "test_resnet" in page and "waiting for images" in page
    assert not re.search(r"(src|href|action)\s*=\s*[\"'](?!data:|#)", page)
    assert not re.search(r"url\(|@import|https?:", page.replace("http://www.w3.org", ""))
    assert outcome.problem is None
    assert outcome.text.endswith(f"report: {small.run}/report.html")
    assert embedded.count(24) == 2, "the test images are embedded for the model and for the baseline alone"
    assert small.train().text.endswith(f"report: {small.run}/report.html")


def test_a_run_without_a_report_when_none_is_wanted(small):
    small.set(log__report=False)
    assert "report:" not in small.train().text
    assert not (small.run / "report.html").exists()
    assert "report:" not in small.train().text
    small.set(log__report=True)  # how a run is watched may change
    assert small.train().text.endswith(f"no report yet; make it with: metricid report {small.run}")
    assert main(["report", str(small.run), "--precision", "fp32"]) == 0
    assert "computed again" not in page_of(small)


def test_a_run_that_tests_nobody_has_a_page_of_its_training(small):
    small.set(data__split=None)
    small.train()
    page = page_of(small)
    assert "there is nothing to search" in page
    assert "<img" not in page
    assert 'id="training"' in page


def fill_the_disk(small, monkeypatch):
    fsync = os.fsync

    def full(handle):
        if "report.html" in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)


def put_a_folder_in_its_place(small, monkeypatch):
    (small.run / "report.html").mkdir(parents=True)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(fill_the_disk, "No space left on device"), (put_a_folder_in_its_place, "Is a directory")],
)
def test_a_report_that_cannot_be_written_costs_nothing_else(small, damage, reason, monkeypatch, capsys):
    damage(small, monkeypatch)
    file = str(small.write())
    assert main(["train", file]) == 2
    out, err = capsys.readouterr()
    assert "rank-1" in out and f"run folder: {small.run}" in out
    said = [line for line in err.splitlines() if line.startswith("metricid train: ")]
    assert said == [
        f"metricid train: {small.run}: the results are written, but report.html could not be made "
        f"({reason}); make it with: metricid report {small.run}"
    ]
    assert "Traceback" not in err
    assert not (small.run / "report.html").is_file()
    assert not list(small.run.rglob(".*.tmp"))
    assert results_of(small)[0]["counts"]["queries"] == 24
    assert main(["train", file]) == 0
    assert f"no report yet; make it with: metricid report {small.run}" in capsys.readouterr().out


def test_unreadable_test_images_are_told_in_the_page(small, monkeypatch):
    from metricid.data.decode import ImageError
    from metricid.data.synthetic import SyntheticFaces

    read = SyntheticFaces.read

    def damaged(self, path):
        if path.endswith("/0003"):
            raise ImageError(f"{path}: damaged")
        return read(self, path)

    monkeypatch.setattr(SyntheticFaces, "read", damaged)
    small.set(data__on_corrupt="skip")
    small.train()
    assert "4 unreadable images are left out of the ranked lists" in page_of(small)
