"""What devices can do."""

import pytest

from relu_sparsity.hardware import GIB, HARDWARE


@pytest.mark.parametrize(
    ("device_kind", "expected"),
    [("TPU v2", 23e12), ("TPU v4", 275e12), ("TPU v5 lite", 197e12), ("NVIDIA H200", 989e12)],
)
def test_known_devices_have_a_peak(device_kind, expected):
    assert HARDWARE[device_kind].peak_flops == expected


@pytest.mark.parametrize("device_kind", HARDWARE)
def test_units_are_not_mixed_up(device_kind):
    hardware = HARDWARE[device_kind]
    assert 2e13 < hardware.peak_flops < 1.2e15
    assert 3e11 < hardware.bandwidth < 5e12
    assert 7 * GIB < hardware.hbm < 140 * GIB
    assert 50 < hardware.peak_flops / hardware.bandwidth < 600, "FLOPs per byte"
