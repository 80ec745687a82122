"""The one module nnU-Net's trainer search reads: it offers the names of ``trainers.__all__``, no others.

The classes keep their importable home, so that they pickle and stay the same object at every look-up.
"""

import warnings

try:
    import trainers
except ModuleNotFoundError as error:
    # The variable can reach the Python of another environment, which has no plugin: stay silent there.
    if error.name != "trainers":
        raise
else:
    if getattr(trainers, "__distribution__", None) == "nnunet-imbal":
        globals().update({name: getattr(trainers, name) for name in trainers.__all__})
    else:
        found = trainers.__file__ or list(trainers.__path__)
        warnings.warn(
            f"The package 'trainers' of nnunet-imbal is hidden by {found}: "
            "rename that file or folder, or take its parent out of PYTHONPATH; "
            "until then nnU-Net does not find ImbalTrainer.",
            RuntimeWarning,
            stacklevel=1,
        )
