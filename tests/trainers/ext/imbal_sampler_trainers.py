"""Short trainers with balanced sampling, found by nnU-Net like those beside them."""

from trainers import ImbalTrainerCCSampler, ImbalTrainerSampler


class ImbalTrainerSamplerSmoke(ImbalTrainerSampler):
    epochs = 1
    iterations = 2
    val_iterations = 1


class ImbalTrainerCCSamplerSmoke(ImbalTrainerCCSampler):
    epochs = 1
    iterations = 2
    val_iterations = 1
