"""How candidates are drawn. A sampler receives tasks and an engine and knows nothing of scorers; see `base`."""
