"""A residual block without a cap on its branch, for comparison only."""

from torch import Tensor, nn

__all__ = ["PlainBlock"]


class PlainBlock(nn.Module):
    """``z = x + g(x)`` for a branch of any Lipschitz constant.

    It has no inverse; blocks, flows and classifiers of this package refuse it.
    """

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """Return x + g(x)."""
        moved: Tensor = x + self.branch(x)
        return moved
