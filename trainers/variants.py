"""Named variants of `ImbalTrainer`: one class, one recipe, so that results folders tell what was trained."""

from trainers.imbal_trainer import ImbalTrainer

__all__ = [
    "ImbalTrainerAGTAL",
    "ImbalTrainerAGTAL_5epochs",
    "ImbalTrainerBlob",
    "ImbalTrainerCATMIL",
    "ImbalTrainerCC",
    "ImbalTrainerCCSampler",
    "ImbalTrainerCbDice",
    "ImbalTrainerCbDice_5epochs",
    "ImbalTrainerClDice",
    "ImbalTrainerClDice_5epochs",
    "ImbalTrainerSCNP",
    "ImbalTrainerSCNP_5epochs",
    "ImbalTrainerSampler",
    "ImbalTrainerSkeletonRecall",
    "ImbalTrainerSkeletonRecall_5epochs",
    "ImbalTrainer_5epochs",
    "ImbalTrainer_demo",
]


class ImbalTrainerCC(ImbalTrainer):
    """Dice + CE + CC-Dice, whatever the data look like."""

    imbal = {"terms": [{"loss": "cc_dice"}]}  # noqa: RUF012


class ImbalTrainerBlob(ImbalTrainer):
    """Dice + CE + blob loss with Dice: each lesion against the background, the other lesions hidden."""

    imbal = {"terms": [{"loss": "blob_dice"}]}  # noqa: RUF012


class ImbalTrainerCATMIL(ImbalTrainer):
    """Dice + CE + CATMIL with its published weights: component-adaptive Tversky warmed up, lesion MIL at 0.2."""

    imbal = {  # noqa: RUF012
        "terms": [
            {"loss": "cat_tversky", "weight": 0.1, "ramp_epochs": 50},
            {"loss": "lesion_mil", "weight": 0.2},
        ]
    }


class ImbalTrainerSampler(ImbalTrainer):
    """Stock loss; forced patches balanced over classes and instances (`nnunet_imbal.sampling`)."""

    imbal = {"terms": [], "sampling": {}}  # noqa: RUF012


class ImbalTrainerCCSampler(ImbalTrainer):
    """Dice + CE + CC-Dice on patches balanced over classes and instances."""

    imbal = {"terms": [{"loss": "cc_dice"}], "sampling": {}}  # noqa: RUF012


class ImbalTrainerClDice(ImbalTrainer):
    """Dice + CE + clDice: gaps in vessels cost more."""

    imbal = {"terms": [{"loss": "cldice", "kwargs": {"alpha": 1.0}}], "mirroring": "auto"}  # noqa: RUF012


class ImbalTrainerCbDice(ImbalTrainer):
    """Dice + CE + cbDice: centre lines weighted by calibre."""

    imbal = {"terms": [{"loss": "cbdice"}], "mirroring": "auto"}  # noqa: RUF012


class ImbalTrainerSkeletonRecall(ImbalTrainer):
    """Dice + CE + Skeleton Recall: no centre line may be missed."""

    imbal = {"terms": [{"loss": "skeleton_recall"}], "mirroring": "auto"}  # noqa: RUF012


class ImbalTrainerSCNP(ImbalTrainer):
    """Dice + CE, and the same on penalised logits: one weak voxel spoils all of its class around it."""

    imbal = {"terms": [{"loss": "scnp"}], "mirroring": "auto"}  # noqa: RUF012


class ImbalTrainerAGTAL(ImbalTrainer):
    """Dice + CE + AG-TAL-R with its schedule: radius-aware Dice at once, the terms on topology from epoch 31.

    Which classes never touch, and the range of radii, are learned from the training labels of the fold, stored in plans
    and checkpoints, and overridden by `forbidden` and `radius_range` in the plans.
    """

    imbal = {  # noqa: RUF012
        "terms": [
            {"loss": "radius_dice"},
            {"loss": "agtal", "kwargs": {"radius_dice": 0.0}, "from_epoch": 31},
        ],
        "mirroring": "auto",
    }


class ImbalTrainerClDice_5epochs(ImbalTrainerClDice):
    """`ImbalTrainerClDice` for five epochs, to see whether everything runs."""

    epochs = 5


class ImbalTrainerCbDice_5epochs(ImbalTrainerCbDice):
    """`ImbalTrainerCbDice` for five epochs, to see whether everything runs."""

    epochs = 5


class ImbalTrainerSkeletonRecall_5epochs(ImbalTrainerSkeletonRecall):
    """`ImbalTrainerSkeletonRecall` for five epochs, to see whether everything runs."""

    epochs = 5


class ImbalTrainerSCNP_5epochs(ImbalTrainerSCNP):
    """`ImbalTrainerSCNP` for five epochs, to see whether everything runs."""

    epochs = 5


class ImbalTrainerAGTAL_5epochs(ImbalTrainerAGTAL):
    """`ImbalTrainerAGTAL` for five epochs, all terms from the third on, to see whether everything runs."""

    imbal = {  # noqa: RUF012
        "terms": [
            {"loss": "radius_dice"},
            {"loss": "agtal", "kwargs": {"radius_dice": 0.0}, "from_epoch": 2},
        ],
        "mirroring": "auto",
    }
    epochs = 5


class ImbalTrainer_5epochs(ImbalTrainer):
    """`ImbalTrainer` for five epochs, to see whether everything runs."""

    epochs = 5


class ImbalTrainer_demo(ImbalTrainer):
    """`ImbalTrainer` for minutes on a CPU, as ``nnunet-imbal demo`` uses it."""

    epochs = 5
    iterations = 40
    val_iterations = 2
