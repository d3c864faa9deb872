"""Dynamic sparsity for PyTorch: compute only what matters, decided while the model runs.

``gossamer.attention`` holds sparse attention for language models, ``gossamer.kernels`` the
operations under it, ``gossamer.catalog`` the papers. The command is ``gossamer compare``.
"""

from importlib.metadata import version

from gossamer import attention, kernels

__all__ = ["__version__", "attention", "kernels"]
__version__ = version("gossamer")
