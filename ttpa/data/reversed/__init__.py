"""Reversed construction (TTPA): calls first, then the answer, then the question. `generator=simulator` needs no model."""
