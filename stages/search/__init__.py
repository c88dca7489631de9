"""Exact nearest neighbours and range search on uint8 images."""
