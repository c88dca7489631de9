"""Fixtures of the tests of stages train and sample."""

from diffusion_project import environment, project

__all__ = ["environment", "project"]
