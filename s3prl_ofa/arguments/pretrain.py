"""The arguments of ``s3prl-ofa pretrain``: options, and settings of fairseq."""

from s3prl_ofa.arguments.parser import Parser
from s3prl_ofa.resources import PACKAGE

CONFIGS = PACKAGE / "pretrain" / "configs"
PACKAGED = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
DEFAULT_CONFIG = "ofa_base_librispeech"
SHORT = {
    "data": "folder with the manifests train.tsv and valid.tsv (s3prl-ofa prepare manifest)",
    "guidance": "folder with alpha/ and boundaries/ (s3prl-ofa guidance)",
    "init": "checkpoint of any known format to start from",
    "out": "folder for checkpoints, logs and TensorBoard; a training in it is resumed",
}


def add_arguments(parser: Parser) -> None:
    parser.examples = (
        "s3prl-ofa pretrain data=manifests guidance=guidance out=base init=wav2vec_small.pt",
        "s3prl-ofa pretrain --config ofa_tiny --nproc 2 data=manifests guidance=guidance optimization.max_update=1000",
    )
    parser.intermixed = True
    parser.allow_abbrev = False
    help_text = f"packaged configuration ({PACKAGED}) or yaml file (default: {DEFAULT_CONFIG})"
    parser.add_argument("--config", metavar="NAME", help=help_text)
    parser.add_argument("--nproc", type=int, default=1, metavar="N", help="processes on this machine, one per GPU")
    parser.add_argument("--config-dir", help="folder of configurations, as in fairseq-hydra-train")
    parser.add_argument("--config-name", help="configuration in --config-dir")
    settings = parser.add_argument_group("settings", "; ".join(f"{name}=... {text}" for name, text in SHORT.items()))
    help_text = "the above, or any setting of fairseq as section.name=value, such as optimization.max_update=1000"
    settings.add_argument("overrides", nargs="*", metavar="name=value", help=help_text)
