"""Labels: none outside the vocabulary, custom vocabularies, and each stored with its model."""

import importlib

import pytest
import torch
from paths import CKPT
from superb_corpora import PHONES, SENTENCES, make_librispeech

from s3prl_ofa import cli
from s3prl_ofa.errors import UsageError
from s3prl_ofa.superb.tasks import configs, labels

STEPS = "config.runner.total_steps=2,,config.runner.eval_step=2,,config.runner.save_step=2,,config.runner.log_step=2"
TEST = {"asr": "test-clean", "pr": "test"}


@pytest.fixture
def root(tmp_path):
    make_librispeech(tmp_path)
    return tmp_path


@pytest.fixture
def run(root, monkeypatch):
    """A function (mode, task, *options) that calls ``run_downstream`` on the corpus."""
    monkeypatch.chdir(root)

    def call(mode, task, *options):
        data = ["--librispeech", "LibriSpeech", "--prepared", "prepared", "--mini"]
        model = ["-u", "ofa_wav2vec2", "-k", CKPT, "-d", task, "-p", "exp", "-o", STEPS]
        given = options if "-e" in options else (*options, *data, *model)
        return cli.main(["run_downstream", "-m", mode, *map(str, given)])

    return call


def transcript(root, split="train-mini"):
    return root / "LibriSpeech" / split / "11" / "22" / "11-22.trans.txt"


def append_word(root, word, split="train-mini"):
    """Appends a word to the first line of a split; returns the utterance's name."""
    first, *others = transcript(root, split).read_text("utf-8").splitlines()
    transcript(root, split).write_text("\n".join([f"{first} {word}", *others]) + "\n", "utf-8")
    return first.split()[0]


def prepare_vocabulary(root, *arguments):
    return cli.main(["prepare", "vocabulary", "--librispeech", str(root / "LibriSpeech"), *map(str, arguments)])


def stored(path):
    return torch.load(path, map_location="cpu", weights_only=True)


@pytest.mark.parametrize(
    ("word", "shown"),
    [("1984", "1 4 8 9"), ("привет", "В Е И П Р Т"), ("你好", "你 好"), ("A|B", "|"), ("A\u200bB", r"\u200b")],
)
def test_characters_outside_the_vocabulary(word, shown, root, run, capsys):
    """asr: refused before training with characters, utterances, file, line and remedy; the vocabulary does not grow."""
    utterance = append_word(root, word)
    assert run("train", "asr") == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "1 of 6 utterances have characters that the vocabulary lacks: " + shown + ", in" in message
    assert f"{utterance} ({transcript(root)}, line 1)" in message
    assert "prepare vocabulary" in message and "--vocabulary DIR/char.dict" in message
    assert not (root / "exp").exists()


@pytest.mark.parametrize("word", ["1984", "привет", "你好"])
def test_words_without_phones(word, root, run, capsys):
    """pr: refused before training with words, utterances, file, line and remedy."""
    utterance = append_word(root, word)
    assert run("train", "pr") == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert (
        f"1 of 6 utterances have words without a pronunciation in {root}/prepared/lexicon.txt: {word.upper()}"
        in message
    )
    assert f"{utterance} ({transcript(root)}, line 1)" in message and "--lexicon FILE" in message
    assert not (root / "exp").exists()


def test_phones_outside_the_vocabulary(root, run, capsys):
    """pr: phones without a label are refused likewise."""
    lexicon = root / "prepared" / "lexicon.txt"
    lexicon.write_text(lexicon.read_text().replace("HH AE1 T", "HH AE T"))
    assert run("train", "pr") == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "2 of 6 utterances have words with phones that the config's vocab_file lacks" in message
    assert f"HAT (HH AE T, {lexicon}, line 5), in 11-22-0002 (" in message and "--vocabulary DIR/phoneme.txt" in message


@pytest.mark.parametrize("task", ["asr", "pr"])
def test_development_and_test_sets_are_checked_too(task, root, run, capsys, caplog):
    """The splits that a training evaluates on are checked before it starts; a fault of the test set is a warning then,
    and an error when it is scored."""
    before = transcript(root, "dev-mini").read_bytes()
    append_word(root, "1984", "dev-mini")
    assert run("train", task) == 2
    assert "1 of 2 utterances" in capsys.readouterr().err and not (root / "exp").exists()
    transcript(root, "dev-mini").write_bytes(before)
    assert run("train", task) == 0
    append_word(root, "1984", "test-mini")
    capsys.readouterr()
    assert run("evaluate", task, "-e", "exp", "-t", TEST[task]) == 2
    assert "1 of 2 utterances" in capsys.readouterr().err
    (root / "exp").rename(root / "before")
    assert run("train", task) == 0
    assert "the test split cannot be scored with this training: 1 of 2 utterances" in caplog.text


def test_one_utterance_is_too_few_for_asr(root, run, capsys):
    """S3PRL skips batches of one, so a single utterance would leave none: refused before anything is written."""
    for path in sorted(transcript(root).parent.glob("*.flac"))[1:]:
        path.unlink()
    assert run("train", "asr") == 2
    assert "11-22-0000.flac is the only utterance to train on" in capsys.readouterr().err
    assert not (root / "exp").exists()
    assert run("train", "pr") == 0


def test_a_custom_vocabulary(root, run, capsys):
    """prepare vocabulary counts the characters of the corpus; a model with these labels is trained and scored."""
    for split in ("train-mini", "test-mini"):
        append_word(root, "straße 1984 你好", split)
    assert prepare_vocabulary(root, "--out", root / "own") == 0
    lines = [line.split() for line in (root / "own" / "char.dict").read_text("utf-8").splitlines()]
    text = " ".join([*(SENTENCES[seed % len(SENTENCES)] for seed in range(10)), *["STRASSE 1984 你好"] * 2])
    assert {symbol: int(count) for symbol, count in lines} == {
        "|": len(text.split()),
        **{letter: text.count(letter) for letter in set(text) - {" "}},
    }
    counts = [int(count) for _, count in lines]
    assert counts == sorted(counts, reverse=True)
    assert run("train", "asr", "--vocabulary", "own/char.dict") == 0
    assert run("evaluate", "asr", "-e", "exp", "-t", "test-clean") == 0
    states = stored("exp/states-2.ckpt")
    assert len(states["Downstream"]["model.linear.bias"]) == 4 + len(lines)
    refs = (root / "exp" / "test-clean-noLM-ref.ark").read_text("utf-8")
    assert "STRASSE 1984 你好" in refs and "<unk>" not in refs
    assert prepare_vocabulary(root, "--out", root / "dev", "--splits", "dev-mini") == 0
    assert "1" not in (root / "dev" / "char.dict").read_text("utf-8").split()[::2]


def test_a_vocabulary_is_found_below_prepared(root):
    """The vocabulary that prepare wrote to the folder of --prepared is used; otherwise ours is."""
    given = {"librispeech": str(root / "LibriSpeech"), "prepared": str(root / "prepared")}

    def found(task, section, key):
        return configs.resolve_config(task, None, True, given)["downstream_expert"][section][key]

    assert found("asr", "datarc", "dict_path") == str(configs.folder("downstream_configs") / "char.dict")
    lexicon = root / "prepared" / "lexicon.txt"
    assert prepare_vocabulary(root, "--out", root / "prepared", "--lexicon", lexicon) == 0
    assert found("asr", "datarc", "dict_path") == str(root / "prepared" / "char.dict")
    assert found("pr", "text", "vocab_file") == str(root / "prepared" / "phoneme.txt")
    phones = (root / "prepared" / "phoneme.txt").read_text().split()
    assert phones == sorted({phone for text in PHONES.values() for phone in text.split()})


def test_custom_phones(root, run):
    """A lexicon with other phones trains pr with a vocabulary made from it."""
    (root / "own.txt").write_text("".join(f"{word} {' '.join(word.lower())}\n" for word in PHONES))
    assert prepare_vocabulary(root, "--out", root / "own", "--lexicon", root / "own.txt") == 0
    assert run("train", "pr", "--lexicon", "own.txt", "--vocabulary", "own/phoneme.txt") == 0
    phones = (root / "own" / "phoneme.txt").read_text().split()
    assert phones == sorted(set("".join(PHONES).lower()))
    assert len(stored("exp/states-2.ckpt")["Downstream"]["model.linear.bias"]) == 3 + len(phones)


def test_a_word_end_in_a_transcript_makes_no_vocabulary(root, tmp_path, capsys):
    """``|`` in a text would be taken for the end of a word: refused by name instead of counted."""
    append_word(root, "A|B")
    assert prepare_vocabulary(root, "--out", tmp_path / "own") == 2
    assert f"{transcript(root)}, line 1" in capsys.readouterr().err and not (tmp_path / "own" / "char.dict").exists()


@pytest.mark.parametrize("change", ["permuted", "gone", "moved"])
def test_a_model_keeps_its_vocabulary(change, root, run, caplog, capsys):
    """A changed, lost or moved vocabulary file permutes no labels: the checkpoint's is used, which is logged."""
    assert prepare_vocabulary(root, "--out", root / "own") == 0
    assert run("train", "asr", "--vocabulary", "own/char.dict") == 0
    kept = (root / "own" / "char.dict").read_text()
    assert (root / "exp" / "vocabulary.txt").read_text() == kept
    folder = "exp"

    def score():
        capsys.readouterr()
        assert run("evaluate", "asr", "-e", folder, "-t", "test-clean") == 0
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("test-clean")]

    before = score()
    if change == "permuted":
        (root / "own" / "char.dict").write_text("\n".join(reversed(kept.splitlines())) + "\n")
    else:
        (root / "own" / "char.dict").unlink()
    if change == "moved":
        folder = "elsewhere"
        (root / "exp").rename(root / folder)
        (root / folder / "vocabulary.txt").unlink()
    caplog.clear()
    assert score() == before and len(before) == 3
    assert ("is not used: the model was trained with another vocabulary" in caplog.text) == (change == "permuted")
    assert (root / folder / "vocabulary.txt").read_text() == kept


def test_another_vocabulary_has_no_effect(root, run, caplog):
    """--vocabulary with -e is not ignored silently: a warning says that a trained model keeps its labels."""
    assert run("train", "pr") == 0
    assert run("evaluate", "pr", "-e", "exp", "--vocabulary", "prepared/lexicon.txt") == 0
    assert "--vocabulary has no effect" in caplog.text


def test_weights_alone_bring_their_vocabulary(root, run):
    """-i uses the weights with their vocabulary, whatever the config says."""
    assert prepare_vocabulary(root, "--out", root / "own") == 0
    assert run("train", "asr", "--vocabulary", "own/char.dict") == 0
    (root / "exp").rename(root / "trained")
    assert run("evaluate", "asr", "-i", "trained/states-2.ckpt", "-t", "test-clean") == 0
    assert (root / "exp" / "vocabulary.txt").read_text() == (root / "own" / "char.dict").read_text()


@pytest.mark.parametrize("task", ["asr", "pr"])
def test_an_output_layer_of_another_vocabulary(task, root, run, capsys):
    """Weights for another number of labels, of an experiment that stored no vocabulary, are refused in one sentence."""
    assert run("train", task) == 0
    states = stored("exp/states-2.ckpt")
    del states["Config"]["downstream_expert"]["vocabulary"]
    section, key = configs.section_of(states["Config"], configs.VOCABULARY[configs.S3PRL_DOWNSTREAM[task]])
    (root / "short").write_text("| 1\nE 1\n" if task == "asr" else "AH0\nT\n")
    section[key] = str(root / "short")
    torch.save(states, "exp/states-2.ckpt")
    count = {"asr": (32, 6), "pr": (74, 5)}[task]
    capsys.readouterr()
    assert run("evaluate", task, "-e", "exp", "-t", TEST[task]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert f"the trained model has {count[0]} labels" in message and f"{root}/short makes {count[1]}" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"A\n", "expected lines of a symbol and a count"),
        (b"A 1\nA 2\n", "each symbol once"),
        (b"\xef\xbb\xbf| 1\n", "byte order mark"),
        (b"| 1\n\xc9 1\n", "line 2: not UTF-8 text"),
        (b"E 1\nT 1\n", r"characters that the vocabulary lacks: A C D"),
    ],
)
def test_bad_vocabularies(content, words, root):
    """A file that is not a vocabulary is refused, and one without the end of words."""
    (root / "own.dict").write_bytes(content)
    given = {"librispeech": str(root / "LibriSpeech"), "prepared": str(root / "prepared")}
    config = configs.resolve_config("asr", None, True, {**given, "vocabulary": str(root / "own.dict")})
    with pytest.raises(UsageError, match=words):
        labels.labeled("asr", config, "train")
    with pytest.raises(UsageError, match="--vocabulary nowhere: there is no such file"):
        configs.resolve_config("asr", None, True, {**given, "vocabulary": "nowhere"})


def test_characters_through_ctc(root):
    """S3PRL's ctc with characters would turn unknown ones into <unk>: refused as well."""
    text = importlib.import_module("s3prl.downstream.ctc.text")
    data = importlib.import_module("s3prl.downstream.ctc.data")
    append_word(root, "1984")
    corpus = {"name": "librispeech", "bucketing": True, "batch_size": 2, "path": str(root / "LibriSpeech")}
    with pytest.raises(UsageError, match="1 of 6 utterances have labels .*: 1 4 8 9, in"):
        data.create_dataset("train", text.CharacterTextEncoder(list(" ACDEGHOST")), train=["train-mini"], **corpus)
