"""The paper's experiments: their jobs, their stored results, and the page made from these."""
