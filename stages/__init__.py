"""The work: one module per DVC stage over a small science core. Imports neither prefect nor dvc."""
