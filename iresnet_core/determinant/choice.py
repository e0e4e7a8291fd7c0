"""Up to which order "auto" takes the exact determinant: fixed numbers, the same on every device and in every program.

The exact answer has no noise, so that it may cost more than an estimate. Its cost grows with the third power of the
order of the determinant, and that of an estimate with the second. ``benchmarks/exact_limit.py`` measures both. On one
core, with 64 samples and the errors, the exact answer takes 1 to 2 times as long as an estimate at order 32, 3 to 7
times at order 64 (0.15 ms per sample) and 7 times at 128. In a training step, with its gradient, it takes 3 times as
long at order 32 and 9 times at order 64.
"""

from iresnet_core.determinant.request import Request

__all__ = ["EVALUATION_LIMIT", "TRAINING_LIMIT", "exact_choice"]

# Largest order of an exact answer with errors.
EVALUATION_LIMIT = 64
# Largest order of an exact answer without errors, as training asks for it.
TRAINING_LIMIT = 32


def exact_choice(order: int, request: Request) -> tuple[bool, str]:
    """Return whether "auto" is exact for a determinant of this order, and why."""
    if request.noise is not None:
        return False, "noise rules out the exact answer"
    if request.exact_up_to is not None:
        limit, whose = request.exact_up_to, "exact_up_to"
    elif request.errors:
        limit, whose = EVALUATION_LIMIT, "the limit of evaluation"
    else:
        limit, whose = TRAINING_LIMIT, "the limit of training steps (errors=False)"
    exact = order <= limit
    return exact, f"order {order} is {'at most' if exact else 'above'} {limit}, {whose}"
