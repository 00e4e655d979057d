"""Fixtures of the search tests."""

import pytest

from metricid.search import SearchIndex

from .people import People


@pytest.fixture
def people():
    return People.make(400)


@pytest.fixture
def place(tmp_path):
    return tmp_path / "people.index"


@pytest.fixture
def build(place):
    def make(people, kind="flat", **options):
        return SearchIndex.build(place, people.source, kind=kind, **options)

    return make
