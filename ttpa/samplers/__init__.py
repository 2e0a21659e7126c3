"""How candidates are drawn. A sampler receives an engine and knows nothing of scorers.

A sampler is a frozen dataclass with `n` (candidates a sample) and `chooser()`; the explore stage gives the chooser to
the engine. Searches that need scores while they run (MCTS) receive a score function instead.
"""
