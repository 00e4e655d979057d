"""The tables of all losses in docs/losses.md, made from the classes themselves.

`python -m metricid.losses.table < docs/losses.md` prints the page with what is between its markers made anew;
`python -m metricid.losses.table --names` the names alone.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any

import yaml

from metricid.losses.adversarial import ADVERSARIAL
from metricid.losses.catalog import LOSSES
from metricid.losses.distillation import DISTILLATION
from metricid.losses.recipe import GIVEN
from metricid.losses.regression import TASKS
from metricid.losses.weights import REGULARISERS
from metricid.registry import Registry

KINDS = (
    "classification",
    "margin softmax",
    "proxy",
    "pair",
    "tuple",
    "ranking",
    "center",
    "regulariser",
    "regression",
    "distillation",
    "adversarial",
)
FACTS = ("kind", "formula", "use", "source")
SUPPLIED = {*GIVEN, "num_domains"}
REGISTRIES: dict[str, Registry] = {
    "A term of a recipe: `loss(embeddings, labels)`": LOSSES,
    "Of weights: `{loss: l2, of: TERM}`, or `loss(head.weight)`": REGULARISERS,
    "Of a task: `{task: number, column: NAME, loss: mae}`, or `loss(prediction, target, mask)`": TASKS,
    "With a teacher: `{loss: rkd_distance, teacher: RUN}`, or `loss(student, teacher)`": DISTILLATION,
    "Adversarial: `{loss: trades, of: TERM}`, or as each one's `forward` says": ADVERSARIAL,
}


def loss_tables() -> str:
    """One table for each way to call a loss: name, kind, formula, defaults, when to use, source."""
    parts = []
    for title, registry in REGISTRIES.items():
        rows = sorted(
            ((KINDS.index(cls.kind), name, cls) for name, cls in _classes(registry)), key=lambda r: r[:2]
        )
        lines = [
            f"### {title}",
            "",
            "| name | kind | formula | defaults | use it when | source |",
            "|---|---|---|---|---|---|",
        ]
        for _, name, cls in rows:
            defaults = ", ".join(f"{option} {_yaml(value)}" for option, value in options(cls).items())
            cells = [f"[`{name}`](#{name})", cls.kind, f"`{cls.formula}`", defaults, cls.use, cls.source]
            lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def option_sections(without: set[str]) -> str:
    """A section for each loss, with its options, but for those that a page has by hand."""
    parts = []
    for registry in REGISTRIES.values():
        for name, cls in _classes(registry):
            if name in without:
                continue
            meanings = argument_docs(cls)
            lines = [
                f"### {name}",
                "",
                _first_paragraph(cls),
                "",
                "| option | default | meaning |",
                "|---|---|---|",
            ]
            for option, value in options(cls).items():
                lines.append(f"| `{option}` | `{_yaml(value)}` | {_cell(meanings.get(option, ''))} |")
            parts.append(
                "\n".join(lines if options(cls) else [*lines[:-2], "| option |", "|---|", "| none |"])
            )
    return "\n\n".join(parts)


def name_list() -> str:
    """The names of all losses, one line for each kind."""
    kinds: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for registry in REGISTRIES.values():
        for name, cls in _classes(registry):
            kinds[cls.kind].append(name)
    return "\n".join(f"{kind}: {', '.join(sorted(names))}" for kind, names in kinds.items())


def options(cls: type) -> dict[str, Any]:
    """The options of a loss with their defaults, without what the caller supplies."""
    parameters = inspect.signature(cls).parameters
    return {name: p.default for name, p in parameters.items() if name not in SUPPLIED}


def argument_docs(cls: type) -> dict[str, str]:
    """What the class's docstring says of its arguments, one line each."""
    text = inspect.getdoc(cls) or ""
    block = re.search(r"^Args:\n((?:(?:    .*)?\n?)*)", text, re.MULTILINE)
    found: dict[str, str] = {}
    names: list[str] = []
    for line in (block.group(1) if block else "").splitlines():
        start = re.match(r"    (\w+(?:, \w+)*): (.*)", line)
        if start:
            names = start.group(1).split(", ")
            found |= dict.fromkeys(names, start.group(2).strip())
        elif line.strip():
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def fill(page: str) -> str:
    """The page with everything between its markers made anew.

    Raises:
        ValueError: a marker is missing.
    """
    page = _between(page, "table", loss_tables())
    rest = re.sub(r"<!-- losses: options -->.*<!-- end -->", "", page, flags=re.DOTALL)
    by_hand = set(re.findall(r"^#+ ([a-z0-9_]+)$", rest, re.MULTILINE))
    return _between(page, "options", option_sections(by_hand))


def _between(page: str, name: str, text: str) -> str:
    marked = re.compile(rf"(<!-- losses: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not marked.search(page):
        raise ValueError(f"the page lacks the lines '<!-- losses: {name} -->' and '<!-- end -->'")
    return marked.sub(lambda m: f"{m.group(1)}\n{text}\n{m.group(2)}", page)


def _classes(registry: Registry) -> Iterator[tuple[str, Any]]:
    return ((name, registry.get(name)) for name in registry.names())


def _first_paragraph(cls: type) -> str:
    """The summary of a class without cross-references that only a reader of the code can follow."""
    return " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())


def _yaml(value: Any) -> str:
    """A default as a recipe writes it."""
    if value is inspect.Parameter.empty:
        return "required"
    plain = list(value) if isinstance(value, tuple) else value
    return str(yaml.safe_dump(plain, default_flow_style=True, width=1000).splitlines()[0])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(name_list() + "\n" if sys.argv[1:] == ["--names"] else fill(sys.stdin.read()))
