"""How many there are, in words."""

from __future__ import annotations


def counted(number: int, one: str, more: str = "") -> str:
    """A number with its noun.

    Args:
        number: How many.
        one: The noun for one of them.
        more: The noun for none or several; ``one`` with an s where not given.

    >>> counted(1, "case"), counted(2, "case"), counted(0, "copy", "copies")
    ('1 case', '2 cases', '0 copies')
    """
    return f"{number} {one if number == 1 else more or one + 's'}"
