"""Numbers as people read them.

Bytes that are measured are decimal (1 GB = 10^9), as disks, downloads and the hubs count them; bounds are binary, as
settings write them.
"""

from __future__ import annotations


def bytes_text(count: float) -> str:
    """count bytes with three significant digits: "98.4 MB", "4.92 GB", "512 B"."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 999.5:
            return f"{value:.0f} B" if unit == "B" else f"{_three(value)} {unit}"
        value /= 1000
    return f"{_three(value)} TB"


def bound_text(count: int) -> str:
    """A bound of count bytes, exactly, in the largest binary unit that leaves a whole number: "32 MiB", "1000 B"."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = 0
    while count and count % 1024 == 0 and power + 1 < len(units):
        count //= 1024
        power += 1
    return f"{count} {units[power]}"


def count_text(count: float) -> str:
    """count things in short: "135M", "8.03B", "512"."""
    value = float(count)
    for unit in ("", "k", "M"):
        if abs(value) < 999.5:
            return f"{value:.0f}" if not unit else f"{_three(value)}{unit}"
        value /= 1000
    return f"{_three(value)}B"


def seconds_text(seconds: float) -> str:
    """A duration: "340 ms", "2.1 s", "3 min 20 s", "1 h 5 min"."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _three(value: float) -> str:
    """Three significant digits without an exponent."""
    size = abs(value)
    return f"{value:.2f}" if size < 9.995 else f"{value:.1f}" if size < 99.95 else f"{value:.0f}"
