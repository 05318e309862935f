"""The device that a model runs on, by its name, and measuring time on it."""

import pathlib
import platform
import time
from typing import TYPE_CHECKING

from s3prl_ofa.errors import UsageError

if TYPE_CHECKING:
    import torch

AUTO = "auto"


def resolve_device(name: "str | torch.device") -> "torch.device":
    """The device called ``name``; ``auto`` is ``cuda`` if there is a GPU, else ``cpu``.

    Raises UsageError for a device that is unknown, missing, or holds no data (``meta``).
    """
    import torch

    if name == AUTO:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    expected = f"expected {AUTO}, cpu, cuda, cuda:1, ..."
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise UsageError(f"device {name} is unknown; {expected}") from None
    try:
        torch.zeros(1, device=name).tolist()  # read back, because the meta device accepts everything
    except (RuntimeError, AssertionError, TypeError) as error:
        raise UsageError(f"device {name} cannot be used ({str(error).splitlines()[0]}); {expected}") from None
    return device


def device_name(device: "torch.device") -> str:
    """The name of the GPU, or of the processor with the instructions that torch's kernels use on it, as ``AVX2``: a
    virtual machine may give processors of several generations the same name."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor_name()} ({torch.backends.cpu.get_cpu_capability()})"


def processor_name() -> str:
    return cpuinfo("model name") or platform.processor() or platform.machine()


def cpuinfo(key: str) -> str:
    """An entry of the first processor in /proc/cpuinfo; empty where there is none."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")


def now(device: "torch.device") -> float:
    """The time in seconds, read after the device has finished its queued work."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def fastest_dtype(device: "torch.device") -> "torch.dtype":
    """bfloat16 where ``device`` has instructions for it, float32 elsewhere."""
    import torch

    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32
