"""Peak FLOP/s of GPUs by name. No torch here."""

import re

# Dense bfloat16 tensor-core peak in TFLOP/s, accumulated in float32, without sparsity, from the vendor's data sheets.
# GPUs that cannot compute in bfloat16 (V100, T4) are left out. The first entry that a device's name contains counts.
PEAK_TFLOPS = {
    "H100 PCIe": 756, "H100": 989, "H200": 989, "GH200": 989,
    "A100": 312, "A40": 149.7, "A10G": 70, "A10": 125,
    "L40S": 362, "L40": 181, "L4": 121,
    "RTX 5090": 209.5, "RTX 4090": 165.2, "RTX 3090": 71,
}  # fmt: skip
SLOWER = re.compile(r"Laptop|Max-Q|NVL| D\b")  # another chip under nearly the same name


def tflops_of(name: str) -> float | None:
    """Return the bfloat16 peak of a GPU in TFLOP/s, or None. Entries match whole words: an A1000 is no A100."""
    if SLOWER.search(name):
        return None
    return next((float(peak) for known, peak in PEAK_TFLOPS.items() if re.search(rf"\b{known}\b", name)), None)
