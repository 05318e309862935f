"""The neural letter-to-sound model of the package g2p_en, from its weights alone.

g2p_en itself downloads data of nltk when it is imported, which it needs to read sentences; for single words its two
GRUs are enough, and the weights of those lie in its wheel.
"""

import importlib.util
import pathlib
import re
import string

import numpy as np
import torch

from s3prl_ofa.resources import folder

LETTERS = ["<pad>", "<unk>", "</s>", *string.ascii_lowercase]
MAX_PHONES = 20  # what g2p_en allows; longer words get one more a letter beyond that


def phone_names() -> list[str]:
    """The phones of our vocabulary, without silence and noise."""
    return (folder("downstream_configs") / "phoneme.txt").read_text("utf-8").split()[2:]


class LetterToSound:
    """Predicts the phones of a word, with stress. Raises ImportError when g2p_en is not installed."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec("g2p_en")  # finds the package without running it
        if spec is None or spec.origin is None:
            raise ImportError("g2p_en is not installed")
        with np.load(pathlib.Path(spec.origin).parent / "checkpoint20.npz") as arrays:
            weights = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        gru = ("w_ih", "w_hh", "b_ih", "b_hh")
        self.letters, self.encoder = weights["enc_emb"], [weights[f"enc_{name}"] for name in gru]
        self.phones, self.decoder = weights["dec_emb"], [weights[f"dec_{name}"] for name in gru]
        self.output = weights["fc_w"], weights["fc_b"]
        # besides the phones that we know, the model can say UW without stress
        self.names = ["<pad>", "<unk>", "<s>", "</s>", *sorted([*phone_names(), "UW"])]

    @staticmethod
    def can_read(word: str) -> bool:
        """Whether the model was trained on such words, in which apostrophes were its unknown letter."""
        return re.fullmatch("[a-z']*[a-z][a-z']*", word, re.ASCII | re.IGNORECASE) is not None

    def __call__(self, word: str) -> list[str]:
        """The phones of a word; empty when the model has none. Raises ValueError for a word that it cannot read."""
        if not self.can_read(word):
            raise ValueError(f"g2p_en reads the letters a to z and apostrophes, found {word!r}")
        ids = [LETTERS.index("<unk>" if letter == "'" else letter) for letter in word.lower()]
        state = torch.zeros(1, self.encoder[1].shape[1])
        for index in [*ids, LETTERS.index("</s>")]:
            state = torch.gru_cell(self.letters[index][None], state, *self.encoder)
        phones, last = [], self.names.index("<s>")
        for _ in range(max(MAX_PHONES, len(word) + 5)):
            state = torch.gru_cell(self.phones[last][None], state, *self.decoder)
            last = int(torch.nn.functional.linear(state, *self.output).argmax())
            if self.names[last] == "</s>":
                break
            phones.append("UW0" if self.names[last] == "UW" else self.names[last])
        return [phone for phone in phones if not phone.startswith("<")]
