"""How far the resolvent of a contraction may be from that of its Hessenberg matrix: the exact worst case.

m products of an operator with a known bound c on its norm leave it free elsewhere. With K = J^T / c, tau = t c and
K V_m = V_(m+1) G, G = [H; h e_m^T] / c, the other part of K is D W: D^2 = I - V_(m+1) G G^T V_(m+1)^T, W any
contraction on the complement of V_m (Parrott; Davis, Kahan and Weinberger 1982). Let x = (I + tau K)^-1 v_1 have the
coordinates a in V_m, beta along v_(m+1), and b beyond. Then D W acts on beta v_(m+1) + b as S w in the span of V_(m+1),
S^2 = I - G G^T, and as w' outside of it, where |w|^2 + |w'|^2 <= beta^2 + |b|^2; and b = -tau w', so that |w| <= |beta|
is all that is left, and every such w is that of some W. With rho = e_1^T (I + t H)^-1, l = e_m^T (I + t H)^-1,
p = S [rho, 0] and r = S [-t h l, 1]

    a_1 = e_1^T (I + t H)^-1 e_1 - tau p^T w,   beta = beta_0 - tau r^T w,   beta_0 = -t h y_m,   |w| <= |beta|.

The w that are allowed fill an ellipsoid, and the values of a_1 an interval, with delta = 1 - tau^2 |r|^2 = (1 - tau^2)
(1 + t^2 h^2 |l|^2):

    e_1^T (I + t H)^-1 e_1 + tau^2 beta_0 (p^T r) / delta +- tau |beta_0| sqrt(delta |p|^2 + tau^2 (p^T r)^2) / delta.

Both ends are attained. Their distance from the middle has the factor beta_0, so that nothing cancels where it is small;
|p|^2 and p^T r are known without S:

    c^2 |p|^2 = c^2 |rho|^2 - |rho H|^2,   p^T r = -(h / c^2) (rho H + t c^2 rho) l^T.

By the LU factors of I + t H, l = g / u_mm and rho = sum over j of w_j g_j with g_m = L^-T e_m, w = U^-T e_1, and all of
this grows by a few operations a column.
"""

from typing import Any

from iresnet_core.backends import Array

__all__ = ["Completions"]

# What the norm may exceed its constant by, in units of eps, since the products are rounded.
NORM_SLACK = 64
# Rounding of |p|^2, relative to the square of the bound 1 / (1 - t c) on |rho|.
SQUARE_ROUNDING = 1e-14


class Completions:
    """The interval of e_1^T (I + t J)^-1 e_1 at every node t, for the growing H of all probes.

    Float64 arrays (nodes, probes, batch), but `t`, (nodes, 1, 1). `c` bounds the norm of J, `eps` is the rounding of
    the products.
    """

    def __init__(self, xp: Any, t: Array, c: float, eps: float) -> None:
        self.xp, self.t = xp, t
        self.c = min(c * (1 + NORM_SLACK * eps), 0.5 * (1 + c))
        tau = t * self.c
        self.inverse = 1 / t
        self.gap = (1 - tau) * (1 + tau)
        self.floor = SQUARE_ROUNDING * self.c**2 / (1 - tau) ** 2
        self.g: Array = None  # |g_m|^2
        self.p: Array = None  # c^2 |p|^2
        self.r: Array = None  # (rho H + t c^2 rho) g_m^T

    def append(self, entry: Array, w: Array, ratio: Array | None) -> None:
        """Take in the next column: its entry on the diagonal of H, the new entry of w, that of L below the diagonal."""
        if ratio is None:
            c = self.c
            self.g = self.xp.ones_like(w)
            self.p = (c - entry) * (c + entry) * w * w
            self.r = (entry + c * c * self.t) * w
            return
        share = w * self.inverse
        self.g = ratio * (ratio * self.g) + 1
        down = ratio * self.r
        self.r = -(share * self.gap * self.g + down)
        self.p = self.p + share * (self.r - down)

    def keep(self, count: int) -> None:
        """Drop the probes beyond the first `count`."""
        self.g, self.p, self.r = (a[:, :count, ...] for a in (self.g, self.p, self.r))

    def interval(self, z: Array, pivot: Array, subdiagonal: Array) -> tuple[Array, Array]:
        """Middle, less the value for H itself, and half-width, both over t.

        `z` and `pivot` are the last entries of L^-1 e_1 and of U, `subdiagonal` is h.
        """
        xp = self.xp
        h = self.t * (subdiagonal / pivot)  # t h / u_mm
        slope = h * self.r
        delta = self.gap * (1 + h * h * self.g)
        size = xp.maximum(self.p, 0 * self.p) + self.floor
        scale = h * z / delta
        return scale * slope, xp.abs(scale) * xp.sqrt(delta * size + slope * slope)
