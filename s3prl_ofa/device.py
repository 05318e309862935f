"""Where a model is to run."""

from s3prl_ofa.errors import UsageError


def check_device(name: str) -> None:
    """Raises UsageError for a device that is unknown, not there, or holds no data."""
    import torch

    try:
        torch.zeros(1, device=name).tolist()  # read back, because meta is a device too
    except (RuntimeError, AssertionError) as error:
        detail = str(error).splitlines()[0]
        raise UsageError(f"--device {name} cannot be used ({detail}); expected cpu, cuda, cuda:1, ...") from None
