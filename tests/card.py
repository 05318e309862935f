"""A fake GPU: finds where tensors of two devices meet, on a machine with one device.

Inside ``with Card() as card`` marked tensors count as CUDA tensors. All of torch's functions are watched: results of
marked tensors are marked, ``device`` and ``to`` follow the mark, and a function that gets both kinds raises, as torch
does on a GPU.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

CUDA = torch.device("cuda", 0)
MOVES = (Tensor.to, Tensor.cpu, Tensor.cuda)
# Indices on the host are taken for a tensor on the card.
MAY_MIX = (Tensor.__getitem__, Tensor.__setitem__)


def mark(tensor: Tensor) -> Tensor:
    tensor.on_card = True
    return tensor


def on_card(value: Any) -> bool:
    return getattr(value, "on_card", False)


def named_device(arguments: list[Any]) -> torch.device | None:
    """The device among the arguments of a function: itself, its name, or a tensor that stands for it."""
    for value in arguments:
        if isinstance(value, torch.device):
            return value
        if isinstance(value, str) and value.partition(":")[0] in ("cpu", "cuda"):
            return torch.device(value)
        if isinstance(value, Tensor):
            return CUDA if on_card(value) else torch.device("cpu")
    return None


class Card(TorchFunctionMode):
    def move(self, module: nn.Module) -> nn.Module:
        """The module with its parameters on the card."""
        for parameter in module.parameters():
            mark(parameter)
        return module

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function == Tensor.device.__get__:
            return CUDA if on_card(args[0]) else function(*args)
        if function in MOVES:
            return self.moved(function, args, kwargs)
        if function is Tensor.numpy and on_card(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        asked = kwargs.pop("device", None)
        tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        here = {on_card(tensor) for tensor in tensors if on_card(tensor) or tensor.dim()}
        if len(here) > 1 and function not in MAY_MIX:
            raise RuntimeError(
                f"{function.__name__}: expected all tensors to be on the same device, found cuda and cpu"
            )
        result = function(*args, **kwargs)
        card = True in here if asked is None else torch.device(asked).type == "cuda"
        for value in tree_flatten(result)[0] if card else ():
            if isinstance(value, Tensor):
                mark(value)
        return result

    @staticmethod
    def moved(function, args, kwargs):
        tensor, *rest = args
        if function is not Tensor.to:
            target = CUDA if function is Tensor.cuda else torch.device("cpu")
            return mark(tensor.view_as(tensor)) if target.type == "cuda" else tensor.view_as(tensor)
        target = named_device([*rest, *kwargs.values()])
        dtypes = [value for value in [*rest, *kwargs.values()] if isinstance(value, torch.dtype)]
        dtypes += [value.dtype for value in rest if isinstance(value, Tensor)]
        result = tensor.to(dtypes[0]) if dtypes else tensor
        result = result.view_as(result)
        return mark(result) if (on_card(tensor) if target is None else target.type == "cuda") else result
