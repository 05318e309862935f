"""IEMOCAP for S3PRL's emotion recognition, read from the corpus, as S3PRL's wheel lacks the tables that list it."""

import pathlib
import re

from s3prl.downstream.emotion.dataset import IEMOCAPDataset
from torch import nn

from s3prl_ofa.errors import UsageError
from s3prl_ofa.io.audio import find_audio
from s3prl_ofa.superb.tasks.corpora import Corpus, Utterance, folders, listing, read_lines

EMOTIONS = {"neu": 0, "hap": 1, "ang": 2, "sad": 3}  # SUPERB's four classes
EXCITED = "exc"  # counts as happy
EVALUATED = re.compile(r"\[.*?\]\s+(\S+)\s+(\w+)")  # [start - end] UTTERANCE EMOTION


class EmotionDataset(IEMOCAPDataset):
    """S3PRL's dataset of the table ``meta_path``, a path that ends in SessionN/train_meta_data.json or test_....

    Where there is no such file, the usable utterances of ``data_dir`` that it would list: those of session N to test
    on, those of all others to train on. Raises UsageError if there are none.
    """

    def __init__(self, data_dir: str, meta_path: str, pre_load: bool = True) -> None:
        table, root = pathlib.Path(meta_path), pathlib.Path(data_dir)
        if table.is_file():
            super().__init__(data_dir, meta_path, pre_load)
            return
        sessions = [folder for folder in folders(root) if folder.name.startswith("Session")]
        if table.parent.name not in [session.name for session in sessions] or len(sessions) < 2:
            raise UsageError(f"{root}: expected Session1 to Session5, with {table.parent.name} to test on")
        is_test = table.name.startswith("test")
        corpus = Corpus()
        for session in sessions:
            if (session.name == table.parent.name) == is_test:
                corpus.utterances += read_session(session)
        utterances = corpus.usable(root)
        self.data_dir, self.pre_load = data_dir, pre_load
        self.class_dict, self.class_num = EMOTIONS, len(EMOTIONS)
        self.idx2emotion = {label: emotion for emotion, label in EMOTIONS.items()}
        self.meta_data = [
            {"path": utterance.audio.relative_to(root).as_posix(), "label": utterance.text} for utterance in utterances
        ]
        self.resampler = nn.Identity()  # only 16 kHz is used
        if pre_load:
            self.wavs = self._load_all()


def read_session(session: pathlib.Path) -> list[Utterance]:
    """The utterances of a session that have one of SUPERB's emotions, which is their text; sorted by name."""
    audio = {path.stem: path for path in find_audio(session / "sentences" / "wav")}
    found = {}
    evaluations = session / "dialog" / "EmoEvaluation"
    for path in listing(evaluations):
        for number, line in read_lines(path) if path.suffix == ".txt" else ():
            evaluated = EVALUATED.match(line)
            if evaluated and evaluated[1] in audio:
                emotion = "hap" if evaluated[2] == EXCITED else evaluated[2]
                if emotion in EMOTIONS:
                    found[evaluated[1]] = Utterance(audio[evaluated[1]], emotion, f"{path}, line {number}")
    return [found[name] for name in sorted(found)]
