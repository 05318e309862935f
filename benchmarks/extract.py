"""Compares the speed of extraction with other wav2vec 2.0 implementations of the same size, all with random weights.

    python -m benchmarks.extract --dtypes float32 bfloat16

Every contender does the same work (all hidden states of the same waves, with the same number of threads) and takes its
turn in every round, so that other load on the machine affects all alike; so does a large matrix product in each dtype,
whose speed is the best that the machine can do. Each row of the csv has the median over rounds. Peers that are not
installed are named and left out; ``pip install s3prl-ofa[bench]`` installs them.

single is one wave of 10 s; mixed are utterances of 1 to 20 s, which the peers pad to the longest; equal is the same
number of utterances of their mean length. With ``--exported`` our model also runs as the ONNX file of ``s3prl-ofa
export``, which gives only the last hidden state. On a CPU that is busy with other work, threads wait for each other,
and short parallel regions suffer most. There

    OMP_WAIT_POLICY=passive python -m benchmarks.extract --clock cpu

counts the CPU time of the main thread, which does its share of all parallel work and everything else: close to the wall
time on an idle machine. That is fair only to contenders that use OpenMP, which ONNX Runtime and OpenVINO do not.
"""

import argparse
import itertools
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

import s3prl_ofa
from benchmarks.peers import PEERS, RUNTIMES, Batch, can_run, missing_packages
from benchmarks.rows import CLOCKS, RESULTS, Contender, compare, environment, write
from s3prl_ofa.export.command import export
from s3prl_ofa.model import SAMPLE_RATE, ModelConfig, OFAWav2Vec2
from s3prl_ofa.model.cost import macs
from s3prl_ofa.superb.compat.shims import apply_shims

PACKAGES = ("s3prl-ofa", "torch", "torchaudio", "transformers", "s3prl", "onnxruntime", "openvino")
DTYPES = ("float32", "bfloat16", "float16", "int8")
SIZES = {
    "base": ModelConfig(compressor="cif"),
    "tiny": ModelConfig(
        conv_layers=((32, 10, 5), *((32, 3, 2),) * 4, *((32, 2, 2),) * 2),
        dim=48,
        ffn_dim=96,
        heads=4,
        layers=2,
        compressor="cif",
    ),
}
SCALE = {"base": 1.0, "tiny": 0.05}  # of the lengths of the audio; tiny is for rehearsals
PERIODS_MS = (20.0, 40.0, 60.0, 90.0)
SINGLE_S = 10.0
SHORTEST_S, LONGEST_S = 1.0, 20.0
UTTERANCES = {"cpu": 16, "cuda": 32}
INPUTS = ("single", "mixed", "equal")
# The logit of a trained model's mean alpha, 2/9, so that lambd 1 gives 90 ms.
TRAINED_LOGIT = -1.2528


def random_model(config: ModelConfig) -> OFAWav2Vec2:
    model = OFAWav2Vec2(config)
    with torch.no_grad():
        model.compressor.alpha_fn.layer[2].weight.mul_(0.1)
        model.compressor.alpha_fn.layer[2].bias.fill_(TRAINED_LOGIT)
    return model


def ours(config: ModelConfig, dtype: str, device: torch.device) -> OFAWav2Vec2:
    """A model with a compressor and random weights, loaded as a user would."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "model.safetensors")
        random_model(config).save(path)
        return s3prl_ofa.load(path, device, dtype if dtype == "int8" else getattr(torch, dtype))


def noise(seconds: Iterable[float], device: torch.device) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [0.1 * torch.randn(int(each * SAMPLE_RATE), generator=generator).to(device) for each in seconds]


def make_inputs(name: str, scale: float, device: torch.device) -> list[Tensor]:
    """The waves (samples,) of one of INPUTS."""
    if name == "single":
        return noise([scale * SINGLE_S], device)
    lengths = scale * torch.linspace(SHORTEST_S, LONGEST_S, UTTERANCES[device.type])
    return noise((lengths if name == "mixed" else lengths.mean().expand(len(lengths))).tolist(), device)


def rate(period_ms: float) -> dict[str, object]:
    """The options of ``extract`` for a mean frame period."""
    return {} if period_ms == 20.0 else {"frame_period_ms": period_ms, "allow_beyond_one": True}


def our_contender(
    benchmark: str, name: str, model: OFAWav2Vec2, waves: list[Tensor], period_ms: float, dtype: str, **options: object
) -> Contender:
    """Extraction at a mean frame period; 20 ms is the default call. options: further ones of ``extract``."""
    options |= rate(period_ms)
    lengths = model.extract(waves, **options).lengths
    return costed(benchmark, name, lambda: model.extract(waves, **options), model.config, waves, lengths, dtype)


def costed(
    benchmark: str,
    name: str,
    run: Callable[[], object],
    config: ModelConfig,
    waves: list[Tensor],
    lengths: Tensor,
    dtype: str,
) -> Contender:
    """A contender with the cost of waves whose hidden states have ``lengths`` (batch,) frames."""
    total = sum(macs(config, len(wave), count) for wave, count in zip(waves, lengths.tolist(), strict=True))
    return Contender(benchmark, name, run, sum(map(len, waves)) / SAMPLE_RATE, dtype, int(lengths.sum()), total)


class Exported:
    """A model with random weights as ONNX files in a folder: without compression, and with lambd as an input."""

    def __init__(self, config: ModelConfig, folder: pathlib.Path) -> None:
        self.model = random_model(config)
        self.model.save(checkpoint := folder / "model.safetensors")
        self.plain = export(checkpoint, folder / "plain.onnx", lambd=0.0)
        self.compressing = export(checkpoint, folder / "compressing.onnx")

    def lambd(self, waves: list[Tensor], period_ms: float) -> Tensor:
        """(batch,) float64: gives as many frames as ``frame_period_ms``, whatever a runtime's rounding errors.

        The weights sum to up to half a frame more than these frames, so that rounding does not decide about the last.
        """
        input_frames = torch.tensor([self.model.config.num_frames(len(wave)) for wave in waves])
        return (self.model.extract(waves, **rate(period_ms)).lambd - 0.5 / input_frames).clamp(min=0.0)

    def contender(self, benchmark: str, runtime: str, waves: list[Tensor], period_ms: float, dtype: str) -> Contender:
        """A file at a mean frame period, in one of RUNTIMES; it gives only the hidden states of the last layer."""
        path, inputs = self.plain, {"wave": Batch.of(waves).waves, "length": torch.tensor(list(map(len, waves)))}
        if rate(period_ms):
            path, inputs = self.compressing, inputs | {"lambd": self.lambd(waves, period_ms).float()}
        run = RUNTIMES[runtime](path, inputs, dtype)
        name = f"ours, {period_ms:g} ms, exported, {runtime}"
        return costed(benchmark, name, run, self.model.config, waves, run()[1], dtype)


def contenders(
    name: str, waves: list[Tensor], models: dict[str, OFAWav2Vec2], peers: Iterable[str], periods_ms: Iterable[float]
) -> Iterator[Contender]:
    """Our model at each period and the peers, in each dtype, on the waves of the input ``name``."""
    for dtype, model in models.items():
        for period in periods_ms:
            yield our_contender(name, f"ours, {period:g} ms", model, waves, period, dtype)
        lengths = torch.tensor([model.config.num_frames(len(wave)) for wave in waves])
        for peer in peers:
            if can_run(peer, dtype, waves[0].device):
                run = PEERS[peer].build(model.config, Batch.of(waves), dtype)
                yield costed(name, peer, run, model.config, waves, lengths, dtype)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that all benchmarks of extraction share."""
    parser.add_argument("--size", choices=SIZES, default="base", help="tiny: a rehearsal")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", nargs="+", choices=INPUTS, default=["single"], help="all are timed in turn")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32", "bfloat16"])
    parser.add_argument("--periods-ms", nargs="+", type=float, default=PERIODS_MS, metavar="P")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="all by default")
    exported_help = "also our model as an ONNX file, in these runtimes"
    parser.add_argument("--exported", nargs="+", choices=RUNTIMES, default=[], help=exported_help)
    add_model_arguments(parser)
    parser.add_argument("--rounds", type=int, default=9, help="3 are enough for mixed and equal")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: CPU time of the main thread")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "extract.csv")
    args = parser.parse_args()
    # OpenMP reads its settings only once, when torch is imported.
    if args.clock == "cpu" and (args.device != "cpu" or os.environ.get("OMP_WAIT_POLICY", "").lower() != "passive"):
        parser.error("--clock cpu is for --device cpu and needs OMP_WAIT_POLICY=passive, else waiting counts as work")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    apply_shims()
    device = torch.device(args.device)
    peers = [peer for peer in args.peers if not report_missing(peer)]
    runtimes = [runtime for runtime in args.exported if not report_missing(runtime)]
    models = {dtype: ours(SIZES[args.size], dtype, device) for dtype in args.dtypes}
    inputs = {name: make_inputs(name, SCALE[args.size], device) for name in args.inputs}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        entries = [
            entry for name, waves in inputs.items() for entry in contenders(name, waves, models, peers, args.periods_ms)
        ]
        exported = Exported(SIZES[args.size], pathlib.Path(folder)) if runtimes else None
        entries += [
            exported.contender(name, runtime, waves, period, dtype)
            for name, waves in inputs.items()
            for dtype, runtime, period in itertools.product(args.dtypes, runtimes, args.periods_ms)
            if can_run(runtime, dtype, device)
        ]
        write(compare(entries, args.rounds, device, environment(device, PACKAGES, args.clock)), args.out)


def report_missing(peer: str) -> bool:
    """Says on stderr which packages a peer lacks; whether it lacks any."""
    missing = missing_packages(peer)
    if missing:
        print(f"{peer} is left out: {', '.join(missing)} not installed", file=sys.stderr)
    return bool(missing)


if __name__ == "__main__":
    main()
