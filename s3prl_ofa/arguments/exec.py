"""The arguments of ``s3prl-ofa exec``."""

import argparse

from s3prl_ofa.arguments.parser import Parser


def add_arguments(parser: Parser) -> None:
    parser.description = (
        "Run a module of S3PRL, ESPnet, fairseq or your own, as python -m does, on current versions of torch and "
        "torchaudio and with the upstream ofa_wav2vec2 in S3PRL. Files that the module reads are not checked."
    )
    parser.examples = (
        "s3prl-ofa exec s3prl.main SuperbSID --build_upstream.name ofa_wav2vec2 --build_upstream.path_or_url tiny ...",
        "s3prl-ofa exec espnet2.bin.asr_train --config train.yaml ...   # with frontend: s3prl",
        "s3prl-ofa exec fairseq_cli.hydra_train --config-dir configs --config-name ctc ...",
    )
    parser.add_argument("tool", metavar="module", help="full name of the module, such as s3prl.main")
    parser.add_argument("tool_arguments", nargs=argparse.REMAINDER, metavar="...", help="arguments of the module")
