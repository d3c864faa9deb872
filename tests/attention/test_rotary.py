import pytest
import torch

from gossamer.attention.rotary import unrotate
from gossamer.kernels import rotate
from gossamer.testing import rotary_tables


@pytest.mark.parametrize("stretch", [1.0, 1.37, 0.5])
def test_unrotate_undoes_it_with_any_scaling(stretch: float) -> None:
    vectors = torch.randn(2, 3, 40, 16)
    cosine, sine = (stretch * table for table in rotary_tables(40, 16))
    torch.testing.assert_close(unrotate(rotate(vectors, cosine, sine), cosine, sine), vectors)
    turned = unrotate(vectors, cosine, sine)
    torch.testing.assert_close(rotate(turned, cosine, sine), vectors)
