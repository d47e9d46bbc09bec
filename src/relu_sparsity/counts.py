"""How messages write how many there are of something."""


def counted(number: int, noun: str) -> str:
    """`1 run`, `12 runs`; for nouns whose plural ends with an s."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
