"""`ttpa-report`: one self-contained HTML page for a run, a sweep or a table.

`gather` reads results and store, `numbers` and `browse` turn them into `blocks`, `charts` draws, `page` writes HTML.
"""
