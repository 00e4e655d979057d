"""How `metricid search` takes its words: URLs, options before and after them, and what an index remembers."""

import json
import shutil
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from metricid.cli.main import main


@pytest.mark.parametrize(
    "words",
    [
        ("build", "{e}", "-o", "{url}"),
        ("build", "{url}", "-o", "x.index"),
        ("build", "{e}", "{url}", "-o", "x.index"),
        ("build", "{e}", "-o", "x.index", "--model", "{url}"),
        ("build", "{e}", "-o", "x.index", "--calibration", "{url}"),
        ("query", "{i}", "{url}"),
        ("query", "{i}", "-k", "3", "{url}"),
        ("query", "{i}", "--embeddings", "{url}"),
        ("query", "{i}", "a.png", "--grid", "{url}", "--root", "."),
        ("query", "--store", "pgvector://h/db", "{url}"),
        ("add", "{i}", "{url}"),
        ("remove", "{i}", "{url}", "--identity", "ann"),
        ("stats", "{i}", "{url}"),
    ],
)
@pytest.mark.parametrize("url", ["pgvector://me:hush1234@127.0.0.1:1/db", "postgres://me:hush1234@h/db"])
def test_the_url_of_a_store_where_a_path_is_meant_is_not_taken_and_not_shown(shop, monkeypatch, words, url):
    monkeypatch.chdir(shop.folder)
    shop.build()
    before = sorted(shop.folder.rglob("*"))
    words = [word.format(e=shop.embeddings, i=shop.index, url=url) for word in words]
    try:
        assert shop.search(*words) == 2
    except SystemExit as ended:  # words that the command does not have
        assert ended.code == 2
        shop.out, shop.err = shop._capfd.readouterr()
    assert "hush" not in shop.out + shop.err
    assert "is a URL" in shop.err or "unrecognized arguments: ***" in shop.err
    assert sorted(shop.folder.rglob("*")) == before


def test_words_may_follow_options(shop):
    shop.build("--model", shop.run)
    photo = str(shop.photos / "eve" / "2.png")
    for words in (
        ["-k", "1", shop.index, photo],
        [shop.index, "-k", "1", photo],
        [shop.index, photo, "-k", "1"],
    ):
        (answer,) = shop.json("query", *words)["queries"]
        assert (answer["query"], len(answer["hits"])) == (photo, 1)
    both = shop.json(
        "query", shop.index, photo, "--where", "identity!=eve", str(shop.photos / "ann" / "0.png")
    )
    assert [answer["query"] for answer in both["queries"]] == [photo, str(shop.photos / "ann" / "0.png")]
    new = shop.folder / "new.png"
    shutil.copy(photo, new)
    assert shop.json("add", shop.index, "--identity", "zoe", str(new))["rows"] == 21
    assert shop.ok("query", shop.index, "-k", "1", "--", photo).startswith(photo)
    shop.refused("query", shop.index, "-k", "1", "--", "-x.png", says=r" -x\.png: cannot be read")
    with pytest.raises(SystemExit):
        shop.search("query", shop.index, "--kk", "3", photo)


def test_a_row_that_is_alone_with_what_passes_says_so(shop):
    shop.build("--model", shop.run)
    new = shop.folder / "new.png"
    shutil.copy(shop.photos / "eve" / "2.png", new)
    shop.ok("add", shop.index, "--identity", "zoe", str(new))
    said = shop.ok("query", shop.index, "--row", str(new), "--where", "identity=zoe")
    assert said == f"{new}: there is no other row with identity=zoe\n"
    for name in ("bob", "eve", "kim", "lee", "zoe"):
        shop.ok("remove", shop.index, "--identity", name)
    shop.ok("remove", shop.index, *(word for number in "123" for word in ("--key", f"ann/{number}.png")))
    assert shop.ok("query", shop.index, "--row", "ann/0.png") == "ann/0.png: there is no other row\n"


def test_an_index_remembers_what_its_onnx_file_does_not_say(shop, tmp_path):
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, "h", "w"])
    vector = helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["n", 3])
    node = helper.make_node("ReduceMean", ["pixels"], ["vector"], axes=[2, 3], keepdims=0)
    graph = helper.make_graph([node], "mean", [pixels], [vector])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    file, stored = tmp_path / "mean.onnx", str(tmp_path / "mean.parquet")
    onnx.save(model, file)
    options = ["--onnx", "size=32x32", "--onnx", "mean=0", "--onnx", "std=255"]
    assert main(["embed", str(file), str(shop.photos), *options, "-o", stored, "--workers", "0"]) == 0
    shop.ok("build", stored, "-o", shop.index, "--model", file, *options)
    photo = shop.photos / "eve" / "2.png"
    (answer,) = shop.json("query", shop.index, photo, "-k", 1)["queries"]
    assert answer["hits"][0]["path"] == "eve/2.png"
    shop.refused(
        "query",
        shop.index,
        photo,
        "--onnx",
        "size=16x16",
        *options[2:],
        says=r"is size \[16, 16\] there, size",
    )
    shop.refused("query", shop.index, photo, "--model", file, says="does not say its image size")
    card = json.loads((Path(shop.index) / "card.json").read_text())
    (Path(shop.index) / "card.json").write_text(json.dumps(card | {"onnx": 7}))
    assert shop.search("query", shop.index, photo) == 2 and "Traceback" not in shop.err
