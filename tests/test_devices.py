"""try_gpu and try_all_gpus with no, one and three CUDA devices, and with those of the machine."""

import pytest
import torch

import blockops

CPU = torch.device("cpu")


@pytest.fixture(params=[0, 1, 3])
def count(request, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)
    return request.param


def test_try_gpu(count):
    for i in range(5):
        expected = torch.device("cuda", i) if i < count else CPU
        assert blockops.try_gpu(i) == expected
    assert blockops.try_gpu() == blockops.try_gpu(0)


def test_try_all_gpus(count):
    assert blockops.try_all_gpus() == ([torch.device("cuda", i) for i in range(count)] or [CPU])


def test_the_devices_of_this_machine():
    devices = blockops.try_all_gpus()
    assert len(devices) == max(1, torch.cuda.device_count())
    assert devices[0] == blockops.try_gpu()
    for device in devices:
        assert torch.ones(2, device=device).sum() == 2
    assert blockops.try_gpu(torch.cuda.device_count()) == CPU


@pytest.mark.parametrize(
    ("i", "error", "message"),
    [
        (-1, ValueError, "try_gpu: i must be at least 0, got -1"),
        (0.0, TypeError, "try_gpu: i must be an int, got float"),
        (True, TypeError, "try_gpu: i must be an int, got bool"),
        (None, TypeError, "try_gpu: i must be an int, got NoneType"),
    ],
)
def test_refusals(i, error, message):
    with pytest.raises(error) as raised:
        blockops.try_gpu(i)
    assert str(raised.value) == message
