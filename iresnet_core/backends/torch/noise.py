"""Seeds and random signs of PyTorch."""

import math
from collections.abc import Callable
from copy import deepcopy
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from iresnet_core.backends.base import Array
from iresnet_core.backends.host_noise import draw, generator
from iresnet_core.backends.torch.compilation import inside_functorch, is_fixed_size
from iresnet_core.errors import InvalidArgumentError

__all__ = ["TracedSeed", "last_draw", "random_signs", "replayed", "seeded_generator", "signs_of_bytes"]


def seeded_generator(seed: Array) -> torch.Generator:
    """Return a generator with the seed that a tensor of whole numbers holds, all of which count."""
    if seed.is_floating_point() or seed.is_complex() or seed.ndim > 1:
        raise InvalidArgumentError(
            f"a seed tensor holds whole numbers, got dtype {seed.dtype} and shape {tuple(seed.shape)}."
        )
    words = np.atleast_1d(seed.cpu().numpy()).astype(np.int64).astype(np.uint32)
    state = int(np.random.SeedSequence(words.tolist()).generate_state(1, np.uint64)[0])
    return torch.Generator(device=seed.device).manual_seed(state % 2**63)


def replayed(rng: Any, device: Any) -> Callable[[], Any]:
    """Return a function that makes a source of the random numbers that `rng` is about to give on a device."""
    if rng is None:
        on_host = device.type == "cpu"
        rng = torch.default_generator if on_host else torch.cuda.default_generators[device.index or 0]
    if isinstance(rng, torch.Generator):
        state = rng.get_state()
        return lambda: torch.Generator(device=rng.device).set_state(state)
    kept = deepcopy(rng)  # a generator of NumPy's
    return lambda: deepcopy(kept)


@lru_cache(maxsize=32)
def signs_of_bytes(dtype: Any, device: Any) -> Array:
    """The eight signs (256, 8) that the bits of every byte stand for."""
    with torch.inference_mode(mode=False):  # what is kept serves everywhere
        bits = torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device) & 1
        return (2 * bits - 1).to(dtype)


def random_signs(shape: tuple[int, ...], dtype: Any, device: Any, source: torch.Generator | None) -> Array:
    """Draw +1 and -1 with equal chance, many from each random number: to draw one is slower than to take it apart."""
    # Given as None, the generator would rule out sizes that a compiled program is to find out.
    chosen: dict[str, Any] = {} if source is None else {"generator": source}
    if torch.compiler.is_compiling() or inside_functorch():
        rows, width = _rows(shape)
        words = torch.randint(0, 2**32, (rows, -(-width // 32), 1), dtype=torch.int64, device=device, **chosen)
        if not inside_functorch():
            # A view by strides has its tensor written to memory, or every sign would draw its word once more.
            words = words.as_strided(words.shape, words.stride())
        bits = (words >> torch.arange(32, device=device)) & 1
        return (2 * bits.to(dtype) - 1).flatten(1)[:, :width].reshape(shape)
    size = math.prod(shape)
    words = torch.randint(0, 256, (-(-size // 8),), dtype=torch.uint8, device=device, **chosen)
    signs = torch.nn.functional.embedding(words.to(torch.int64), signs_of_bytes(dtype, device))
    return signs.reshape(-1)[:size].reshape(shape)


def _rows(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows that draw words of their own, and their width: a width that a program finds out would rule out some."""
    place = len(shape) if torch.compiler.is_compiling() else 0
    while place and is_fixed_size(shape[place - 1]):
        place -= 1
    place = place if place < len(shape) else 0
    return math.prod(shape[:place]), math.prod(shape[place:])


class TracedSeed:
    """An int seed in a program that is being compiled; its draws so far are known, and so is the next one."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.draws: tuple[tuple[Any, tuple[int, ...]], ...] = ()


def last_draw(seed: int, draws: tuple[tuple[Any, tuple[int, ...]], ...]) -> np.ndarray:
    """Draw everything again, and return the last."""
    source = generator(seed)
    return [draw(kind, shape, source) for kind, shape in draws][-1]
