"""Reversed construction (TTPA): calls first, then the question. `generator=simulator` needs no model."""
