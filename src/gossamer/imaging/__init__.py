"""Images from few measurements: what is sparse is k-space, and the image's own changes.

A scanner samples a share of the Fourier coefficients of every frame (`masks` draws which), and a
reconstruction fills in the rest by what it knows of images: few edges, few changes over time, few
independent frames, few outliers. Every method is one function of the data and their `CartesianMRI`
that returns a `DynamicReconstruction`. The file to copy is `rdledm.py`: it names penalties from
`regularizers.py` and hands them to the solver in `primal_dual.py`.
"""

from gossamer.imaging import masks, metrics
from gossamer.imaging.ftvnnr import ftvnnr
from gossamer.imaging.kt_slr import kt_slr
from gossamer.imaging.l_plus_s import l_plus_s
from gossamer.imaging.mri import CartesianMRI, Physics
from gossamer.imaging.primal_dual import primal_dual
from gossamer.imaging.rdledm import rdledm
from gossamer.imaging.reconstruction import DynamicReconstruction
from gossamer.imaging.sliding_window import sliding_window
from gossamer.imaging.temporal_tv import temporal_tv
from gossamer.imaging.zero_filled import zero_filled

__all__ = [
    "CartesianMRI",
    "DynamicReconstruction",
    "Physics",
    "ftvnnr",
    "kt_slr",
    "l_plus_s",
    "masks",
    "metrics",
    "primal_dual",
    "rdledm",
    "sliding_window",
    "temporal_tv",
    "zero_filled",
]
