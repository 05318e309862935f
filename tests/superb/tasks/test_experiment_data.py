"""Experiments whose data has moved, and splits to evaluate on that no config names."""

import json
import pathlib
import shutil

import pytest
import torch
import yaml
from paths import CKPT
from superb_corpora import make_corpora

from s3prl_ofa import cli
from s3prl_ofa.errors import UsageError
from s3prl_ofa.resources import folder
from s3prl_ofa.superb.tasks import configs, experiment_data

STEPS = "config.runner.total_steps={0},,config.runner.eval_step=2,,config.runner.save_step=2"


def data(root: pathlib.Path, *options: str) -> list[str]:
    found = ["--librispeech", str(root / "LibriSpeech"), "--voxceleb1", str(root / "VoxCeleb1")]
    return [*found, "--prepared", str(root / "prepared"), *options]


def run(mode: str, *options: str) -> int:
    return cli.main(["run_downstream", "-m", mode, *options])


@pytest.fixture(scope="module")
def moved(tmp_path_factory) -> pathlib.Path:
    """Experiments asr, pr and sid; their data was in ``old`` when they were trained, and is in ``new`` now."""
    root = tmp_path_factory.mktemp("moved")
    make_corpora(root / "old")
    for task in ("asr", "pr", "sid"):
        options = ["-u", "ofa_wav2vec2", "-k", CKPT, "-d", task, "-p", str(root / task), "-o", STEPS.format(2)]
        assert run("train", *options, *data(root / "old", "--mini")) == 0
    (root / "old").rename(root / "new")
    return root


def config_of(experiment: pathlib.Path, step: int = 2) -> dict:
    return torch.load(experiment / f"states-{step}.ckpt", weights_only=True)["Config"]["downstream_expert"]


def utterances(experiment: pathlib.Path, split: str) -> int:
    return json.loads((experiment / f"measured_{split}.json").read_text())["utterances"]


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("asr", ["--librispeech ROOT", "--bucket PATH or --prepared"]),
        ("pr", ["--librispeech ROOT"]),
        ("sid", ["--voxceleb1 ROOT"]),
    ],
)
def test_data_that_has_moved_is_given_again(moved, task, options, capfd):
    """Without the options that say where the data is now, one sentence names them one by one; with them the experiment
    is evaluated."""
    given = data(moved / "new")
    for number, option in enumerate(options):
        assert run("evaluate", "-e", str(moved / task), *given[: 2 * number]) == 2
        message = capfd.readouterr().err.splitlines()[-1]
        assert "/old/" in message and "is no longer there" in message and option in message
    assert run("evaluate", "-e", str(moved / task), *given) == 0
    assert utterances(moved / task, "test") == 2


@pytest.mark.parametrize("task", ["asr", "sid"])
@pytest.mark.parametrize("how", ["-e", "-a"])
def test_a_training_resumes_on_data_that_has_moved(moved, task, how, tmp_path):
    """-e and -a resume with the data where it is now, and store that with the experiment."""
    experiment = str(shutil.copytree(moved / task, tmp_path / task))
    place = (
        ["-e", experiment] if how == "-e" else ["-a", "-p", experiment, "-d", task, "-u", "ofa_wav2vec2", "-k", CKPT]
    )
    assert run("train", *place, *data(moved / "new"), "-o", STEPS.format(4)) == 0
    assert "/old" not in str(config_of(tmp_path / task, 4)) and "/old" in str(config_of(moved / task))


@pytest.mark.parametrize("task", ["asr", "pr"])
def test_other_splits_are_evaluated(moved, task):
    """--splits chooses what ``test`` is, -t any folder of the corpus or several, and the results are named after it."""
    given = ["-e", str(moved / task), *data(moved / "new")]
    assert run("evaluate", *given, "--splits", "dev-mini,test-mini,train-mini+dev-mini") == 0
    assert utterances(moved / task, "test") == 8
    for split, count in {"train-mini": 6, "dev-mini+test-mini": 4, "test": 2}.items():
        assert run("evaluate", *given, "-t", split) == 0
        assert utterances(moved / task, split) == count


@pytest.mark.parametrize(
    ("task", "split", "words"),
    [
        ("asr", "nosuch", ["no split nosuch in ", "dev-mini, test-mini, train-mini", "dev-clean, test-clean, test"]),
        ("pr", "nosuch", ["no split nosuch in ", "dev-mini, test-mini, train-mini", "train, dev, test"]),
        ("pr", "train-mini+nosuch", ["no split nosuch in "]),
        ("pr", "lexicon", ["no split lexicon in "]),
        ("asr", "train", ["-t train-mini scores each once"]),
        ("pr", "train", ["-t train-mini scores each once"]),
        ("sid", "train-mini", ["sid has no split train-mini; it has train, dev, test"]),
    ],
)
def test_a_split_that_does_not_exist(moved, task, split, words, capfd):
    """The message lists the existing splits; SUPERB's training batches are not a split to score."""
    assert run("evaluate", "-e", str(moved / task), *data(moved / "new"), "-t", split) == 2
    message = capfd.readouterr().err.splitlines()[-1]
    assert all(word in message for word in words), message


def test_a_missing_bucket_file_is_reported(moved, capfd, tmp_path):
    """asr needs a bucket file of each folder that it reads; S3PRL would leave out the folder with a warning."""
    prepared = shutil.copytree(moved / "new" / "prepared", tmp_path / "prepared")
    (prepared / "bucket" / "dev-mini.csv").unlink()
    given = ["-e", str(moved / "asr"), *data(moved / "new"), "--prepared", str(prepared)]
    assert run("evaluate", *given) == 0
    assert run("evaluate", *given, "-t", "test-mini+dev-mini") == 2
    assert f"holds no dev-mini.csv; `s3prl-ofa prepare bucket --librispeech {moved}" in capfd.readouterr().err
    options = ["-u", "ofa_wav2vec2", "-k", CKPT, "-d", "asr", "-p", str(tmp_path / "exp"), "--mini"]
    assert run("train", *options, *data(moved / "new"), "--prepared", str(prepared)) == 2
    assert "holds no dev-mini.csv" in capfd.readouterr().err and not (tmp_path / "exp").exists()


def test_a_file_is_transcribed_without_the_corpus(moved, capfd):
    """Inference reads no corpus, so it needs none."""
    wave = next((moved / "new" / "LibriSpeech" / "test-mini").rglob("*.flac"))
    assert run("inference", "-e", str(moved / "asr"), "-t", str(wave)) == 0
    assert run("inference", "-e", str(moved / "asr")) == 2
    assert "-m inference -t test: there is no such file" in capfd.readouterr().err


@pytest.fixture
def config(moved):
    """The config of the asr experiment, with the paths of its data now."""
    found = {"downstream_expert": config_of(moved / "asr")}
    experiment_data.refill(
        "asr", found, {"librispeech": str(moved / "new"), "prepared": str(moved / "new/prepared")}, ""
    )
    return found


def test_vocabularies_of_another_installation(config):
    """Our vocabulary is found by name if the installation was elsewhere, and takes the place of S3PRL's equal one; a
    user's vocabulary is not mistaken for it."""
    datarc = config["downstream_expert"]["datarc"]
    del config["downstream_expert"]["vocabulary"]  # an experiment from before it was stored
    ours = str(folder("downstream_configs") / "char.dict")
    for stored in ("/gone/site-packages/s3prl_ofa/downstream_configs/char.dict", "./downstream/asr/char.dict"):
        datarc["dict_path"] = stored
        experiment_data.refill("asr", config, {}, None)
        assert datarc["dict_path"] == ours
    datarc["dict_path"] = "/gone/mine/char.dict"
    with pytest.raises(
        UsageError, match="vocabulary /gone/mine/char.dict is no longer there: .*-o config.*dict_path=FILE"
    ):
        experiment_data.refill("asr", config, {}, None)
    experiment_data.refill("asr", config, {}, "config.downstream_expert.datarc.dict_path=char.dict")


def test_other_corpora_of_ctc_are_left_alone():
    """S3PRL's ctc also reads other corpora, with other splits."""
    corpus = {"name": "common_voice", "path": "/gone", "train": ["train"], "test": ["test"]}
    config = {"downstream_expert": {"corpus": corpus}}
    assert configs.task_of("ctc", config) is None and configs.task_of("timit_phone", {}) is None
    experiment_data.check_splits("ctc", config, "evaluate", "test")


def test_overrides_win(config):
    """What -o sets is neither filled nor checked; a key that only begins alike is not affected."""
    datarc = config["downstream_expert"]["datarc"]
    datarc["libri_root"] = "/gone"
    experiment_data.refill("asr", config, {}, "args.seed=1,, config.downstream_expert.datarc.libri_root = /new")
    assert datarc["libri_root"] == "/gone"
    with pytest.raises(UsageError, match="the experiment's /gone is no longer there: .*--librispeech ROOT"):
        experiment_data.refill("asr", config, {}, "config.downstream_expert.datarc.libri_root_of=/new")


@pytest.mark.parametrize("task", configs.S3PRL_DOWNSTREAM)
def test_every_placeholder_can_be_refilled(task):
    """Each placeholder of our configs, mini ones too, is the whole value of a key that an experiment stores."""
    wanted = dict(experiment_data.placeholders(task))
    mini = yaml.safe_load((folder("downstream_configs") / f"{task}_mini.yaml").read_text())
    for text in (str(mini), (folder("downstream_configs") / f"{task}.yaml").read_text().split("runner:")[1]):
        assert len(configs.PLACEHOLDER.findall(text)) == len(wanted)
    for where, name in wanted.items():
        section, key = configs.section_of(mini, where)
        assert section[key] == f"${{{name}}}"
