"""What pruning needs to know of a layer's inputs, gathered sequence by sequence."""

from typing import Literal

import torch
from torch import Tensor

Statistics = Literal["nothing", "moments", "gram"]
STATISTICS: tuple[Statistics, ...] = ("nothing", "moments", "gram")  # each includes those before
WORST_DAMPENING = 1.0


class InputStatistics:
    """Mean, spread and, if asked for, Gram matrix of the inputs of a linear layer.

    Moments are pooled exactly, in float64, so that neither bfloat16 activations nor a large mean
    cost accuracy; the Gram matrix adds float32 products.

    Parameters
    ----------
    gram : bool, default=False
        Whether to gather the Gram matrix, which takes in^2 floats.

    Attributes
    ----------
    sequences, tokens : int
        How much was seen.
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
        rows = x.detach().reshape(-1, x.shape[-1]).float()
        if not len(rows):
            return
        wide = rows.double()
        mean = wide.mean(0)
        deviation = (wide - mean).square().sum(0)
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
            product = rows.mT @ rows
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
        while dampening <= WORST_DAMPENING:
            damped = hessian + (mean * dampening) * torch.eye(len(hessian)).to(hessian)
            lower, failed = torch.linalg.cholesky_ex(damped)
            if not failed:
                inverse = torch.cholesky_inverse(lower)
                factor, failed = torch.linalg.cholesky_ex(inverse, upper=True)
                if not failed:
                    return factor.contiguous()
            dampening = 10 * dampening if dampening else 1e-4
        raise ValueError(
            "expected inputs whose Gram matrix can be factored, got one that is not positive "
            f"definite with {WORST_DAMPENING:.0%} of its mean on the diagonal; "
            "try other calibration text"
        )
