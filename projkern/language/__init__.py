"""A small language model for each task, from one source: runs on tasks of text."""
