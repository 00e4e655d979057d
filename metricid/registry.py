"""Names in recipes to classes in code."""

import difflib
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T", bound=type)


class Registry:
    """Maps a name in a recipe to a class, and builds it from a mapping of options.

    Example:
        >>> SHAPES = Registry("shape")
        >>> @SHAPES.register("square")
        ... class Square:
        ...     def __init__(self, side: float): self.side = side
        >>> SHAPES.build({"name": "square", "side": 2.0}).side
        2.0
        >>> SHAPES.problems({"name": "sqare"})
        ["unknown shape 'sqare'; did you mean 'square'? (one of: square)"]
    """

    def __init__(self, kind: str, key: str = "name"):
        self.kind = kind
        self.key = key
        self._classes: dict[str, type] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: makes the class known under `name`."""

        def add(cls: T) -> T:
            if name in self._classes:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._classes[name] = cls
            return cls

        return add

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted(self._classes)

    def get(self, name: str) -> type:
        """The class of that name.

        Raises:
            ValueError: unknown name; the message suggests the nearest one.
        """
        if name not in self._classes:
            raise ValueError(unknown(self.kind, name, self.names()))
        return self._classes[name]

    def problems(self, options: Mapping[str, Any], given: tuple[str, ...] = ()) -> list[str]:
        """What is wrong with a mapping of options, one line each; empty if it can be built.

        Args:
            options: `{key: name, option: value, ...}`.
            given: names of constructor arguments that the caller supplies and a recipe must not.
        """
        name = options.get(self.key)
        if not isinstance(name, str):
            return [f"needs the key '{self.key}' (one of: {', '.join(self.names())})"]
        if name not in self._classes:
            return [unknown(self.kind, name, self.names())]
        return signature_problems(
            self._classes[name], {k: v for k, v in options.items() if k != self.key}, given
        )

    def build(self, options: Mapping[str, Any], **given: Any) -> Any:
        """Builds the class named by `options[key]` with the other options.

        Of `given`, the caller's own arguments, only what the constructor takes is passed.

        Raises:
            ValueError: all problems of the options in one message.
        """
        problems = self.problems(options, tuple(given))
        if problems:
            raise ValueError(f"{self.kind}: " + "; ".join(problems))
        cls = self._classes[options[self.key]]
        accepted = inspect.signature(cls).parameters
        arguments = {k: v for k, v in options.items() if k != self.key}
        return cls(**arguments, **{k: v for k, v in given.items() if k in accepted})


def unknown(kind: str, name: str, known: list[str]) -> str:
    """One line for an unknown name, with the nearest known one."""
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r}{hint} (one of: {', '.join(known)})"


def signature_problems(
    function: Callable[..., Any], options: Mapping[str, Any], given: tuple[str, ...] = ()
) -> list[str]:
    """Checks options by name and type against a signature; `given` arguments come from the caller."""
    parameters = inspect.signature(function).parameters
    target = function.__init__ if inspect.isclass(function) else function
    hints = get_type_hints(target)
    allowed = [name for name in parameters if name not in given]
    problems = []
    for name, value in options.items():
        if name not in allowed:
            problems.append(
                unknown("option", name, allowed) if allowed else f"takes no options, got {name!r}"
            )
        elif name in hints and not matches(value, hints[name]):
            problems.append(f"{name}: expected {describe(hints[name])}, got {value!r}")
    for name, parameter in parameters.items():
        required = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        )
        if required and name not in options and name not in given:
            problems.append(f"{name}: is required")
    return problems


def matches(value: Any, hint: Any) -> bool:
    """Whether a value read from YAML fits a type hint (an int fits float; a bool fits only bool)."""
    origin = get_origin(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(matches(value, h) for h in get_args(hint))
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in get_args(hint))
    if origin in (list, tuple):
        arguments = [a for a in get_args(hint) if a is not Ellipsis]
        if not isinstance(value, (list, tuple)):
            return False
        if origin is tuple and Ellipsis not in get_args(hint):
            return len(value) == len(arguments) and all(
                matches(v, h) for v, h in zip(value, arguments, strict=True)
            )
        return all(matches(v, arguments[0]) for v in value)
    if origin is dict:
        return isinstance(value, dict)
    if hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def describe(hint: Any) -> str:
    """A type hint in words."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(h) for h in get_args(hint))
    if origin is Literal:
        return " or ".join(repr(option) for option in get_args(hint))
    if origin in (list, tuple):
        return "a list of " + ", ".join(describe(h) for h in get_args(hint) if h is not Ellipsis)
    words = {float: "a number", int: "an integer", str: "a text", bool: "true or false", type(None): "null"}
    return words.get(hint, getattr(hint, "__name__", str(hint)))
