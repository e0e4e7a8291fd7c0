"""The flow that `iresnet train` trains, with its savings on or off, and the residual flow of normflows of that size.

Ours is trained by the optimiser of its settings, and normflows by Adam, with clipped gradients and on prepared samples.
"""

import numpy as np
import torch
from torch import nn

import iresnet_core
from iresnet_core.adapters.torch.training import Trainer
from iresnet_core.training import planned_layers

CHUNK = 250  # samples that are scored at once


class Ours:
    """The flow of a run with these settings; `options` are those of its loss."""

    def __init__(self, settings, shape, first, *, checkpoint=False, **options):
        self.trainer = Trainer(planned_layers(settings.model, shape), first.shape[1:], settings.training, first)
        self.rate, self.options = settings.training.lr, options
        if checkpoint:
            self.trainer.flow.checkpoint = True

    def step(self, x, lr):
        """One step as `iresnet train` takes it."""
        flow = self.trainer.flow.train()
        flow.zero_grad(set_to_none=True)
        loss = flow.training_loss(torch.from_numpy(x), **self.options)
        loss.backward()
        self.trainer.update(loss.detach(), lr)

    def scores(self, x):
        """Log-densities under the certified weights; exact for vectors."""
        parts = [self.trainer.log_prob(x[i : i + CHUNK], i) for i in range(0, len(x), CHUNK)]
        return np.concatenate(parts).astype(np.float64)


class Peer:
    """The residual flow of normflows with its defaults, but the constant of ours; images at the same two scales."""

    def __init__(self, settings, shape, first, rate):
        import normflows as nf

        from iresnet_core.adapters.torch.peers.normflows import Stages

        model = settings.model
        self.nf, self.rate, self.clip = nf, rate, settings.training.clip
        self.logit = None if model.alpha is None else iresnet_core.Logit(model.alpha)
        self.image = first.ndim == 4
        torch.manual_seed(settings.training.seed)
        ends = first.shape[1:2]
        if self.image:
            channels, height, width = shape
            ends = [4 * channels] if height % 4 or width % 4 else [4 * channels, 8 * channels]
        self.stages = Stages((self._stage(model, end) for end in ends), self.image)
        with torch.no_grad():
            self._log_prob(first)  # initialises the ActNorms
        self.optimizer = torch.optim.Adam(self.stages.parameters(), lr=rate)

    def _stage(self, model, end):
        """Layers of one scale."""
        nf, widths = self.nf, [end, *(model.hidden,) * model.layers, end]
        cap = model.coeff ** (1 / (model.layers + 1))
        norm = (end, 1, 1) if self.image else end
        for _ in range(model.blocks):
            yield nf.flows.ActNorm(norm)
            if self.image:
                net = nf.nets.LipschitzCNN(widths, [3] + [1] * (model.layers - 1) + [3], lipschitz_const=cap)
            else:
                net = nf.nets.LipschitzMLP(widths, lipschitz_const=cap)
            yield nf.flows.Residual(net, reduce_memory=True)
        yield nf.flows.ActNorm(norm)

    def _log_prob(self, x, exact=False):
        """Log-densities, differentiable in training mode."""
        x, total = np.asarray(x), 0.0
        if self.logit is not None:
            out = self.logit.forward(x)
            x, total = out.value, torch.from_numpy(np.asarray(out.logdet.value))
        return self.stages.inverted(torch.from_numpy(np.asarray(x)), exact) + total

    def step(self, x, lr):
        """One step, as the library's documentation has it."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.stages.train()
        self.optimizer.zero_grad(set_to_none=True)
        (-self._log_prob(x).mean()).backward()
        nn.utils.clip_grad_norm_(self.stages.parameters(), self.clip)
        self.optimizer.step()
        self.nf.utils.update_lipschitz(self.stages, 5)

    @torch.no_grad()
    def scores(self, x):
        """Log-densities; exact for vectors, for images by the library's estimate for evaluation."""
        self.stages.eval()
        parts = [self._log_prob(x[i : i + CHUNK], exact=not self.image) for i in range(0, len(x), CHUNK)]
        return torch.cat(parts).double().numpy()
