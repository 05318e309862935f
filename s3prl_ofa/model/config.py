"""The configuration of a model: everything that is needed to run it except its weights."""

import dataclasses
import math
from typing import TYPE_CHECKING, Any, TypeVar

from s3prl_ofa.errors import shown

if TYPE_CHECKING:
    from torch import Tensor

Samples = TypeVar("Samples", int, "Tensor")

SAMPLE_RATE = 16_000  # Hz
MOST_POOLED = 1000  # frames averaged into one: 20 s
MIN_FRAME_PERIOD_MS = 20.0  # the frame period of the convolutional front end
# (channels, kernel, stride) of the seven convolutions of wav2vec 2.0 (arXiv 2006.11477): receptive field 400, hop 320
WAV2VEC2_CONV_LAYERS = ((512, 10, 5), *((512, 3, 2),) * 4, *((512, 2, 2),) * 2)


def is_whole(value: Any) -> bool:
    """Whether ``value`` is a whole number above 0; a boolean is not."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A wav2vec 2.0, with or without the compressor. Defaults are those of Base without a compressor.

    Raises ValueError naming the field whose value is not valid.
    """

    conv_layers: tuple[tuple[int, int, int], ...] = WAV2VEC2_CONV_LAYERS  # (channels, kernel, stride) each
    conv_norm: str = "group"  # "group": GroupNorm on the first convolution (Base); "layer": LayerNorm on each (Large)
    conv_bias: bool = False
    projection: bool = True  # a Linear between the front end and the encoder (fairseq leaves it out for equal widths)
    dim: int = 768
    ffn_dim: int = 3072
    heads: int = 12
    layers: int = 12
    pre_norm: bool = False  # LayerNorm before each block (Large) instead of after it (Base)
    pos_conv_kernel: int = 128
    pos_conv_groups: int = 16
    activation: str = "gelu"  # of the feed-forward blocks: "gelu" or "relu"
    normalize: bool = False  # each wave is brought to mean 0 and variance 1 first
    compressor: str = "none"  # "cif" or "none"
    pooling: int = 1  # number of frames averaged into one before the encoder (the reference's subsample: fixed)

    def __post_init__(self) -> None:
        layers: Any = self.conv_layers  # a file may hold anything
        triples = isinstance(layers, list | tuple) and all(isinstance(layer, list | tuple) for layer in layers)
        layers = tuple(map(tuple, layers)) if triples else ()
        whole = all(is_whole(value) for layer in layers for value in layer)
        if not layers or not whole or any(len(layer) != 3 for layer in layers):
            found = shown(self.conv_layers)
            raise ValueError(f"conv_layers must be (channels, kernel, stride) triples above 0, found {found}")
        object.__setattr__(self, "conv_layers", layers)
        if any(kernel < stride for _, kernel, stride in layers):
            raise ValueError(f"conv_layers must have kernels at least as long as their strides, found {shown(layers)}")
        for name, choices in {
            "conv_norm": ("group", "layer"),
            "activation": ("gelu", "relu"),
            "compressor": ("cif", "none"),
        }.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, found {shown(getattr(self, name))}")
        for name in ("conv_bias", "projection", "pre_norm", "normalize"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, found {shown(getattr(self, name))}")
        for name in ("dim", "ffn_dim", "heads", "layers", "pos_conv_kernel", "pos_conv_groups", "pooling"):
            if not is_whole(getattr(self, name)):
                raise ValueError(f"{name} must be a whole number above 0, found {shown(getattr(self, name))}")
        for name in ("heads", "pos_conv_groups"):
            if self.dim % getattr(self, name):
                raise ValueError(f"dim {self.dim} must be a multiple of {name} {getattr(self, name)}")
        if self.pooling > MOST_POOLED:
            raise ValueError(f"pooling must be at most {MOST_POOLED}, found {self.pooling}")
        if self.pooling > 1 and self.compressor != "none":
            raise ValueError(f"pooling must be 1 with a compressor, found {self.pooling}")
        if not self.projection and self.conv_dim != self.dim:
            raise ValueError(
                "without a projection (post_extract_proj) conv_layers must end with dim "
                f"{self.dim}, found {self.conv_dim}"
            )

    @property
    def conv_dim(self) -> int:
        """Width of the front end's output."""
        return self.conv_layers[-1][0]

    @property
    def hop(self) -> int:
        """Samples between the starts of two frames of the front end (320)."""
        return math.prod(stride for _, _, stride in self.conv_layers)

    @property
    def receptive_field(self) -> int:
        """Samples that one frame of the front end sees (400)."""
        field = 1
        for _, kernel, stride in reversed(self.conv_layers):
            field = (field - 1) * stride + kernel
        return field

    def num_frames(self, samples: Samples) -> Samples:
        """Frames of the front end for this many samples, an int or an integer tensor."""
        return (samples - self.receptive_field) // self.hop + 1

    def pooled(self, frames: Samples) -> Samples:
        """Frames of the encoder at lambd 0 for this many of the front end; the last may be a mean of fewer frames."""
        return -(-frames // self.pooling)

    @property
    def frame_period_ms(self) -> float:
        """The frame period at lambd 0, in ms."""
        return MIN_FRAME_PERIOD_MS * self.pooling

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; ``ModelConfig.from_dict`` is the inverse.

        A pooling of 1 is left out, so that files and fingerprints are those of versions that do not know the field.
        """
        return {key: value for key, value in dataclasses.asdict(self).items() if (key, value) != ("pooling", 1)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelConfig":
        """The inverse of ``to_dict``. Raises ValueError for unknown keys and values that are not valid."""
        if not isinstance(values, dict):
            raise ValueError(f"expected the fields of a model config, found {shown(values)}")
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"unknown model config keys {shown(unknown)}")
        return cls(**values)
