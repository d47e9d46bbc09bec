"""What each kind of device can do, by the name that JAX gives it."""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Hardware:
    """What one device can do.

    Attributes:
      unit: What JAX calls a device of this kind.
      peak_flops: FLOP/s of dense bfloat16 matrix products.
      bandwidth: Bytes/s between the device and its HBM.
      hbm: Bytes of HBM that a program can use. For TPUs what the compiler allows (libtpu 0.0.42),
        which is 0.25 to 1.25 GiB less than there is; for GPUs all there is.
    """

    unit: str
    peak_flops: float
    bandwidth: float
    hbm: float


_V5E = Hardware("chip", 197e12, 819e9, 15.75 * GIB)
_V5P = Hardware("chip", 459e12, 2765e9, 95.74 * GIB)
_V6E = Hardware("chip", 918e12, 1638e9, 31.25 * GIB)

# v2: Norrie et al., `The Design Process for Google's Training Chips: TPUv2 and TPUv3`, 2021, Table
# 1. Later TPUs: Google Cloud's documentation, one page per version. GPUs: NVIDIA's data sheets,
# without sparsity. A chip of v2, v3 and 7x is two devices, which halves the chip's numbers.
HARDWARE = {
    "TPU v2": Hardware("core", 46e12 / 2, 700e9 / 2, 7.48 * GIB),
    "TPU v3": Hardware("core", 123e12 / 2, 900e9 / 2, 15.48 * GIB),
    "TPU v4": Hardware("chip", 275e12, 1200e9, 30.75 * GIB),
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    "TPU7x": Hardware("core", 2307e12 / 2, 7380e9 / 2, 94.75 * GIB),
    "NVIDIA A100-SXM4-40GB": Hardware("GPU", 312e12, 1555e9, 40e9),
    "NVIDIA A100-SXM4-80GB": Hardware("GPU", 312e12, 2039e9, 80e9),
    "NVIDIA H100 80GB HBM3": Hardware("GPU", 989e12, 3350e9, 80e9),
    "NVIDIA H200": Hardware("GPU", 989e12, 4800e9, 141e9),
}
