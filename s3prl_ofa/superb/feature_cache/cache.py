"""Hidden states of a frozen upstream, kept on the disk: a second epoch, seed, learning rate or task that hears the same
audio at the same rate does not run the upstream again.

    FOLDER/bytes                        how much all entries take
    FOLDER/KEY/key.json                 what KEY stands for: weights, rate, layers, type of device and number, versions
    FOLDER/KEY/AB/DIGEST.safetensors    one utterance, by the SHA-256 of its samples

What is kept is the output before pooling, repeating and upsampling, so these share it. An utterance is known by its
samples, not by its file: the same speech under another name is found, a file that has changed is not.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from s3prl_ofa.errors import UsageError
from s3prl_ofa.io.files import atomic_path, cache_folder
from s3prl_ofa.io.locks import InUse, locked
from s3prl_ofa.model.config import SAMPLE_RATE
from s3prl_ofa.model.ofa import ExtractOutput, OFAWav2Vec2
from s3prl_ofa.model.waves import check_waves
from s3prl_ofa.version import __version__

logger = logging.getLogger(__name__)

GB = 10**9
LOCK, USERS, USED, KEY = ".lock", ".users", "bytes", "key.json"
SUFFIX = ".safetensors"
GONE = ".gone-"  # before the name of a place that is being removed
FORMAT = 1  # to be raised when the model comes to give other features for the same weights
ENTRY = {"hidden_states", "times", "frame_index", "lambd"}

Entry = dict[str, Tensor]  # of one utterance
Compute = Callable[[list[Tensor]], ExtractOutput]


class FeatureCache:
    """The outputs of one model at one rate in a cache's folder; other models and rates have places of their own there.

    model, rate: as ``model.extract(wavs, **rate)`` is called. layers: which hidden states are wanted, from 0 to the
    number of layers; of an utterance that was kept, all others are NaN. limit_gb: what the whole folder may take, in
    10^9 bytes, whoever else uses it; when it is full, places that nobody uses make room, the one that was opened
    longest ago first, and then nothing more is kept.

    Raises UsageError where the folder cannot be used. Close it at the end, or use it in a ``with``.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        limit_gb: float,
        model: OFAWav2Vec2,
        rate: dict[str, float | None],
        layers: Sequence[int],
    ) -> None:
        self.layers, self.count = tuple(layers), model.config.layers + 1
        self.device, self.anew, self.full = model.device, False, False
        # seconds of the last batch that were not the model's; NaN where some of it was not computed
        self.overhead = math.nan
        key = key_of(model, rate, self.layers)
        text = json.dumps(key, indent=1, sort_keys=True)
        self.receptive_field = model.config.receptive_field
        self.place = pathlib.Path(folder, hashlib.sha256(text.encode()).hexdigest()[:32])
        self.held = contextlib.ExitStack()
        try:
            self.space = Space(pathlib.Path(folder), round(limit_gb * GB), self.held)
            with locked(self.space.lock, wait=True):
                self.held.enter_context(locked(self.place / LOCK, wait=True, shared=True))
                with atomic_path(self.place / KEY) as temporary:  # its time says when the place was opened last
                    temporary.write_text(text + "\n", "utf-8")
            self.space.take(0, self.place)  # the limit may be lower than the last time
        except OSError as error:
            self.held.close()
            raise UsageError(f"the feature cache {folder} cannot be written ({error.strerror})") from error

    def __enter__(self) -> "FeatureCache":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the folder."""
        self.held.close()

    def extract(self, wavs: list[Tensor], compute: Compute) -> ExtractOutput:
        """What ``compute(wavs)`` gives, of which no more is computed than is not there.

        A batch of which nothing is there, or all of them while ``anew`` is set, comes as it was computed. Otherwise
        utterances were computed in other batches, on which their features do not depend but for rounding.
        """
        start, self.overhead = self.now(), math.nan
        check_waves(wavs, self.receptive_field, self.device)  # also what is there, and with its place in this batch
        paths = [self.path(wav) for wav in wavs]
        entries = [None if self.anew else read(path) for path in paths]
        missing = [index for index, entry in enumerate(entries) if entry is None]
        if missing:
            before = self.now()
            out = compute([wavs[index] for index in missing])
            after = self.now()
            mixed = len(missing) < len(wavs)
            for row, index in enumerate(missing):
                if mixed or not (self.full or paths[index].exists()):
                    entries[index] = entry_of(out, row, self.layers)
                    self.keep(paths[index], entries[index])
            if not mixed:
                self.overhead = self.now() - after + before - start
                return out
        return self.together(entries, wavs)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def path(self, wav: Tensor) -> pathlib.Path:
        samples = hashlib.sha256(wav.detach().to("cpu", torch.float32).contiguous().numpy())
        if torch.is_autocast_enabled(self.device.type):  # S3PRL's fp16, which can change from run to run
            samples.update(str(torch.get_autocast_dtype(self.device.type)).encode())
        digest = samples.hexdigest()
        return self.place / digest[:2] / (digest + SUFFIX)

    def keep(self, path: pathlib.Path, entry: Entry) -> None:
        """Writes the entry, if it is not there yet and there is room; a disk that is full stops nothing."""
        if self.full or path.exists():
            return
        content = safetensors.torch.save(entry)
        try:
            if not self.space.take(len(content), self.place):
                self.full = True
                logger.info("the feature cache %s is full: what is not in it is computed each time", self.space.folder)
                return
            # On the disk before it has its name: after a power cut a file of the right size could hold zeros.
            with atomic_path(path) as temporary:
                temporary.write_bytes(content)
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
        except (OSError, ValueError) as error:
            # What was taken for it stays taken until somebody opens the folder alone and counts.
            self.full = True
            reason = getattr(error, "strerror", None) or error
            logger.warning("nothing more is kept in the feature cache: %s: %s", path.parent, reason)

    def together(self, entries: list[Entry], wavs: list[Tensor]) -> ExtractOutput:
        """A batch from its utterances, padded as ``extract`` pads."""
        states = padded([entry["hidden_states"] for entry in entries], self.device)  # (batch, frames, layers, dim)
        nothing = torch.full((), torch.nan, dtype=states.dtype, device=self.device)
        nothing = nothing.expand(*states.shape[:2], states.shape[3])
        kept = dict(zip(self.layers, states.unbind(2), strict=True))
        lengths = torch.tensor([len(entry["times"]) for entry in entries], device=self.device)
        seconds = torch.tensor([len(wav) for wav in wavs], dtype=torch.float64, device=self.device) / SAMPLE_RATE
        return ExtractOutput(
            hidden_states=tuple(kept.get(layer, nothing) for layer in range(self.count)),
            lengths=lengths,
            times=padded([entry["times"] for entry in entries], self.device),
            lambd=torch.cat([entry["lambd"] for entry in entries]).to(self.device),
            frame_period_ms=1000.0 * seconds / lengths,
            input_lengths=torch.tensor([len(entry["frame_index"]) for entry in entries], device=self.device),
            frame_index=padded([entry["frame_index"] for entry in entries], self.device).long(),
            alpha_sum=None,
        )


class Space:
    """How much a cache's folder holds, counted in its file ``bytes`` by all who use it, so that it keeps to a limit.

    A process that is killed, or two that write the same entry, may leave the count too high; whoever opens the folder
    alone counts anew, and removes what was left half written.
    """

    def __init__(self, folder: pathlib.Path, limit: int, held: contextlib.ExitStack) -> None:
        self.folder, self.limit, self.lock = folder, limit, folder / LOCK
        with locked(self.lock, wait=True):
            try:
                with locked(folder / USERS, wait=False):
                    self.clear_up()
                    self.write(size_of(folder))
            except InUse:
                pass
            held.enter_context(locked(folder / USERS, wait=True, shared=True))

    def clear_up(self) -> None:
        """Removes what killed processes left: places half removed, files half written."""
        for place in self.folder.glob(f"{GONE}*"):
            shutil.rmtree(place, ignore_errors=True)
        half_written = (f".{USED}.*", f"*/.{pathlib.Path(KEY).stem}.*", f"*/*/.*{SUFFIX}")
        for path in (path for pattern in half_written for path in self.folder.glob(pattern)):
            path.unlink(missing_ok=True)

    def places(self) -> list[pathlib.Path]:
        """All places, the one that was opened longest ago first."""

        def opened(place: pathlib.Path) -> float:
            with contextlib.suppress(OSError):
                return (place / KEY).stat().st_mtime
            return 0.0

        return sorted((path for path in self.folder.glob("[!.]*") if path.is_dir()), key=opened)

    def take(self, size: int, keep: pathlib.Path) -> bool:
        """Takes room for ``size`` bytes, if need be from places other than ``keep``; whether there was any.

        With a size of 0, when a place is opened, ``keep`` gives entries back too, where it is itself above the limit.
        """
        with locked(self.lock, wait=True):
            used = int((self.folder / USED).read_text())
            if used + size > self.limit and (not size or size_of(keep) + size <= self.limit):
                for place in self.places():
                    if used + size > self.limit and place != keep:
                        used -= self.removed(place)
            if not size and used > self.limit:
                used -= self.trimmed(keep, used - self.limit)
            fits = used + size <= self.limit
            self.write(used + size if fits else used)
            return fits

    def write(self, used: int) -> None:
        with atomic_path(self.folder / USED) as temporary:
            temporary.write_text(f"{used}\n")

    def removed(self, place: pathlib.Path) -> int:
        """Removes a place that nobody uses; the bytes that this gave back."""
        try:
            with locked(place / LOCK, wait=False):
                size = size_of(place)
                gone = place.rename(place.with_name(GONE + place.name))
                shutil.rmtree(gone, ignore_errors=True)
                return size - size_of(gone)
        except (InUse, OSError):
            return 0

    def trimmed(self, place: pathlib.Path, excess: int) -> int:
        """Removes entries of a place until it takes so many bytes less; the bytes that this gave back. Who has one of
        them open can read on, and who wants one that is gone computes it."""
        given = 0
        for path in place.rglob(f"[!.]*{SUFFIX}"):  # without what is being written
            if given >= excess:
                break
            with contextlib.suppress(OSError):
                size = path.stat().st_size
                path.unlink()
                given += size
        return given


def cache_for(runner: Any, folder: str | os.PathLike, limit_gb: float) -> FeatureCache | None:
    """A cache for the upstream of a runner of S3PRL's, one of ours, and for the layers that the runner selects.

    None for a training that cuts utterances at random places: it would find little again, and fill the cache.
    """
    args, upstream = runner.args, runner.upstream.model
    if args.mode == "train" and runner.config.get("downstream_expert", {}).get("datarc", {}).get("max_timestep"):
        logger.warning(
            "training does without the feature cache, as longer utterances are cut at random places "
            "(-o config.downstream_expert.datarc.max_timestep=None hears them whole)"
        )
        return None
    last = upstream.model.config.layers
    layers = wanted_layers(args.upstream_feature_selection, args.upstream_layer_selection, last)
    return FeatureCache(folder, limit_gb, upstream.model, upstream.options.extract_rate, layers)


def default_folder() -> pathlib.Path:
    return cache_folder() / "features"


def wanted_layers(selection: str, layer: int | None, last: int) -> tuple[int, ...]:
    """The layers, of 0 to ``last``, that S3PRL's ``-s`` and ``-l`` read; all for a choice that is not known here."""
    every = tuple(range(last + 1))
    if selection == "last_hidden_state":
        return every[-1:]
    one = [layer for layer in every if selection == f"hidden_state_{layer}"]
    if one:
        return tuple(one)
    return every if layer is None or not -len(every) <= layer <= last else (every[layer],)


def key_of(model: OFAWav2Vec2, rate: dict[str, float | None], layers: tuple[int, ...]) -> dict[str, Any]:
    """What features depend on beside the audio; torch and the type of device, as they decide how sums are rounded."""
    return {
        "format": FORMAT,
        "weights": model.fingerprint(),
        "rate": {name: value for name, value in rate.items() if value is not None} or {"lambd": 0.0},
        "layers": list(layers),
        "dtype": str(next(model.parameters()).dtype),
        "device": model.device.type,
        "versions": {"s3prl_ofa": __version__, "torch": torch.__version__},
    }


def entry_of(out: ExtractOutput, row: int, layers: tuple[int, ...]) -> Entry:
    """One utterance of a batch, without its padding; frames come first, hidden_states is (frames, layers, dim)."""
    frames, before = int(out.lengths[row]), int(out.input_lengths[row])
    states = torch.stack([out.hidden_states[layer][row, :frames] for layer in layers], 1)
    entry = {
        "hidden_states": states,
        "times": out.times[row, :frames],
        "frame_index": out.frame_index[row, :before].int(),
        "lambd": out.lambd[row : row + 1],
    }
    return {name: tensor.detach().cpu().contiguous() for name, tensor in entry.items()}


def read(path: pathlib.Path) -> Entry | None:
    """An entry, mapped into memory; None where there is none. One that is broken is removed."""
    try:
        entry = safetensors.torch.load_file(path)
        if entry.keys() == ENTRY:
            return entry
        error = f"it holds {', '.join(sorted(entry))}"
    except FileNotFoundError:
        return None
    except (safetensors.SafetensorError, OSError) as found:
        error = found
    logger.warning("%s in the feature cache cannot be read and is computed anew: %s", path, error)
    if not isinstance(error, OSError):
        with contextlib.suppress(OSError):
            path.unlink()
    return None


def padded(rows: list[Tensor], device: torch.device) -> Tensor:
    """(batch, longest, ...) on the device, zeros after each end."""
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)


def size_of(folder: pathlib.Path) -> int:
    """Bytes of all entries below it."""
    total = 0
    for path in folder.rglob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total
