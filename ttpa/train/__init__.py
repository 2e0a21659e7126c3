"""Lightning modules: collate -> log-probs -> objective -> log, and the settings they are built from."""
