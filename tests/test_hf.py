"""The model in transformers: its Auto classes, its Trainer on real speech, and SpeechBrain's wrapper."""

import csv
import json
import logging
import shutil

import pytest
import torch
from paths import CKPT

from s3prl_ofa.checkpoint import convert, load
from s3prl_ofa.errors import CheckpointError
from s3prl_ofa.io.audio import load_audio

LENGTHS = (16_000, 9_000, 400)


@pytest.fixture(scope="module")
def auto():
    """transformers, with our model known to its Auto classes."""
    from s3prl_ofa.superb.compat.shims import apply_shims

    apply_shims()  # transformers' Trainer and SpeechBrain import torchaudio, which may not match torch
    import transformers

    import s3prl_ofa.hf  # noqa: F401

    return transformers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return convert(CKPT, tmp_path_factory.mktemp("hf") / "model")


@pytest.fixture(scope="module")
def batch(make_wave):
    """Three waves, padded with what must not be read, and their attention mask."""
    waves = [torch.from_numpy(make_wave(length / 16_000, seed)) for seed, length in enumerate(LENGTHS)]
    padded, mask = torch.full((3, LENGTHS[0]), 9.0), torch.zeros(3, LENGTHS[0], dtype=torch.long)
    for row, wave in enumerate(waves):
        padded[row, : len(wave)], mask[row, : len(wave)] = wave, 1
    return waves, padded, mask


def assert_same(out, expected):
    assert torch.equal(out.lengths, expected.lengths)
    assert len(out.hidden_states) == len(expected.hidden_states)
    assert all(map(torch.equal, out.hidden_states, expected.hidden_states))
    assert torch.equal(out.last_hidden_state, expected.hidden_states[-1])


@torch.no_grad()
@pytest.mark.parametrize("rate", [{}, {"lambd": 0.5}, {"frame_period_ms": 45.0}])
def test_same_bits_as_extract(auto, folder, batch, tmp_path, rate):
    """At the rate of from_pretrained, of what save_pretrained then wrote, and of the call."""
    waves, padded, mask = batch
    expected = load(folder).extract(waves, **rate)
    model = auto.AutoModel.from_pretrained(folder, **rate)
    assert not model.training and model.config.hidden_size == 32
    assert_same(model(padded, mask, output_hidden_states=True), expected)
    model.save_pretrained(tmp_path / "again")
    assert_same(auto.AutoModel.from_pretrained(tmp_path / "again")(padded, mask, output_hidden_states=True), expected)
    assert load(tmp_path / "again").fingerprint() == load(CKPT).fingerprint()
    other = auto.AutoModel.from_pretrained(folder, lambd=0.9)
    called = other(padded, mask, **(rate or {"lambd": 0.0}), output_hidden_states=True)
    assert_same(called, expected)
    assert other(padded, mask).hidden_states is None
    assert torch.equal(other(padded[:1], return_dict=False, lambd=0.0)[0], model(padded[:1], lambd=0.0)[0])


def test_config(auto, folder):
    """One rate at a time: the one that is set last; a config that cannot be a model is refused."""
    config = auto.AutoConfig.from_pretrained(folder, frame_period_ms=40.0)
    assert (config.lambd, config.frame_period_ms) == (None, 40.0)
    config.lambd = 0.3
    assert (config.lambd, config.frame_period_ms) == (0.3, None)
    model = auto.AutoModel.from_pretrained(folder, config=config, frame_period_ms=60.0)
    assert (model.config.lambd, model.config.frame_period_ms) == (None, 60.0)
    assert model.config.model_config() == load(CKPT).config
    with pytest.raises(ValueError, match="give lambd or frame_period_ms, not both"):
        type(config)(lambd=0.1, frame_period_ms=30.0)
    with pytest.raises(ValueError, match="heads"):
        auto.AutoModel.from_config(type(config)(heads=5))


def test_dtype(auto, tmp_path):
    """The dtype of the file is kept."""
    for target in ("half", "half.safetensors"):
        convert(CKPT, tmp_path / target, dtype="bfloat16")
    assert auto.AutoModel.from_pretrained(tmp_path / "half", dtype="auto").dtype == torch.bfloat16
    here, there = (load(tmp_path / name, dtype="bfloat16").fingerprint() for name in ("half", "half.safetensors"))
    assert here == there


def ctc(auto, folder, **options):
    return auto.AutoModelForCTC.from_pretrained(folder, lambd=0.5, vocab_size=30, final_dropout=0.0, **options)


def test_ctc(auto, folder, batch, tmp_path):
    """The loss is torch's at the compressed lengths; loading and s3prl_ofa.load find the body below the head."""
    _, padded, mask = batch
    model = ctc(auto, folder).eval()
    labels = torch.tensor([[3, 4, 5], [6, -100, -100], [7, -100, -100]])
    out = model(padded, mask, labels=labels)
    log_probs = out.logits.log_softmax(2)
    losses = [
        torch.nn.functional.ctc_loss(row[:frames, None], label[None], frames[None], torch.tensor([len(label)]))
        for row, frames, label in zip(log_probs, out.lengths, ([3, 4, 5], [6], [7]), strict=True)
        for label in [torch.tensor(label)]
    ]
    torch.testing.assert_close(out.loss, torch.stack(losses).mean())
    with pytest.raises(ValueError, match="labels must be below vocab_size 30, found 30"):
        model(padded, mask, labels=torch.full((3, 1), 30))
    model.freeze_feature_encoder()
    torch.testing.assert_close(model(padded, mask, labels=labels.clamp(min=-1)).loss, out.loss)  # any number below 0
    model(padded, mask, labels=labels).loss.backward()
    grads = {name: parameter.grad is not None for name, parameter in model.named_parameters()}
    assert not any(grad for name, grad in grads.items() if "front_end" in name) and grads["lm_head.weight"]
    assert grads["ofa_wav2vec2.model.compressor.alpha_fn.cnn.weight"]
    model.save_pretrained(tmp_path / "ctc")
    assert load(tmp_path / "ctc").fingerprint() == load(CKPT).fingerprint()
    again = auto.AutoModelForCTC.from_pretrained(tmp_path / "ctc")
    torch.testing.assert_close(again(padded, mask).logits, out.logits)


def test_damaged_folders(auto, folder, tmp_path, reference):
    """A config and weights that do not belong together are refused by s3prl_ofa.load in one sentence."""
    values = json.loads((folder / "config.json").read_text())
    shutil.copytree(folder, tmp_path / "bad")
    for change, message in {
        "layers": (10**9, "asks for 1000000000"),
        "ffn_dim": (48, "weights do not fit"),
        "heads": ("x", "heads must be a whole number"),
        "conv_layers": ([[32, 10, 5]], "not those that its configuration describes"),
        "conv_norm": ("layer", "missing feature_extractor"),
    }.items():
        found, text = message
        (tmp_path / "bad" / "config.json").write_text(json.dumps(values | {change: found}))
        with pytest.raises(CheckpointError, match=text):
            load(tmp_path / "bad")


def test_dropped_weights_are_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        convert(CKPT, tmp_path / "model")
    assert "mask_emb" in caplog.text and "dropped" in caplog.text


class Speech(torch.utils.data.Dataset):
    """Real utterances with their letters."""

    def __init__(self, root, count):
        letters = {letter: number for number, letter in enumerate(" 'ABCDEFGHIJKLMNOPQRSTUVWXYZ", 1)}
        with (root / "utterances.tsv").open(encoding="utf-8") as file:
            rows = sorted(csv.DictReader(file, delimiter="\t"), key=lambda row: int(row["samples"]))
        files = {path.stem: path for path in (root / "audio").rglob("*") if path.is_file()}
        self.items = [
            (torch.from_numpy(load_audio(files[row["utterance"]])), [letters[letter] for letter in row["transcript"]])
            for row in rows[:count]
        ]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def collate(items):
    waves, labels = zip(*items, strict=True)
    pad = torch.nn.utils.rnn.pad_sequence
    mask = pad([torch.ones(len(wave), dtype=torch.long) for wave in waves], batch_first=True)
    labels = pad([torch.tensor(label) for label in labels], batch_first=True, padding_value=-100)
    return {"input_values": pad(waves, batch_first=True), "attention_mask": mask, "labels": labels}


@pytest.mark.slow
def test_trainer_on_real_speech(auto, mini_librispeech, tmp_path):
    """transformers' Trainer trains the bundled checkpoint with CTC at lambd 0.5, resumes, and saves a model."""
    convert("tiny", tmp_path / "model", dtype="float32")
    data = Speech(mini_librispeech, 16)
    assert len(data) == 16
    torch.manual_seed(1)  # of the new layer
    model = ctc(auto, tmp_path / "model")

    def trainer(steps):
        options = auto.TrainingArguments(
            output_dir=str(tmp_path / "out"),
            max_steps=steps,
            per_device_train_batch_size=4,
            per_device_eval_batch_size=4,
            learning_rate=1e-3,
            save_steps=10,
            report_to=[],
            use_cpu=True,
            remove_unused_columns=False,
            disable_tqdm=True,
        )
        return auto.Trainer(model, options, data_collator=collate, train_dataset=data, eval_dataset=data)

    before = trainer(10).evaluate()["eval_loss"]
    trainer(10).train()
    resumed = trainer(30)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 30
    after = resumed.evaluate()["eval_loss"]
    assert after < 0.6 * before
    resumed.save_model(str(tmp_path / "final"))
    found = auto.AutoModelForCTC.from_pretrained(tmp_path / "final")
    assert found.config.lambd == 0.5 and found.config.vocab_size == 30
    assert load(tmp_path / "final").fingerprint() != load(tmp_path / "model").fingerprint()


@pytest.mark.slow
def test_speechbrain(auto, folder, tmp_path):
    """SpeechBrain's wrapper of transformers' wav2vec 2.0 takes the folder, frozen or not, at a rate."""
    pytest.importorskip("speechbrain", reason="SpeechBrain is not installed: see .ci/venv")
    from speechbrain.integrations.huggingface.wav2vec2 import Wav2Vec2

    wave = torch.sin(torch.arange(16_000) / 9).repeat(2, 1)
    expected = load(folder).extract([wave[0], wave[1, :12_000]], lambd=0.5)
    lengths = torch.tensor([1.0, 0.75])
    every = Wav2Vec2(str(folder), str(tmp_path), freeze=True, output_all_hiddens=True, lambd=0.5)
    assert torch.equal(every(wave, lengths), torch.stack(expected.hidden_states))
    trained = Wav2Vec2(str(folder), str(tmp_path), freeze_feature_extractor=True, lambd=0.5)
    trained(wave, lengths).sum().backward()
    assert trained.model.model.encoder.norm.weight.grad is not None
    assert trained.model.model.front_end.weights[0].grad is None
