"""Dynamic sparsity for PyTorch: compute only what matters, decided while the model runs.

``gossamer.attention`` holds sparse attention for language models, ``gossamer.training`` training
with sparse weights, ``gossamer.kernels`` the operations under both, ``gossamer.catalog`` the
papers. The command is ``gossamer compare``.
"""

from importlib.metadata import version

from gossamer import attention, kernels, training

__all__ = ["__version__", "attention", "kernels", "training"]
__version__ = version("gossamer")
