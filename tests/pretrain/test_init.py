"""What training starts and resumes from, and who can read what it writes."""

import re

import pytest
import torch
from models import golden_wave
from paths import GOLDEN
from pretraining import corpus_settings, make_corpus, read_checkpoint, run_here, write_config

import s3prl_ofa
from s3prl_ofa.checkpoint import convert
from s3prl_ofa.errors import CheckpointError
from s3prl_ofa.pretrain.launch import write_init

REFERENCE = GOLDEN / "ref_tiny.pt"
COMPRESSOR = "cif_subsampler."
PRETRAINING_ONLY = ("quantizer.", "project_q.", "final_proj.", "mask_emb")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus") / "corpus", train=4, valid=1)


@pytest.fixture
def train(corpus, tmp_path, capfd):
    """Trains in tmp_path/out. Returns exit status and message."""

    def run(*arguments, **sections):
        optimization = {"max_update": 1, "lr": [0.0]} | sections.pop("optimization", {})
        others = {"dataset": {"disable_validation": True}} | sections
        config = write_config(tmp_path / "tiny.yaml", optimization=optimization, **others)
        status = run_here(["--config", config, *corpus_settings(corpus, tmp_path / "out"), *arguments])
        output = capfd.readouterr()
        return status, output.out + output.err

    return run


def reference_without(path, *parts, changes=()):
    """The golden file without the weights of some parts, like that of a plain wav2vec2."""
    state = read_checkpoint(REFERENCE)
    state["model"] = {key: weight for key, weight in state["model"].items() if not key.startswith(parts)}
    plain = {"subsample": "none", "mixup": False} if COMPRESSOR in parts else {}
    state["cfg"]["model"] |= plain | dict(changes)
    torch.save(state, path)
    return path


def effective(weights):
    """The weights with weight_norm's direction scaled to length 1, as only its direction matters."""
    name = "encoder.pos_conv.0.weight_v"
    return weights | {name: torch.nn.functional.normalize(weights[name], dim=(0, 1))}


def plain_fairseq(folder):
    return reference_without(folder / "plain.pt", COMPRESSOR)


def hugging_face(folder):
    return convert(plain_fairseq(folder), folder / "hf", to="huggingface")


def safetensors(folder):
    s3prl_ofa.load(REFERENCE).save(folder / "own.safetensors")
    return folder / "own.safetensors"


def hubert(folder):
    """Its final projection and its units are of another training."""
    state = torch.load(plain_fairseq(folder), weights_only=True)
    lacking = ("quantizer.", "project_q.")
    weights = {name: weight for name, weight in state["model"].items() if not name.startswith(lacking)}
    weights |= {"label_embs_concat": torch.zeros(5, 4), "final_proj.weight": torch.zeros(4, 32)}
    cfg = {"model": {**state["cfg"]["model"], "_name": "hubert"}, "task": state["cfg"]["task"]}
    torch.save({"cfg": cfg, "model": weights}, folder / "hubert.pt")
    return folder / "hubert.pt"


def reference(folder):
    return REFERENCE


@pytest.mark.parametrize(
    "make",
    [
        *(pytest.param(make, marks=pytest.mark.slow) for make in (plain_fairseq, hugging_face, safetensors, hubert)),
        reference,
    ],
)
def test_beginning_from_a_checkpoint(train, tmp_path, make):
    """Training starts from the weights of any known format (at learning rate 0 they stay), with a new compressor
    if the file has none; a second launch resumes instead of starting again."""
    init = make(tmp_path)
    status, said = train(f"init={init}")
    assert status == 0, said
    found = read_checkpoint(tmp_path / "out/checkpoints/checkpoint_last.pt")["model"]
    found, expected = effective(found), effective(read_checkpoint(REFERENCE)["model"])
    assert found.keys() == expected.keys()
    lacking = {plain_fairseq: (COMPRESSOR,), hugging_face: (COMPRESSOR,)}.get(make, ())
    if make is hubert:
        lacking = (COMPRESSOR, "quantizer.", "project_q.", "final_proj.")
    if make is safetensors:
        lacking = PRETRAINING_ONLY  # a model for inference does not keep them
    for key, weight in expected.items():
        same = torch.allclose(found[key], weight, atol=1e-6)
        assert same or key.startswith(lacking), key
    status, said = train(f"init={init}", optimization={"max_update": 2})
    assert status == 0, said
    assert re.search(r"Loaded checkpoint .*checkpoint_last.pt \(epoch \d @ 1 updates\)", said)
    assert read_checkpoint(tmp_path / "out/checkpoints/checkpoint_last.pt")["optimizer_history"][-1]["num_updates"] == 2


def test_a_compressor_in_part_is_refused(train, tmp_path):
    """Incomplete parts of a file are not completed: the missing keys are named."""
    init = reference_without(tmp_path / "part.pt", "cif_subsampler.alpha_fn.layer.2")
    status, said = train(f"init={init}")
    assert status == 2 and "cif_subsampler.alpha_fn.layer.2" in said.splitlines()[-1]
    import fairseq

    import s3prl_ofa.pretrain  # noqa: F401, registers

    with pytest.raises(RuntimeError, match=r"Missing key.*cif_subsampler\.alpha_fn\.layer\.2"):
        fairseq.checkpoint_utils.load_model_ensemble_and_task([str(init)])


@pytest.mark.parametrize(
    ("init", "settings", "expected"),
    [
        (REFERENCE, {"encoder_layers": 3}, "its model has layers 2, but the configuration has 3"),
        (
            REFERENCE,
            {"extractor_mode": "layer_norm"},
            "its model has conv_norm group, but the config",
        ),
        (REFERENCE, {"encoder_embed_dim": 64}, f"{REFERENCE}: its configuration cannot be a model: without a proj"),
        ("/nowhere.pt", {}, "/nowhere.pt"),
        (GOLDEN / "ref_tiny_wav_1s.npy", {}, "ref_tiny_wav_1s.npy"),
    ],
    ids=["layers", "front end", "width", "missing", "no checkpoint"],
)
def test_a_checkpoint_that_does_not_fit(train, tmp_path, init, settings, expected):
    """Another architecture, a missing file or another kind of file gives one line, exit status 2, no training."""
    status, said = train(f"init={init}", model=settings)
    assert status == 2 and expected in said.splitlines()[-1]
    assert not list((tmp_path / "out").glob("checkpoints/*"))


def test_what_is_trained_here_is_read_everywhere(train, tmp_path):
    """Keys and settings are the reference's; s3prl_ofa.load and fairseq give the same hidden states, and a
    plain wav2vec 2.0 written from it has those of lambd 0."""
    import fairseq

    status, said = train(optimization={"lr": [0.01], "max_update": 2})
    assert status == 0, said
    path = tmp_path / "out/checkpoints/checkpoint_last.pt"
    ours, theirs = read_checkpoint(path), read_checkpoint(REFERENCE)
    assert ours["model"].keys() == theirs["model"].keys()
    assert {k: v.shape for k, v in ours["model"].items()} == {k: v.shape for k, v in theirs["model"].items()}
    assert set(theirs["cfg"]["model"]) <= set(ours["cfg"]["model"])
    assert {"alpha_root", "boundaries_root"} <= set(ours["cfg"]["task"])
    for section in ("model", "task", "criterion"):
        assert ours["cfg"][section]["_name"] == theirs["cfg"][section]["_name"]
    assert set(theirs) <= set(ours)

    model = s3prl_ofa.load(path)
    there = fairseq.checkpoint_utils.load_model_ensemble_and_task([str(path)])[0][0].eval()
    assert_same_states(model, there, (0.0, 0.5, 1.0))
    plain = reference_without(tmp_path / "plain.pt", COMPRESSOR)
    there = fairseq.checkpoint_utils.load_model_ensemble_and_task([str(plain)])[0][0].eval()
    assert_same_states(s3prl_ofa.load(plain), there, (0.0,))


def assert_same_states(model, there, lambds):
    """Hidden states of s3prl_ofa's model and of fairseq's, to 1e-4."""
    wave = golden_wave("2.37s")
    for lambd in lambds:
        expected = model.extract([wave], lambd=lambd).hidden_states
        there.overwrite_lambd = lambd
        with torch.no_grad():
            found = [there.extract_features(source=wave[None], padding_mask=None, layer=k)["x"] for k in range(2)]
            last = there.extract_features(source=wave[None], padding_mask=None)["x"]
        assert len(expected) == 3
        for one, other in zip([*found, last], [*expected[1:], expected[-1]], strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_weights_that_training_cannot_hold_are_refused(tmp_path):
    """A checkpoint with weights that are infinite in float32, or NaN, is refused with name and value."""
    for value, said in ((1e300, r"holds 1e\+300"), (float("nan"), "holds nan")):
        state = read_checkpoint(REFERENCE)
        state["model"]["quantizer.vars"] = torch.full_like(state["model"]["quantizer.vars"], value, dtype=torch.float64)
        torch.save(state, tmp_path / "large.pt")
        with pytest.raises(CheckpointError, match=rf"large\.pt: the weight quantizer\.vars {said}"):
            write_init(str(tmp_path / "large.pt"), tmp_path / "init.pt")
        assert not (tmp_path / "init.pt").exists()
