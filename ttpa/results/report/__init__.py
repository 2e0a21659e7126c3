"""The report: one page of HTML for a run, a sweep or a table."""
