"""Short trainers with a teacher, found by nnU-Net like those beside them."""

from imbal_smoke_trainers import ImbalTrainerSeeded

from trainers import ImbalTrainerSemi, ImbalTrainerSemiSCDL


class ImbalTrainerSemiSmoke(ImbalTrainerSemi):
    epochs = 1
    iterations = 2
    val_iterations = 1


class ImbalTrainerSemiSCDLSmoke(ImbalTrainerSemiSCDL):
    epochs = 1
    iterations = 2
    val_iterations = 1


class ImbalTrainerSemiSCDLSeeded(ImbalTrainerSeeded, ImbalTrainerSemiSCDL):
    """Draws the same patches and the same noise in the same epoch."""

    imbal = ImbalTrainerSemiSCDL.imbal
    epochs = 2
