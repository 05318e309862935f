"""The start: a wav2vec 2.0 learns phones and spectra before it continues with self-supervision alone.

    python benchmarks/tiny_checkpoint/start.py CORPUS OUT --minutes 40

If it is stopped or killed at any time, the same command resumes from the last save. At the end OUT/start.pt is a plain
wav2vec 2.0 checkpoint in fairseq's format.

It learns two things at once, with linear layers that are discarded afterwards: the phone of each 20 ms frame from the
encoder's output, with spans of its input masked as in pretraining, on the alignments of the train speakers only; and
the log-mel spectrum of each frame from the front end's output and from a middle layer, on train and dev speakers. The
second needs no labels, and keeps what distinguishes speakers in the features.
"""

import argparse
import csv
import ctypes
import pathlib
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from corpus import (
    HOP,
    MELS,
    PHONES,
    SAMPLE_RATE,
    UNKNOWN,
    WINDOW,
    Utterance,
    log_mel,
    num_frames,
    read_corpus,
    read_waves,
)
from fairseq.models.wav2vec import Wav2Vec2Config, Wav2Vec2Model
from network import add_network_arguments, settings_of, write_checkpoint
from torch import Tensor, nn

from s3prl_ofa.io.files import atomic_path

MASK_SPAN = 10  # frames
MASK_SHARE = 0.3  # of the frames, if spans did not overlap; half of the crops are not masked at all
FRONT_WEIGHT, MIDDLE_WEIGHT = 1.0, 0.3  # of the two spectrum losses, relative to that of the phones
LEARNING_RATE, WARM_UP = 1e-3, 200  # updates
SAVE_SECONDS = 180.0  # at least; then with the next row of the log
LOG_UPDATES = 50
# glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
COLUMNS = ("update", "seconds", "loss", "phone_loss", "front_loss", "middle_loss", "train_accuracy", "dev_accuracy")


class Start(nn.Module):
    """fairseq's wav2vec 2.0 and the linear layers of the start."""

    def __init__(self, settings: dict) -> None:
        super().__init__()
        self.network = Wav2Vec2Model(Wav2Vec2Config(**settings))
        dim, front_dim = settings["encoder_embed_dim"], self.network.layer_norm.normalized_shape[0]
        self.phones = nn.Linear(dim, len(PHONES))
        self.front_spectrum = nn.Linear(front_dim, MELS)
        self.middle_spectrum = nn.Linear(dim, MELS)
        self.middle = settings["encoder_layers"] // 2

    def forward(self, waves: Tensor, masked: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """From (batch, samples) to phone scores (batch, frames, phones) and two spectra (batch, frames, mels).

        masked: (batch, frames) bool, or None.
        """
        network = self.network
        front = network.layer_norm(network.feature_extractor(waves).transpose(1, 2))
        rows = front if network.post_extract_proj is None else network.post_extract_proj(front)
        if masked is not None:
            rows = torch.where(masked[..., None], network.mask_emb.to(rows.dtype), rows)
        encoded, layers = network.encoder(rows)
        middle = layers[self.middle - 1][0].transpose(0, 1)
        return self.phones(encoded), self.front_spectrum(front), self.middle_spectrum(middle)


class Crops:
    """Batches of random crops of waves in memory, drawn evenly over all audio."""

    def __init__(self, utterances: list[Utterance], seconds: float) -> None:
        self.samples = int(seconds * SAMPLE_RATE) // HOP * HOP + WINDOW - HOP
        kept = [utterance for utterance in utterances if utterance.samples > self.samples]
        self.waves = read_waves(kept)
        # Dev speakers have no labels here.
        self.labels = [
            utterance.labels(num_frames(len(wave)))
            if utterance.text_split == "train"
            else np.full(num_frames(len(wave)), UNKNOWN)
            for utterance, wave in zip(kept, self.waves, strict=True)
        ]
        lengths = np.array([len(wave) for wave in self.waves], float)
        self.chances = lengths / lengths.sum()

    def draw(self, generator: np.random.Generator, size: int) -> tuple[Tensor, Tensor]:
        """Waves (size, samples) in [-1, 1] and labels (size, frames)."""
        frames = num_frames(self.samples)
        waves, labels = [], []
        for index in generator.choice(len(self.waves), size, p=self.chances):
            # Crops start at frames, so that they keep their labels.
            first = generator.integers((len(self.waves[index]) - self.samples) // HOP + 1)
            waves.append(self.waves[index][first * HOP : first * HOP + self.samples])
            labels.append(self.labels[index][first : first + frames])
        return torch.from_numpy(np.stack(waves)).float() / 2**15, torch.from_numpy(np.stack(labels))

    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (mels,) of the log-mel spectrum over some crops."""
        waves, _ = self.draw(np.random.default_rng(0), 200)
        values = log_mel(waves).flatten(0, 1)
        return values.mean(0), values.std(0)


def draw_spans(generator: np.random.Generator, size: int, frames: int) -> Tensor:
    """(size, frames) bool: spans of MASK_SPAN frames in half of the crops."""
    masked = np.zeros((size, frames), bool)
    count = round(MASK_SHARE * frames / MASK_SPAN)
    for index in np.flatnonzero(generator.random(size) < 0.5):
        for start in generator.integers(0, frames - MASK_SPAN + 1, count):
            masked[index, start : start + MASK_SPAN] = True
    return torch.from_numpy(masked)


class Run:
    """A training run that can be stopped and resumed: its whole state is in OUT/state.pt."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.clock = CLOCKS[args.clock]
        self.update, self.seconds = 0, 0.0
        torch.manual_seed(args.seed)
        self.settings = settings_of(args.network, args.layers, args.width)
        self.model = Start(self.settings)
        utterances = read_corpus(args.corpus)
        self.crops = Crops([one for one in utterances if one.text_split in ("train", "dev")], args.crop_seconds)
        dev = [one for one in utterances if one.text_split == "dev" and one.phones][::9][:20]
        self.dev = [(torch.from_numpy(one.wave())[None].float() / 2**15, one) for one in dev]
        self.mean, self.deviation = self.crops.spectrum()
        # What only self-supervision trains (quantizer, projections to codes) gets no gradient and stays unchanged.
        decayed = [parameter for parameter in self.model.parameters() if parameter.dim() > 1]
        others = [parameter for parameter in self.model.parameters() if parameter.dim() <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}],
            lr=LEARNING_RATE,
            betas=(0.9, 0.98),
            eps=1e-6,
            fused=True,
        )
        if self.state_path.exists():
            self.restore()

    @property
    def state_path(self) -> pathlib.Path:
        return self.args.out / "state.pt"

    @property
    def log_path(self) -> pathlib.Path:
        return self.args.out / "log.csv"

    def restore(self) -> None:
        state = torch.load(self.state_path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.update, self.seconds = state["update"], state["seconds"]
        # Rows of updates that were lost are removed; they will be written again.
        if self.log_path.exists():
            header, *rows = self.log_path.read_text().splitlines(keepends=True)
            kept = [row for row in rows if int(row.split(",")[0]) <= self.update]
            with atomic_path(self.log_path) as temporary:
                temporary.write_text("".join([header, *kept]))

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "update": self.update,
            "seconds": self.seconds,
        }
        with atomic_path(self.state_path) as temporary:
            torch.save(state, temporary)
        write_checkpoint(self.args.out / "start.pt", self.model.network.state_dict(), self.settings)

    def learning_rate(self) -> float:
        """Warm-up by updates, then linear decay to zero at the end of the planned time."""
        left = max(0.0, 1.0 - self.seconds / (60.0 * self.args.minutes))
        return LEARNING_RATE * min(1.0, (self.update + 1) / WARM_UP) * left

    def losses(self) -> dict[str, Tensor]:
        """Losses and the classifier's accuracy on one batch, which is determined by the seed and the update."""
        generator = np.random.default_rng((self.args.seed, self.update))
        waves, labels = self.crops.draw(generator, self.args.batch)
        masked = draw_spans(generator, *labels.shape)
        target = (log_mel(waves) - self.mean) / self.deviation
        with torch.autocast("cpu", torch.bfloat16, enabled=self.args.bfloat16):
            scores, front, middle = self.model(waves, masked)
        scores = scores.float()
        known = labels != UNKNOWN
        count = known.sum().clamp(min=1)  # a batch may have only dev speakers
        phone_loss = (
            F.cross_entropy(scores.flatten(0, 1), labels.flatten(), ignore_index=UNKNOWN, reduction="sum") / count
        )
        losses = {
            "phone_loss": phone_loss,
            "front_loss": F.mse_loss(front.float(), target),
            "middle_loss": F.mse_loss(middle.float(), target),
            "train_accuracy": (scores.argmax(-1) == labels).sum() / count,
        }
        losses["loss"] = phone_loss + FRONT_WEIGHT * losses["front_loss"] + MIDDLE_WEIGHT * losses["middle_loss"]
        return losses

    @torch.inference_mode()
    def dev_accuracy(self) -> float:
        """The classifier's frame accuracy on 20 utterances of dev speakers."""
        right = total = 0
        for wave, utterance in self.dev:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.args.bfloat16):
                best = self.model(wave, None)[0][0].argmax(-1)
            labels = torch.from_numpy(utterance.labels(len(best)))
            right += int((best == labels).sum())
            total += int((labels != UNKNOWN).sum())
        return right / total

    def step(self) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        losses = self.losses()
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.update += 1
        return {name: value.item() for name, value in losses.items()}

    def train(self) -> None:
        """Trains for the planned minutes, counted over all launches."""
        steps: list[dict[str, float]] = []
        saved = self.seconds
        while not self.finished:
            begin = self.clock()
            steps.append(self.step())
            self.seconds += self.clock() - begin
            if self.update % LOG_UPDATES == 0 or self.finished:
                self.log(steps)
                steps = []
                if self.seconds - saved > SAVE_SECONDS:
                    self.save()
                    saved = self.seconds
        self.save()

    @property
    def finished(self) -> bool:
        return self.seconds >= 60.0 * self.args.minutes

    def log(self, steps: list[dict[str, float]]) -> None:
        """Logs the means over these updates."""
        row = {"update": self.update, "seconds": round(self.seconds, 1)}
        row |= {name: round(sum(step[name] for step in steps) / len(steps), 4) for name in COLUMNS if name in steps[0]}
        # Validation takes as long as some updates, so not at every row.
        validated = self.finished or self.update % (4 * LOG_UPDATES) == 0
        row["dev_accuracy"] = round(self.dev_accuracy(), 4) if validated else None
        with self.log_path.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            if not file.tell():
                writer.writeheader()
            writer.writerow(row)
        print(" ".join(f"{name} {value}" for name, value in row.items() if value is not None), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--minutes", type=float, required=True, help="minutes of training, over all launches")
    add_network_arguments(parser)
    parser.add_argument("--batch", type=int, default=8, help="crops per update")
    parser.add_argument("--crop-seconds", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--clock", choices=tuple(CLOCKS), default="wall", help="cpu: CPU time of all threads, whatever else runs"
    )
    parser.add_argument("--bfloat16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_memory()
    args.out.mkdir(parents=True, exist_ok=True)
    Run(args).train()


def keep_memory() -> None:
    """Makes glibc keep freed memory; otherwise half of the time goes into fresh pages for every activation."""
    if sys.platform == "linux":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_ARENA_MAX, 1)


if __name__ == "__main__":
    main()
