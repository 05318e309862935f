"""``s3prl-ofa export CKPT model.onnx``: the whole model as one ONNX file, for runtimes without torch."""

import argparse
import importlib.util
import os
import pathlib
import warnings

from s3prl_ofa.errors import UsageError
from s3prl_ofa.io.files import atomic_path
from s3prl_ofa.output import tell

OPSET = 17  # of ONNX, supported from onnxruntime 1.12 and OpenVINO 2022 on


def run(args: argparse.Namespace) -> int:
    """Returns the exit status. Raises UsageError and CheckpointError."""
    lambd = None if args.lambd_input else args.lambd
    tell(f"written: {export(args.ckpt, args.target, lambd, args.layers, args.force)}")
    return 0


def export(
    ckpt: str | os.PathLike,
    target: str | os.PathLike,
    lambd: float | None = None,
    layers: int | None = None,
    force: bool = False,
) -> pathlib.Path:
    """Writes an ONNX file with the inputs ``wave``, ``length`` and ``lambd``, and returns ``target``.

    ckpt: of any known format. lambd: a fixed rate, instead of the input. layers: how many of the encoder's layers to
    run, all by default. force: overwrite an existing file.

    Inputs: wave (batch, samples) float32, 16 kHz mono; length (batch,) int64, samples of each, at least 400; lambd
    (batch,) float32, each in [0, 2). Outputs: hidden_states (batch, frames, dim) float32, padded with zeros; lengths
    (batch,) int64, frames of each. Samples beyond a length have no influence. Raises CheckpointError, and UsageError
    for a target that is not a new *.onnx file, a rate or layers out of range, or if the package onnx is not installed.
    """
    import torch

    from s3prl_ofa.checkpoint import load
    from s3prl_ofa.export.module import ExportedModel
    from s3prl_ofa.model.rate import check_lambd

    target = pathlib.Path(target)
    if target.suffix != ".onnx" or target.is_dir():
        raise UsageError(f"{target}: expected a file *.onnx")
    if target.exists() and not force:
        raise UsageError(f"{target} exists; --force (force=True) overwrites it")
    if importlib.util.find_spec("onnx") is None:
        raise UsageError("export needs onnx, which is not installed: pip install 's3prl-ofa[onnx]'")
    model = load(ckpt)
    if model.config.pooling > 1:
        raise UsageError(f"{ckpt} averages its frames (subsample: fixed), which export does not support")
    count = model.config.layers if layers is None else layers
    if not 0 <= count <= model.config.layers:
        raise UsageError(f"--layers must be a whole number from 0 to {model.config.layers}, found {layers}")
    if lambd is not None:
        try:
            check_lambd(lambd, 1)
        except ValueError as error:
            raise UsageError(str(error)) from None
    if model.compressor is None and lambd != 0.0:
        raise UsageError(f"{ckpt} has no compressor, so only --lambd 0 (a frame period of 20 ms) is possible")
    example = torch.randn(2, 16_000), torch.tensor([16_000, 12_000])
    inputs = {"wave": {0: "batch", 1: "samples"}, "length": {0: "batch"}}
    if lambd is None:
        example, inputs = (*example, torch.tensor([0.3, 0.6])), {**inputs, "lambd": {0: "batch"}}
    outputs = {"hidden_states": {0: "batch", 1: "frames"}, "lengths": {0: "batch"}}
    with atomic_path(target) as temporary, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of tracing, about shapes that are constants of the model
        torch.onnx.export(
            ExportedModel(model, count, lambd).eval(),
            example,
            os.fspath(temporary),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={**inputs, **outputs},
            opset_version=OPSET,
            dynamo=False,  # the newer exporter does not support a number of frames that depends on the data
        )
    return target
