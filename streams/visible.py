"""Text that came from somebody else, as it may stand before a person: what cannot be seen is written out.

A name may hold what a terminal obeys (escape sequences), what turns the reading around (bidi overrides), what cannot be
seen (zero-width marks) or what ends a line. All of it is shown as Python writes it in a string (``\\x1b``, ``\\u202e``,
``\\n``), and so is a backslash (``\\\\``): two different texts are never shown alike for what they hold of these.
Of many names the first few are shown, and how many more there are.
"""

import re
import unicodedata
from collections.abc import Sequence

_PLAIN = re.compile(r"[ !-\[\]-~]*")


def visible(text: str) -> str:
    """``text`` in one line, with everything written out that cannot be seen; what is plain stays as it is."""
    if _PLAIN.fullmatch(text):
        return text
    return "".join(_visible(character) for character in text)


def visible_lines(text: str) -> str:
    """As :func:`visible`, with the ends of lines and the backslashes as they are: for text of several lines of ours."""
    return "".join(
        character if character in "\n\\" else _visible(character) for character in text.replace("\r\n", "\n")
    )


def some_of(names: Sequence[str], most: int = 3) -> str:
    """The first ``most`` of ``names``, and how many there are besides."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _visible(character: str) -> str:
    if character == "\\":
        return "\\\\"
    # A mark that combines changes how the character before it looks; all else that is printable can be told apart.
    if character == " " or (character.isprintable() and not unicodedata.category(character).startswith("M")):
        return character
    code = ord(character)
    if code < 0x100:
        return {9: "\\t", 10: "\\n", 13: "\\r"}.get(code, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
