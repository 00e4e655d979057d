"""Manifest columns that terms of an objective read: text to numbers, and what must be remembered of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from metricid.data.manifest import Manifest
from metricid.data.table_io import has_header
from metricid.errors import InputError
from metricid.losses.recipe import Column, column_key

YES = ("1", "true", "yes", "y")
NO = ("0", "false", "no", "n")


@dataclass(frozen=True)
class ColumnRule:
    """How the text of one key becomes numbers; learned from the training images, kept in checkpoints.

    Attributes:
        kind: category (also of a domain), attributes, number, or mask (paths of images).
        names: the columns; one but for attributes.
        classes: of a category, sorted.
        counts: training images of each class.
        mean: of the training values of a number.
        std: of the same.
        shares: of yes among the known training values of each attribute.
    """

    kind: Literal["category", "attributes", "number", "mask"]
    names: tuple[str, ...]
    classes: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    mean: float = 0.0
    std: float = 1.0
    shares: tuple[float, ...] = ()

    def encode(self, manifest: Manifest) -> Tensor:
        """The values of all rows.

        Returns:
            Category: [N] int64, -1 where empty or not a class of the training. Attributes: [N, A] float32,
            NaN where empty. Number: [N] float32, NaN where empty.

        Raises:
            InputError: a column is missing, or a value is not of the kind; names the first such row.
        """
        texts = self.texts(manifest)
        if self.kind == "category":
            place = {name: i for i, name in enumerate(self.classes)}
            return torch.tensor([place.get(text, -1) for text in texts[0]], dtype=torch.int64)
        read = _yes_or_no if self.kind == "attributes" else _number
        pairs = zip(self.names, texts, strict=True)
        values = [
            [read(manifest, name, row, text) for row, text in enumerate(cells)] for name, cells in pairs
        ]
        array = torch.tensor(np.array(values, np.float32).T)
        return array if self.kind == "attributes" else array[:, 0]

    def texts(self, manifest: Manifest) -> list[list[str]]:
        """The cells of each column, '' for an empty one.

        Raises:
            InputError: a column is missing.
        """
        return [column_texts(manifest, name) for name in self.names]

    @classmethod
    def learn(cls, kind: str, names: Sequence[str], manifest: Manifest) -> "ColumnRule":
        """The rule for the columns of the training images.

        Raises:
            InputError: a column is missing or empty, a category has one class, a number does not vary.
        """
        where = ", ".join(names)
        if kind == "mask":
            if not any(column_texts(manifest, names[0])):
                raise InputError(f"objective: column {where} of the training images is empty")
            return cls("mask", tuple(names))
        if kind == "category":
            known = [text for text in column_texts(manifest, names[0]) if text]
            classes, counts = np.unique(np.array(known, object).astype(str), return_counts=True)
            if len(classes) < 2:
                held = "is empty" if len(classes) == 0 else f"holds {str(classes[0])!r} alone"
                raise InputError(
                    f"objective: column {where} of the training images {held}; it needs two classes"
                )
            return cls("category", tuple(names), tuple(map(str, classes)), tuple(map(int, counts)))
        rule = cls("attributes" if kind == "attributes" else "number", tuple(names))
        values = rule.encode(manifest)
        if kind == "attributes":
            for name, column in zip(names, values.T, strict=True):
                if bool(column.isnan().all()):
                    raise InputError(f"objective: column {name} of the training images is empty")
            return cls("attributes", tuple(names), shares=tuple(values.nanmean(dim=0).tolist()))
        given = values[~values.isnan()].double()
        if len(given) < 2 or float(given.std()) == 0:
            held = f"holds {len(given)} values" if len(given) < 2 else f"is {float(given[0]):g} throughout"
            raise InputError(f"objective: column {where} of the training images {held}; nothing to learn")
        return cls("number", tuple(names), mean=float(given.mean()), std=float(given.std()))


@dataclass(frozen=True)
class Columns:
    """The rules of all terms that read columns, by `column_key`."""

    rules: Mapping[str, ColumnRule] = field(default_factory=dict)

    @classmethod
    def learn(cls, terms: Sequence[Mapping[str, Any]], manifest: Manifest) -> "Columns":
        """The rules for the terms of a recipe.

        Raises:
            InputError: as `ColumnRule.learn`, or one column is read in two ways.
        """
        rules: dict[str, ColumnRule] = {}
        for options in terms:
            key = column_key(options)
            if key is None:
                continue
            kind = options.get("task", "category")
            if key in rules and rules[key].kind != kind:
                raise InputError(
                    f"objective: column {key} is read as {rules[key].kind} and as {kind}; take one"
                )
            if key not in rules:
                rules[key] = ColumnRule.learn(kind, options.get("columns", [key]), manifest)
        return cls(rules)

    def encode(self, manifest: Manifest) -> dict[str, Tensor]:
        """The values of all rows, by key, as `ColumnRule.encode` gives them; masks come with the images."""
        return {key: rule.encode(manifest) for key, rule in self.rules.items() if rule.kind != "mask"}

    @property
    def mask(self) -> str | None:
        """The column with the paths of masks, if there is one."""
        return next((key for key, rule in self.rules.items() if rule.kind == "mask"), None)

    def facts(self) -> dict[str, Column]:
        """What an objective is built from."""
        return {key: Column(rule.counts, rule.mean, rule.std) for key, rule in self.rules.items()}

    def plain(self) -> dict[str, Any]:
        """As plain values, for a checkpoint."""
        return {
            key: {name: list(v) if isinstance(v, tuple) else v for name, v in vars(rule).items()}
            for key, rule in self.rules.items()
        }

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> "Columns":
        """The inverse of `plain`."""
        rules = {}
        for key, rule in values.items():
            fields: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in rule.items()}
            rules[key] = ColumnRule(**fields)
        return cls(rules)


def column_texts(manifest: Manifest, name: str) -> list[str]:
    """The cells of a column that an objective names, '' for an empty one.

    Raises:
        InputError: the column is missing.
    """
    cells = manifest.column(name) if name in manifest.table.column_names else None
    if cells is None:
        raise InputError(
            f"{manifest.name}: has no column {name!r}, which the objective names "
            f"(columns: {', '.join(manifest.table.column_names)})"
        )
    return ["" if cell is None else str(cell).strip() for cell in cells]


def _number(manifest: Manifest, name: str, row: int, text: str) -> float:
    try:
        value = float(text or "nan")
    except ValueError:
        value = np.inf
    if np.isinf(value):
        raise InputError(
            f"{_place(manifest, name, row)} is {text!r}, not a number; leave it empty if unknown"
        )
    return value


def _yes_or_no(manifest: Manifest, name: str, row: int, text: str) -> float:
    if not text:
        return np.nan
    if text.lower() not in YES + NO:
        raise InputError(
            f"{_place(manifest, name, row)} is {text!r}; an attribute is 1 or 0 (or true, false, yes, no), "
            "or empty if unknown"
        )
    return float(text.lower() in YES)


def _place(manifest: Manifest, name: str, row: int) -> str:
    """Where a cell stands: file, row, column and image.

    The rows of a part of a table are not those of its file, which is read again for the number; a generated
    or joined table has none.
    """
    path = manifest.path_at(row)
    try:
        place = Manifest.read(manifest.name).paths.index(path)
        where = f"row {place + 2}, " if has_header(manifest.name) else f"row {place} (counted from 0), "
    except ValueError:  # no file, or another one by now
        where = ""
    return f"{manifest.name}: {where}column {name} (image {path})"
