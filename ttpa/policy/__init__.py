"""Policies: loading and saving, log-probs with the training forward, batched decoding."""
