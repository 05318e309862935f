"""The arguments of ``s3prl-ofa convert``."""

from s3prl_ofa.arguments.parser import CKPT_HELP, Parser

DTYPES = ("float16", "bfloat16", "float32")
FORMATS = ("safetensors", "fairseq", "s3prl", "huggingface")


def add_arguments(parser: Parser) -> None:
    parser.examples = (
        "s3prl-ofa convert checkpoint_582_5000.pt ofa_base.safetensors --dtype float16",
        "s3prl-ofa convert wav2vec_small.pt wav2vec2_base   # a Hugging Face folder",
    )
    parser.intermixed = True
    parser.add_argument("source", metavar="IN", help=CKPT_HELP)
    parser.add_argument(
        "target", metavar="OUT", help="what to write: *.safetensors, *.pt (fairseq) or a folder (Hugging Face)"
    )
    parser.add_argument("--to", choices=FORMATS, help="the format of OUT (default: from its name)")
    parser.add_argument("--dtype", choices=DTYPES, help="round the weights to this dtype (default: leave them)")
    parser.add_argument("--force", action="store_true", help="overwrite OUT if it exists")
