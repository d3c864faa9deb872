"""Dynamic sparsity for PyTorch: compute only what matters, decided while the model runs."""

from importlib.metadata import version

__version__ = version("gossamer")
