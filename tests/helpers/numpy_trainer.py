"""A trainer without a framework: one ActNorm, fitted by gradient descent with noise of its own."""

import numpy as np

from iresnet_core.errors import RunError
from iresnet_core.flows.actnorm import ActNorm
from iresnet_core.flows.flow import Flow
from iresnet_core.training.task_loop import StepResult


class Trainer:
    """Maximum likelihood for z = (x + bias) exp(log_scale); noise on the gradient stands for random probes."""

    channels_last = False
    recovers_inputs = shares_batches = False
    lacks = frozenset()

    def __init__(self, plan, model_shape, settings, first, base="normal"):
        assert base == "normal"
        self.settings, self.shape = settings, model_shape
        self.parameters = np.zeros((2, *model_shape))
        self.parameters[1] = -first.mean(axis=0)
        self.rng = np.random.default_rng(settings.seed)
        self.moment = np.zeros_like(self.parameters)

    def step(self, x, lr):
        log_scale, bias = self.parameters
        z = (x + bias) * np.exp(log_scale)
        loss = 0.5 * np.mean(np.sum(z**2, axis=1)) - np.sum(log_scale) + 0.5 * log_scale.size * np.log(2 * np.pi)
        gradient = np.stack([np.mean(z**2, axis=0) - 1, np.mean(z, axis=0) * np.exp(log_scale)])
        gradient = gradient + 0.01 * self.rng.standard_normal(gradient.shape)
        self.moment = 0.9 * self.moment + gradient
        self.parameters = self.parameters - lr * self.moment
        return StepResult(float(loss), float(np.linalg.norm(gradient)))

    def to_core(self):
        return Flow([ActNorm(*self.parameters)], self.shape)

    def log_prob(self, x, seed):
        return self.to_core().log_prob(x.astype(np.float64)).value

    def lipschitz(self):
        return 0.0

    def parameter_count(self):
        return self.parameters.size

    def state(self):
        state = self.rng.bit_generator.state["state"]
        words = [(state[name] >> shift) & (2**32 - 1) for name in ("state", "inc") for shift in (0, 32, 64, 96)]
        return {"parameters": self.parameters, "moment": self.moment, "random": np.array(words, dtype=np.uint64)}

    def load_state(self, arrays):
        own = {name: (array.shape, array.dtype) for name, array in self.state().items()}
        if {name: (array.shape, array.dtype) for name, array in arrays.items()} != own:
            raise RunError("the checkpoint is that of another model")
        self.parameters, self.moment = arrays["parameters"].copy(), arrays["moment"].copy()
        words = [int(word) for word in arrays["random"]]
        numbers = [sum(word << (32 * k) for k, word in enumerate(words[i : i + 4])) for i in (0, 4)]
        state = dict(self.rng.bit_generator.state)
        state["state"] = dict(zip(("state", "inc"), numbers, strict=True))
        self.rng.bit_generator.state = state
