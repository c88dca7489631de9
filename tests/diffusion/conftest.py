"""Fixtures of the tests of stages train and sample."""

from diffusion_project import environment, project
from measured_runs import measurable

__all__ = ["environment", "measurable", "project"]
