"""Kernels: numpy arrays in, numpy arrays out."""

__distribution__ = "nnunet-imbal"
