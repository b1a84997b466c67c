"""The table as an SVG chart: one bar a row, Herder's speed as a multiple of the best peer's, and a mark at the goal."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, LABEL, LINE, TOP = 760, 230, 26, 44
SCALE_END = 3.0


class Bar(NamedTuple):
    title: str
    ratio: float
    goal: float


def svg(bars: Sequence[Bar], caption: str) -> str:
    """The chart's source. Bars beyond the end of the scale lengthen it."""
    end = max([SCALE_END, *(bar.ratio for bar in bars)])
    height = TOP + LINE * len(bars) + 30

    def x(ratio: float) -> float:
        return round(LABEL + (WIDTH - LABEL - 60) * ratio / end, 1)

    bottom = height - 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        f'font-size="13" role="img" aria-label="{escape(caption)}">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="16" y="24" font-size="15" fill="#222">{escape(caption)}</text>',
    ]
    for i, bar in enumerate(bars):
        y = TOP + LINE * i
        colour = "#2f7d5b" if bar.ratio >= bar.goal else "#7fb39c" if bar.ratio >= 1 else "#c98b5e"
        parts += [
            f'<text x="{LABEL - 8}" y="{y + 15}" text-anchor="end" fill="#222">{escape(bar.title)}</text>',
            f'<rect x="{LABEL}" y="{y + 3}" width="{round(x(bar.ratio) - LABEL, 1)}" height="{LINE - 9}" '
            f'fill="{colour}"/>',
            f'<text x="{x(bar.ratio) + 8}" y="{y + 15}" fill="#222">{bar.ratio:.2f}</text>',
            f'<path d="M{x(bar.goal)} {y + 1}v{LINE - 5}" stroke="#222" stroke-width="2"/>',
        ]
    parts += [
        f'<path d="M{x(1)} {TOP - 4}V{bottom}" stroke="#888" stroke-dasharray="3 3"/>',
        f'<text x="{x(1)}" y="{height - 12}" text-anchor="middle" fill="#555">the best peer</text>',
        f'<text x="{WIDTH - 16}" y="{height - 12}" text-anchor="end" fill="#555">black mark: goal</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"
