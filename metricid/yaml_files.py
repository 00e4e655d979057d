"""YAML files as people write recipes, and `a.b=c` overrides of what they hold."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import yaml

from metricid.errors import InputError


def read_yaml(file: Path) -> Any:
    """What a YAML file holds; None for an empty one.

    Raises:
        InputError: it cannot be read, or is not YAML in UTF-8.
    """
    try:
        return yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not a text file in UTF-8") from error
    except yaml.YAMLError as error:
        raise InputError(f"{file}: not valid YAML ({' '.join(str(error).split())})") from error


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Applies `a.b=c` overrides in place; `c` is YAML, list entries go by number.

    Raises:
        InputError: an override without `=`, not YAML, or into something that has no parts.
    """
    for text in overrides:
        _override(values, text)
    return values


class _Loader(yaml.SafeLoader):
    """YAML as people write it: `1e-3` is a number, `on` a word; truth values are `true` and `false`.

    A key that stands twice in one mapping is an error: YAML forbids it, and PyYAML takes the last in silence.
    So are two that Python takes for one, such as 1 and true.
    """

    yaml_implicit_resolvers: ClassVar = {  # type: ignore[misc]
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        written: dict[str, Any] = {}
        meant: dict[Any, Any] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode):
                continue
            problem = ""
            if written.setdefault(key.value, key) is not key:
                problem = f"the key {key.value!r} occurs twice"
            elif key.tag.rpartition(":")[2] not in ("merge", "value"):  # `<<` and `=` are no values yet
                other = meant.setdefault(self.construct_object(key), key)
                if other is not key:
                    problem = f"the keys {other.value} and {key.value} are one; put quotes around them"
            if problem:
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|false|True|False)$"), list("tfTF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)$"),
    list("-+0123456789."),
)


def _override(values: dict[str, Any], text: str) -> None:
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise InputError(f"{text!r}: an override has the form a.b=c, for example optim.lr=0.01")
    try:
        parsed = yaml.load(value, Loader=_Loader)
    except yaml.YAMLError as error:
        raise InputError(f"{text!r}: the value is not valid YAML") from error
    *parents, last = path.split(".")
    node: Any = values
    for depth, key in enumerate(parents):
        where = ".".join(parents[: depth + 1])
        if isinstance(node, list):
            node = node[_position(node, key, where)]
        else:
            if node.get(key) is None:
                node[key] = {}
            node = node[key]
        if not isinstance(node, (dict, list)):
            raise InputError(f"{text!r}: {where} is the value {node!r} and has no {path[len(where) + 1 :]}")
    if isinstance(node, list):
        node[_position(node, last, path)] = parsed
    else:
        node[last] = parsed


def _position(node: list[Any], key: str, where: str) -> int:
    if not key.isdecimal() or int(key) >= len(node):
        has = f"entries 0 to {len(node) - 1}" if node else "no entries"
        raise InputError(f"{where}: the list has {has}, not {key!r}")
    return int(key)
