"""Trains the bundled checkpoint: phones, spectra, masked prediction, recordings and alpha, at all rates at once.

    python benchmarks/tiny_checkpoint/train.py CORPUS OUT --minutes 5

If it is stopped or killed at any time, the same command resumes from the last save. OUT/checkpoint.pt is a checkpoint
in fairseq's format, OUT/state.pt the complete training state, OUT/log.csv the training curves.

Each crop has a random lambd in [0, 1] and a random speed; most have spans masked as in pretraining. These are the
losses, whose linear layers are discarded afterwards:

* the phone of each 20 ms frame, from the compressed frame that covers it: train speakers only;
* the log-mel spectrum of each 20 ms frame, from the front end's output and from a middle layer, without labels;
* InfoNCE, code diversity and the feature penalty of wav2vec 2.0, on the crops with masks, without labels;
* which two crops come from the same utterance, from the middle layer's mean, without labels: it separates speakers;
* alpha of each 20 ms frame, and its running sum, against the phones' ends: train speakers only.
"""

import argparse
import csv
import math
import pathlib
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from corpus import (
    HOP,
    MELS,
    PHONES,
    SAMPLE_RATE,
    SPIKE,
    UNKNOWN,
    WINDOW,
    Utterance,
    log_mel,
    num_frames,
    read_corpus,
    read_waves,
)
from network import add_network_arguments, compression_of, pretraining_model, settings_of, write_checkpoint
from torch import Tensor, nn

from s3prl_ofa.guidance.scores import boundary_scores
from s3prl_ofa.io.files import atomic_path
from s3prl_ofa.model.cif import crossing_times, frame_index
from s3prl_ofa.model.packing import pad, valid_mask

BEGIN = time.monotonic()
WEIGHTS = {  # of the losses, in nats per frame or crop
    "phone": 1.0,
    "front": 0.5,
    "middle": 0.3,
    "infonce": 0.2,
    "diversity": 0.02,
    "features_pen": 0.02,
    "recording": 0.2,
    "alpha": 2.0,
    "phase": 0.02,
}
SPEEDS = (0.85, 0.92, 1.0, 1.08, 1.16)
MASKED = 0.6  # of the crops
MAX_TILT, MAX_NOISE = 0.3, 0.02  # of the spectrum, by pre-emphasis; standard deviation relative to that of the crop
TEMPERATURE, EMBEDDING = 0.1, 128  # of the comparison of recordings
SMOOTHING = 0.1  # of phone labels, whose alignments are not exact
LEARNING_RATE, WARM_UP, WEIGHT_DECAY = 1e-3, 500, 0.05
LOG_UPDATES, EVALUATION_UPDATES, SAVE_SECONDS = 50, 400, 30.0
DEV_CROPS, DEV_LAMBDS, TOLERANCE = 64, (0.0, 0.5, 1.0), 0.02
DEV_SCORES = ("dev_accuracy", "period_ms", "infonce_bits", "masked_accuracy")
COLUMNS = (
    *("update", "seconds", "updates_per_s", "loss", *WEIGHTS, "train_accuracy", "masked_accuracy", "ends_f1"),
    *(f"{name}_{lambd:g}" for name in DEV_SCORES for lambd in DEV_LAMBDS),
)


class Heads(nn.Module):
    """Our pretraining model, and the linear layers that are discarded afterwards."""

    def __init__(self, settings: dict) -> None:
        super().__init__()
        self.network = network = pretraining_model(settings)
        dim, self.middle = settings["encoder_embed_dim"], settings["encoder_layers"] // 2
        self.phones = nn.Linear(dim, len(PHONES))
        self.front_spectrum = nn.Linear(network.embed, MELS)
        self.middle_spectrum = nn.Linear(dim, MELS)
        self.recording = nn.Linear(dim, EMBEDDING)

    def forward(self, waves: Tensor, lambd: Tensor, with_masks: Tensor) -> dict[str, Any]:
        """From waves (batch, samples), all of one length, and lambd (batch,). with_masks: (batch,), which to mask.

        Phone scores and spectra are those of 20 ms frames, (batch, frames, phones or mels): each frame has those of the
        compressed frame that covers its middle.
        """
        network, compressor = self.network, self.network.cif_subsampler
        frames = network.convolve(waves, torch.full((len(waves),), waves.shape[1]))
        front = network.layer_norm(frames)
        count = torch.full((len(waves),), front.shape[1])
        alpha = compressor.alpha(front.flatten(0, 1), count)
        plan = compressor.plan(alpha, lambd, count.to(waves.device))
        lengths = plan.lengths.cpu()
        compressed = pad(compressor.compress(front.flatten(0, 1), plan), lengths)
        valid = valid_mask(plan.lengths, compressed.shape[1])
        rows = compressed if network.post_extract_proj is None else network.post_extract_proj(compressed)
        rows = network.dropout_input(rows)
        masked, masks = network.mask_frames(rows, lengths)
        rows = torch.where(with_masks[:, None, None], masked, rows)
        encoded, layers = network.encoder(rows, padding_mask=~valid)
        middle = layers[self.middle - 1][0].transpose(0, 1)
        owner = frame_index(plan)[..., None]

        def per_frame(values: Tensor) -> Tensor:
            return values.gather(1, owner.expand(-1, -1, values.shape[2])).float()

        mean = (middle.float() * valid[..., None]).sum(1) / valid.sum(1, keepdim=True)
        return {
            "phones": per_frame(self.phones(encoded)),
            "front": self.front_spectrum(front).float(),
            "middle": per_frame(self.middle_spectrum(middle)),
            "recording": F.normalize(self.recording(mean).float(), dim=1),
            "alpha": alpha.float(),
            "features_pen": frames.float().square().mean(),
            "plan": plan,
            **network.contrast(encoded, compressed, masks & with_masks[:, None], lengths),
        }


class Corpus:
    """All audio and labels on the device. Crops are drawn there, in pairs of one utterance, evenly over all audio."""

    def __init__(self, utterances: list[Utterance], seconds: float, device: torch.device) -> None:
        self.device, self.frames = device, int(seconds * SAMPLE_RATE) // HOP
        self.samples = (self.frames - 1) * HOP + WINDOW
        kept = [one for one in utterances if one.samples > self.samples * max(SPEEDS) and one.text_split != "test"]
        waves, phones, alphas, starts, partners, position = [], [], [], [], [], 0
        decoded = read_waves(kept, SPEEDS)
        for utterance, versions in zip(kept, decoded, strict=True):
            for speed, wave in zip(SPEEDS, versions, strict=True):
                # Utterances are laid end to end, cut to whole hops, so that a frame's position is that of its samples.
                size, labels = len(wave) // HOP, num_frames(len(wave))
                known = utterance if utterance.text_split == "train" else None  # dev speakers have no labels here
                waves.append(torch.from_numpy(wave[: size * HOP]))
                phones.append(padded(known and known.labels(labels, speed), size, UNKNOWN))
                alphas.append(padded(known and known.alpha(labels, speed), size, np.nan))
                # The second crop of a pair is as far as possible from the first, half of the possible starts later.
                possible = (size * HOP - self.samples) // HOP + 1
                starts.append(position + torch.arange(possible - possible // 2))
                partners.append(starts[-1] + possible // 2)
                position += size
        self.audio, self.phones, self.alpha, self.starts, self.partners = (
            torch.cat(parts).to(device) for parts in (waves, phones, alphas, starts, partners)
        )

    def draw(self, pairs: int) -> tuple[Tensor, Tensor, Tensor]:
        """Waves (2 pairs, samples) in [-1, 1], phones and alpha (2 pairs, frames); crops i and pairs + i are a pair."""
        chosen = torch.randint(len(self.starts), (pairs,), device=self.device)
        first = torch.cat([self.starts[chosen], self.partners[chosen]])[:, None]
        waves = self.audio[first * HOP + torch.arange(self.samples, device=self.device)].float() / 2**15
        frames = first + torch.arange(self.frames, device=self.device)
        return waves, self.phones[frames], self.alpha[frames]


def padded(values: np.ndarray | None, size: int, filling: float) -> Tensor:
    """``values`` (or none), padded with ``filling`` to ``size``."""
    dtype = torch.long if filling == UNKNOWN else torch.float32
    tensor = torch.full((size,), filling, dtype=dtype)
    if values is not None:
        tensor[: len(values)] = torch.from_numpy(values)
    return tensor


def perturbed(waves: Tensor) -> Tensor:
    """waves (batch, samples) with a random spectral tilt and noise; the front end normalizes the level itself."""
    tilt, noise = torch.rand(2, len(waves), 1, device=waves.device)
    waves = waves - MAX_TILT * (2 * tilt - 1) * F.pad(waves, (1, -1))
    return waves + MAX_NOISE * noise.square() * waves.std(1, keepdim=True) * torch.randn_like(waves)


def recording_loss(embeddings: Tensor) -> Tensor:
    """Cross-entropy of finding each crop's partner among the batch (NT-Xent, arXiv 2002.05709)."""
    similarity = (embeddings @ embeddings.t() / TEMPERATURE).fill_diagonal_(-torch.inf)
    partners = torch.arange(len(embeddings), device=embeddings.device).roll(len(embeddings) // 2)
    return F.cross_entropy(similarity, partners)


def alpha_losses(alpha: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Cross-entropy per frame, and the L1 distance of the running sums in frames; targets (batch, frames) may be NaN.

    Cross-entropy makes alpha the expected target, where an L1 distance would make it the median, which is near zero.
    """
    known = ~target.isnan()
    target = torch.where(known, target, 0.0)
    entropy = F.binary_cross_entropy(alpha.clamp(1e-6, 1 - 1e-6), target, reduction="none")
    distance = (torch.where(known, alpha, 0.0).cumsum(1) - target.cumsum(1)).abs()
    losses = {"alpha": entropy, "phase": distance}
    return {name: (loss * known).sum() / known.sum().clamp(min=1) for name, loss in losses.items()}


class Run:
    """A training that can be stopped and resumed: its whole state is in OUT/state.pt."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.device = args, torch.device(args.device)
        self.update, self.seconds_before = 0, 0.0
        torch.manual_seed(args.seed)
        self.settings = settings_of(args.network, args.layers, args.width) | compression_of(args.pooling)
        self.model = Heads(self.settings).to(self.device)
        utterances = read_corpus(args.corpus)
        self.corpus = Corpus(utterances, args.crop_seconds, self.device)
        dev = [one for one in utterances if one.text_split == "dev" and one.phones]
        dev = [one for one in dev if one.samples > self.corpus.samples]
        self.dev = dev[:: max(1, len(dev) // DEV_CROPS)][:DEV_CROPS]
        waves = np.stack([one.wave(self.corpus.samples) for one in self.dev])
        phones = np.stack([one.labels(self.corpus.frames) for one in self.dev])
        self.dev_waves = torch.from_numpy(waves).to(self.device).float() / 2**15
        self.dev_phones = torch.from_numpy(phones).to(self.device)
        spectrum = log_mel(self.corpus.draw(100)[0])
        self.mean, self.deviation = spectrum.mean((0, 1)), spectrum.std((0, 1))
        parameters = list(self.model.parameters())
        groups = [[one for one in parameters if (one.dim() > 1) is decayed] for decayed in (True, False)]
        self.optimizer = torch.optim.AdamW(
            [{"params": groups[0], "weight_decay": WEIGHT_DECAY}, {"params": groups[1], "weight_decay": 0.0}],
            lr=LEARNING_RATE,
            betas=(0.9, 0.98),
            eps=1e-6,
            fused=True,
        )
        if self.state_path.exists():
            self.restore()
        print(f"ready after {time.monotonic() - BEGIN:.1f} s", flush=True)

    @property
    def state_path(self) -> pathlib.Path:
        return self.args.out / "state.pt"

    @property
    def log_path(self) -> pathlib.Path:
        return self.args.out / "log.csv"

    @property
    def seconds(self) -> float:
        """Seconds of loading and training, including earlier launches."""
        return self.seconds_before + time.monotonic() - BEGIN

    def restore(self) -> None:
        state = torch.load(self.state_path, weights_only=True, map_location=self.device)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.update, self.seconds_before = state["update"], state["seconds"]
        # Rows of updates that were lost are removed; they will be written again.
        if self.log_path.exists():
            header, *rows = self.log_path.read_text().splitlines(keepends=True)
            kept = [row for row in rows if int(row.split(",")[0]) <= self.update]
            with atomic_path(self.log_path) as temporary:
                temporary.write_text("".join([header, *kept]))

    def save(self) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        with atomic_path(self.state_path) as temporary:
            torch.save(state | {"update": self.update, "seconds": self.seconds}, temporary)
        weights = {name: weight.cpu() for name, weight in self.model.network.state_dict().items()}
        write_checkpoint(self.args.out / "checkpoint.pt", weights, self.settings)
        settings = {name: getattr(self.args, name) for name in ("minutes", "batch", "crop_seconds", "device", "seed")}
        settings |= {"update": self.update, "weights": WEIGHTS, "speeds": list(SPEEDS), "lr": LEARNING_RATE}
        settings |= {"warm_up": WARM_UP, "weight_decay": WEIGHT_DECAY, "label_smoothing": SMOOTHING, "spike": SPIKE}
        with atomic_path(self.args.out / "settings.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(settings), "utf-8")

    def losses(self) -> dict[str, Tensor]:
        """Losses and accuracies on one batch, which is determined by the seed and the update."""
        torch.manual_seed(self.args.seed * 1_000_003 + self.update)
        waves, phones, alpha = self.corpus.draw(self.args.batch // 2)
        target = (log_mel(waves) - self.mean) / self.deviation
        # A quarter of the crops is at 20 ms, and a few are at lambd 1. The first one is always at 20 ms, so that all
        # batches have the same shape, for which the fastest convolutions have been chosen.
        lambd = (1.45 * torch.rand(len(waves), device=self.device) - 0.35).clamp(0, 1)
        lambd[0] = 0.0
        with_masks = torch.rand(len(waves), device=self.device) < MASKED
        with torch.autocast(self.device.type, torch.bfloat16):
            out = self.model(perturbed(waves), lambd, with_masks)
        known = (phones != UNKNOWN).sum().clamp(min=1)  # a batch may have only dev speakers
        smoothed = F.cross_entropy(
            out["phones"].transpose(1, 2), phones, ignore_index=UNKNOWN, reduction="sum", label_smoothing=SMOOTHING
        )
        logits = out["x"].float().t()
        losses = {
            "phone": smoothed / known,
            "front": F.mse_loss(out["front"], target),
            "middle": F.mse_loss(out["middle"], target),
            "infonce": F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long), reduction="sum")
            / max(1, len(logits)),
            "diversity": out.get("diversity", logits.new_zeros(())),
            "features_pen": out["features_pen"],
            "recording": recording_loss(out["recording"]),
            **alpha_losses(out["alpha"], alpha),
        }
        return {
            "loss": sum(WEIGHTS[name] * value for name, value in losses.items()),
            **losses,
            "train_accuracy": (out["phones"].argmax(2) == phones).sum() / known,
            "masked_accuracy": (logits.argmax(1) == 0).float().mean(),
        }

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        """Of crops of dev speakers, at each rate: phone accuracy, frame period, and with masks InfoNCE in bits and its
        accuracy; at lambd 1 also F1 of the frames' ends against those of the phones."""
        self.model.eval()
        found = {}
        for lambd in DEV_LAMBDS:
            torch.manual_seed(0)
            rate = torch.full((len(self.dev),), lambd, device=self.device)
            with torch.autocast(self.device.type, torch.bfloat16), torch.backends.cudnn.flags(benchmark=False):
                out, with_masks = (
                    self.model(self.dev_waves, rate, torch.full_like(rate, masks).bool()) for masks in (False, True)
                )
            logits, lengths = with_masks["x"].float().t(), out["plan"].lengths
            values = {
                "dev_accuracy": (out["phones"].argmax(2) == self.dev_phones).sum() / (self.dev_phones != UNKNOWN).sum(),
                "period_ms": 1000 * HOP / SAMPLE_RATE * self.corpus.frames / lengths.float().mean(),
                "infonce_bits": F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long)) / math.log(2),
                "masked_accuracy": (logits.argmax(1) == 0).float().mean(),
            }
            found |= {f"{name}_{lambd:g}": round(value.item(), 4) for name, value in values.items()}
        ends = crossing_times(out["plan"])[..., 1].cpu() * HOP / SAMPLE_RATE
        seconds = [row[: size - 1].tolist() for row, size in zip(ends, lengths.tolist(), strict=True)]
        last = self.corpus.samples / SAMPLE_RATE
        wanted = [[start for start, _, _ in one.phones[1:] if start < last] for one in self.dev]
        self.model.train()
        return found | {"ends_f1": round(boundary_scores(seconds, wanted, TOLERANCE).f1, 4)}

    def step(self) -> dict[str, Tensor]:
        """One update, whose learning rate falls to zero at the end."""
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (self.update + 1) / WARM_UP) * (1.0 - self.done)
        self.model.network.set_num_updates(self.update)
        losses = self.losses()
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.update += 1
        return {name: value.detach() for name, value in losses.items()}

    def train(self) -> None:
        """Trains until the planned minutes or updates are over, counted over all launches."""
        steps, logged, saved, finished = [], time.monotonic(), time.monotonic(), self.done == 1.0
        while not finished:
            steps.append(self.step())
            finished = self.done == 1.0
            if self.update % LOG_UPDATES == 0 or finished:
                # The only wait for the device, and so the only accurate time.
                row = {name: round(torch.stack([step[name] for step in steps]).mean().item(), 4) for name in steps[0]}
                speed = round(len(steps) / (time.monotonic() - logged), 2)
                evaluated = finished or self.update % EVALUATION_UPDATES == 0
                self.log({"updates_per_s": speed} | row | (self.evaluate() if evaluated else {}))
                steps, logged = [], time.monotonic()
            if time.monotonic() - saved > SAVE_SECONDS:
                self.save()
                saved = time.monotonic()
        self.save()

    @property
    def done(self) -> float:
        """The part of the training that is over, from 0 to 1."""
        return min(1.0, max(self.seconds / 60.0 / self.args.minutes, self.update / (self.args.updates or math.inf)))

    def log(self, row: dict[str, float]) -> None:
        """Prints a row and adds it to the log, whose columns are those of a row with an evaluation."""
        row = {"update": self.update, "seconds": round(self.seconds, 1)} | row
        print(" ".join(f"{name} {value}" for name, value in row.items()), flush=True)
        with self.log_path.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            if not file.tell():
                writer.writeheader()
            writer.writerow(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--minutes", type=float, required=True, help="of loading and training, over all launches")
    parser.add_argument("--updates", type=int, help="to stop after, if that is earlier")
    add_network_arguments(parser)
    parser.add_argument("--pooling", type=int, default=1, help="frames to average, in place of the compressor")
    parser.add_argument("--batch", type=int, default=64, help="crops per update, an even number")
    parser.add_argument("--crop-seconds", type=float, default=4.0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    args.out.mkdir(parents=True, exist_ok=True)
    Run(args).train()


if __name__ == "__main__":
    main()
