"""Learn receptive fields from photographs and draw them: python examples/receptive_fields.py."""

import argparse
from pathlib import Path

from gossamer.data.photographs import photographs
from gossamer.estimators import SparseCoding
from gossamer.estimators.patches import random_patches, whiten
from gossamer.report.fields import plot_fields

SIDE, ATOMS, BATCH = 12, 288, 250

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--penalty", default="cel0", choices=["soft", "hard", "half", "cel0"])
parser.add_argument("--batches", type=int, default=400)
parser.add_argument("--out", type=Path, default=Path("fields.png"))
options = parser.parse_args()

images = whiten([photo.pixels for photo in photographs()])
patches = random_patches(images, BATCH * options.batches, size=SIDE, seed=0)
model = SparseCoding(
    ATOMS, penalty=options.penalty, target_density=0.05, batch_size=BATCH, random_state=0
).fit(patches)
figure = plot_fields(model.components_, title=f"{options.penalty}, {options.batches} batches")
figure.savefig(options.out, dpi=100)
