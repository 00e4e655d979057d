"""What an index says that this user may not read or write."""

import os

import pytest

from metricid.data.embedding_file import EmbeddingReader
from metricid.errors import InputError
from metricid.search import SearchIndex


@pytest.fixture
def as_nobody():
    """Root may read everything: a child gives that up, and hands back what was said."""

    def said(call):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            line = "nothing was refused"
            try:
                if os.geteuid() == 0:
                    os.setegid(65534)
                    os.seteuid(65534)
                call()
            except InputError as error:
                line = str(error)
            except BaseException as error:
                line = repr(error)
            os.write(writer, line.encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as told:
            line = told.read()
        os.waitpid(child, 0)
        return line

    return said


@pytest.fixture
def open_way(tmp_path):
    """pytest's own folders are closed to other users."""
    before = []
    for folder in (tmp_path, *list(tmp_path.parents)[:2]):
        before.append((folder, folder.stat().st_mode))
        folder.chmod(0o755)
    yield
    for folder, mode in before:
        folder.chmod(mode)


def test_a_card_that_may_not_be_read_is_not_to_be_built_again(build, people, place, as_nobody, open_way):
    build(people)
    (place / "card.json").chmod(0)
    line = as_nobody(lambda: SearchIndex(place))
    assert line == f"{place}/card.json: cannot be read (Permission denied); check its rights"


def test_an_index_that_may_not_be_written_stays_and_says_what_to_check(
    build, people, place, as_nobody, open_way
):
    build(people)
    for file in (place, *place.iterdir()):
        file.chmod(0o555 if file == place else 0o444)
    before = sorted(place.iterdir())
    line = as_nobody(lambda: SearchIndex(place).remove(identity="person-0003"))
    assert line.startswith(f"{place}: cannot be written (Permission denied); check the rights of it and")
    assert sorted(place.iterdir()) == before and len(SearchIndex(place)) == 400
    place.chmod(0o755)


def test_embeddings_that_may_not_be_read(tmp_path, as_nobody, open_way):
    file = tmp_path / "e.parquet"
    file.write_bytes(b"PAR1")
    file.chmod(0)
    line = as_nobody(lambda: EmbeddingReader(file))
    assert line == f"{file}: cannot be read (Permission denied); check its rights"
