"""From run records to the table of a paper: `spec` reads table.yaml, `cells` finds the records, `build` and `numbers`
make the table, `render` writes it, `cli` is the command `ttpa-table`. Nothing here trains, launches or asks W&B."""
