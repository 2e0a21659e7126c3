"""The page's colours, light and dark, and the contrast they must have. Charts are drawn with the light ones, which are
then replaced by CSS variables of the same name.
"""

from __future__ import annotations

SERIES = 8
LIGHT = {
    "paper": "#ffffff",
    "panel": "#f4f6f8",
    "ink": "#1a2027",
    "soft": "#4d5763",
    "rule": "#c9d1da",
    "edge": "#6f7a87",
    "link": "#0a53be",
    "good": "#c9ecd6",
    "bad": "#ffd9c7",
    "warn": "#fff0c2",
    "c1": "#0066a6",
    "c2": "#b84a08",
    "c3": "#00755d",
    "c4": "#8d3a86",
    "c5": "#6b5600",
    "c6": "#4350c9",
    "c7": "#a12b45",
    "c8": "#44606e",
}
DARK = {
    "paper": "#14181d",
    "panel": "#1d232a",
    "ink": "#e7ebf0",
    "soft": "#aab4bf",
    "rule": "#3a444f",
    "edge": "#8592a0",
    "link": "#7db7ff",
    "good": "#1f4a31",
    "bad": "#5c2f1b",
    "warn": "#4a3d12",
    "c1": "#62b4f2",
    "c2": "#f29b62",
    "c3": "#45c9a5",
    "c4": "#df95d8",
    "c5": "#d8bd55",
    "c6": "#a5aeff",
    "c7": "#f28da3",
    "c8": "#9fb8c6",
}
TEXT_ON = (
    ("ink", "paper"), ("ink", "panel"), ("ink", "good"), ("ink", "bad"), ("ink", "warn"), ("soft", "paper"),
    ("soft", "panel"), ("link", "paper"), ("link", "panel"),
)  # fmt: skip
"""(text, ground) pairs in use: at least 4.5 to 1."""
GRAPHICS = ("edge", *(f"c{number}" for number in range(1, SERIES + 1)))
GRAPHIC_ON = tuple((name, ground) for name in GRAPHICS for ground in ("paper", "panel"))
"""(line or area, ground) pairs in use: at least 3 to 1."""
HEAT = "#f3f7fb", "#08306b"
"""Ends of the scale of heat maps, the same in both modes: a cell has its own ground."""


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.

    Example:
        >>> luminance("#ffffff"), luminance("#000000")
        (1.0, 0.0)
    """
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(left: str, right: str) -> float:
    """Contrast of two colours, 1 to 21, as WCAG 2 has it.

    Example:
        >>> contrast("#ffffff", "#000000")
        21.0
    """
    low, high = sorted((luminance(left), luminance(right)))
    return (high + 0.05) / (low + 0.05)
