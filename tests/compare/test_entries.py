"""Objectives from compact texts and from files."""

import pytest
import yaml

from metricid.comparison.entries import Entry, check_entries, parse_losses, read_objectives
from metricid.errors import InputError

RECIPE = {
    "objective": [
        {"loss": "softmax", "label_smoothing": 0.1},
        {"loss": "triplet", "margin": 0.3, "on": "features", "weight": 0.5, "start": 0.2, "name": "t"},
    ],
    "balance": {"name": "uncertainty"},
}


def terms(text):
    return {entry.name: entry.objective for entry in parse_losses(text, RECIPE)}


def test_names_sums_and_options():
    assert terms("arcface") == {"arcface": [{"loss": "arcface"}]}
    assert terms("arcface:scale=1e+1,margin=0.2 , cosface") == {
        "arcface:scale=1e+1,margin=0.2": [{"loss": "arcface", "scale": 10.0, "margin": 0.2}],
        "cosface": [{"loss": "cosface"}],
    }
    assert terms("arcface+contrastive:on=features,normalize=true+center:weight=1e-3") == {
        "arcface+contrastive:on=features,normalize=true+center:weight=1e-3": [
            {"loss": "arcface"},
            {"loss": "contrastive", "on": "features", "normalize": True},
            {"loss": "center", "weight": 0.001},
        ]
    }
    assert terms("focal:weights=[1, 2],gamma=2,hinge") == {
        "focal:weights=[1,2],gamma=2": [{"loss": "focal", "weights": [1, 2], "gamma": 2}],
        "hinge": [{"loss": "hinge"}],
    }


def test_a_loss_takes_the_recipes_options_and_its_place_in_a_sum_only_within_a_sum():
    assert terms("triplet") == {"triplet": [{"loss": "triplet", "margin": 0.3, "on": "features"}]}
    assert terms("arcface+triplet:margin=0.1")["arcface+triplet:margin=0.1"][1] == (
        RECIPE["objective"][1] | {"margin": 0.1}
    )
    (own,) = parse_losses("recipe", RECIPE)
    assert own == Entry("recipe", RECIPE["objective"], RECIPE["balance"])


def test_an_option_without_a_value_is_no_null():
    with pytest.raises(InputError, match="margin has no value"):
        parse_losses("triplet:margin=", RECIPE)
    assert parse_losses("triplet:margin=null", RECIPE)[0].objective[0]["margin"] is None


def test_mistakes_come_together():
    with pytest.raises(InputError) as caught:
        parse_losses("softmax,,arc-face,triplet:margin,a+b:=3", RECIPE)
    lines = str(caught.value).splitlines()
    assert len(lines) == 4 and all(line.startswith("--losses: ") for line in lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arcface,arcface", "named twice"),
        ("softmax,softmax:label_smoothing=0.1", "the same objective as softmax"),
        ("arcface:scale=8+center,arcface:scale=8,center", None),
        ("cosface:scale=8,cosface:scale=+8", "the same objective as"),
        ("arcface:scale=-1,arcface:scale=1", "its folder would have the name of"),
    ],
)
def test_entries_can_be_told_apart(text, message):
    entries = parse_losses(text, RECIPE)
    if message is None:
        check_entries(entries)
    else:
        with pytest.raises(InputError, match=message):
            check_entries(entries)


def test_a_file_of_objectives(tmp_path):
    file = tmp_path / "mine.yaml"
    both = [{"loss": "softmax"}, {"loss": "triplet"}]
    file.write_text(yaml.safe_dump({"a": both, "b": {"objective": both, "balance": {"name": "dwa"}}}))
    assert read_objectives(file) == [Entry("a", both), Entry("b", both, {"name": "dwa"})]
    for text, message in (
        ("", f"--objectives: {file}: is empty; it maps names to lists of terms, in lines such as 'mine: "),
        ("{}", "--objectives: .*mine.yaml: holds no objective; it maps names"),
        ("[{loss: softmax}]", "--objectives: .*mine.yaml: is no mapping; it maps names to lists of terms"),
        ("'': [{loss: softmax}]", "--objectives: .*mine.yaml: an objective has no name"),
        ("a: softmax", "a: expected a list"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            read_objectives(file)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("1", "true", "the keys 1 and true are one; put quotes around them .*line 2"),
        ("1.0", "1", "the keys 1.0 and 1 are one"),
        ("~", "null", "the keys ~ and null are one"),
        ("1", '"1"', "the key '1' occurs twice .*line 2"),
        ("mine", "mine", "the key 'mine' occurs twice"),
        ("0x10", '"16"', "--objectives: .*mine.yaml: the keys 16 and '16' both name an objective '16'; give"),
        ("true", '"True"', "the keys True and 'True' both name an objective 'True'"),
    ],
)
def test_two_keys_of_one_name_are_refused_in_one_line(tmp_path, first, second, message):
    file = tmp_path / "mine.yaml"
    file.write_text(f"{first}: [{{loss: softmax}}]\n{second}: [{{loss: triplet}}]\n")
    with pytest.raises(InputError, match=message) as raised:
        read_objectives(file)
    assert "\n" not in str(raised.value)
    file.write_text(f"{first}: [{{loss: softmax}}]\n")
    assert len(read_objectives(file)) == 1


def test_keys_in_quotes_name_different_objectives(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text('"1": [{loss: softmax}]\n"true": [{loss: triplet}]\n')
    assert [entry.name for entry in read_objectives(file)] == ["1", "true"]
