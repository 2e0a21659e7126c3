"""The token tree: a prompt and all its answers as one sequence, computed once. Plain arrays, no model."""

from ttpa.tree.forest import Forest, pack
from ttpa.tree.tree import TokenTree

__all__ = ["Forest", "TokenTree", "pack"]
