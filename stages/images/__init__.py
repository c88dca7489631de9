"""Images: the table they are stored in, the sources they come from, groups of duplicates."""
