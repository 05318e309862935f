"""Nothing of a config, an experiment or an option is run: each place where S3PRL evaluates a string, and the rest of
what an experiment that someone else made could have S3PRL do."""

import argparse
import ast
import copy
import importlib
import pathlib

import pytest
import torch
import yaml
from paths import CKPT

from s3prl_ofa import cli
from s3prl_ofa.errors import UsageError, shown
from s3prl_ofa.superb.compat import plain_names
from s3prl_ofa.superb.downstream.checkpoints import initial_states

EXPERT = "downstream_expert."
# What S3PRL 0.4.18 evaluates, and keys of configs from which it comes. None: nothing of a file or an option.
PLACES = {
    "optimizers.py: f'get_{optimizer_name}'": ["optimizer.name"],
    "schedulers.py: f'get_{scheduler_name}'": ["scheduler.name"],
    "downstream/model.py: config['select']": [
        EXPERT + "modelrc.select",
        EXPERT + "modelrc.UtteranceLevel.pre_net.select",
        EXPERT + "modelrc.UtteranceLevel.post_net.select",
    ],
    "downstream/model.py: pooling": [EXPERT + "modelrc.UtteranceLevel.pooling"],
    "downstream/asr/expert.py: decoder_args.unk_weight": [EXPERT + "datarc.decoder_args.unk_weight"],
    "downstream/asr/expert.py: self.modelrc['select']": [EXPERT + "modelrc.select"],
    "downstream/ctc/expert.py: model_select": [EXPERT + "model.select"],
    "downstream/ctc/expert.py: metric": [EXPERT + "metric"],
    "downstream/emotion/model.py: model_type": [EXPERT + "modelrc.DeepModel.model_type"],
    "downstream/fluent_commands/model.py: pooling_name": [EXPERT + "modelrc.UtterLinear.pooling_name"],
    "downstream/sv_voxceleb1/model.py: module_name": [EXPERT + "modelrc.module"],
    "downstream/sv_voxceleb1/model.py: agg_module_name": [EXPERT + "modelrc.agg_module"],
    "downstream/sv_voxceleb1/model.py: utterance_module_name": [EXPERT + "modelrc.utter_module"],
    "downstream/sv_voxceleb1/expert.py: self.modelrc['ObjectiveLoss']": [EXPERT + "modelrc.ObjectiveLoss"],
    "utility/helper.py: value_str": None,  # -o, see below
    "downstream/timit_phone/upstream_expert.py: modelrc['select']": None,  # of a checkpoint: test_safe_loading.py
    "downstream/voxceleb1/dataset.py: 'self.{}'.format(mode)": None,  # train, dev and test
    "run_downstream.py: f'runner.{args.mode}'": None,  # -m, of three choices
}
for task in ("emotion", "fluent_commands", "speech_commands", "timit_phone", "voxceleb1"):
    PLACES[f"downstream/{task}/expert.py: self.modelrc['select']"] = [EXPERT + "modelrc.select"]
for task in (
    "atis",
    "audio_snips",
    "fluent_commands",
    "voxceleb1",
    "voxceleb2_amsoftmax_segment_eval",
    "voxceleb2_ge2e",
):
    PLACES[f"downstream/{task}/model.py: agg_module"] = [EXPERT + "modelrc.agg_module"]
    PLACES[f"downstream/{task}/model.py: config['module']"] = [EXPERT + "modelrc.module"]
SPLITS = ["runner.eval_dataloaders", "runner.train_dataloader"]
for task in (
    *("atis", "audio_snips", "emotion", "fluent_commands", "mosei", "phone_linear"),
    *("speaker_linear_utter_libri", "voxceleb1"),
):
    PLACES[f"downstream/{task}/expert.py: f'self.get_{{mode}}_dataloader'"] = SPLITS
PLACES["downstream/timit_phone_linear/expert.py: f'self.get_{split}_dataloader'"] = SPLITS


def calls_of_eval() -> set[str]:
    """Where S3PRL's sources call ``eval``, and with what, but the upstreams: those are in test_safe_loading.py."""
    root = pathlib.Path(importlib.import_module("s3prl").__file__).parent
    files = [*root.glob("downstream/**/*.py"), *root.glob("*.py"), root / "utility" / "helper.py"]
    found = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "eval":
                found.add(f"{path.relative_to(root).as_posix()}: {ast.unparse(node.args[0])}")
    return found - {"run_pretrain.py: 'runner.train'"}  # not a command of ours


def test_every_place_is_listed():
    """S3PRL evaluates nothing that this file does not try."""
    assert calls_of_eval() == set(PLACES)


def task_of(place: str) -> str:
    """The task whose expert evaluates there; for what is not of one task, one that goes through it."""
    name = pathlib.PurePosixPath(place.split(":")[0]).parent.name
    return name if place.startswith("downstream/") and name != "downstream" else "voxceleb1"


def put(config: dict, key: str, value) -> dict:
    *parents, last = key.split(".")
    inner = config
    for parent in parents:
        inner = inner.setdefault(parent, {})
    inner[last] = value
    return config


@pytest.fixture(scope="module")
def trained(corpora, tmp_path_factory) -> pathlib.Path:
    """An experiment of SID."""
    folder = tmp_path_factory.mktemp("trained") / "exp"
    data = ["--voxceleb1", str(corpora / "VoxCeleb1"), "--prepared", str(corpora / "prepared"), "--mini"]
    steps = "config.runner.total_steps=2,,config.runner.eval_step=2,,config.runner.save_step=2"
    task = ["-m", "train", "-d", "sid", "-u", "ofa_wav2vec2", "-k", CKPT, *data, "-o", steps, "-p", str(folder)]
    assert cli.main(["run_downstream", *task]) == 0
    return folder


@pytest.fixture
def evaluate(trained, tmp_path, monkeypatch, capfd):
    """A function (change) -> (status, message) that evaluates the experiment after ``change(Args, Config)``.

    Nothing may be left in the folder that it runs in: hostile strings are to touch a file of the name ``marker`` there.
    """
    states = torch.load(trained / "states-2.ckpt", weights_only=True)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")

    def call(change, *options) -> tuple[int, str]:
        changed = {**states, "Args": copy.deepcopy(states["Args"]), "Config": copy.deepcopy(states["Config"])}
        change(changed["Args"], changed["Config"])
        (tmp_path / "theirs").mkdir(exist_ok=True)
        torch.save(changed, tmp_path / "theirs" / "states-2.ckpt")
        capfd.readouterr()
        status = cli.main(["run_downstream", "-m", "evaluate", *(options or ("-e", str(tmp_path / "theirs")))])
        said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("s3prl-ofa run_downstream")]
        assert not list((tmp_path / "cwd").iterdir())
        return status, said[-1] if said else ""

    return call


TOUCH = "__import__('pathlib').Path('marker').touch()"
HOSTILE = {  # as strings that S3PRL puts where NAME is in get_NAME, self.get_NAME_dataloader, or evaluates alone
    "get_": f"Adam if {TOUCH} else get_Adam",
    "self.get_": f"train_dataloader if {TOUCH} else self.get_train",
    "": TOUCH,
}


def hostile_for(place: str):
    before = place.split(": ")[1].removeprefix("f'").split("{")[0]
    return HOSTILE[before if before in HOSTILE else ""]


@pytest.mark.parametrize(
    ("place", "key"), [(place, key) for place, keys in PLACES.items() for key in keys or ()], ids=lambda text: text
)
def test_a_stored_config_is_not_run(evaluate, place, key, tmp_path):
    """-e on an experiment from elsewhere: one sentence that names the key, for each place of each task."""
    hostile = hostile_for(place)
    status, said = evaluate(
        lambda args, config: (vars(args).update(downstream=task_of(place)), put(config, key, hostile))
    )
    assert status == 2
    where = f"s3prl-ofa run_downstream: error: -e {tmp_path / 'theirs' / 'states-2.ckpt'}: the config's {key}: "
    assert said == f"{where}a plain name is expected, found {shown(hostile)}"


@pytest.mark.parametrize(
    "name", ["__import__", "open", "exec", "breakpoint", "os.system", "torch.hub.load", "a b", "", "\uff4fpen"]
)
@pytest.mark.parametrize("value", [str, lambda name: ["FrameLevel", name], lambda name: {name: 1}])
def test_names_that_are_none_of_s3prls(name, value):
    """Python's own functions, what is inside of something, names in lists and as keys are refused too."""
    with pytest.raises(UsageError, match="the config's downstream_expert.modelrc.module: a plain name is expected"):
        plain_names.check_config(put({"runner": {}}, "downstream_expert.modelrc.module", value(name)))


def test_names_in_mappings_of_a_list():
    """A key counts at any depth."""
    config = put({"runner": {}}, "downstream_expert.modelrc.layers", [[{"module": "os.system"}]])
    with pytest.raises(UsageError, match="the config's downstream_expert.modelrc.layers.module: a plain name"):
        plain_names.check_config(config)


def test_what_s3prls_own_configs_hold():
    """Names, splits with hyphens, a pooling by numbers and an unknown word's weight as S3PRL's configs give them."""
    config = yaml.safe_load(
        """
        runner: {eval_dataloaders: [dev-clean, test], train_dataloader: train-clean-100}
        optimizer: {name: TorchOptim, torch_optim_name: Adam}
        scheduler: {name: linear_schedule_with_warmup}
        downstream_expert:
          corpus: {name: 'common voice'}
          datarc: {decoder_args: {decoder_type: None, unk_weight: -math.inf}}
          modelrc: {select: RNNs, RNNs: {module: LSTM}, DeepModel: {model_type: CNNSelfAttention, pooling: 5}}
          metric: [per, wer]
        """
    )
    plain_names.check_config(config)
    with pytest.raises(UsageError, match="decoder_args.unk_weight"):
        plain_names.check_config(put(config, "downstream_expert.datarc.decoder_args.unk_weight", "math.inf()"))


TENSOR = {"runner": {1: torch.zeros(2)}, "downstream_expert": {}}
FUNCTION = {"runner": {}, "downstream_expert": {2: len}}


@pytest.mark.parametrize("config", [None, [1], "x", {}, {"runner": {}, "downstream_expert": 3}, TENSOR, FUNCTION])
def test_configs_that_are_none(config):
    with pytest.raises(UsageError, match="^-e x: the config"):
        plain_names.check_config(config, "-e x: ")


def test_a_config_without_end(evaluate):
    """A pickle can hold a mapping that is in itself."""
    status, said = evaluate(lambda args, config: config.update(more=config))
    assert status == 2 and "the config: the configuration has more than 32 levels" in said


STORED = {
    "hub": ({"hub": "huggingface", "upstream": "somebody/upstream"}, "--hub huggingface runs a downloaded program"),
    "from_hf_hub": ({"from_hf_hub": True, "upstream": "somebody/upstream"}, "--hub huggingface runs a downloaded"),
    "upstream": ({"upstream": "no_such"}, "-u 'no_such': S3PRL has no such upstream"),
    "upstream of another kind": ({"upstream": ["hubert"]}, "S3PRL has no such upstream"),
    "no upstream": ({"upstream": None}, "S3PRL has no such upstream"),
    "downstream": ({"downstream": "no_such"}, "-d 'no_such': neither asr, pr, sid, "),
    "downstream above": ({"downstream": "../downstream/asr"}, "-d '../downstream/asr': neither asr"),
    "module": ({"downstream": "asr.model"}, "-d 'asr.model': neither asr"),
    "downstream of another kind": ({"downstream": 3}, "-d 3: neither asr"),
    "checkpoint of another kind": ({"upstream_ckpt": [1]}, "-k: text is expected, found [1]"),
    "no checkpoint": (
        {"upstream_ckpt": None},
        "ofa_wav2vec2 needs a checkpoint: -k FILE, USER/NAME of the Hugging Face Hub or URL",
    ),
    "selection of another kind": ({"upstream_feature_selection": [1]}, "-s: text is expected, found [1]"),
    "rate of another kind": ({"upstream_model_config": 3}, "-g: text is expected, found 3"),
    "tensor": ({"seed": torch.zeros(2)}, "the arguments: the configuration holds a Tensor; expected plain values"),
}


@pytest.mark.parametrize("name", STORED)
def test_stored_arguments_bring_no_program(evaluate, name, tmp_path):
    """An experiment cannot have S3PRL download a program, import a module, or trip over a wrong type."""
    values, said = STORED[name]
    status, message = evaluate(lambda args, config: vars(args).update(values))
    assert status == 2 and message.startswith(f"s3prl-ofa run_downstream: error: -e {tmp_path}/theirs/states-2.ckpt: ")
    assert said in message


PARTS = {
    "Args": ({"upstream": "ofa_wav2vec2"}, "its Args is a dict, expected Namespace"),
    "Config": ({}, "the config must be a mapping with runner and downstream_expert, found {}"),
    "Step": ("2", "its Step is a str, expected int"),
    "Downstream": (torch.zeros(2), "its Downstream is a Tensor, expected dict"),
    "Position": ([1], "its Position is a list, expected dict"),
}


@pytest.mark.parametrize("part", PARTS)
def test_parts_of_another_kind(part, trained, tmp_path, capfd):
    """A file in which something else stands where S3PRL keeps its own says what."""
    value, said = PARTS[part]
    torch.save({**torch.load(trained / "states-2.ckpt", weights_only=True), part: value}, tmp_path / "states-2.ckpt")
    assert cli.main(["run_downstream", "-m", "evaluate", "-e", str(tmp_path)]) == 2
    assert f"error: -e {tmp_path}/states-2.ckpt: {said}" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("Args", {}, "its Args is a dict, expected Namespace"),
        ("Config", {"runner": {}, "downstream_expert": 3}, "the config must be a mapping"),
        *[(part, "2", f"its {part} is a str, expected int") for part in ("Step", "Epoch")],
        *[
            (part, [1], f"its {part} is a list, expected dict")
            for part in ("Config", "Optimizer", "Scheduler", "Upstream", "Featurizer", "Rate", "Downstream", "Position")
        ],
    ],
)
def test_initial_weights_of_wrong_parts(part, value, said, tmp_path):
    """-i takes weights, and the config that they were trained with, from a file that someone else made."""
    path = tmp_path / "x.ckpt"
    torch.save({"Args": argparse.Namespace(), "Downstream": {}, part: value}, path)
    with pytest.raises(UsageError, match=f"x.ckpt: {said}"):
        initial_states(str(path))


@pytest.mark.parametrize("part", ["batches", "epoch_start", "now"])
def test_a_position_that_is_none(part, trained, tmp_path, capfd):
    states = torch.load(trained / "states-2.ckpt", weights_only=True)
    states["Position"][part] = {"python": 1}
    torch.save(states, tmp_path / "states-2.ckpt")
    more = ["-o", "config.runner.total_steps=3"]
    assert cli.main(["run_downstream", "-m", "train", "-e", str(tmp_path), *more]) == 2
    assert "the checkpoint's Position is not a random state to resume from" in capfd.readouterr().err


def test_every_source_of_a_config_is_checked(evaluate, trained, tmp_path, corpora):
    """-a, a YAML file of -c for a task of ours and for another, and -o, which may put text in quotes."""
    hostile = put(copy.deepcopy(stored_config(trained)), "optimizer.name", HOSTILE["get_"])
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(hostile))
    new = ["-u", "ofa_wav2vec2", "-k", CKPT, "-p", "exp", "-c", str(tmp_path / "theirs.yaml")]
    quoted = f'config.optimizer.name="{HOSTILE["get_"]}"'
    for options in (
        ["-a", "-p", str(tmp_path / "theirs")],
        ["-d", "sid", *new],
        ["-d", "emotion", *new],
        ["-e", str(trained), "-o", quoted],
    ):
        change = (lambda args, config: config.update(hostile)) if "-a" in options else lambda args, config: None
        status, said = evaluate(change, *options)
        assert status == 2 and "the config's optimizer.name: a plain name is expected, found" in said
    for option, said in (("args.hub='huggingface'", "--hub huggingface"), ("args.downstream='x'", "-d 'x': neither")):
        assert said in evaluate(lambda args, config: None, "-e", str(trained), "-o", option)[1]


def stored_config(folder) -> dict:
    return torch.load(folder / "states-2.ckpt", weights_only=True)["Config"]


@pytest.mark.parametrize(
    "value",
    [
        TOUCH,
        f"[{TOUCH}]",
        f"{{'a': {TOUCH}}}",
        f"[x for x in [{TOUCH}]]",
        f'f"{{{TOUCH}}}"',
        f"{TOUCH} or 1",
        "lambda: 0",
        "sys.argv[0]",
        "9**9",
        "1e-3 * 2",
    ],
)
def test_an_override_is_not_run(evaluate, value, trained):
    """-o takes values and text; what would be computed is refused, with the cure."""
    status, said = evaluate(lambda args, config: None, "-e", str(trained), "-o", f"config.runner.total_steps={value}")
    assert status == 2 and "a number, a list or text is expected, not Python code; put text in quotes" in said


@pytest.mark.parametrize("value", ["train-clean-100", "model.pt", "/data/x(1)", "{lambd: 0.9}", "it's", "max", "a = b"])
def test_what_an_override_leaves_for_s3prl(value):
    """S3PRL gets literals alone, and reads from them what it read before: a value, or text that stands for itself."""
    helper = importlib.import_module("s3prl.utility.helper")
    if "=" in value:
        with pytest.raises(UsageError, match="several joined by ,,"):
            plain_names.literal_override(f"config.a={value}")
        return
    text = plain_names.literal_override(f"config.a.b={value},,args.c=[1, 'x'] ,, config.lr=1e-3,,config.none=None")
    config, args = {}, argparse.Namespace()
    for option in text.split(",,"):
        ast.literal_eval(option.split("=")[1].strip())
    helper.override(text, args, config)
    assert config == {"a": {"b": value}, "lr": 1e-3, "none": None} and args.c == [1, "x"]


def test_a_split_is_a_name(evaluate, trained):
    """-t becomes a part of what is evaluated."""
    status, said = evaluate(lambda args, config: None, "-e", str(trained), "-t", HOSTILE["self.get_"])
    assert status == 2 and "-t " in said and "the name of a split is expected" in said
    assert all(map(plain_names.is_split, ("test", "test-clean", "dev-other+test")))
    assert not any(map(plain_names.is_split, ("", "test()", "test[0]", "test if x", "{test}", "'test'", None)))


def test_commands_in_kaldis_tables(tmp_path):
    """Diarization's wav.scp may name files alone."""
    table = tmp_path / "wav.scp"
    table.write_text("a a.wav\nb touch marker; cat b.wav |\n")
    config = put({"runner": {}}, "downstream_expert.loaderrc.test_dir", str(tmp_path))
    args = argparse.Namespace(upstream="fbank", downstream="diarization")
    with pytest.raises(UsageError, match=r"wav.scp: a file is expected in each line, found the command 'b touch"):
        plain_names.check(args, config)
    table.write_text("a a.wav\n")
    plain_names.check(args, config)
