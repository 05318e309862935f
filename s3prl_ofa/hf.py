"""The model in transformers: importing this module registers ``ofa_wav2vec2`` with its Auto classes.

``AutoModel.from_pretrained(FOLDER, lambd=0.5)`` runs at that rate, and ``save_pretrained`` keeps it. ``s3prl-ofa
convert`` and ``s3prl-ofa push`` write such a folder; ``s3prl_ofa.load`` reads it too.
"""

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCTC, PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from s3prl_ofa.checkpoint.huggingface import OFA_TYPE
from s3prl_ofa.model import ModelConfig, OFAWav2Vec2

RATES = ("lambd", "frame_period_ms")


class OFAWav2Vec2Config(PretrainedConfig):
    """The fields of ModelConfig, the rate, and the settings of a CTC head.

    lambd, frame_period_ms: the rate when ``forward`` is given none; lambd 0 by default. Setting one of them removes the
        other.
    vocab_size, pad_token_id: the number of CTC labels, and the blank.
    final_dropout: dropout before the CTC head.
    ctc_loss_reduction, ctc_zero_infinity: as in ``torch.nn.functional.ctc_loss``.
    """

    model_type = OFA_TYPE
    attribute_map = {
        "hidden_size": "dim",
        "intermediate_size": "ffn_dim",
        "num_attention_heads": "heads",
        "num_hidden_layers": "layers",
    }

    def __init__(
        self,
        lambd: float | None = None,
        frame_period_ms: float | None = None,
        vocab_size: int = 32,
        pad_token_id: int = 0,
        final_dropout: float = 0.1,
        ctc_loss_reduction: str = "mean",
        ctc_zero_infinity: bool = True,
        **kwargs: Any,
    ) -> None:
        if lambd is not None and frame_period_ms is not None:
            raise ValueError("give lambd or frame_period_ms, not both")
        self.lambd, self.frame_period_ms = None, None
        setattr(self, *(("lambd", lambd) if frame_period_ms is None else ("frame_period_ms", frame_period_ms)))
        self.vocab_size, self.final_dropout = vocab_size, final_dropout
        self.ctc_loss_reduction, self.ctc_zero_infinity = ctc_loss_reduction, ctc_zero_infinity
        for field in dataclasses.fields(ModelConfig):
            setattr(self, field.name, kwargs.pop(field.name, field.default))
        super().__init__(**kwargs)
        self.pad_token_id = pad_token_id

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in RATES and value is not None:
            super().__setattr__(*(other for other in RATES if other != name), None)

    def model_config(self) -> ModelConfig:
        """Raises ValueError naming the field whose value is not valid."""
        return ModelConfig(**{field.name: getattr(self, field.name) for field in dataclasses.fields(ModelConfig)})


@dataclasses.dataclass
class OFAOutput(ModelOutput):
    """Output of the model.

    last_hidden_state: (batch, frames, dim), zeros after each utterance's end.
    lengths: (batch,) int64, valid frames.
    hidden_states: layers + 1 tensors (batch, frames, dim), each layer's input and the encoder's output, if requested.
    """

    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    lengths: Tensor | None = None


@dataclasses.dataclass
class CTCOutput(ModelOutput):
    """Output of the model with a CTC head.

    loss: a scalar, if labels are given. logits: (batch, frames, vocabulary). lengths, hidden_states: as in OFAOutput.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    lengths: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class OFAPreTrainedModel(PreTrainedModel):
    """Base class of the models below."""

    config_class = OFAWav2Vec2Config
    base_model_prefix = OFA_TYPE
    main_input_name = "input_values"

    def _init_weights(self, module: nn.Module) -> None:
        """Initializes a head; OFAWav2Vec2 initializes its own weights."""
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; ``lambd`` and ``frame_period_ms`` override the config's, also of a config passed in."""
        rate = {name: kwargs.pop(name) for name in RATES if name in kwargs}
        found = super().from_pretrained(*args, **kwargs)
        model = found[0] if isinstance(found, tuple) else found  # output_loading_info
        model.config.update(rate)
        # transformers replaces the tensors that the model was made with by those of the file.
        model.base_model.model.encoder.pos_conv.to(memory_format=torch.channels_last)
        return found

    @property
    def feature_extractor(self) -> nn.Module:
        """The convolutions, under the name that they have in transformers' wav2vec 2.0."""
        return self.base_model.model.front_end

    def freeze_feature_encoder(self) -> None:
        """Freezes the convolutions."""
        self.feature_extractor.requires_grad_(False)


class OFAWav2Vec2Model(OFAPreTrainedModel):
    """``AutoModel``: hidden states at the config's rate, or at that of the call.

    Without gradients they are, bit for bit, those of ``s3prl_ofa.load(FOLDER).extract``.
    """

    def __init__(self, config: OFAWav2Vec2Config) -> None:
        super().__init__(config)
        self.model = OFAWav2Vec2(config.model_config()).requires_grad_(True)
        self.post_init()

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        lambd: float | Tensor | None = None,
        frame_period_ms: float | Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **ignored: Any,
    ) -> OFAOutput | tuple:
        """Hidden states of a padded batch.

        input_values: (batch, samples), 16 kHz mono. attention_mask: (batch, samples), 0 on the padding at the right.
        lambd, frame_period_ms: a rate instead of the config's, as in ``OFAWav2Vec2.extract``.
        """
        if lambd is None and frame_period_ms is None:
            lambd, frame_period_ms = self.config.lambd, self.config.frame_period_ms
        lengths = None if attention_mask is None else attention_mask.sum(1).long()
        states, lengths = self.model(input_values, lengths, lambd, frame_period_ms)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        out = OFAOutput(states[-1], states if wanted else None, lengths)
        return out if (self.config.return_dict if return_dict is None else return_dict) else out.to_tuple()


class OFAWav2Vec2ForCTC(OFAPreTrainedModel):
    """``AutoModelForCTC``: dropout and a linear layer on the hidden states; the CTC loss uses the true lengths."""

    def __init__(self, config: OFAWav2Vec2Config) -> None:
        super().__init__(config)
        self.ofa_wav2vec2 = OFAWav2Vec2Model(config)
        self.dropout = nn.Dropout(config.final_dropout)
        self.lm_head = nn.Linear(config.dim, config.vocab_size)
        self.post_init()

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **options: Any,
    ) -> CTCOutput | tuple:
        """Logits, and with labels (batch, longest), padded with negative numbers, the CTC loss.

        options: as in OFAWav2Vec2Model.
        """
        hidden = self.ofa_wav2vec2(input_values, attention_mask, return_dict=True, **options)
        logits = self.lm_head(self.dropout(hidden.last_hidden_state))
        loss = None
        if labels is not None:
            known = labels >= 0
            if int(labels.max()) >= self.config.vocab_size:
                raise ValueError(f"labels must be below vocab_size {self.config.vocab_size}, found {int(labels.max())}")
            loss = F.ctc_loss(
                F.log_softmax(logits, 2, dtype=torch.float32).transpose(0, 1),
                labels[known],
                hidden.lengths,
                known.sum(1),
                blank=self.config.pad_token_id,
                reduction=self.config.ctc_loss_reduction,
                zero_infinity=self.config.ctc_zero_infinity,
            )
        out = CTCOutput(loss, logits, hidden.lengths, hidden.hidden_states)
        return out if (self.config.return_dict if return_dict is None else return_dict) else out.to_tuple()


AutoConfig.register(OFA_TYPE, OFAWav2Vec2Config, exist_ok=True)
AutoModel.register(OFAWav2Vec2Config, OFAWav2Vec2Model, exist_ok=True)
AutoModelForCTC.register(OFAWav2Vec2Config, OFAWav2Vec2ForCTC, exist_ok=True)
