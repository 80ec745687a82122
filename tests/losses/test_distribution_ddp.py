"""SCDL and label proportion in two processes that talk over gloo: the answer of one process with the whole batch."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from nnunet_imbal.labels import LabelSpec
from nnunet_imbal.losses import SCDL, LabelProportion
from nnunet_imbal.proportions import collect_proportions

pytestmark = [pytest.mark.slow, pytest.mark.ddp]
MODULES = ("balanced", "released", "regions", "interval", "kl")
BANK = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.1, 0.1], [1.0, 0.0, 0.0]])


def build(name):
    torch.manual_seed(0)
    if name in ("interval", "kl"):
        return LabelProportion(BANK, penalty=name)
    form = "released" if name == "released" else "balanced"
    words = {"embedding": 8, "token_size": 2, "dropout": 0.0, "regions": name == "regions"}
    return SCDL(3, 3, form=form, **words).double()


def batch(name, step):
    """Four samples. The first two are background alone; of the last two, the first has no labels."""
    generator = torch.Generator().manual_seed(step)
    values = torch.randn(4, 3, 4, 4, 4, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 3, (4, 1, 4, 4, 4), generator=generator)
    target[:2], mask = 0, torch.ones(4, 1, 4, 4, 4)
    mask[2] = 0
    if name == "regions":
        target = torch.cat([target >= number for number in (1, 2, 3)], 1)
    return values, target, mask


def step_of(module, name, number, part=slice(None)):
    """Loss, gradient of the input and of the parameters, and state after one step."""
    values, target, mask = (each[part] for each in batch(name, number))
    values.requires_grad_()
    module.zero_grad()
    torch.manual_seed(number)  # equal samples of the class distributions
    loss = module(values, mask) if name in ("interval", "kl") else module(values, target, mask)
    loss.backward()
    return loss.detach(), values.grad, [p.grad.clone() for p in module.parameters()]


def _rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    part = slice(2 * rank, 2 * rank + 2)
    for name in MODULES:
        module = build(name)
        wrapped = DistributedDataParallel(module) if list(module.parameters()) else module
        results = [step_of(wrapped, name, number, part) for number in range(2)]
        torch.save((results, module.state_dict()), f"{folder}/{name}{rank}.pt")
    targets = [torch.full((1, 1, 2, 2), rank)] * 5
    torch.save(collect_proportions(targets, LabelSpec(), 2, patches=4), f"{folder}/bank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("ranks")
    mp.spawn(_rank, args=(str(path),), nprocs=2, join=True)
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODULES)
def test_two_ranks_equal_one(folder, name):
    module = build(name)
    ranks = [torch.load(folder / f"{name}{rank}.pt") for rank in range(2)]
    for number in range(2):
        loss, values, parameters = step_of(module, name, number)
        both = [results[number] for results, _ in ranks]
        # DistributedDataParallel divides the network's gradients by two, as it does those of the module's parameters.
        torch.testing.assert_close(torch.cat([grad for _, grad, _ in both]) / 2, values)
        for found, _, grads in both:
            torch.testing.assert_close(found, loss)
            torch.testing.assert_close(grads, parameters)
    for _, state in ranks:
        torch.testing.assert_close(state, dict(module.state_dict()))


@pytest.mark.filterwarnings("ignore")
def test_every_rank_gets_the_whole_bank(folder):
    banks = [torch.load(folder / f"bank{rank}.pt") for rank in range(2)]
    assert torch.equal(*banks)
    assert banks[0].tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]
