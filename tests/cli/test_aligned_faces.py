"""Alignment from a recipe to an answer: train, embed, build, query, and what is refused on the way."""

import json
import re
import uuid
from urllib.parse import quote

import cv2
import numpy as np
import pytest
import yaml
from photos_recipe import PEOPLE, photos_recipe
from search.postgres import PASSWORD, running_postgres

from metricid.cli.main import main
from metricid.data.align import template, warp_face
from metricid.data.embedding_set import EmbeddingSet
from metricid.data.manifest import LANDMARK_COLUMNS, Manifest
from metricid.errors import InputError
from metricid.search import SearchIndex
from metricid.search.remote import Address
from metricid.training.build import check_recipe
from metricid.training.run_folder import changed_options

SIZE = (112, 112)
QUICK = ["--workers", "0"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Photos with faces turned and scaled, their table, the faces aligned, and a run that aligns."""
    folder = tmp_path_factory.mktemp("world")
    random = np.random.default_rng(0)
    paths, marks = [], []
    for person in PEOPLE:
        (folder / "photos" / person).mkdir(parents=True)
        (folder / "cut" / person).mkdir(parents=True)
        base = random.integers(0, 255, (7, 7, 3), dtype=np.uint8)
        for number in range(4):
            noisy = np.clip(base.astype(int) + random.integers(-30, 30, base.shape), 0, 255).astype(np.uint8)
            face = cv2.resize(noisy, SIZE, interpolation=cv2.INTER_CUBIC)
            angle, scale = np.deg2rad(random.uniform(-60, 60)), random.uniform(1.2, 2)
            linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            matrix = np.column_stack([linear, 160 - linear @ [56, 56]])
            photo = cv2.warpAffine(face, matrix, (330, 310))
            points = (template(SIZE) @ linear.T + matrix[:, 2]).astype(np.float32)
            path = f"{person}/{number}.png"
            cv2.imwrite(str(folder / "photos" / path), photo)
            cv2.imwrite(str(folder / "cut" / path), warp_face(photo, points, SIZE))
            paths.append(path)
            marks.append(points.ravel())
    columns = dict(zip(LANDMARK_COLUMNS, np.array(marks).T, strict=True))
    identities = [path.split("/")[0] for path in paths]
    Manifest.from_columns(path=paths, identity=identities, **columns).write(folder / "people.csv")
    Manifest.from_columns(path=paths, identity=identities).write(folder / "bare.csv")
    recipe = photos_recipe(
        folder, "aligns", train="manifest", manifest=str(folder / "people.csv"), align=True
    )
    recipe["evaluation"]["flip"] = False
    recipe["log"] = {"report": False}
    (folder / "aligns.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", str(folder / "aligns.yaml")]) == 0
    run, table = str(folder / "runs" / "aligns"), str(folder / "people.csv")
    photos = ["--root", str(folder / "photos")]
    assert main(["embed", run, table, *photos, "-o", str(folder / "faces.parquet"), *QUICK]) == 0
    cut = ["embed", run, str(folder / "cut"), "--aligned", "-o", str(folder / "cut.parquet")]
    assert main([*cut, *QUICK]) == 0
    return folder


class Desk:
    def __init__(self, world, folder, capfd):
        self.world, self.folder, self._capfd = world, folder, capfd
        self.run, self.table = str(world / "runs" / "aligns"), str(world / "people.csv")
        self.photos, self.cut = world / "photos", world / "cut"
        self.index = str(folder / "people.index")

    def do(self, *words):
        self._capfd.readouterr()
        code = main(list(map(str, words)))
        self.out, self.err = self._capfd.readouterr()
        return code

    def ok(self, *words):
        assert self.do(*words) == 0, self.err
        return self.out

    def refused(self, *words, says):
        assert self.do(*words) == 2, self.out
        said = [line for line in re.split(r"[\r\n]+", self.err) if line.startswith("metricid")]
        assert len(said) == 1 and "Traceback" not in self.err and self.out == "", self.err
        assert re.search(says, said[0]), said[0]

    def build(self, file="faces.parquet"):
        self.ok("search", "build", self.world / file, "-o", self.index, "--model", self.run)

    def query(self, *words):
        return json.loads(self.ok("search", "query", self.index, *words, "--json"))["queries"]

    def landmarks(self, path):
        table = Manifest.read(self.table)
        return ",".join(f"{value:.6g}" for value in table.landmarks()[table.paths.index(path)].ravel())


@pytest.fixture
def desk(world, tmp_path, capfd):
    return Desk(world, tmp_path, capfd)


def test_landmarks_or_aligned_files_give_the_same_vectors(desk):
    faces, cut = (EmbeddingSet.read(desk.world / f"{name}.parquet") for name in ("faces", "cut"))
    assert faces.card["aligned"] is True and cut.card["aligned"] is True
    assert faces.table.paths == cut.table.paths
    np.testing.assert_allclose(faces.embeddings, cut.embeddings, atol=1e-5)
    desk.ok("embed", desk.run, "-o", desk.folder / "own.parquet", *QUICK)
    own = EmbeddingSet.read(desk.folder / "own.parquet")
    rows = [faces.table.paths.index(path) for path in own.table.paths]
    np.testing.assert_allclose(own.embeddings, faces.embeddings[rows], atol=1e-5)


def test_a_photo_finds_itself_by_its_landmarks_and_is_refused_without(desk):
    desk.build()
    assert SearchIndex(desk.index).card["aligned"] is True
    assert "of aligned faces" in desk.ok("search", "stats", desk.index)
    photo = desk.photos / "eve" / "2.png"
    (answer,) = desk.query(photo, "--landmarks", desk.landmarks("eve/2.png"), "-k", 2)
    assert answer["query"] == str(photo) and answer["hits"][0]["path"] == "eve/2.png"
    assert answer["hits"][0]["score"] == pytest.approx(1, abs=1e-4)
    (answer,) = desk.query(desk.cut / "eve" / "2.png", "--aligned", "-k", 1)
    assert answer["hits"][0]["path"] == "eve/2.png"
    assert answer["hits"][0]["score"] == pytest.approx(1, abs=1e-4)
    desk.refused(
        "search", "query", desk.index, photo, says=r"2\.png: .* aligned faces; .*--landmarks x1,.*--aligned"
    )


def test_each_image_has_landmarks_of_its_own_and_tables_bring_theirs(desk):
    desk.build()
    photo, other = desk.photos / "ann" / "1.png", desk.photos / "kim" / "0.png"
    marks = ["--landmarks", desk.landmarks("ann/1.png"), "--landmarks", desk.landmarks("kim/0.png")]
    answers = desk.query(photo, other, *marks, "-k", 1)
    assert [a["hits"][0]["path"] for a in answers] == ["ann/1.png", "kim/0.png"]
    query = ["search", "query", desk.index]
    desk.refused(*query, photo, other, *marks[:2], says=r"kim/0\.png: .*--landmarks")
    desk.refused(*query, photo, *marks, says="2 are given for 1 single images")
    desk.refused(*query, photo, "--landmarks", "1,2,3", says="takes ten numbers")
    desk.refused(*query, photo, "--landmarks", ",".join(["5"] * 10), says=r"1\.png: .*one point \(5, 5\)")
    desk.refused(*query, photo, "--aligned", *marks, says="leave out one of the two")
    desk.refused(*query, "--row", "ann/1.png", "--aligned", says="--aligned: is for images")
    swapped = marks[1].split(",")
    swapped = [*swapped[2:4], *swapped[:2], *swapped[4:6], *swapped[8:], *swapped[6:8]]
    desk.query(photo, "--landmarks", ",".join(swapped))
    assert "1.png: its landmarks are mirrored" in desk.err
    # Another column than landmarks is no hindrance; the paths are relative to the table.
    table = Manifest.read(desk.table).select([3, 9])
    table.write(desk.photos / "asked.csv")
    answers = desk.query(desk.photos / "asked.csv", photo, *marks[:2], "-k", 1)
    assert [a["hits"][0]["path"] for a in answers] == [*table.paths, "ann/1.png"]
    assert all(a["hits"][0]["score"] == pytest.approx(1, abs=1e-4) for a in answers)
    bare = Manifest.from_columns(path=["bob/1.png"], identity=["bob"])
    bare.write(desk.photos / "bare.csv")
    desk.refused(*query, desk.photos / "bare.csv", says=r"bare\.csv: .*columns x1, y1, .*--aligned")


@pytest.mark.parametrize("made_of", ["faces", "cut"])
def test_images_are_added_as_the_index_has_them(desk, made_of):
    """To an index whose rows have landmarks, and to one whose rows have none."""
    table = Manifest.read(desk.table)
    desk.build(f"{made_of}.parquet")
    desk.ok("search", "remove", desk.index, "--identity", "lee")
    photo, marks = desk.photos / "lee" / "0.png", desk.landmarks("lee/0.png")
    desk.refused("search", "add", desk.index, photo, says=r"lee/0\.png: .*--landmarks")
    desk.refused("search", "add", desk.index, desk.photos, says="a table with the columns x1, y1")
    desk.ok("search", "add", desk.index, photo, "--landmarks", marks, "--identity", "lee")
    rows = table.select(table.identities == "lee").select([1, 2])
    rows.write(desk.folder / "lee.csv")
    more = [desk.folder / "lee.csv", "--root", desk.photos]
    desk.refused("search", "add", desk.index, *more, "--landmarks", marks, says="a table has them")
    desk.ok("search", "add", desk.index, *more)
    expected = EmbeddingSet.read(desk.world / "cut.parquet")
    for key, path in {str(photo): "lee/0.png", **{path: path for path in rows.paths}}.items():
        found = SearchIndex(desk.index).get([key])[0][0]
        vector = expected.embeddings[expected.table.paths.index(path)]
        # Batches of another size differ in bfloat16; unaligned, the cosines are below 0.99.
        assert found @ vector / np.linalg.norm(vector) > 0.9999


def test_aligned_and_not_aligned_do_not_mix(desk):
    """The same model, once on photos as they are: for an index of such, landmarks make no sense."""
    plain = desk.folder / "plain.parquet"
    desk.ok("embed", desk.run, desk.cut, "--aligned", "-o", plain, *QUICK)
    stored = EmbeddingSet.read(plain)
    EmbeddingSet(stored.embeddings, stored.table, {**stored.card, "aligned": False}).write(plain)
    desk.build()
    desk.refused(
        "search", "add", desk.index, plain, says="aligned is False there, True in the index; .*--align"
    )
    desk.refused("search", "query", desk.index, "--embeddings", plain, says="aligned is False there")
    desk.ok("search", "build", plain, "-o", desk.index, "--model", desk.run, "--overwrite")
    photo, marks = desk.photos / "ann" / "0.png", desk.landmarks("ann/0.png")
    for given in (["--landmarks", marks], ["--aligned"]):
        desk.refused("search", "query", desk.index, photo, *given, says="are not aligned; leave it out")
    desk.ok("search", "query", desk.index, photo)
    # A card of before this was written down goes with both, and its images as before.
    old = {name: value for name, value in stored.card.items() if name != "aligned"}
    EmbeddingSet(stored.embeddings, stored.table, old).write(plain)
    desk.ok("search", "build", plain, "-o", desk.index, "--model", desk.run, "--overwrite")
    desk.ok("search", "query", desk.index, photo)
    desk.ok("search", "query", desk.index, "--embeddings", desk.world / "faces.parquet")
    desk.refused("search", "query", desk.index, photo, "--aligned", says="not known to be aligned")


@pytest.fixture(scope="module")
def postgres():
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["pgvector", "qdrant"])
def store(request, tmp_path):
    """The URL of a store that does not exist yet."""
    pytest.importorskip("qdrant_client" if request.param == "qdrant" else "psycopg")
    if request.param == "qdrant":
        return f"qdrant://{tmp_path}/store?collection=faces"
    port = request.getfixturevalue("postgres").port
    secret = quote(PASSWORD, safe="")
    return f"pgvector://postgres:{secret}@127.0.0.1:{port}/postgres?table=t{uuid.uuid4().hex}"


def test_a_store_of_aligned_faces_is_asked_as_an_index_is(desk, store):
    """A photo with its landmarks, and one that is aligned already; without either it is refused."""
    build = ["search", "build", desk.world / "faces.parquet", "--store", store, "--model", desk.run]
    desk.ok(*build)
    desk.ok(*build)  # again, as after a kill
    assert "of aligned faces" in desk.ok("search", "stats", "--store", store)
    desk.index, shown = "--store", str(Address.parse(store))
    photo, marks = desk.photos / "eve" / "2.png", desk.landmarks("eve/2.png")
    for asked in ([photo, "--landmarks", marks], [desk.cut / "eve" / "2.png", "--aligned"]):
        (answer,) = desk.query(store, *asked, "-k", 2)
        assert answer["hits"][0]["path"] == "eve/2.png"
        assert answer["hits"][0]["score"] == pytest.approx(1, abs=1e-4)
    query = ["search", "query", "--store", store]
    desk.refused(*query, photo, says=rf"2\.png: {re.escape(shown)}.* aligned faces; .*--landmarks x1,")
    desk.ok("search", "remove", "--store", store, "--identity", "lee")
    lee = desk.photos / "lee" / "0.png"
    desk.refused("search", "add", "--store", store, lee, says=r"lee/0\.png: .*--landmarks")
    desk.ok("search", "add", "--store", store, lee, "--landmarks", desk.landmarks("lee/0.png"))
    (answer,) = desk.query(store, desk.cut / "lee" / "0.png", "--aligned", "-k", 1)
    assert answer["hits"][0]["path"] == answer["hits"][0]["identity"] == str(lee)
    assert answer["hits"][0]["score"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("stored", [True, False])
def test_a_store_refuses_faces_that_are_aligned_otherwise(desk, store, stored):
    """Names both, and what they differ in, as an index does."""
    mine, theirs = desk.folder / "mine.parquet", desk.folder / "theirs.parquet"
    faces = EmbeddingSet.read(desk.world / "faces.parquet")
    for file, aligned in ((mine, stored), (theirs, not stored)):
        EmbeddingSet(faces.embeddings, faces.table, {**faces.card, "aligned": aligned}).write(file)
    desk.ok("search", "build", mine, "--store", store, "--model", desk.run)
    remedy = "with" if stored else "without"
    differs = rf"aligned is {not stored} there, {stored} in the index; .*{remedy} --align"
    place = str(Address.parse(store))
    for words in (
        ["query", "--store", store, "--embeddings", theirs],
        ["add", "--store", store, theirs],
        ["build", theirs, "--store", store],
    ):
        desk.refused("search", *words, says=differs)
        named = "the set to be stored" if words[0] == "build" else str(theirs)
        assert f"{named} does not fit {place}" in desk.err
        assert PASSWORD not in desk.err and quote(PASSWORD, safe="") not in desk.err
    if not stored:
        photo = desk.photos / "ann" / "0.png"
        desk.refused(
            "search", "query", "--store", store, photo, "--aligned", says="are not aligned; leave it out"
        )
    assert json.loads(desk.ok("search", "stats", "--store", store, "--json"))["rows"] == 20


def test_data_without_landmarks_is_refused_unless_it_is_aligned(desk):
    out = ["-o", desk.folder / "e.parquet", *QUICK]
    lacking = r"no landmarks; give a table with the columns x1, y1, \.\.\., x5, y5 .*--aligned"
    desk.refused("embed", desk.run, desk.photos, *out, says=lacking)
    desk.refused("embed", desk.run, desk.table, "--align", "--aligned", *out, says="leave out one")
    other = ["--layout", "folder", "--root", desk.photos, "--workers", "0"]
    desk.refused("evaluate", desk.run, *other, says=lacking)
    desk.refused(
        "train",
        desk.world / "aligns.yaml",
        "name=other",
        f"data.manifest={desk.world / 'bare.csv'}",
        says=lacking,
    )
    desk.refused("train", desk.world / "aligns.yaml", "name=other", "data.size=[100, 100]", says="1 problem")
    assert "not to 100 x 100" in desk.err


def test_an_evaluation_follows_the_recipe(desk):
    """Aligned by landmarks or before, the scores are the same; unaligned photos give others."""

    def results(*words):
        return json.loads(desk.ok("evaluate", desk.run, *words, "--workers", "0", "--json"))["results"]

    table = ["--layout", "manifest", "--manifest", desk.table, "--root", desk.photos]
    verify = ["--protocol", "verification"]
    by_landmarks = results(*table, *verify)[0]["metrics"]
    cut = results("--layout", "folder", "--root", desk.cut, "--aligned", *verify)[0]["metrics"]
    assert by_landmarks == pytest.approx(cut, abs=1e-4)
    assert results(*table, *verify, "data.align=false")[0]["metrics"] != pytest.approx(cut, abs=1e-4)
    saved = desk.folder / "saved.parquet"
    results(*verify, "--save-embeddings", saved)
    assert EmbeddingSet.read(saved).card["aligned"] is True
    wrong = ["data.align=false", "--aligned", *verify]
    desk.refused("evaluate", desk.run, *wrong, says="--aligned: .* aligns no images")


def test_another_model_aligns_where_it_is_asked_to(desk):
    """A model that says nothing of alignment, as an ONNX file does."""
    folder = desk.folder
    recipe = yaml.safe_load((desk.world / "aligns.yaml").read_text())
    recipe |= {"name": "plain", "runs": str(folder)}
    recipe["data"] |= {"align": False, "root": str(desk.cut)}
    (folder / "plain.yaml").write_text(yaml.safe_dump(recipe))
    desk.ok("train", folder / "plain.yaml")
    model = folder / "plain"
    desk.ok("embed", model, desk.table, "--root", desk.photos, "--align", "-o", folder / "a.parquet", *QUICK)
    desk.ok("embed", model, desk.cut, "-o", folder / "b.parquet", *QUICK)
    desk.ok("embed", model, desk.table, "--root", desk.photos, "-o", folder / "c.parquet", *QUICK)
    a, b, c = (EmbeddingSet.read(folder / f"{name}.parquet") for name in "abc")
    assert [part.card["aligned"] for part in (a, b, c)] == [True, False, False]
    np.testing.assert_allclose(a.embeddings, b.embeddings, atol=1e-5)
    assert np.abs(a.embeddings - c.embeddings).max() > 0.01
    words = ["embed", model, desk.photos, "--align", "-o", folder / "d.parquet"]
    desk.refused(*words, says="--align: .* has no landmarks; give a table")


def test_masks_are_not_left_behind_by_their_faces(desk):
    recipe = yaml.safe_load((desk.world / "aligns.yaml").read_text()) | {"name": "masked"}
    recipe["objective"].append({"task": "mask", "column": "mask"})
    (desk.folder / "masked.yaml").write_text(yaml.safe_dump(recipe))
    desk.refused("train", desk.folder / "masked.yaml", says=r"data\.align: masks are not warped")


def test_a_killed_embedding_does_not_mix_aligned_with_other_images(desk, monkeypatch):
    """Parts are bound to how their images were made."""
    target = desk.folder / "e.parquet"
    words = ["embed", desk.run, desk.table, "--root", desk.photos, "-o", target, *QUICK]
    monkeypatch.setattr("metricid.cli.embed._join", lambda *_: (_ for _ in ()).throw(InputError("killed")))
    desk.refused(*words, says="killed")
    monkeypatch.undo()
    desk.refused(*words, "--aligned", says="parts of another run .aligned by landmarks, now None")
    desk.ok(*words)
    assert "20 of 20 images are done" in desk.err
    expected = EmbeddingSet.read(desk.world / "faces.parquet").embeddings
    np.testing.assert_array_equal(EmbeddingSet.read(target).embeddings, expected)


def test_a_run_of_before_goes_on_as_one_that_does_not_align(desk):
    recipe = yaml.safe_load((desk.world / "aligns.yaml").read_text())
    recipe["data"]["align"] = False
    config = check_recipe(recipe, "aligns.yaml")
    old = config.plain()
    del old["data"]["align"]
    assert changed_options(old, config) == []
    recipe["data"]["align"] = True
    assert changed_options(old, check_recipe(recipe, "aligns.yaml")) == ["data.align: False -> True"]
