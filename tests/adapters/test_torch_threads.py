"""PyTorch: one model in evaluation that several threads use at once answers each as it would answer it alone."""

import copy
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch_models import capped_layers, convolutions, image_flow, images, nn, samples, torch, vector_flow

from iresnet_core.adapters.shared.weight import MOST_SIZES
from iresnet_core.adapters.torch import ActNorm, Flow, InvertibleResidual

THREADS = 8


@pytest.fixture(autouse=True)
def _switching_often():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def enlarged(model):
    with torch.no_grad():
        for layer, _ in capped_layers(model):
            layer.parametrizations.weight.original.mul_(4)
    return model


def answered_at_once(ask, questions, rounds):
    """Answers of threads that begin with different questions, in the order of the questions."""

    def work(k):
        with torch.no_grad():
            turns = [(k + r) % len(questions) for r in range(rounds)]
            return [(turn, ask(questions[turn])) for turn in turns]

    with ThreadPoolExecutor(THREADS) as pool:
        return [answer for answers in pool.map(work, range(THREADS)) for answer in answers]


@pytest.mark.parametrize(
    "sizes", [[(4, 4), (5, 5), (6, 7), (3, 9)], [(6, 6), (4, 9), (3, 12), (2, 18)]], ids=["other", "equal"]
)
@pytest.mark.parametrize("name", ["forward", "inverse"])
def test_a_convolutional_block_at_several_sizes(sizes, name):
    """Of other, and of equal, numbers of pixels."""
    torch.manual_seed(0)
    block = enlarged(InvertibleResidual(convolutions(3)).eval())
    questions = [torch.rand(2, 3, *size) for size in sizes]
    with torch.no_grad():
        alone = [getattr(copy.deepcopy(block), name)(x) for x in questions]
    for turn, answer in answered_at_once(getattr(block, name), questions, 5):
        assert torch.equal(answer, alone[turn])


@pytest.mark.parametrize(("make", "x"), [(lambda: vector_flow(8), samples(16, 8)), (image_flow, images(8))])
def test_a_flow_scores_inverts_and_samples(make, x):
    """From weights that nothing has certified yet, so that all threads begin with that."""
    flow = enlarged(make().initialize(x)).eval()

    def ask(batch):
        z, logdet = flow(batch)
        return torch.cat([flow.log_prob(batch), logdet, flow.inverse(z).ravel(), flow.sample(2, rng=1).ravel()])

    questions = list(x.split(4))
    with torch.no_grad():
        alone = [ask(batch) for batch in questions]
    flow.train().eval()  # forgets the chains
    for _, cap in capped_layers(flow):
        cap.kept = None
    for turn, answer in answered_at_once(ask, questions, 4):
        assert torch.equal(answer, alone[turn])


def test_two_flows_with_images_of_different_sizes_share_a_block():
    torch.manual_seed(0)
    block = enlarged(InvertibleResidual(convolutions(2)).eval())
    flows = [Flow([ActNorm(2), block], (2, n, n)).eval() for n in (3, 6)]
    alone = [Flow([ActNorm(2), copy.deepcopy(block)], (2, n, n)).eval() for n in (3, 6)]
    for flow, other, n in zip(flows, alone, (3, 6), strict=True):
        x = torch.rand(2, 2, n, n)
        for training in (False, True):
            torch.testing.assert_close(flow.encode(x, training=training), other.encode(x, training=training))


def test_certificates_of_few_sizes_are_kept():
    block = InvertibleResidual(nn.Sequential(nn.Conv2d(1, 1, 3, padding=1))).eval()
    with torch.no_grad():
        for n in range(3, 3 + 2 * MOST_SIZES):
            block(torch.rand(1, 1, n, n))
        ((_, cap),) = capped_layers(block)
        assert len(cap.kept.found) == len(block._kept.chains) == MOST_SIZES
        last = cap.kept
        block(torch.rand(1, 1, n, n))
        assert cap.kept is last
        enlarged(block)
        block(torch.rand(1, 1, n, n))
        assert len(cap.kept.found) == len(block._kept.chains) == 1
