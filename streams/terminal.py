"""What a person is shown with rich: texts are texts, never markup, whoever wrote them (:mod:`streams.visible`)."""

from rich.text import Text

from streams.visible import visible

Part = str | tuple[str, str]
"""A text, or a text and its style."""


def line(*parts: Part) -> Text:
    """One line of ``parts``; what cannot be seen in them is written out."""
    return Text.assemble(*(visible(part) if isinstance(part, str) else (visible(part[0]), part[1]) for part in parts))


def cells(*texts: str, style: str = "") -> list[Text]:
    """The cells of a row of a table."""
    return [Text(visible(text), style=style) for text in texts]
