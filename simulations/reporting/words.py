"""Numbers and foreign texts as people read them, at the terminal and in reports."""

ABSENT = "—"
"""What was not measured."""


def duration(seconds: float) -> str:
    """For instance ``4.2 s``, ``1 min 28 s`` or ``2 h 05 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def number(value: int | float) -> str:
    """For instance ``24,000`` or ``0.0123``."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def printable(text: str) -> str:
    """Without the control characters with which a foreign text could write over the terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
