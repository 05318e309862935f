"""Caches the hidden states of a frozen upstream on disk, so that another epoch, seed, learning rate or task with the
same audio and rate does not run the upstream again.

    FOLDER/bytes                        the size of all entries
    FOLDER/KEY/key.json                 what KEY stands for: weights, rate, layers, type of device and number, versions
    FOLDER/KEY/AB/DIGEST.safetensors    one utterance, by the SHA-256 of its samples

The output is cached before pooling, repeating and upsampling, which therefore share it. An utterance is identified by
its samples, not by its file: the same speech is found under another name, and a file that has changed is not. The
front end's output (``front_end.py``) has a section of its own, and so has decoded audio (``audio.py``), which is
identified by the name, size and times of its file.
"""

import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from s3prl_ofa.io.files import cache_folder
from s3prl_ofa.model.config import SAMPLE_RATE
from s3prl_ofa.model.ofa import ExtractOutput, OFAWav2Vec2
from s3prl_ofa.model.waves import check_waves
from s3prl_ofa.superb.feature_cache.keys import model_key
from s3prl_ofa.superb.feature_cache.outputs import OutputCache
from s3prl_ofa.superb.feature_cache.section import Entry

ENTRY = {"hidden_states", "times", "frame_index", "lambd"}

Compute = Callable[[list[Tensor]], ExtractOutput]


class FeatureCache(OutputCache[ExtractOutput]):
    """The outputs of one model at one rate, in a section of a cache's folder.

    model, rate: as in ``model.extract(waves, **rate)``. layers: the hidden states to cache, from 0 to the number of
    layers; in a cached output all others are NaN. folder, limit_gb: see Section.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        limit_gb: float,
        model: OFAWav2Vec2,
        rate: dict[str, Any],
        layers: Sequence[int],
    ) -> None:
        super().__init__(folder, limit_gb, key_of(model, rate, tuple(layers)), ENTRY, model.device)
        self.layers, self.count = tuple(layers), rate.get("layers", model.config.layers) + 1
        self.receptive_field = model.config.receptive_field

    def extract(self, waves: list[Tensor], compute: Compute) -> ExtractOutput:
        """See ``through``."""
        check_waves(waves, self.receptive_field, self.device)  # all, so that errors name the index in the batch
        return self.through(waves, compute)

    def entry(self, output: ExtractOutput, row: int) -> Entry:
        """Frames come first; hidden_states is (frames, layers, dim)."""
        frames, input_frames = int(output.lengths[row]), int(output.input_lengths[row])
        states = torch.stack([output.hidden_states[layer][row, :frames] for layer in self.layers], 1)
        entry = {
            "hidden_states": states,
            "times": output.times[row, :frames],
            "frame_index": output.frame_index[row, :input_frames].int(),
            "lambd": output.lambd[row : row + 1],
        }
        return {name: tensor.detach().cpu().contiguous() for name, tensor in entry.items()}

    def join(self, entries: list[Entry], waves: Sequence[Tensor]) -> ExtractOutput:
        """Padded as in ``extract``."""

        def padded(rows: Iterable[Tensor]) -> Tensor:
            return pad_sequence(list(rows), batch_first=True).to(self.device)

        # one layer after the other: a tensor of all of them would come from fresh memory, which takes twice as long
        states = [padded(entry["hidden_states"][:, row] for entry in entries) for row in range(len(self.layers))]
        absent = states[0].new_full((), torch.nan).expand(states[0].shape)
        cached = dict(zip(self.layers, states, strict=True))
        lengths = torch.tensor([len(entry["times"]) for entry in entries], device=self.device)
        seconds = torch.tensor([len(wave) for wave in waves], dtype=torch.float64, device=self.device) / SAMPLE_RATE
        return ExtractOutput(
            hidden_states=tuple(cached.get(layer, absent) for layer in range(self.count)),
            lengths=lengths,
            times=padded(entry["times"] for entry in entries),
            lambd=torch.cat([entry["lambd"] for entry in entries]).to(self.device),
            frame_period_ms=1000.0 * seconds / lengths,
            input_lengths=torch.tensor([len(entry["frame_index"]) for entry in entries], device=self.device),
            frame_index=padded(entry["frame_index"] for entry in entries).long(),
            alpha_sum=None,
        )


def key_of(model: OFAWav2Vec2, rate: dict[str, Any], layers: Sequence[int]) -> dict[str, Any]:
    """That of the model, with rate and layers."""
    rate = {name: value for name, value in rate.items() if value is not None} or {"lambd": 0.0}
    return model_key(model) | {"rate": rate, "layers": list(layers)}


def wanted_layers(selection: str, layer: int | None, last: int) -> tuple[int, ...]:
    """The layers, from 0 to ``last``, that S3PRL's ``-s`` and ``-l`` read; all of them for an unknown selection."""
    layers = tuple(range(last + 1))
    named = {"last_hidden_state": layers[-1:]} | {f"hidden_state_{index}": (index,) for index in layers}
    if selection in named:
        return named[selection]
    return layers if layer is None or not -len(layers) <= layer <= last else (layers[layer],)


def default_folder() -> pathlib.Path:
    return cache_folder() / "features"
