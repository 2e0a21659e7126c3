"""The stages that need a policy: each fills a working directory and can be killed at any moment."""
