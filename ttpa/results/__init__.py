"""From result rows to numbers: statistics, tables, sweeps, status, reports, trackers."""
