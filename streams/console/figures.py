"""How the console writes figures."""


def age(milliseconds: int | None) -> str:
    """An age in seconds; a dash if it is not known."""
    return "-" if milliseconds is None else f"{milliseconds / 1000:.1f} s"
