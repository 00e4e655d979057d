"""Names and paths of strangers made fit for a page: short, on one line, without control characters."""

import unicodedata

from markupsafe import Markup, escape


def shown(text: object, most: int = 60) -> str:
    """At most `most` characters; control, direction and unassigned characters become a replacement sign."""
    plain = "".join(_visible(character) for character in str(text)[: most + 1])
    return plain if len(plain) <= most else plain[: most - 1] + "…"


def tail(text: object, most: int = 24) -> str:
    """The end of a path, which tells more than its start."""
    plain = "".join(_visible(character) for character in str(text)[-most - 1 :])
    return plain if len(plain) <= most else "…" + plain[1 - most :]


def broken(text: str) -> Markup:
    """A name as HTML that may go on to another line after an underscore, before it does amid a word."""
    return Markup(str(escape(text)).replace("_", "_<wbr>"))


def _visible(character: str) -> str:
    if character in "\n\t":
        return " "
    return "\ufffd" if unicodedata.category(character).startswith("C") else character
