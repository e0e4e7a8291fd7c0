"""Augmentation: a function of seed and step, which moves and mirrors images and does nothing else."""

import numpy as np

from iresnet_core.classification.augmentation import augmented


def counted(n, *shape):
    return np.arange(1, 1 + n * np.prod(shape), dtype=np.uint8).reshape(n, *shape)


def test_shifts_are_those_of_the_generator_and_fill_with_zeros():
    x = counted(50, 1, 3, 2)
    moved = augmented(x, np.random.default_rng(0), crop=1)
    assert moved.shape == x.shape
    assert moved.dtype == np.uint8
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    seen = set()
    for image, found in zip(padded, moved, strict=True):
        fits = [(a, b) for a in range(3) for b in range(3) if np.array_equal(image[:, a : a + 3, b : b + 2], found)]
        assert fits
        seen |= set(fits)
    assert len(seen) == 9
    again = augmented(x, np.random.default_rng(0), crop=1)
    np.testing.assert_array_equal(moved, again)
    assert not np.array_equal(moved, augmented(x, np.random.default_rng(1), crop=1))


def test_half_of_the_images_are_mirrored():
    x = counted(200, 1, 1, 2)
    found = augmented(x, np.random.default_rng(0), flip=True)
    mirrored = np.all(found == x[..., ::-1], axis=(1, 2, 3))
    assert np.all(mirrored | np.all(found == x, axis=(1, 2, 3)))
    assert 70 < mirrored.sum() < 130


def test_other_numbers_of_axes():
    for shape in ((2, 5), (1, 4, 4, 4)):
        x = np.random.default_rng(0).random((6, *shape)).astype(np.float32)
        found = augmented(x, np.random.default_rng(0), crop=1, flip=True)
        assert found.shape == x.shape
        assert found.dtype == x.dtype
    np.testing.assert_array_equal(augmented(x, np.random.default_rng(0)), x)
