"""Image sources: one reader per kind of data set, and the table of their names in `open`."""
