"""What a CPU can do that decides a variant."""

from __future__ import annotations

# /proc/cpuinfo's words, by the name that manifests use.
_FEATURES = {
    "avx2": ("avx2",),
    "vnni": ("avx512_vnni", "avx_vnni"),  # int8 dot products that do not saturate
    "dotprod": ("asimddp",),
}


def cpu_features(cpuinfo: str) -> list[str]:
    """The features in the text of `/proc/cpuinfo` that manifests may require."""
    words = {
        word
        for line in cpuinfo.splitlines()
        if line.lower().startswith(("flags", "features"))
        for word in line.partition(":")[2].split()
    }
    return [feature for feature, names in _FEATURES.items() if not words.isdisjoint(names)]
