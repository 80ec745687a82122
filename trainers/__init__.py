"""nnU-Net adapter: trainers for ``nnUNetv2_train -tr``."""

__distribution__ = "nnunet-imbal"
