"""How many samples of a diffusion model copy its training images? `scoresmooth.audit` answers from Python.

It is `scoresmooth audit` for arrays, pictures and data sets in memory, and for the sources of the command line.
"""

from scoresmooth.api import Audit, SelfTestFailed, audit
from scoresmooth.images import Images, Layout
from stages.errors import InputError

__all__ = ["Audit", "Images", "InputError", "Layout", "SelfTestFailed", "audit"]
