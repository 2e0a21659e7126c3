"""API-Bank (Li et al. 2023, arXiv 2304.08244): levels 1 to 3, call accuracy without its database."""
