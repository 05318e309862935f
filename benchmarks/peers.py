"""Other implementations of wav2vec 2.0, with random weights, which give all hidden states of a padded batch."""

import functools
import importlib.util
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from s3prl_ofa.model import ModelConfig

Run = Callable[[], list[Tensor]]  # the outputs of all layers, (batch, frames, dim) each


class Batch(NamedTuple):
    """Waves (batch, longest), and their lengths (batch,) in samples, or None where all are equally long.

    Without lengths no mask is made, which is faster.
    """

    waves: Tensor
    lengths: Tensor | None

    @classmethod
    def of(cls, waves: list[Tensor]) -> "Batch":
        lengths = torch.tensor([len(wave) for wave in waves], device=waves[0].device)
        equal = bool((lengths == lengths[0]).all())
        return cls(nn.utils.rnn.pad_sequence(waves, batch_first=True), None if equal else lengths)

    def mask(self) -> Tensor | None:
        """(batch, longest) True where there is audio."""
        if self.lengths is None:
            return None
        return torch.arange(self.waves.shape[1], device=self.waves.device) < self.lengths[:, None]


class TransformersModel(nn.Module):
    """transformers' model, with only tensors as inputs and outputs, as exporters need it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        from transformers import Wav2Vec2Config, Wav2Vec2Model

        channels, kernels, strides = zip(*config.conv_layers, strict=True)
        settings = Wav2Vec2Config(
            conv_dim=channels,
            conv_kernel=kernels,
            conv_stride=strides,
            hidden_size=config.dim,
            intermediate_size=config.ffn_dim,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_conv_pos_embeddings=config.pos_conv_kernel,
            num_conv_pos_embedding_groups=config.pos_conv_groups,
            attn_implementation="sdpa",
        )
        self.model = Wav2Vec2Model(settings).eval()

    def forward(self, waves: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        return tuple(self.model(waves, attention_mask=mask, output_hidden_states=True).hidden_states[1:])


def transformers(config: ModelConfig, batch: Batch, dtype: str) -> Run:
    model = TransformersModel(config).to(batch.waves.device, getattr(torch, dtype))
    waves, mask = batch.waves.to(getattr(torch, dtype)), batch.mask()
    return lambda: model(waves, mask)


def transformers_compiled(config: ModelConfig, batch: Batch, dtype: str) -> Run:
    model = torch.compile(TransformersModel(config).to(batch.waves.device, getattr(torch, dtype)))
    waves, mask = batch.waves.to(getattr(torch, dtype)), batch.mask()
    return lambda: model(waves, mask)


def torchaudio(config: ModelConfig, batch: Batch, dtype: str) -> Run:
    from torchaudio.models import wav2vec2_model

    model = wav2vec2_model(
        extractor_mode="group_norm",
        extractor_conv_layer_config=list(config.conv_layers),
        extractor_conv_bias=False,
        encoder_embed_dim=config.dim,
        encoder_projection_dropout=0.0,
        encoder_pos_conv_kernel=config.pos_conv_kernel,
        encoder_pos_conv_groups=config.pos_conv_groups,
        encoder_num_layers=config.layers,
        encoder_num_heads=config.heads,
        encoder_attention_dropout=0.0,
        encoder_ff_interm_features=config.ffn_dim,
        encoder_ff_interm_dropout=0.0,
        encoder_dropout=0.0,
        encoder_layer_norm_first=False,
        encoder_layer_drop=0.0,
        aux_num_out=None,
    )
    model = model.eval().to(batch.waves.device, getattr(torch, dtype))
    waves = batch.waves.to(getattr(torch, dtype))
    return lambda: model.extract_features(waves, batch.lengths)[0]


def s3prl(config: ModelConfig, batch: Batch, dtype: str) -> Run:
    from s3prl.upstream.wav2vec2.wav2vec2_model import Wav2Vec2Config, Wav2Vec2Model

    settings = Wav2Vec2Config(
        conv_feature_layers=str(list(config.conv_layers)),
        encoder_layers=config.layers,
        encoder_embed_dim=config.dim,
        encoder_ffn_embed_dim=config.ffn_dim,
        encoder_attention_heads=config.heads,
        conv_pos=config.pos_conv_kernel,
        conv_pos_groups=config.pos_conv_groups,
        quantize_targets=True,
        final_dim=256,
        latent_dim=256,
    )
    model = Wav2Vec2Model(settings).eval().to(batch.waves.device, getattr(torch, dtype))
    waves, mask = batch.waves.to(getattr(torch, dtype)), batch.mask()
    padding = None if mask is None else ~mask

    def run() -> list[Tensor]:
        result = model(waves, padding_mask=padding, mask=False, features_only=True)
        return [layer[0].transpose(0, 1) for layer in result["layer_results"]]

    return run


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    """The inputs of an exported model: a mask only where it is needed."""
    mask = batch.mask()
    return {"waves": batch.waves.float()} | ({} if mask is None else {"mask": mask.long()})


def onnxruntime(config: ModelConfig, batch: Batch, dtype: str) -> Run:
    """The transformers model, exported for exactly these shapes."""
    inputs = inputs_of(batch)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "model.onnx")
        # The newer exporter takes several times as long for a model that ONNX Runtime runs more slowly.
        torch.onnx.export(
            TransformersModel(config), tuple(inputs.values()), path, input_names=list(inputs), dynamo=False
        )
        return in_onnxruntime(path, inputs, dtype)


def in_onnxruntime(path: pathlib.Path, inputs: dict[str, Tensor], dtype: str) -> Run:
    """An ONNX file. int8: ONNX Runtime's dynamic quantization, per channel."""
    import onnxruntime as runtime

    if dtype == "int8":
        from onnxruntime.quantization import quantize_dynamic

        path, whole = path.with_name(f"{path.stem}_int8.onnx"), path
        quantize_dynamic(whole, path, op_types_to_quantize=["MatMul"], per_channel=True)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {name: tensor.numpy() for name, tensor in inputs.items()}
    return lambda: [torch.from_numpy(state) for state in session.run(None, feed)]


def openvino(config: ModelConfig, batch: Batch, dtype: str) -> Run:
    """The transformers model, converted from PyTorch."""
    import openvino as ov

    inputs = inputs_of(batch)
    return in_openvino(ov.convert_model(TransformersModel(config), example_input=tuple(inputs.values())), inputs, dtype)


@functools.cache
def openvino_core() -> Any:
    """The only Core of this process.

    OpenVINO 2026.4 gives each Core's CPU plugin a stack for signal handlers and puts the former stack back when the
    plugin goes. Of two that do not end in reverse order, one leaves a freed stack behind, and the next signal that
    Python handles, such as SIGCHLD with torch's data workers, ends the process with SIGSEGV.
    """
    import openvino as ov

    return ov.Core()


def in_openvino(model: Any, inputs: dict[str, Tensor], dtype: str) -> Run:
    """A model of OpenVINO or an ONNX file, compiled for exactly these shapes."""
    model = openvino_core().read_model(model) if isinstance(model, pathlib.Path) else model
    model.reshape({port: list(tensor.shape) for port, tensor in zip(model.inputs, inputs.values(), strict=True)})
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[dtype],
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino_core().compile_model(model, "CPU", settings)
    feed = [tensor.numpy() for tensor in inputs.values()]

    def run() -> list[Tensor]:
        result = compiled(feed)
        return [torch.from_numpy(result[port]) for port in compiled.outputs]

    return run


class Peer(NamedTuple):
    build: Callable[[ModelConfig, Batch, str], Run]
    packages: tuple[str, ...]
    dtypes: tuple[str, ...]
    on_gpu: bool


HALVES = ("float32", "bfloat16", "float16")
PEERS = {
    "transformers": Peer(transformers, ("transformers",), HALVES, True),
    "transformers, compiled": Peer(transformers_compiled, ("transformers",), HALVES, True),
    "torchaudio": Peer(torchaudio, ("torchaudio",), HALVES, True),
    "S3PRL": Peer(s3prl, ("s3prl",), HALVES, True),
    "ONNX Runtime": Peer(onnxruntime, ("onnxruntime", "onnx", "transformers"), ("float32", "int8"), False),
    "OpenVINO": Peer(openvino, ("openvino", "transformers"), ("float32", "bfloat16"), False),
}
# the runtimes for our model as `s3prl-ofa export` writes it, in the dtypes of the peer of this name
RUNTIMES = {"ONNX Runtime": in_onnxruntime, "OpenVINO": in_openvino}


def missing_packages(name: str) -> list[str]:
    """The packages that a peer needs and that are not installed."""
    return [package for package in PEERS[name].packages if importlib.util.find_spec(package) is None]


def can_run(name: str, dtype: str, device: torch.device) -> bool:
    return dtype in PEERS[name].dtypes and (PEERS[name].on_gpu or device.type == "cpu")
