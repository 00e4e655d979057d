"""What an index says that this user may not read or write."""

import os

import pytest

from metricid.data.embedding_file import EmbeddingReader
from metricid.errors import InputError
from metricid.search import SearchIndex


@pytest.fixture
def as_nobody(tmp_path):
    """Root may read everything, so it gives that up for a call, and returns the refusal."""
    closed = [folder for folder in tmp_path.parents if not folder.stat().st_mode & 0o001]
    modes = [folder.stat().st_mode for folder in closed]  # pytest's own folders are closed to other users
    for folder in (*closed, tmp_path):
        folder.chmod(0o755)

    def said(call):
        root = os.geteuid() == 0
        if root:
            os.setegid(65534)
            os.seteuid(65534)
        try:
            with pytest.raises(InputError) as caught:
                call()
        finally:
            if root:
                os.seteuid(0)
                os.setegid(0)
        return str(caught.value)

    yield said
    for folder, mode in zip(closed, modes, strict=True):
        folder.chmod(mode)


def test_a_card_that_may_not_be_read_is_not_to_be_built_again(build, people, place, as_nobody):
    build(people)
    (place / "card.json").chmod(0)
    line = as_nobody(lambda: SearchIndex(place))
    assert line == f"{place}/card.json: cannot be read (Permission denied); check its rights"


def test_an_index_that_may_not_be_written_stays_and_says_what_to_check(build, people, place, as_nobody):
    build(people)
    for file in (place, *place.iterdir()):
        file.chmod(0o555 if file == place else 0o444)
    before = sorted(place.iterdir())
    line = as_nobody(lambda: SearchIndex(place).remove(identity="person-0003"))
    assert line.startswith(f"{place}: cannot be written (Permission denied); check the rights of it and")
    assert sorted(place.iterdir()) == before and len(SearchIndex(place)) == 400
    place.chmod(0o755)


def test_embeddings_that_may_not_be_read(tmp_path, as_nobody):
    file = tmp_path / "e.parquet"
    file.write_bytes(b"PAR1")
    file.chmod(0)
    line = as_nobody(lambda: EmbeddingReader(file))
    assert line == f"{file}: cannot be read (Permission denied); check its rights"
