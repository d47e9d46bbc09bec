"""How messages write a length of time."""


def duration(seconds: float) -> str:
    """`h:mm:ss`, with as many hours as it takes."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
