"""The documentation against the code: links, commands, recipes, tables of options, and every example."""

import argparse
import importlib
import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic_core import PydanticUndefined

from metricid.cli.main import COMMANDS, _parse
from metricid.config import RunConfig, Section, find_recipe, read_recipe
from metricid.data.factory import SYNTHETIC, layout_names
from metricid.data.manifest import COLUMNS
from metricid.data.samplers import SAMPLERS
from metricid.data.transforms import PRESETS
from metricid.evaluation import PROTOCOLS
from metricid.losses import LOSSES
from metricid.losses.recipe import GIVEN, KEYS
from metricid.losses.remembered import MemoryOptions
from metricid.registry import Registry
from metricid.training.build import check_recipe

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OUTPUT = re.compile(r"^```python\n([^`]*)```\n\nprints\n\n```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRINTED = dict(match for page in PAGES for match in OUTPUT.findall(page.read_text(encoding="utf-8")))
CODE = re.compile(r"`([^`]+)`")
GIVEN_BY_CALLER = {"labels", "seed", "rank", "world_size"}


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(language: str, pages: list[Path] = PAGES) -> list[Any]:
    """Every fenced block of a language, as a pytest parameter named by its page and line."""
    found = []
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            if match.group(1) == language:
                line = text[: match.start()].count("\n") + 2
                found.append(pytest.param(match.group(2), id=f"{page_id(page)}:{line}"))
    return found


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, made as GitHub makes them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def section(page: str, heading: str) -> str:
    """The text below a heading, up to the next one of any level."""
    text = (ROOT / page).read_text(encoding="utf-8")
    match = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", text, re.MULTILINE | re.DOTALL)
    assert match is not None, f"{page} has no heading {heading!r}"
    return match.group(1)


def tables(text: str) -> dict[str, dict[str, list[str]]]:
    """Tables by their first header cell; each maps the names in its first column to the other cells."""
    found: dict[str, dict[str, list[str]]] = {}
    header = None
    for line in text.splitlines():
        cells = (
            [cell.strip() for cell in line.strip().strip("|").split(" | ")] if line.startswith("|") else []
        )
        if not cells:
            header = None
        elif header is None:
            header = cells[0]
            found[header] = {}
        elif not set(line) <= set("|- "):
            for name in CODE.findall(cells[0]):
                found[header][name] = cells[1:]
    return found


def stated(cell: str) -> Any:
    """The value of a default as a table gives it."""
    match = CODE.fullmatch(cell)
    assert match is not None, f"{cell!r} is no value in backticks"
    return yaml.safe_load(match.group(1))


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def assert_options(table: dict[str, list[str]], expected: dict[str, Any], where: str) -> None:
    """The table has just these options, with these defaults (`...` where one is required or described)."""
    assert set(table) == set(expected), where
    for name, default in expected.items():
        if default is not ...:
            assert stated(table[name][0]) == plain(default), f"{where}: {name}"


def signature_defaults(function: Any, without: set[str]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    return {name: p.default for name, p in parameters.items() if name not in without}


def parser_of(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"metricid {command}", exit_on_error=False)
    importlib.import_module(f"metricid.cli.{command}").add_arguments(parser)
    return parser


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_relative_link_leads_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target}: no such file"
        assert not anchor or anchor in anchors(file), f"{target}: no such heading"


@pytest.mark.parametrize("source", blocks("python"))
def test_every_python_example_runs(source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(LOSSES, "_classes", dict(LOSSES._classes))  # an example registers a loss
    torch.manual_seed(0)
    exec(compile(source, "example", "exec"), {"__name__": "example"})
    if source in PRINTED:
        assert capsys.readouterr().out == PRINTED[source]


def test_an_example_shows_what_it_prints():
    assert PRINTED, "docs/evaluate.md explains a table with the output of an example"


def command_lines() -> list[Any]:
    found = []
    for block in blocks("bash"):
        for line in block.values[0].splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["metricid"]:
                found.append(pytest.param(words[1:], id=f"{block.id} {' '.join(words[1:])[:60]}"))
            elif "-m" in words and "metricid.cli.main" in words:
                found.append(pytest.param(words[words.index("metricid.cli.main") + 1 :], id=block.id))
            elif any(word.startswith("tools/") for word in words):
                place = next(i for i, word in enumerate(words) if word.startswith("tools/"))
                assert (ROOT / words[place]).is_file()
                found.append(pytest.param([Path(words[place]).stem, *words[place + 1 :]], id=block.id))
    return found


@pytest.mark.parametrize("words", command_lines())
def test_every_command_is_understood(words):
    command, *arguments = words
    assert command in COMMANDS
    options = _parse(parser_of(command), arguments)
    if command == "train":
        file = find_recipe(options.recipe)
        check_recipe(read_recipe(file, options.overrides), str(file))
    elif command == "evaluate":
        assert options.layout is None or options.layout in layout_names()
        assert set((options.protocol or "reid").split(",")) <= set(PROTOCOLS)
    elif command == "prepare":
        assert options.layout in layout_names()


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    """The options of a command, those of its actions included."""
    found = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found = found.union(*map(flags_of, action.choices.values()))
    return found


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_option_named_in_running_text_exists(page):
    known = {flag for command in COMMANDS for flag in flags_of(parser_of(command))}
    known |= {"--nproc-per-node", "--help", "--shm-size"}
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    named = {flag for code in CODE.findall(text) for flag in re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", code)}
    assert named <= known, named - known


@pytest.mark.parametrize("source", blocks("yaml"))
def test_every_recipe_is_valid(source, tmp_path):
    """A whole recipe as it stands; a fragment laid over the quickstart."""
    file = tmp_path / "example.yaml"
    file.write_text(source)
    values = read_recipe(file)
    if "train" not in values:
        whole = read_recipe(find_recipe("quickstart"))
        for name, part in values.items():
            whole[name] = {**(whole.get(name) or {}), **part} if isinstance(part, dict) else part
        values = whole
    check_recipe(values, "example")


def sections(model: type[Section] = RunConfig, path: str = "") -> dict[str, type[Section]]:
    """Every section of a recipe by its dotted path."""
    found = {path or "run": model}
    for name, field in model.model_fields.items():
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, Section):
                found |= sections(kind, f"{path}.{name}".strip("."))
    return found


@pytest.mark.parametrize("path", sections())
def test_train_page_has_every_option_of_a_recipe_with_its_default(path):
    expected = {}
    for name, field in sections()[path].model_fields.items():
        if path == "run" and name in sections():
            continue  # a section of its own
        required = field.is_required()
        expected[name] = ... if required else field.get_default(call_default_factory=True)
        assert expected[name] is not PydanticUndefined
    table = tables(section("docs/train.md", path))["option"]
    assert_options(table, expected, path)


@pytest.mark.parametrize("command", ["prepare", "evaluate", "train", "demo"])
def test_pages_have_every_option_of_a_command(command):
    place = {
        "prepare": ("docs/data.md", "metricid prepare"),
        "evaluate": ("docs/evaluate.md", "Options"),
        "train": ("docs/train.md", "Train"),
        "demo": ("docs/demo.md", "Options"),
    }[command]
    expected = {flag for action in parser_of(command)._actions for flag in action.option_strings}
    named = {name for name in tables(section(*place))["option"] if name.startswith("-")}
    assert named == expected - {"-h", "--help"}


@pytest.mark.parametrize("name", LOSSES.names())
def test_losses_page_has_every_option_with_its_default(name):
    table = tables(section("docs/losses.md", name))["option"]
    assert_options(table, signature_defaults(LOSSES.get(name), set(GIVEN)), name)


def test_losses_page_has_every_key_of_a_term():
    table = tables(section("docs/losses.md", "objective"))["key of a term"]
    assert set(table) == set(KEYS) | {"loss"}
    assert {"of", "teacher", "column", "memory"} <= set(
        tables(section("docs/losses.md", "Terms that read more"))["further key"]
    )


def test_mining_page_has_every_option_of_a_memory():
    table = tables(section("docs/mining.md", "A memory of past batches"))["option of `memory`"]
    expected = signature_defaults(MemoryOptions, set())
    assert_options(table, expected | {"size": ...}, "memory")


def documented(registry: Registry, given: set[str]) -> list[Any]:
    classes = [(name, registry.get(name)) for name in registry.names()]
    return [pytest.param(n, signature_defaults(c, given), id=n) for n, c in classes]


@pytest.mark.parametrize(
    ("name", "defaults"),
    [
        *documented(SAMPLERS, GIVEN_BY_CALLER),
        *(pytest.param(name, signature_defaults(kind, set()), id=name) for name, kind in SYNTHETIC.items()),
        *documented(PRESETS, set()),
    ],
)
def test_data_page_has_every_option_with_its_default(name, defaults):
    text = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    found = tables(text)
    if not defaults:
        assert f"`{name}` only resizes" in text
        return
    assert_options(found[f"option of `{name}`"], defaults, name)


def test_data_page_has_every_column_and_layout():
    text = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    assert set(tables(text)["column"]) == set(COLUMNS[:6]) | {"x1", "y1", "x5", "y5"}
    assert all(f"`{name}`" in text for name in layout_names())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_evaluate_page_defines_every_protocol(protocol):
    assert len(section("docs/evaluate.md", protocol)) > 100


def test_train_page_has_every_recipe():
    shown = set(tables(section("docs/train.md", "Train"))["recipe"])
    assert shown == {file.stem for file in (ROOT / "configs").rglob("*.yaml")}
