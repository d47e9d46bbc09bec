"""How messages write how many there are of something."""

from collections.abc import Iterable


def counted(number: int, noun: str) -> str:
    """`1 run`, `12 runs`; for nouns whose plural ends with an s."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def span(numbers: Iterable[int]) -> str:
    """`256`, or `64 to 256` where they differ."""
    found = list(numbers)
    return " to ".join(dict.fromkeys(f"{number:,}" for number in (min(found), max(found))))
