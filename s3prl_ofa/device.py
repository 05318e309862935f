"""The device that a model runs on, from its name."""

from typing import TYPE_CHECKING

from s3prl_ofa.errors import UsageError

if TYPE_CHECKING:
    import torch

AUTO = "auto"


def resolve_device(name: "str | torch.device") -> "torch.device":
    """The device called ``name``; ``auto`` is ``cuda`` where there is a GPU and ``cpu`` elsewhere.

    Raises UsageError for a device that is unknown, missing, or holds no data (``meta``).
    """
    import torch

    if name == AUTO:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).tolist()  # read back, because the meta device accepts everything
        return torch.device(name)
    except (RuntimeError, AssertionError, TypeError) as error:
        detail = str(error).splitlines()[0]
        raise UsageError(f"device {name} cannot be used ({detail}); expected {AUTO}, cpu, cuda, cuda:1, ...") from None
