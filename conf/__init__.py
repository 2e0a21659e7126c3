"""The configuration tree, installed as `ttpa.conf`; Hydra finds it by this file (`pkg://ttpa.conf`)."""
