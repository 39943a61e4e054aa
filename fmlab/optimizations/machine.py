"""The machine that a time was taken on, in words."""

import platform
from pathlib import Path

import torch

from ..provenance import device

CPUINFO = Path("/proc/cpuinfo")


def machine() -> str:
    """Device, make of the processor where the system tells it, and the threads that torch computes with."""
    threads = torch.get_num_threads()
    words = [device(), _processor(), f"torch on {threads} thread{'s' if threads > 1 else ''}"]
    return ", ".join(filter(None, words))


def _processor() -> str:
    if CPUINFO.is_file():
        for line in CPUINFO.read_text("utf-8", "replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor()
