"""The page docs/reproduction.md: every table and figure of the paper beside ours, from stored results."""
