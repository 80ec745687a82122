"""Two processes that talk over gloo: one sees only background, nobody waits for ever, both get equal gradients."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

pytestmark = [pytest.mark.slow, pytest.mark.ddp]
STEPS = 20
LOSSES = ("cc_dice", "cc_dice_ce", "blob_dice", "instance_ce", "cat_tversky", "lesion_mil")


class TwoLevels(nn.Module):
    """The smallest network with two resolutions."""

    def __init__(self):
        super().__init__()
        self.body, self.coarse = nn.Conv3d(1, 3, 3, padding=1), nn.Conv3d(3, 3, 2, stride=2)

    def forward(self, image):
        fine = self.body(image)
        return [fine, self.coarse(fine)]


def _rank(rank, folder, base):
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    from nnunet_imbal.config import ImbalConfig
    from nnunet_imbal.labels import LabelSpec
    from trainers._adapter import ImbalLoss, build_terms

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    network = DistributedDataParallel(TwoLevels())
    options = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": True}
    host = DC_and_CE_loss(options, {}, weight_ce=1, weight_dice=1, dice_class=MemoryEfficientSoftDiceLoss)
    host = DeepSupervisionWrapper(host, (1, 1e-6)) if base == "nnunet" else None
    config = ImbalConfig.from_dict({"base": base, "terms": [{"loss": name, "weight": 0.2} for name in LOSSES]})
    loss = ImbalLoss(host, build_terms(config, LabelSpec(), (1.0, 1.0, 1.0), {}), LabelSpec())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for step in range(STEPS):
        labels = torch.zeros(1, 1, 8, 8, 8)
        labels[..., 2:5, 2:5, 2:5] = rank  # rank 0 never sees a lesion
        image = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(100 * step + rank))
        optimizer.zero_grad()
        loss(network(image), [labels, labels[..., ::2, ::2, ::2]]).backward()
        optimizer.step()
    gradients = torch.cat([p.grad.flatten() for p in network.parameters()])
    others = [torch.empty_like(gradients) for _ in range(2)]
    dist.all_gather(others, gradients)
    assert torch.equal(*others)
    assert gradients.abs().sum() > 0
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("base", ["nnunet", "none"])
def test_R44_one_rank_without_foreground(tmp_path, base):
    mp.spawn(_rank, args=(str(tmp_path), base), nprocs=2, join=True)
