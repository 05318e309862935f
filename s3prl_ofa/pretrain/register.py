"""Registers models, tasks and a criterion with fairseq.

They get new names, for ``fairseq-hydra-train common.user_dir=...``. Those of pretraining also replace fairseq's
``wav2vec2``, ``audio_pretraining`` and ``wav2vec``, which they extend: the reference modified these three, so its
configurations and checkpoints use their names.
"""

from fairseq import criterions, models, tasks
from fairseq.tasks.audio_finetuning import AudioFinetuningConfig
from hydra.core.config_store import ConfigStore

from s3prl_ofa.pretrain.config import OFACriterionConfig, OFAModelConfig, OFATaskConfig
from s3prl_ofa.pretrain.criterion import OFAPretrainingCriterion
from s3prl_ofa.pretrain.ctc import OFACtcConfig, OFACtcModel, OFAFinetuningTask
from s3prl_ofa.pretrain.model import OFAPretrainingModel
from s3prl_ofa.pretrain.patches import apply_patches
from s3prl_ofa.pretrain.task import OFAPretrainingTask

MODEL_NAMES = ("ofa_wav2vec2", "wav2vec2")
TASK_NAMES = ("ofa_audio_pretraining", "audio_pretraining")
CRITERION_NAMES = ("ofa_wav2vec", "wav2vec")


def register() -> None:
    """Registers all of them, once."""
    if MODEL_NAMES[0] in models.MODEL_REGISTRY:
        return
    apply_patches()
    models.register_model(MODEL_NAMES[0], dataclass=OFAModelConfig)(OFAPretrainingModel)
    tasks.register_task(TASK_NAMES[0], dataclass=OFATaskConfig)(OFAPretrainingTask)
    models.register_model("ofa_wav2vec_ctc", dataclass=OFACtcConfig)(OFACtcModel)
    tasks.register_task("ofa_audio_finetuning", dataclass=AudioFinetuningConfig)(OFAFinetuningTask)
    criterions.register_criterion(CRITERION_NAMES[0], dataclass=OFACriterionConfig)(OFAPretrainingCriterion)
    store = ConfigStore.instance()
    for group, names, dataclass, registries in (
        ("model", MODEL_NAMES, OFAModelConfig, (models.MODEL_REGISTRY, models.ARCH_MODEL_REGISTRY)),
        ("task", TASK_NAMES, OFATaskConfig, (tasks.TASK_REGISTRY,)),
        ("criterion", CRITERION_NAMES, OFACriterionConfig, (criterions.CRITERION_REGISTRY,)),
    ):
        new, replaced = names
        for registry in registries:
            registry[replaced] = registry[new]
        node = dataclass()
        node._name = replaced
        store.store(name=replaced, group=group, node=node, provider="fairseq")
    models.MODEL_DATACLASS_REGISTRY[MODEL_NAMES[1]] = OFAModelConfig
    tasks.TASK_DATACLASS_REGISTRY[TASK_NAMES[1]] = OFATaskConfig
    criterions.CRITERION_DATACLASS_REGISTRY[CRITERION_NAMES[1]] = OFACriterionConfig
