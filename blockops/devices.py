"""Which device to run on."""

import torch

from ._checks import check_int


def try_gpu(i: int = 0) -> torch.device:
    """The CUDA device of index i where it exists, the CPU otherwise.

    Raises TypeError for an i that is no int, ValueError for a negative one.
    """
    check_int("try_gpu", "i", i)
    if i < 0:
        raise ValueError(f"try_gpu: i must be at least 0, got {i}")
    return torch.device("cuda", i) if i < torch.cuda.device_count() else torch.device("cpu")


def try_all_gpus() -> list[torch.device]:
    """All CUDA devices in the order of their indices, or the CPU alone where there is none."""
    return [try_gpu(i) for i in range(max(1, torch.cuda.device_count()))]
