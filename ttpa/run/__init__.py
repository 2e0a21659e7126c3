"""The graph and what runs it: pipeline, stages, store, workers, configuration."""
