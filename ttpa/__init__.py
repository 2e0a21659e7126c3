"""ttpa: tool-calling post-training as one graph of swappable parts. Importing it imports neither torch nor hydra."""

__version__ = "0.1.0"
