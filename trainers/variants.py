"""Named variants of `ImbalTrainer`: one class, one recipe, so that results folders tell what was trained."""

from trainers.imbal_trainer import ImbalTrainer

__all__ = [
    "ImbalTrainerCC",
    "ImbalTrainerCCSampler",
    "ImbalTrainerSampler",
    "ImbalTrainer_5epochs",
    "ImbalTrainer_demo",
]


class ImbalTrainerCC(ImbalTrainer):
    """Dice + CE + CC-Dice, also when `ImbalTrainer` one day chooses its terms from the data."""

    imbal = {"terms": [{"loss": "cc_dice"}]}  # noqa: RUF012


class ImbalTrainerSampler(ImbalTrainer):
    """Stock loss; forced patches balanced over classes and instances (`nnunet_imbal.sampling`)."""

    imbal = {"terms": [], "sampling": {}}  # noqa: RUF012


class ImbalTrainerCCSampler(ImbalTrainer):
    """Dice + CE + CC-Dice on patches balanced over classes and instances."""

    imbal = {"terms": [{"loss": "cc_dice"}], "sampling": {}}  # noqa: RUF012


class ImbalTrainer_5epochs(ImbalTrainer):
    """`ImbalTrainer` for five epochs, to see whether everything runs."""

    epochs = 5


class ImbalTrainer_demo(ImbalTrainer):
    """`ImbalTrainer` for minutes on a CPU, as ``nnunet-imbal demo`` uses it."""

    epochs = 5
    iterations = 40
    val_iterations = 2
