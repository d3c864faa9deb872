"""What pruning needs to know of a layer's inputs, gathered batch by batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

Statistics = Literal["nothing", "moments", "gram"]
STATISTICS: tuple[Statistics, ...] = ("nothing", "moments", "gram")  # each includes those before
WORST_DAMPENING = 1.0


class InputStatistics:
    """Mean, spread and, if asked for, Gram matrix of the inputs of a linear layer.

    Moments are pooled exactly, in float64, so that neither 16-bit activations nor a large mean
    cost accuracy; of 16-bit inputs, deviations from a batch's mean are float32. The Gram matrix
    adds float32 products.

    Parameters
    ----------
    gram : bool, default=False
        Whether to gather the Gram matrix, which takes in^2 floats.

    Attributes
    ----------
    sequences, tokens : int
        How much was seen; each update counts as one sequence.
    mean : Tensor [in] float64
        Over tokens.
    gram : Tensor [in, in] float32 or None
        Sum of ``x x^T`` over tokens.

    Examples
    --------
    >>> inputs = InputStatistics()
    >>> inputs.update(torch.tensor([[1.0, 2.0], [3.0, 2.0]]))
    >>> inputs.mean.tolist(), inputs.variance.tolist(), inputs.norm.square().round().tolist()
    ([2.0, 2.0], [1.0, 0.0], [10.0, 8.0])
    """

    def __init__(self, *, gram: bool = False) -> None:
        self.sequences = self.tokens = 0
        self.mean = self._deviation = torch.zeros(0, dtype=torch.float64)
        self.gram: Tensor | None = None
        self._wants_gram = gram
        self._factors: dict[float, Tensor] = {}

    def update(self, x: Tensor) -> None:
        """Add one sequence, [..., in]."""
        rows = x.detach().reshape(-1, x.shape[-1])
        if not len(rows):
            return
        mean, deviation = _moments(rows)
        if not self.tokens:
            self.mean, self._deviation = mean, deviation
        else:
            difference, total = mean - self.mean, self.tokens + len(rows)
            self.mean = self.mean + difference * (len(rows) / total)
            self._deviation = (
                self._deviation
                + deviation
                + difference.square() * (self.tokens * len(rows) / total)
            )
        if self._wants_gram:
            product = _gram(rows)
            self.gram = product if self.gram is None else self.gram.add_(product)
        self.sequences += 1
        self.tokens += len(rows)

    @property
    def variance(self) -> Tensor:
        """Population variance over tokens, [in] float64."""
        return self._deviation / self.tokens

    @property
    def norm(self) -> Tensor:
        """L2 norm over the tokens of a sequence, root mean square over sequences, [in] float64."""
        squares = self._deviation + self.tokens * self.mean.square()
        return (squares / self.sequences).sqrt()

    @property
    def sum(self) -> Tensor:
        """Sum over the tokens of a sequence, mean over sequences, [in] float64."""
        return self.mean * (self.tokens / self.sequences)

    def inverse_factor(self, dampening: float) -> Tensor:
        """Return the upper Cholesky factor of the inverse of the damped Gram matrix.

        Parameters
        ----------
        dampening : float
            Share of the mean of the diagonal that is added to it; ten times more for as long as
            the matrix is too close to singular.

        Returns
        -------
        Tensor [in, in] float32
            Kept: layers that read one input share it.

        Raises
        ------
        ValueError
            If the matrix cannot be factored at all.
        """
        if dampening not in self._factors:
            self._factors[dampening] = self._factor(dampening)
        return self._factors[dampening]

    def _factor(self, dampening: float) -> Tensor:
        if self.gram is None:
            raise ValueError('expected a Gram matrix, got none; try collect = "gram"')
        diagonal = self.gram.diagonal()
        hessian = self.gram + torch.diag((diagonal == 0).to(diagonal))
        mean = hessian.diagonal().mean()
        eye = torch.eye(len(hessian)).to(hessian)
        while dampening <= WORST_DAMPENING:
            # With both orders turned round, H = L L^T gives H^-1 = (L^-1)^T L^-1 at once.
            turned = (hessian + (mean * dampening) * eye).flip(0, 1)
            lower, failed = torch.linalg.cholesky_ex(turned)
            if not failed:
                return torch.linalg.solve_triangular(lower, eye, upper=False).flip(0, 1)
            dampening = 10 * dampening if dampening else 1e-4
        raise ValueError(
            "expected inputs whose Gram matrix can be factored, got one that is not positive "
            f"definite with {WORST_DAMPENING:.0%} of its mean on the diagonal; "
            "try other calibration text"
        )


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and sum of squared deviations of rows [tokens, in], both [in] float64."""
    wide = rows.float() if rows.element_size() == 2 else rows.double()
    mean = wide.mean(0)
    deviations = wide - mean
    rest = deviations.mean(0).double()  # what the rounded mean leaves out
    return mean.double() + rest, deviations.square_().sum(0).double()


def _gram(rows: Tensor) -> Tensor:
    """Return ``rows^T rows`` as float32."""
    wide = rows.float()
    if rows.dtype != torch.bfloat16:
        return wide.mT @ wide
    with _bfloat16_products():  # rounds nothing here, and adds in float32 still
        return wide.mT @ wide


@contextmanager
def _bfloat16_products() -> Iterator[None]:
    """Let oneDNN multiply float32 matrices as bfloat16."""
    mkldnn: Any = torch.backends.mkldnn
    matmul = mkldnn.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before
