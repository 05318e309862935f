"""The fairseq model: the reference's numbers, padding without effect, sequences of any length."""

import numpy as np
import pytest
import torch
from models import GOLDEN_WAVES, golden_wave
from paths import GOLDEN
from pretraining import TINY, random_boundaries, speechlike, tiny_model

from s3prl_ofa.guidance.layout import alpha_of, num_frames
from s3prl_ofa.model.packing import similar_groups, valid_mask
from s3prl_ofa.pretrain.model import GROUP_RATIO

LAMBDS = (0.0, 0.25, 0.5, 0.75, 1.0)
EXPECTED = np.load(GOLDEN / "ref_tiny_golden.npz")


@pytest.fixture(scope="module")
def golden():
    """The reference's file, loaded as in its documentation."""
    import fairseq

    import s3prl_ofa.pretrain  # noqa: F401, registers

    models, cfg, _ = fairseq.checkpoint_utils.load_model_ensemble_and_task([str(GOLDEN / "ref_tiny.pt")])
    assert cfg.model._name == "wav2vec2"
    return models[0].eval()


@pytest.mark.parametrize("lambd", LAMBDS)
def test_golden_extraction(golden, lambd):
    """The reference's extraction code gives the reference's numbers at every rate and layer, to 1e-4."""
    golden.overwrite_lambd = lambd
    for name in GOLDEN_WAVES:
        wave = golden_wave(name)[None]
        prefix = f"{name}/lambd{lambd}"
        for layer in (0, 1, None):
            with torch.no_grad():
                found = golden.extract_features(source=wave, padding_mask=None, layer=layer)
            key = f"{prefix}/x" if layer is None else f"{prefix}/layer{layer}/x"
            expected = EXPECTED[key] if layer is None else EXPECTED[key].transpose(1, 0, 2)
            np.testing.assert_allclose(found["x"].numpy(), expected, atol=1e-4)
        np.testing.assert_allclose(found["features"].numpy(), EXPECTED[f"{prefix}/cif_out"], atol=1e-4)


@pytest.mark.parametrize("lambd", LAMBDS)
def test_golden_extraction_padded(golden, lambd):
    """Padded in one batch, every wave has the numbers that the reference computes for it alone."""
    golden.overwrite_lambd = lambd
    waves = [golden_wave(name) for name in GOLDEN_WAVES]
    source, padding = batch_of(waves)
    with torch.no_grad():
        found = golden.extract_features(source=source, padding_mask=padding)
    for row, name in enumerate(GOLDEN_WAVES):
        expected = EXPECTED[f"{name}/lambd{lambd}/x"][0]
        valid = slice(None) if found["padding_mask"] is None else ~found["padding_mask"][row]
        np.testing.assert_allclose(found["x"][row][valid].numpy(), expected, atol=1e-4)


def batch_of(waves, filler=1.0):
    """Waves padded with loud noise, which must have no effect, and the padding mask."""
    longest = max(map(len, waves))
    padding = torch.stack([torch.arange(longest) >= len(wave) for wave in waves])
    source = filler * torch.randn(padding.shape, generator=torch.Generator().manual_seed(9))
    for row, wave in enumerate(waves):
        source[row, : len(wave)] = wave
    return source, padding


def guidance_of(waves):
    """Guidance of all waves in one batch."""
    boundaries = [random_boundaries(num_frames(len(wave)), seed) for seed, wave in enumerate(waves)]
    alphas = [alpha_of(ends, int(ends[-1])) for ends in boundaries]
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "guided": torch.ones(len(waves), dtype=torch.bool),
        "first_part": torch.ones(len(waves)),
        "pseudo_alpha": pad(alphas, batch_first=True),
        "boundaries": pad(boundaries, batch_first=True, padding_value=-1),
    }


FRONT_ENDS = {
    "group": {"extractor_mode": "default"},
    "layer": {"extractor_mode": "layer_norm", "conv_bias": True, "layer_norm_first": True},
}
PADDED = [torch.from_numpy(speechlike(samples, samples)) for samples in (16_000, 5_000, 8_240, 400)]


@pytest.mark.parametrize("front_end", FRONT_ENDS)
@pytest.mark.parametrize("lambd", [0.0, 0.6, 1.5])
@pytest.mark.parametrize("subsample", ["none", "fixed", "cif"])
def test_padding_reaches_no_frame(front_end, lambd, subsample):
    """An utterance has the same frames padded in a batch as alone (1e-5), with either front end."""
    model = tiny_model(subsample=subsample, **FRONT_ENDS[front_end]).eval()
    model.overwrite_lambd = lambd
    source, padding = batch_of(PADDED)
    with torch.no_grad():
        together = model.extract_features(source, padding)
        for row, wave in enumerate(PADDED):
            alone = model.extract_features(wave[None])
            count = alone["x"].shape[1]
            assert int(together["lengths"][row]) == count
            assert int((~together["padding_mask"][row]).sum()) == count
            torch.testing.assert_close(together["x"][row, :count], alone["x"][0], atol=1e-5, rtol=0)
            torch.testing.assert_close(together["features"][row, :count], alone["features"][0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("front_end", FRONT_ENDS)
@pytest.mark.parametrize("lambd", [0.0, 0.6, 1.5])
def test_padding_reaches_no_loss(front_end, lambd):
    """card, seg, frame, the feature penalty and the logged sums of a padded batch are those of its utterances
    alone: means over frames, over boundary slots, over all slots of the batch."""
    model = tiny_model(card_loss=1.0, target_ratio=0.0, **FRONT_ENDS[front_end]).eval()
    guidance = guidance_of(PADDED)
    source, padding = batch_of(PADDED)
    with torch.no_grad():
        together = model(source, padding, lambd=lambd, guidance=guidance)
        alone = []
        for row, wave in enumerate(PADDED):
            frames = num_frames(len(wave))
            slots = int((guidance["boundaries"][row] > 0).sum())
            own = {name: values[row : row + 1] for name, values in guidance.items()}
            own["pseudo_alpha"], own["boundaries"] = own["pseudo_alpha"][:, :frames], own["boundaries"][:, :slots]
            alone.append((model(wave[None], lambd=lambd, guidance=own), frames, slots))
    frames = sum(count for _, count, _ in alone)
    for name in ("features_pen", "card"):
        expected = sum(float(found[name]) * count for found, count, _ in alone) / frames
        assert float(together[name]) == pytest.approx(expected, rel=1e-5)
    expected = sum(float(found["seg"]) * slots for found, _, slots in alone) / guidance["boundaries"].numel()
    assert float(together["seg"]) == pytest.approx(expected, rel=1e-5)
    expected = sum(float(found["frame"]) * count for found, count, _ in alone) / guidance["pseudo_alpha"].numel()
    assert float(together["frame"]) == pytest.approx(expected, rel=1e-5)
    for name in ("samples", "input_frames", "frames", "utterances", "alpha_sum", "lambd_sum"):
        assert together[name] == pytest.approx(sum(found[name] for found, _, _ in alone), rel=1e-5)


def test_groups_of_similar_lengths_are_the_batch():
    """Encoded in groups, which lack most of the padding, utterances have the hidden states of the whole batch."""
    model = tiny_model().eval()
    lengths = torch.tensor([40, 9, 22, 11, 40, 10])
    x = torch.randn(len(lengths), 40, model.cfg.encoder_embed_dim)
    valid = valid_mask(lengths)
    with torch.no_grad():
        found = model.encode(x, lengths, None)
        expected, _ = model.encoder(x, padding_mask=~valid)
    torch.testing.assert_close(found[valid], expected[valid], rtol=0, atol=1e-5)
    assert len(similar_groups(lengths, GROUP_RATIO)) == 3


def test_evaluation_is_never_random():
    """In evaluation lambd is 0 unless given, in training it is drawn."""
    model = tiny_model()
    wave = torch.from_numpy(speechlike(16_000, 1))[None]
    with torch.no_grad():
        lengths = [model.extract_features(wave)["x"].shape[1] for _ in range(12)]
        assert len(set(lengths)) > 3
        model.eval()
        results = [model.extract_features(wave)["x"] for _ in range(3)]
    assert results[0].shape[1] == num_frames(16_000)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_one_lambd_a_batch_or_one_an_utterance():
    """lambd_per=batch (as in the reference, the default) draws one lambd, lambd_per=utterance one for each."""
    assert len(tiny_model().lambd_of(None, 6).unique()) == 1
    assert len(tiny_model(lambd_per="utterance").lambd_of(None, 6).unique()) == 6
    assert tiny_model(mixup=False).lambd_of(None, 2).tolist() == [1, 1]


@pytest.mark.parametrize("lambd", [-0.1, 2.0, float("nan"), [0.1, 0.2, 0.3]])
def test_bad_lambd_is_refused(lambd):
    """A lambd outside [0, 2), or of the wrong number, is refused before anything is computed."""
    model = tiny_model()
    model.overwrite_lambd = torch.tensor(lambd) if isinstance(lambd, list) else lambd
    with pytest.raises(ValueError, match="lambd must be"):
        model.extract_features(torch.zeros(2, 4000))


def test_a_wave_without_a_frame_is_refused():
    """Below 400 samples the utterance is named."""
    padding = torch.arange(4000) >= torch.tensor([[4000], [399]])
    with pytest.raises(ValueError, match="utterance 1 has 399 samples"):
        tiny_model()(torch.zeros(2, 4000), padding)


@pytest.mark.parametrize(
    "settings",
    [
        {"mask_selection": "uniform"},
        {"no_mask_channel_overlap": True},
        {"upper_lambd": 2.5},
        {"fixed_subsample_ratio": 0},
    ],
)
def test_settings_without_a_meaning_are_refused(settings):
    """A setting that would be ignored or is impossible is refused by name."""
    with pytest.raises(ValueError, match=f"model.{next(iter(settings))} must be"):
        tiny_model(**settings)


def test_the_same_share_is_masked_unless_it_need_not_be():
    """require_same_masks (true by default, as in fairseq) masks equally many frames in sequences of equal length."""
    for same in (True, False):
        model = tiny_model(require_same_masks=same)
        torch.manual_seed(0)
        _, masked = model.mask_frames(torch.zeros(8, 199, 32), torch.full((8,), 199))
        assert (len(masked.sum(1).unique()) == 1) is same
    assert tiny_model().cfg.require_same_masks


def train_a_step(model, source, padding=None, lambd=None, guidance=None):
    """The criterion's loss after a backward pass: (loss, targets, largest gradient)."""
    from s3prl_ofa.pretrain.criterion import OFAPretrainingCriterion

    criterion = OFAPretrainingCriterion(None, infonce=True, loss_weights=TINY["criterion"]["loss_weights"])
    net_input = {"source": source, "padding_mask": padding, "lambd": lambd, "guidance": guidance}
    loss, size, log = criterion(model, {"id": torch.arange(len(source)), "net_input": net_input})
    loss.backward()
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    return float(loss), size, log


@pytest.mark.parametrize("lambd", [1.999999, 1.9, 1.0, 0.0])
@pytest.mark.parametrize("shortest", [400, 720, 1_400, 16_000])
def test_short_sequences_train_on(lambd, shortest):
    """One frame per utterance, or too few to mask, gives a finite loss and finite gradients."""
    model = tiny_model(card_loss=0.1).train()
    waves = [torch.from_numpy(speechlike(samples, samples)) for samples in (shortest, shortest + 320)]
    source, padding = batch_of(waves)
    loss, size, log = train_a_step(model, source, padding, lambd, guidance_of(waves))
    assert np.isfinite(loss) and all(np.isfinite(value) for value in log.values())
    if lambd > 1.99:
        assert log["frames"] == 2 and size == 0


def test_logged_keys_do_not_depend_on_the_batch():
    """Ranks can be summed. fairseq sums what they log by position, so the names must be the same for a batch
    without targets, without guidance, or with both."""
    model = tiny_model().train()
    waves = [torch.from_numpy(speechlike(samples, samples)) for samples in (16_000, 12_000)]
    source, padding = batch_of(waves)
    logs = [
        train_a_step(model, source, padding, 0.5, guidance_of(waves))[2],
        train_a_step(model, source, padding, 1.999999, guidance_of(waves))[2],
        train_a_step(model, source, padding, 0.5)[2],
    ]
    assert list(logs[0]) == list(logs[1]) == list(logs[2])


def test_no_guidance_in_a_whole_batch():
    """A batch without guidance, or whose crops contain no boundary, trains on the other losses."""
    model = tiny_model().train()
    waves = [torch.from_numpy(speechlike(12_000, seed)) for seed in (1, 2)]
    guidance = {
        "guided": torch.zeros(2, dtype=torch.bool),
        "first_part": torch.ones(2),
        "pseudo_alpha": torch.zeros(2, 0),
        "boundaries": torch.zeros(2, 0, dtype=torch.long),
    }
    loss, size, log = train_a_step(model, *batch_of(waves), 0.5, guidance)
    assert size > 0 and np.isfinite(loss)
    assert log["seg_sum"] == log["frame_sum"] == 0


def test_an_utterance_without_guidance_adds_nothing():
    """With bad_guidance=skip an utterance without guidance has no gradient from seg and frame losses."""
    model = tiny_model().eval()
    waves = [torch.from_numpy(speechlike(9_000, seed)) for seed in (1, 2)]
    guidance = guidance_of(waves)
    guidance["guided"][1], guidance["boundaries"][1], guidance["pseudo_alpha"][1] = False, -1, 0.0
    source = torch.stack(waves).requires_grad_()
    found = model(source, lambd=0.5, guidance=guidance)
    (found["seg"] + found["frame"]).backward()
    assert source.grad[0].abs().sum() > 0 and source.grad[1].abs().sum() == 0
