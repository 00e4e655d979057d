"""Recipes: overrides, every mistake at once, names of the package's recipes."""

import pytest
import yaml

from metricid.config import (
    differences,
    expand,
    find_recipe,
    parse_recipe,
    read_recipe,
    recipe_folder,
)
from metricid.errors import InputError
from metricid.training.build import check_recipe


@pytest.fixture
def recipe():
    return {
        "name": "small",
        "data": {"train": "synthetic_faces", "options": {"identities": 20, "images": 4}},
        "objective": [{"loss": "softmax"}],
        "train": {"epochs": 1},
    }


def write(folder, values):
    file = folder / "r.yaml"
    file.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return file


def test_overrides_reach_nested_keys_lists_and_new_sections(tmp_path, recipe):
    values = read_recipe(
        write(tmp_path, recipe), ["optim.lr=1e-3", "objective.0.label_smoothing=0.1", "data.size=[64, 32]"]
    )
    config = check_recipe(values, "r.yaml")
    assert config.optim.lr == 0.001
    assert config.objective[0]["label_smoothing"] == 0.1
    assert config.data.size == (64, 32)


def test_the_name_defaults_to_that_of_the_file(tmp_path, recipe):
    del recipe["name"]
    assert read_recipe(write(tmp_path, recipe))["name"] == "r"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr", "a.b=c"),
        ("=3", "a.b=c"),
        ("objective.4.margin=1", "entries 0 to 0"),
        ("name.x=1", "is the value"),
        ("optim.lr=[1", "not valid YAML"),
    ],
)
def test_an_override_that_cannot_be_applied_is_named(tmp_path, recipe, override, message):
    with pytest.raises(InputError, match=message.replace("[", r"\[")):
        read_recipe(write(tmp_path, recipe), [override])


def test_all_mistakes_are_reported_at_once_with_dotted_paths(recipe):
    recipe["data"] |= {"wrokers": 3, "size": [10, "a"], "sampler": {"name": "pkk"}}
    recipe["data"]["augment"] = {"preset": "face", "flp": 1.0}
    recipe["optim"] = {"lr": -1.0, "betas": [0.9, 1.5]}
    recipe["model"] = {"backbone": "resnet81"}
    recipe["objective"] = [{"loss": "arcfase"}, {"loss": "triplet", "margn": 0.3}]
    recipe["train"] = {"epochs": 1, "images": 5}
    recipe["evaluation"] = {"protocols": ["reidd"]}
    recipe["extra"] = 1
    with pytest.raises(InputError) as raised:
        check_recipe(recipe, "r.yaml")
    text = str(raised.value)
    for expected in (
        "data.wrokers: unknown key; did you mean 'workers'",
        "data.size.1:",
        "data.sampler: unknown sampler 'pkk'",
        "data.augment",
        "optim.lr:",
        "optim.betas.1:",
        "model.backbone: unknown backbone 'resnet81'",
        "objective.0",
        "objective.1",
        "train: give either epochs or images",
        "evaluation.protocols.0: unknown protocol 'reidd'",
        "extra: unknown key",
    ):
        assert expected in text, text


def test_missing_sections_and_values_are_named():
    with pytest.raises(InputError) as raised:
        parse_recipe({"name": "x", "data": {}}, "r.yaml")
    assert {"  data.train: is required", "  objective: is required", "  train: is required"} <= set(
        str(raised.value).splitlines()
    )


@pytest.mark.parametrize(
    "split", [{}, {"train_identities": 1.5}, {"train": "a"}, {"train_identities": 5, "train": "a"}]
)
def test_a_split_is_given_in_exactly_one_way(recipe, split):
    recipe["data"]["split"] = split
    with pytest.raises(InputError, match=r"data\.split"):
        parse_recipe(recipe, "r.yaml")


def test_strict_types_a_text_is_no_number(recipe):
    recipe["seed"] = "3"
    with pytest.raises(InputError, match="seed"):
        parse_recipe(recipe, "r.yaml")


@pytest.mark.parametrize("content", ["a: [1", "- 1\n- 2", ""])
def test_a_file_that_is_no_recipe_is_refused(tmp_path, content):
    with pytest.raises(InputError, match=r"r\.yaml"):
        read_recipe(write(tmp_path, content))


def test_an_unknown_recipe_name_suggests_the_nearest():
    with pytest.raises(InputError, match="did you mean quickstart"):
        find_recipe("quickstrat")


def test_every_recipe_of_the_package_is_valid():
    files = sorted(recipe_folder().rglob("*.yaml"))
    assert files
    for file in files:
        assert check_recipe(read_recipe(file), str(file)).name == file.stem


def test_the_resolved_recipe_reads_back_as_itself(recipe):
    config = parse_recipe(recipe, "r.yaml")
    again = parse_recipe(yaml.safe_load(yaml.safe_dump(config.plain())), "r.yaml")
    assert again == config


def test_a_variable_that_is_not_set_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("METRICID_NOWHERE", raising=False)
    with pytest.raises(InputError, match="METRICID_NOWHERE"):
        expand("$METRICID_NOWHERE/x.tar", "data.root")
    monkeypatch.setenv("METRICID_NOWHERE", str(tmp_path))
    assert expand("${METRICID_NOWHERE}/x.tar", "data.root") == tmp_path / "x.tar"


def test_differences_are_dotted_paths():
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 3, "c": 2}, "d": 1}) == [
        "a.b: 1 -> 3",
        "d: None -> 1",
    ]


@pytest.mark.parametrize(
    ("section", "values", "path"),
    [
        ("optim", {"betas": [0.9, 1.0]}, r"optim\.betas\.1"),
        ("optim", {"lr": float("inf")}, r"optim\.lr"),
        ("optim", {"weight_decay": float("nan")}, r"optim\.weight_decay"),
        ("model", {"embedding_dim": 10**11}, r"model\.embedding_dim"),
        ("model", {"pretrained": True, "weights": "w.pth"}, "model: give either"),
    ],
)
def test_values_that_cannot_train_are_refused(recipe, section, values, path):
    recipe[section] = values
    with pytest.raises(InputError, match=path):
        parse_recipe(recipe, "r.yaml")


def test_a_name_has_a_length_that_a_folder_can_have(recipe):
    recipe["name"] = "n" * 101
    with pytest.raises(InputError, match="name: "):
        parse_recipe(recipe, "r.yaml")


@pytest.mark.parametrize("text", ["model: {2020-01-01: 1}", "model: &m {backbone: *m}", "model: &m [*m]"])
def test_yaml_that_is_no_plain_tree_is_refused(tmp_path, text):
    file = write(tmp_path, text)
    with pytest.raises(InputError, match="r.yaml: a recipe holds"):
        check_recipe(read_recipe(file), "r.yaml")


def test_an_empty_objective_is_one_problem(recipe):
    recipe["objective"] = []
    with pytest.raises(InputError, match=r"1 problem\n  objective: "):
        check_recipe(recipe, "r.yaml")


def test_validation_identities_need_a_protocol(recipe):
    recipe["data"]["split"] = {"train_identities": 10, "validation_identities": 2}
    recipe["evaluation"] = {"protocols": []}
    with pytest.raises(InputError, match=r"evaluation\.protocols needs a protocol"):
        check_recipe(recipe, "r.yaml")


@pytest.mark.parametrize(
    ("section", "values", "problem"),
    [
        ("data", {"root": "/photos"}, "data.root: layout synthetic_faces generates its images"),
        ("data", {"manifest": "t.csv"}, "data.manifest: is for train: manifest"),
        ("data", {"train": "folder", "options": {}, "root": "", "manifest": "t.csv"}, "data.root: "),
        (
            "data",
            {"train": "folder", "options": {}, "root": "x", "manifest": "t.csv"},
            "data.manifest: is for train: manifest, this is folder",
        ),
        ("data", {"workers": 10**8}, "data.workers: input should be less than or equal to 512"),
        ("data", {"sampler": {"name": "pk", "identities": 0}}, "data.sampler.identities: must lie between 1"),
        ("data", {"sampler": {"name": "pk", "images": 10**10}}, "data.sampler.images: must lie between 1"),
        ("data", {"sampler": {"name": "shuffle", "batch_size": 2.5}}, "data.sampler.batch_size: expected an"),
        ("data", {"augment": {"preset": "face", "flip": 2}}, "data.augment.flip: must lie between 0 and 1"),
        ("data", {"options": {"identities": "a"}}, "data.options.identities: expected an integer"),
        ("model", {"weights": ""}, "model.weights: "),
        ("train", {"epochs": 1, "threads": 10**8}, "train.threads: "),
        ("evaluation", {"distractors": ["0"]}, "evaluation.distractors: only protocol reid"),
    ],
)
def test_options_without_effect_and_out_of_range_are_problems_of_the_recipe(recipe, section, values, problem):
    recipe[section] = recipe.get(section, {}) | values
    with pytest.raises(InputError) as raised:
        check_recipe(recipe, "r.yaml")
    assert f"  {problem}" in str(raised.value), raised.value


def test_distractors_are_for_reid(recipe):
    recipe["evaluation"] = {"protocols": ["reid"], "distractors": ["0"]}
    assert check_recipe(recipe, "r.yaml").evaluation.distractors == ["0"]


def test_a_key_that_stands_twice_is_refused(tmp_path):
    file = write(tmp_path, "optim: {lr: 0.1}\ntrain: {epochs: 1}\noptim: {momentum: 0.5}\n")
    with pytest.raises(InputError, match="'optim' occurs twice.*line 3"):
        read_recipe(file)
    with pytest.raises(InputError, match="the keys 1 and true are one"):
        read_recipe(write(tmp_path, "data: {classes: {1: a, true: b}}\n"))


def test_a_value_for_all_terms_may_be_an_anchor(tmp_path):
    text = "a: &base {x: 1, y: 2}\nb: {<<: *base, y: 3}\n"
    assert read_recipe(write(tmp_path, text))["b"] == {"x": 1, "y": 3}
    text += "c: {<<: *base, z: 4}\nd: &d {<<: *base, y: 5}\ne: {inner: {<<: *d, x: 6}}\n"
    assert read_recipe(write(tmp_path, text))["e"] == {"inner": {"x": 6, "y": 5}}
    assert read_recipe(write(tmp_path, "a: {=: 1}\n"))["a"] == {"=": 1}


@pytest.mark.parametrize("value", ["[]", "[{loss: softmax}]"])
def test_a_list_entry_goes_by_an_ordinary_number(tmp_path, recipe, value):
    with pytest.raises(InputError, match="objective.²: the list has (no entries|entries 0 to 0), not"):
        read_recipe(write(tmp_path, recipe), [f"objective={value}", "objective.²=x"])


def test_an_empty_path_is_not_this_folder():
    with pytest.raises(InputError, match="--root: is empty"):
        expand("", "--root")
