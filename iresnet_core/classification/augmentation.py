"""Random changes of images that leave their class as it is."""

import numpy as np

__all__ = ["augmented"]


def augmented(x: np.ndarray, rng: np.random.Generator, *, crop: int = 0, flip: bool = False) -> np.ndarray:
    """Return images that are moved by up to `crop` pixels, and mirrored with probability one half.

    Parameters
    ----------
    x : array (n, channels, *spatial)
        Images. What comes in at an edge is zero, as if the image had been padded and cut out again.
    rng : Generator
        Draws the shifts along each axis and the mirrorings, in the same order whatever the images are.
    crop : int
        The largest shift along each axis, in pixels; 0 for none.
    flip : bool
        Whether images are mirrored left to right.

    Examples
    --------
    >>> import numpy as np
    >>> augmented(np.arange(4).reshape(1, 1, 2, 2), np.random.default_rng(3), flip=True)[0, 0].tolist()
    [[1, 0], [3, 2]]
    """
    if flip:
        mirrored = rng.random(len(x)) < 0.5
        x = np.where(mirrored.reshape(-1, *[1] * (x.ndim - 1)), x[..., ::-1], x)
    if crop:
        spatial = x.shape[2:]
        padded = np.pad(x, ((0, 0), (0, 0), *((crop, crop),) * len(spatial)))
        begins = rng.integers(0, 2 * crop + 1, (len(x), len(spatial)))
        x = np.stack(
            [
                image[(slice(None), *(slice(a, a + size) for a, size in zip(begin, spatial, strict=True)))]
                for image, begin in zip(padded, begins, strict=True)
            ]
        )
    return x
