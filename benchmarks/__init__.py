"""Measurements of time and memory, each with the aim it is held against: README.md."""
