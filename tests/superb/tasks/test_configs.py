"""SUPERB's tasks: configs, data roots, and what is added to S3PRL."""

import errno
import importlib
import os
import pathlib
import re
import sys

import pytest
import soundfile
import yaml
from superb_corpora import PHONES, SENTENCES, noise

import s3prl_ofa.superb  # noqa: F401  prepares S3PRL for today's stack
from s3prl_ofa.errors import UsageError
from s3prl_ofa.resources import folder
from s3prl_ofa.superb.tasks import configs
from s3prl_ofa.superb.tasks.corpora import CORPORA

CONFIGS = folder("downstream_configs")


@pytest.fixture
def roots(corpora):
    names = CORPORA | {"prepared": "prepared", "trials": "verification/veri_test2.txt"}
    return {option: str(corpora / name) for option, name in names.items()}


@pytest.fixture
def corpus_module():
    """Imports a module of ``s3prl.downstream.ctc.corpus`` again."""

    def load(name: str):
        for module in [module for module in sys.modules if module.startswith("s3prl.downstream.ctc.corpus")]:
            del sys.modules[module]
        return importlib.import_module(f"s3prl.downstream.ctc.corpus.{name}")

    return load


@pytest.fixture
def phone_tokenizer():
    text = importlib.import_module("s3prl.downstream.ctc.text")
    return text.load_text_encoder("word", str(CONFIGS / "phoneme.txt"))


@pytest.mark.parametrize("task", configs.S3PRL_DOWNSTREAM)
def test_mini_configs_find_everything(task, roots):
    """The mini configs need only data roots: splits, lists and vocabularies are found, and no placeholder is left."""
    config = configs.resolve_config(task, None, True, roots)
    assert "${" not in str(config)
    expert = config["downstream_expert"]
    paths = {
        "asr": lambda: [expert["datarc"][key] for key in ("libri_root", "bucket_file", "dict_path")],
        "pr": lambda: [expert["corpus"]["path"], *expert["corpus"]["lexicon"], expert["text"]["vocab_file"]],
        "sid": lambda: [expert["datarc"]["file_path"], expert["datarc"]["meta_data"]],
        "ks": lambda: [expert["datarc"][f"speech_commands{part}_root"] for part in ("", "_test")],
        "ic": lambda: [expert["datarc"]["file_path"]],
        "asv": lambda: [expert["datarc"]["file_path"], expert["datarc"]["test_meta_data"]],
        "sd": lambda: [expert["loaderrc"][f"{split}_dir"] for split in ("train", "dev", "test")],
        "qbe": lambda: [expert["datarc"]["dataset_root"]],
        "er": lambda: [expert["datarc"]["root"]],
        "sf": lambda: [expert["corpus"]["path"], expert["text"]["vocab_file"], expert["text"]["slots_file"]],
    }[task]()
    assert all(pathlib.Path(path).is_absolute() and pathlib.Path(path).exists() for path in paths)
    if task in ("asr", "pr"):
        data = expert["datarc"] if task == "asr" else expert["corpus"]
        assert (data["train"], data["test"]) == (["train-mini"], ["test-mini"])
        assert data["dev-clean" if task == "asr" else "dev"] == ["dev-mini"]
    if task != "sf":  # S3PRL's ctc is pr
        again = configs.resolve_config(configs.S3PRL_DOWNSTREAM[task], None, True, roots)
        assert config == again, "S3PRL's name does as well"


def test_full_configs_have_superbs_settings():
    """The full configs are SUPERB's: steps, learning rate, batches, heads, metrics."""
    asr, pr, sid = (yaml.safe_load((CONFIGS / f"{task}.yaml").read_text()) for task in ("asr", "pr", "sid"))
    assert [config["runner"]["total_steps"] for config in (asr, pr, sid)] == [200_000, 100_000, 200_000]
    assert [config["runner"]["gradient_accumulate_steps"] for config in (asr, pr, sid)] == [1, 2, 4]
    assert [config["optimizer"]["lr"] for config in (asr, pr, sid)] == [1e-4, 1e-2, 1e-4]
    assert {config["optimizer"]["torch_optim_name"] for config in (asr, pr, sid)} == {"Adam"}
    model = asr["downstream_expert"]["modelrc"]
    assert (model["select"], model["project_dim"]) == ("RNNs", 1024)
    assert (model["RNNs"]["module"], model["RNNs"]["bidirection"], model["RNNs"]["dim"]) == ("LSTM", True, [1024, 1024])
    assert asr["downstream_expert"]["datarc"]["batch_size"] == 32 and asr["specaug"]["apply_time_mask"]
    assert pr["downstream_expert"]["corpus"]["batch_size"] == 16 and "specaug" not in pr
    assert pr["downstream_expert"]["model"]["select"] == "FrameLevel" and pr["downstream_expert"]["metric"] == ["per"]
    datarc, model = sid["downstream_expert"]["datarc"], sid["downstream_expert"]["modelrc"]
    assert (datarc["train_batch_size"], datarc["max_timestep"]) == (8, 128_000)
    assert model["UtteranceLevel"]["pooling"] == "MeanPooling"


@pytest.mark.parametrize("task", ["ks", "ic"])
def test_full_configs_of_short_commands_have_superbs_settings(task):
    config = yaml.safe_load((CONFIGS / f"{task}.yaml").read_text())
    assert (config["runner"]["total_steps"], config["runner"]["gradient_accumulate_steps"]) == (200_000, 1)
    assert (config["optimizer"]["torch_optim_name"], config["optimizer"]["lr"]) == ("Adam", 1e-4)
    expert = config["downstream_expert"]
    assert {size for key, size in expert["datarc"].items() if key.endswith("batch_size")} == {32}
    assert (expert["modelrc"]["projector_dim"], expert["modelrc"]["select"]) == (256, "UtteranceLevel")


def test_vocabularies_are_those_of_s3prl():
    """The label ids are S3PRL's, so that its trained downstream models fit."""
    dictionary = importlib.import_module("s3prl.downstream.asr.dictionary").Dictionary.load(str(CONFIGS / "char.dict"))
    assert "".join(dictionary.symbols[4:]) == "|ETAONIHSRDLUMCWFGYPBVK'XJQZ"
    phones = (CONFIGS / "phoneme.txt").read_text().split()
    assert len(phones) == 71 and phones[:3] == ["SIL", "SPN", "AA0"] and phones[-1] == "ZH"
    assert phones[2:] == sorted(phones[2:]) and sum(phone[-1] in "012" for phone in phones) == 45


@pytest.mark.parametrize(
    ("task", "without", "option"),
    [
        ("asr", "librispeech", "--librispeech ROOT"),
        ("asr", "prepared", "--bucket PATH or --prepared DIR"),
        ("pr", "prepared", "--lexicon PATH or --prepared DIR"),
        ("sid", "voxceleb1", "--voxceleb1 ROOT"),
        ("sid", "prepared", "--speaker-list PATH or --prepared DIR"),
        ("ks", "speech_commands", "--speech-commands ROOT"),
        ("ic", "fluent", "--fluent ROOT"),
        ("sf", "snips", "--snips ROOT"),
        ("sd", "librimix", "--librimix ROOT"),
        ("er", "iemocap", "--iemocap ROOT"),
        ("qbe", "quesst", "--quesst ROOT"),
    ],
)
def test_missing_data_names_the_option(task, without, option, roots):
    """A root that the config needs, but that was not given or does not exist, is named by its option."""
    with pytest.raises(UsageError, match=re.escape(option)):
        configs.resolve_config(task, None, True, {**roots, without: None})
    with pytest.raises(UsageError, match=f"--{without.replace('_', '-')} .*no such"):
        configs.resolve_config(task, None, True, {**roots, without: "/no/such/folder"})


def test_splits_are_checked_and_chosen(roots):
    """The full configs want SUPERB's splits and otherwise list those of the corpus; --splits chooses, + joins."""
    with pytest.raises(
        UsageError, match="no split train-clean-100 .*dev-mini, test-mini, train-mini.*--splits.*--mini"
    ):
        configs.resolve_config("asr", None, False, roots)
    chosen = {**roots, "splits": "train-mini+dev-mini,dev-mini,test-mini"}
    config = configs.resolve_config("asr", None, False, chosen)
    assert config["downstream_expert"]["datarc"]["train"] == ["train-mini", "dev-mini"]
    with pytest.raises(UsageError, match="TRAIN,DEV,TEST"):
        configs.resolve_config("asr", None, False, {**roots, "splits": "train-mini"})
    with pytest.raises(UsageError, match="no split nonesuch"):
        configs.resolve_config("asr", None, True, {**roots, "splits": "nonesuch,dev-mini,test-mini"})


def test_the_parent_folder_of_the_corpus_is_accepted(corpora, roots):
    """--librispeech may also be the folder above LibriSpeech."""
    config = configs.resolve_config("asr", None, True, {**roots, "librispeech": str(corpora)})
    assert config["downstream_expert"]["datarc"]["libri_root"] == str(corpora / "LibriSpeech")


def test_the_list_of_the_corpus_is_found(corpora, roots, tmp_path):
    """SID finds VoxCeleb1's own list in its root; a prepared one takes precedence over it, a given one over both."""
    root = tmp_path / "VoxCeleb1"
    root.mkdir()
    (root / "dev").symlink_to(corpora / "VoxCeleb1" / "dev")
    (root / "iden_split.txt").write_text("1 id10001/video/00000.wav\n")

    def found(**given):
        return configs.resolve_config("sid", None, True, given)["downstream_expert"]["datarc"]["meta_data"]

    assert found(voxceleb1=str(root)) == str(root / "iden_split.txt")
    assert found(voxceleb1=str(root), prepared=roots["prepared"]) == f"{roots['prepared']}/veri_test_class.txt"
    given = tmp_path / "mine.txt"
    given.write_text("")
    assert found(voxceleb1=str(root), prepared=roots["prepared"], speaker_list=str(given)) == str(given)
    with pytest.raises(UsageError, match="no folders of speakers"):
        found(voxceleb1=str(tmp_path / "VoxCeleb1" / "dev"))


def test_own_configs_are_used_as_they_are(roots, tmp_path):
    """A config given by path is used as it is; placeholders are filled, S3PRL's relative vocabulary paths found."""
    path = tmp_path / "own.yaml"
    own = {"runner": {"total_steps": 3}, "downstream_expert": {"corpus": {"path": "${librispeech}/train-mini"}}}
    own["downstream_expert"]["text"] = {"vocab_file": "downstream/ctc/vocab/phoneme.txt"}
    path.write_text(yaml.safe_dump(own))
    config = configs.resolve_config("pr", str(path), False, roots)
    assert config["runner"] == {"total_steps": 3}
    assert config["downstream_expert"]["corpus"]["path"] == f"{roots['librispeech']}/train-mini"
    assert config["downstream_expert"]["text"]["vocab_file"] == str(CONFIGS / "phoneme.txt")
    (tmp_path / "mine.dict").write_text("A 1\n")
    path.write_text("downstream_expert: {datarc: {dict_path: mine.dict}}")
    config = configs.resolve_config("asr", str(path), False, {})
    assert config["downstream_expert"]["datarc"]["dict_path"] == str(tmp_path / "mine.dict")


def test_a_vocabulary_in_the_working_folder(roots, tmp_path, monkeypatch):
    """A stray file with the name of a vocabulary does not take the place of the one of our config or of --prepared."""
    expected = [configs.resolve_config(task, None, True, roots) for task in ("asr", "pr")]
    monkeypatch.chdir(tmp_path)
    for name in ("char.dict", "phoneme.txt"):
        (tmp_path / name).write_text("A 1\n")
    assert [configs.resolve_config(task, None, True, roots) for task in ("asr", "pr")] == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: '${librispech}'", "librispech.*librispeech, voxceleb1"),
        ("a: [", "not YAML"),
        ("- a", "mapping"),
        ("downstream_expert: {text: {vocab_file: nowhere.txt}}", "no vocabulary nowhere.txt"),
    ],
)
def test_bad_configs_are_reported(text, words, tmp_path):
    """A config that cannot be used is named with what is wrong in it."""
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=words):
        configs.resolve_config("pr", str(path), False, {})


def test_unknown_tasks_and_files_are_reported():
    """Without a config only the tasks of SUPERB are known; a config must exist."""
    with pytest.raises(UsageError, match="there is a config for asr, pr, sid, .*found mosei"):
        configs.resolve_config("mosei", None, False, {})
    with pytest.raises(UsageError, match="nowhere.yaml cannot be read .*; a config is expected"):
        configs.resolve_config("asr", "nowhere.yaml", False, {})


def test_a_config_without_permission_is_named(tmp_path, monkeypatch):
    """A config that may not be read is named with the system's reason."""
    (tmp_path / "my.yaml").write_text("runner: {}")

    def refuse(path, *args):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(pathlib.Path, "read_text", refuse)
    with pytest.raises(UsageError, match=r"my.yaml cannot be read \(Permission denied\)"):
        configs.read_config(tmp_path / "my.yaml")


def test_specaug_covers_the_same_speech_at_any_rate():
    """Widths along time shrink with the number of frames; those along the features and the given config stay."""
    config = {"specaug": {"time_warp_window": 5, "time_mask_width_range": [0, 40], "freq_mask_width_range": [0, 50]}}
    assert configs.scale_specaug(config, 20.0) == config
    scaled = configs.scale_specaug(config, 80.0)["specaug"]
    low, high = scaled["time_mask_width_range"]
    # S3PRL draws widths from low to high - 1: 19.5 frames of 20 ms on average
    assert abs(80.0 * (low + high - 1) / 2 - 390.0) <= 20.0
    assert scaled["time_warp_window"] == 1 and scaled["freq_mask_width_range"] == [0, 50]
    assert configs.scale_specaug(config, 2000.0)["specaug"]["time_mask_width_range"] == [0, 2]
    assert config["specaug"]["time_mask_width_range"] == [0, 40]
    assert configs.scale_specaug({"runner": {}}, 80.0) == {"runner": {}}


def test_all_loaders_have_the_configs_workers(roots, tmp_path):
    """S3PRL's ctc forgets num_workers after its first loader and starts 12 workers for the others; not here."""
    expert = importlib.import_module("s3prl.downstream.ctc.expert")
    config = configs.resolve_config("pr", None, True, roots)
    downstream = expert.DownstreamExpert(8, 320, config["downstream_expert"], str(tmp_path))
    assert [downstream.get_dataloader(split).num_workers for split in ("train", "dev", "dev")] == [0, 0, 0]
    waves, labels, names = next(iter(downstream.get_dataloader("train")))
    assert len(waves) == len(labels) == len(names) == 6 and all(ids[-1] == 1 for ids in labels)


def test_phone_labels(corpora, corpus_module, phone_tokenizer):
    """PR's labels are the lexicon's phones with stress and the end symbol, longest first; buckets are always full."""
    dataset_class = corpus_module("libriphone").LibriPhoneDataset
    lexicon = [str(corpora / "prepared" / "lexicon.txt")]
    dataset = dataset_class(["train-mini"], phone_tokenizer, 1, path=str(corpora / "LibriSpeech"), lexicon=lexicon)
    assert len(dataset) == 6
    lengths = [len(labels) for labels in dataset.text]
    assert lengths == sorted(lengths, reverse=True)
    for path, labels in (dataset[index] for index in range(len(dataset))):
        sentence = SENTENCES[int(path[-9:-5])]
        assert phone_tokenizer.decode(labels) == " ".join(PHONES[word] for word in sentence.split())
        assert labels[-1] == phone_tokenizer.eos_idx
    dataset.bucket_size = 4
    assert [len(dataset[index]) for index in range(6)] == [4] * 6
    assert dataset[5] == dataset[2] and dataset[0] != dataset[1]
    dataset.bucket_size = 100
    assert len(dataset[3]) == 6


def test_words_and_phones_unknown(corpora, corpus_module, phone_tokenizer, tmp_path):
    """A word without a pronunciation and a phone without a label stop the run with their names and what to do."""
    dataset_class = corpus_module("libriphone").LibriPhoneDataset
    lexicon = tmp_path / "lexicon.txt"
    place = {"path": str(corpora / "LibriSpeech"), "lexicon": [str(lexicon)]}
    with pytest.raises(UsageError, match="no lexicon .*prepare lexicon"):
        dataset_class(["train-mini"], phone_tokenizer, 1, **place)
    lexicon.write_text("".join(f"{word} {phones}\n" for word, phones in PHONES.items() if word not in ("CAT", "HAT")))
    with pytest.raises(UsageError, match="4 of 6 utterances .*: CAT HAT, in 11-22-0000 .*`s3prl-ofa prepare lexicon`"):
        dataset_class(["train-mini"], phone_tokenizer, 1, **place)
    lexicon.write_text("".join(f"{word} {phones.replace('AE1', 'AE')}\n" for word, phones in PHONES.items()))
    with pytest.raises(UsageError, match=r": CAT \(K AE T, .*, line 2\) HAT \(HH AE T, .*, line 5\) SAT"):
        dataset_class(["train-mini"], phone_tokenizer, 1, **place)
    lexicon.write_text("CAT\n")
    with pytest.raises(UsageError, match="line 1: the word CAT has no phones"):
        dataset_class(["train-mini"], phone_tokenizer, 1, **place)


def test_characters_from_wav_and_table(corpus_module, tmp_path, caplog):
    """ctc's librispeech corpus reads any audio format, and the other form that S3PRL's configs use: a table."""
    text = importlib.import_module("s3prl.downstream.ctc.text")
    tokenizer = text.CharacterTextEncoder(list("ABCT "))
    chapter = tmp_path / "split" / "1" / "2"
    chapter.mkdir(parents=True)
    soundfile.write(chapter / "1-2-0.wav", noise(0.1, 0), 16_000)
    (chapter / "1-2.trans.txt").write_text("1-2-0 a cat\n")
    module = corpus_module("librispeech")
    dataset = module.LibriDataset(["split"], tokenizer, 1, path=str(tmp_path), ratio=1.0, offset=0)
    assert dataset[0] == (str(chapter / "1-2-0.wav"), tokenizer.encode("A CAT"))
    (tmp_path / "train.csv").write_text(f"wav_path,transcription\n{chapter}/1-2-0.wav,A CAT\n")
    assert module.LibriDataset("train.csv", tokenizer, 1, csv_dir=str(tmp_path)).text == dataset.text
    for split, place, words in (
        ("train.csv", {"csv_dir": str(chapter)}, "no table"),
        ("1-2.trans.txt", {"csv_dir": str(chapter)}, "wav_path"),
        (["nowhere"], {"path": str(tmp_path)}, "no split nowhere .* it has split"),
        (["split"], {}, "neither"),
    ):
        with pytest.raises(UsageError, match=words):
            module.LibriDataset(split, tokenizer, 1, **place)
    with open(tmp_path / "train.csv", "a") as file:
        file.write(f"{chapter}/1-2-1.wav,A CAB\n{chapter}/1-2-0.wav,\n")
    assert module.LibriDataset("train.csv", tokenizer, 1, csv_dir=str(tmp_path)).text == dataset.text
    assert "2 of 3 utterances are left out" in caplog.text and "1-2-1.wav (no such file)" in caplog.text


def test_corpora_of_a_checkout_are_still_found(corpus_module, monkeypatch, tmp_path):
    """In a source checkout of S3PRL its other ctc corpora are still found beside ours."""
    ctc = importlib.import_module("s3prl.downstream.ctc")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "common_voice.py").write_text("HERE = True\n")
    monkeypatch.setattr(ctc, "__path__", [*ctc.__path__, str(tmp_path)])
    assert corpus_module("common_voice").HERE
    assert "ctc_corpus" in corpus_module("libriphone").__file__
