"""Where samples come from: published sets, and the embedded world of reversed construction."""
