"""Where a task's data is: the paths and splits that fill the placeholders of its config, from the options of a run."""

import dataclasses
import pathlib

from s3prl_ofa.arguments.run_downstream import option as flag
from s3prl_ofa.errors import UsageError
from s3prl_ofa.superb.tasks.corpora import CORPORA, corpus_root, folders, split_folder
from s3prl_ofa.superb.tasks.speaker_lists import SPEAKER_LISTS, speaker_folders

SUPERB_SPLITS = ("train-clean-100", "dev-clean", "test-clean")
# what a mini config trains, validates and tests on: the first of these whose folders all exist
MINI_SPLITS = (
    ("train-mini", "dev-mini", "test-mini"),
    ("train-clean-5", "dev-clean-2", "dev-clean-2"),
    SUPERB_SPLITS,
)
SPLITS = ("train", "dev", "test")
SPEECH_COMMANDS = {"speech_commands_train": "speech_commands_v", "speech_commands_test": "speech_commands_test_set_v"}
# placeholders whose value is found in the folder that the option of another name gives
FOUND_BELOW = dict.fromkeys(SPEECH_COMMANDS, "speech_commands") | {"slots": "snips"}
FOUND_BELOW |= {f"librimix_{part}": "librimix" for part in SPLITS}
KALDI_FILES = ("wav.scp", "segments", "utt2spk", "reco2dur")  # of each part of LibriMix
PLACEHOLDERS = (*CORPORA, "bucket", "lexicon", "speaker_list", "trials", *FOUND_BELOW, *SPLITS)
# VoxCeleb's cleaned list and S3PRL's copy of it, and VoxCeleb's first list
TRIALS = ("veri_test2.txt", "voxceleb1_test_v2.txt", "veri_test.txt")


@dataclasses.dataclass
class DataRoots:
    """The values of a config's placeholders; each is looked up only when a config holds it.

    given: the options of the run: those of CORPORA, prepared (the output folder of ``s3prl-ofa prepare all``), bucket,
    lexicon, speaker_list (each also found below ``prepared``), trials and splits ("TRAIN,DEV,TEST", several joined by
    +); an option that was not given is missing or None. Every method raises UsageError naming the option to give.
    """

    given: dict[str, str | None]
    mini: bool

    def value(self, placeholder: str) -> str | list[str]:
        """The value of one of ``PLACEHOLDERS``."""
        if placeholder in SPLITS:
            return self.splits()[SPLITS.index(placeholder)]
        if placeholder in CORPORA:
            return str(self.corpus(placeholder))
        if placeholder in SPEECH_COMMANDS:
            return self.speech_commands_part(SPEECH_COMMANDS[placeholder])
        if placeholder.startswith("librimix_"):
            return self.librimix_part(placeholder.removeprefix("librimix_"))
        return getattr(self, placeholder)()

    def corpus(self, option: str) -> pathlib.Path:
        root = corpus_root(self.given.get(option), option)
        if option == "voxceleb1":
            speaker_folders(root)
        return root

    def speech_commands_part(self, name: str) -> str:
        """The folder whose name begins so, in either version of the corpus."""
        root = self.corpus("speech_commands")
        found = [folder for folder in folders(root) if folder.name.startswith(name)]
        if len(found) != 1:
            raise UsageError(f"--speech-commands {root}: expected one folder {name}0.01 or {name}0.02 in it")
        return str(found[0])

    def librimix_part(self, part: str) -> str:
        folder = self.corpus("librimix") / part
        if missing := [name for name in KALDI_FILES if not (folder / name).is_file()]:
            raise UsageError(
                f"--librimix {folder.parent}: there is no {part}/{missing[0]}; expected what LibriMix's "
                f"prepare_diarization.py writes"
            )
        return str(folder)

    def slots(self) -> str:
        return existing(str(self.corpus("snips") / "slots.txt"), "--snips")

    def bucket(self) -> str:
        return self.given_or_prepared("bucket", "bucket", "bucket --librispeech")

    def lexicon(self) -> list[str]:
        if self.given.get("lexicon"):
            return [existing(name, "--lexicon") for name in self.given["lexicon"].split(",")]
        return [self.given_or_prepared("lexicon", "lexicon.txt", "lexicon --librispeech")]

    def speaker_list(self) -> str:
        if not self.given.get("speaker_list"):
            # a prepared list holds only files that exist, so it takes precedence over the corpus's own
            folders = [self.given.get("prepared"), self.corpus("voxceleb1")]
            for path in (pathlib.Path(folder, name) for folder in folders if folder for name in SPEAKER_LISTS):
                if path.is_file():
                    return str(path.resolve())
        return self.given_or_prepared("speaker_list", SPEAKER_LISTS[0], "voxceleb1 --voxceleb1")

    def trials(self) -> str:
        root = self.corpus("voxceleb1")
        if self.given.get("trials"):
            return existing(self.given["trials"], "--trials")
        for path in (root / name for name in TRIALS):
            if path.is_file():
                return str(path)
        raise UsageError(
            f"{root} holds no {' or '.join(TRIALS)}: give the pairs of files to verify with --trials FILE, in lines of "
            f"1 (the same speaker) or 0 and two files SPEAKER/RECORDING/FILE.wav of test/wav"
        )

    def given_or_prepared(self, name: str, file_name: str, product: str) -> str:
        """The path that the option ``name`` gives, or else ``file_name`` below ``prepared``."""
        option, make = flag(name), f"s3prl-ofa prepare {product} ROOT --out DIR"
        if self.given.get(name):
            return existing(self.given[name], option)
        if self.given.get("prepared"):
            path = pathlib.Path(existing(self.given["prepared"], "--prepared"), file_name)
            if path.exists():
                return str(path)
            raise UsageError(f"--prepared {self.given['prepared']} holds no {file_name}; `{make}` makes it")
        raise UsageError(f"this task needs {option} PATH or --prepared DIR; `{make}` makes what it reads")

    def splits(self) -> tuple[list[str], ...]:
        """The folders of each of ``SPLITS``."""
        root = self.corpus("librispeech")
        if self.given.get("splits"):
            splits = tuple(part.split("+") for part in self.given["splits"].split(","))
            if len(splits) != 3:
                raise UsageError(f"--splits must be TRAIN,DEV,TEST, found {self.given['splits']}")
        else:
            choices = MINI_SPLITS if self.mini else (SUPERB_SPLITS,)
            complete = (names for names in choices if all((root / name).is_dir() for name in names))
            splits = tuple([name] for name in next(complete, choices[0]))
        for name in sum(splits, []):
            split_folder(root, name, f": choose with --splits TRAIN,DEV,TEST{'' if self.mini else ' or --mini'}")
        return splits


def existing(path: str, option: str) -> str:
    """The absolute path. Raises UsageError naming the option where there is nothing."""
    found = pathlib.Path(path).expanduser()
    if not found.exists():
        raise UsageError(f"{option} {path}: there is no such file or folder")
    return str(found.resolve())
