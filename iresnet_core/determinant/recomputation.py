"""A branch as a function of arrays: computed again on the way back, time for memory, or by a program of its own.

What is random is drawn before, and handed to the computation with the input and the weights. So both passes compute the
same, the derivative is that without recomputation, to rounding, and branches that are alike but for their arrays can
share one program.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from iresnet_core.backends import Array, Backend
from iresnet_core.branches import Chain
from iresnet_core.common import flatten
from iresnet_core.determinant.choice import exact_choice
from iresnet_core.determinant.exact import order_of
from iresnet_core.determinant.probes import DrawnProbes, make_source
from iresnet_core.determinant.request import Method, Request
from iresnet_core.determinant.sample_seed import SampleSeed
from iresnet_core.results import LogDet

__all__ = ["of_arrays"]


def of_arrays(
    backend: Backend,
    g: Any,
    x: Array,
    request: Request,
    answer: Callable[[Any, Array, Request], tuple[Array, LogDet]],
    *,
    method: Method | None,
    growth: float,
    part: int | None,
) -> tuple[Array, LogDet]:
    """Return ``answer(g, x, request)``, g(x) and its log-determinant, recomputed or compiled as the request says.

    `method` is the one that was asked for, None for "auto"; `growth` is that of rounding in the layers. `part` is the
    number of samples whose log-determinants are wanted, the first ones; None for all.
    """
    probes = _drawn(backend, g, x if part is None else x[:part, ...], request, method, growth)
    weights = g.arrays if isinstance(g, Chain) else ()

    def again(x: Array, *others: Array) -> tuple[tuple[Array, ...], tuple[str, str]]:
        own, here = request, g
        if weights:
            here = g.with_arrays(others[: len(weights)])
        if probes is not None:
            own = request._replace(rng=probes.with_values(others[-1]))
        value, logdet = answer(here, x, own)
        products = backend.xp.astype(logdet.products, x.dtype)  # a derivative passes through all that comes back
        arrays = (value, logdet.value, logdet.std_error, logdet.bias_bound, products)
        return arrays, (logdet.method, logdet.reason)

    given = (x, *weights) if probes is None else (x, *weights, probes.values)
    run = partial(backend.by_program, again, key=_likeness(g, x, weights)) if request.compiled else again
    if request.checkpoint:
        (g_of_x, value, *errors), said = backend.recomputed(run, given)
    else:
        (g_of_x, value, *errors), said = run(*given)
    std_error, bias_bound, products = map(backend.stop_gradient, errors)
    return g_of_x, LogDet(value, std_error, bias_bound, backend.xp.astype(products, backend.xp.int32), *said)


def _likeness(g: Any, x: Array, weights: Sequence[Array]) -> tuple[Any, ...]:
    """Return what tells branches apart whose programs are certainly different."""
    kinds = tuple(getattr(layer, "name", type(layer)) for layer in g.layers)
    return kinds, tuple(x.shape[1:]), tuple(tuple(a.shape) for a in weights if a.ndim > 1)


def _drawn(
    backend: Backend, g: Any, x: Array, request: Request, method: Method | None, growth: float
) -> DrawnProbes | None:
    """Draw the probes that the answer will ask for; None where it draws none, or they follow from the samples.

    A branch that is no chain may turn out to have an exact answer after all. Then they are drawn for nothing.
    """
    if request.noise is not None or isinstance(request.rng, SampleSeed) or x.shape[0] == 0:
        return None
    if method is None:
        order = order_of(g.width if isinstance(g, Chain) else None, math.prod(x.shape[1:]), growth)
        exact = exact_choice(order, request)[0]
    else:
        exact = method.is_exact
    if exact:
        return None
    rng = backend.generator(request.rng)
    source = make_source(backend, request.probe_kind, flatten(backend.xp, x), rng)
    values = source.draw(request.probes)
    lengths = request.unbiased or (method is not None and method.always_unbiased)
    return DrawnProbes(source, values, backend.uniform((request.probes,), rng) if lengths else None)
