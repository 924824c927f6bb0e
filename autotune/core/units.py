"""Counts, bytes, seconds and rates as people read them. Everywhere else bytes are `int` and seconds `float`."""

KIB = 2**10
MIB = 2**20
GIB = 2**30


def count_of(count: int, noun: str) -> str:
    """Write a count with its noun: `1 row`, `2,000 rows`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def format_bytes(count: int) -> str:
    """Write a byte count with three significant digits in the largest binary unit that keeps it at least 1."""
    for unit, size in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(count) >= size:
            value = count / size
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return f"{count} B"


def format_duration(seconds: float) -> str:
    """Write a duration: `52 ms`, `0.34 s`, `12.0 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 0.1:
        return f"{1000 * seconds:.2g} ms" if seconds < 0.01 else f"{1000 * seconds:.0f} ms"
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def format_rate(per_second: float, unit: str) -> str:
    """Write a rate with a metric prefix and three significant digits: `1.25 TFLOP/s`, `183 tokens/s`."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if per_second >= size:
            return f"{per_second / size:.3g} {prefix}{unit}/s"
    return f"{per_second:.3g} {unit}/s" if per_second < 1000 else f"{per_second:.0f} {unit}/s"
