"""What is compared: one objective for each entry, from compact texts or a YAML file."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metricid.errors import InputError
from metricid.yaml_files import apply_overrides, read_yaml

OWN = "recipe"  # the entry that is the recipe's own objective
_SUM_KEYS = ("weight", "start", "end", "name")  # they say how a term stands among others
_IN_FILE = {"objective", "balance", "sampler"}


@dataclass(frozen=True)
class Entry:
    """One objective of a comparison.

    Attributes:
        name: as the leaderboard shows it.
        objective: the list of terms, as in a recipe.
        balance: how factors on the terms are found, as in a recipe.
        sampler: who composes its batches, as `data.sampler` of a recipe; None for the recipe's own.
    """

    name: str
    objective: list[Any]
    balance: dict[str, Any] | None = None
    sampler: dict[str, Any] | None = None

    @property
    def slug(self) -> str:
        """The name as part of a folder's name."""
        return re.sub(r"[^A-Za-z0-9.]+", "_", self.name).strip("_.") or "objective"

    def plain(self) -> dict[str, Any]:
        """For the plan file."""
        return {
            "name": self.name,
            "objective": self.objective,
            "balance": self.balance,
            "sampler": self.sampler,
        }


def parse_losses(text: str, recipe: Mapping[str, Any]) -> list[Entry]:
    """Entries from `a,b+c:option=value,option=value,recipe`.

    A comma starts another entry, unless what follows it is `option=value`; a plus followed by a name adds a
    term. A term takes the options that the recipe's objective gives to that loss, then its own. A loss that
    stands alone does not take `weight`, `start`, `end` and `name` from there: they are about a sum.

    Raises:
        InputError: every piece that cannot be read, one line each.
    """
    entries, problems = [], []
    for words in _split_entries(text):
        name = re.sub(r"\s+", "", words)
        if name == OWN:
            entries.append(Entry(OWN, list(recipe["objective"]), recipe.get("balance")))
            continue
        try:
            terms = [_term(part) for part in re.split(r"\+(?=\s*[A-Za-z])", words)]
        except InputError as error:
            problems.append(str(error))
            continue
        for place, term in enumerate(terms):
            terms[place] = _from_recipe(term["loss"], recipe, alone=len(terms) == 1) | term
        entries.append(Entry(name, terms))
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))
    return entries


def read_objectives(file: Path) -> list[Entry]:
    """Entries from a YAML file.

    It maps names to lists of terms, or to {objective: [...], balance: {...}, sampler: {...}}, the last two if
    wanted.

    Raises:
        InputError: not such a file.
    """
    values = read_yaml(file)
    if not isinstance(values, dict) or not values:
        held = "is empty" if values is None else "holds no objective" if values == {} else "is no mapping"
        raise InputError(
            f"--objectives: {file}: {held}; it maps names to lists of terms, "
            "in lines such as 'mine: [{loss: softmax}]'"
        )
    entries, keys = [], dict[str, Any]()
    for name, value in values.items():
        if not str(name).strip():
            raise InputError(f"--objectives: {file}: an objective has no name; give it one")
        if keys.setdefault(str(name), name) is not name:
            raise InputError(
                f"--objectives: {file}: the keys {keys[str(name)]!r} and {name!r} both name an objective "
                f"{str(name)!r}; give one of them another name"
            )
        if isinstance(value, dict) and set(value) <= _IN_FILE and "objective" in value:
            entry = Entry(str(name), value["objective"], value.get("balance"), value.get("sampler"))
            if entry.sampler is not None and not isinstance(entry.sampler, dict):
                raise InputError(
                    f"--objectives: {file}: {name}: sampler: expected a mapping such as "
                    "{name: pk, identities: 16, images: 4}"
                )
            entries.append(entry)
        elif isinstance(value, list):
            entries.append(Entry(str(name), value))
        else:
            raise InputError(
                f"{file}: {name}: expected a list of terms such as [{{loss: softmax}}], "
                "or {objective: [...], balance: {...}, sampler: {...}}"
            )
    return entries


def check_entries(entries: Sequence[Entry]) -> None:
    """Refuses entries that cannot be told apart.

    Raises:
        InputError: one line for each.
    """
    problems, names, slugs, seen = [], set(), dict[str, str](), dict[str, str]()
    for entry in entries:
        terms = repr((entry.objective, entry.balance, entry.sampler))
        if entry.name in names:
            problems.append(f"{entry.name}: named twice; give each objective once")
        elif terms in seen:
            problems.append(f"{entry.name}: the same objective as {seen[terms]}; leave one of them out")
        elif entry.slug.lower() in slugs:
            problems.append(
                f"{entry.name}: its folder would have the name of {slugs[entry.slug.lower()]}'s, as letters "
                "a to z and digits make it; give one of them another name in an --objectives file"
            )
        elif len(entry.slug) > 80:
            problems.append(
                f"{entry.name[:40]}...: too long for a folder name; name it in an --objectives file"
            )
        names.add(entry.name)
        seen.setdefault(terms, entry.name)
        slugs.setdefault(entry.slug.lower(), entry.name)
    if problems:
        raise InputError("\n".join(problems))


def _split_entries(text: str) -> list[str]:
    """The text cut at its commas, but not within brackets and not before `option=`."""
    pieces, depth, start = [], 0, 0
    for place, sign in enumerate(text):
        depth += (sign in "[{(") - (sign in "]})")
        if sign == "," and depth == 0:
            pieces.append(text[start:place])
            start = place + 1
    pieces.append(text[start:])
    entries: list[str] = []
    for piece in pieces:
        if entries and re.match(r"\s*\w+\s*=", piece):
            entries[-1] += f",{piece}"
        else:
            entries.append(piece)
    return [entry.strip() for entry in entries]


def _term(text: str) -> dict[str, Any]:
    """`loss:option=value,option=value` as a term of a recipe."""
    loss, colon, options = text.strip().partition(":")
    loss = loss.strip()
    if not re.fullmatch(r"[A-Za-z]\w*", loss):
        raise InputError(
            f"--losses: {text.strip()!r} is no loss; write a name (arcface), a sum (softmax+triplet), "
            "or a name with options (triplet:margin=0.2,on=features)"
        )
    term: dict[str, Any] = {"loss": loss}
    for option in _split_options(options) if colon else []:
        key, equals, value = option.partition("=")
        if not equals or not key.strip().isidentifier():
            raise InputError(f"--losses: {text.strip()!r}: {option!r} is not of the form option=value")
        if not value.strip():
            raise InputError(f"--losses: {text.strip()!r}: {key.strip()} has no value; write one, or null")
        apply_overrides(term, [option.strip()])
    return term


def _split_options(text: str) -> list[str]:
    pieces = re.split(r",(?=\s*\w+\s*=)", text)
    return [piece.strip() for piece in pieces]


def _from_recipe(loss: str, recipe: Mapping[str, Any], *, alone: bool) -> dict[str, Any]:
    """The recipe's own options for a loss, if its objective has it."""
    for term in recipe["objective"]:
        if isinstance(term, Mapping) and term.get("loss") == loss:
            return {key: value for key, value in term.items() if not (alone and key in _SUM_KEYS)}
    return {}
