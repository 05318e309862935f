"""The arguments of ``s3prl-ofa run_downstream``: S3PRL's options and ours."""

import argparse
import importlib.util
import pathlib
import re

from s3prl_ofa.arguments.parser import DTYPES, Parser

AUTO = "auto"
ADAPTIVE = "adaptive"
OUTPUT_FRAMES = ("upsampled", "native")
BOUNDARIES = ("learnt", "uniform")
OLD_OUTPUT_FRAMES = "--frames"  # still in users' scripts
ROOTS = {
    "librispeech": ("ROOT", "LibriSpeech: the folder that holds its splits"),
    "voxceleb1": ("ROOT", "VoxCeleb1, the folder that holds dev/wav and test/wav; or a folder of your own speakers"),
    "speech_commands": ("ROOT", "for ks: the folder of speech_commands_v0.01 and speech_commands_test_set_v0.01"),
    "fluent": ("ROOT", "for ic: Fluent Speech Commands, the folder that holds data and wavs"),
    "snips": ("ROOT", "for sf: Audio SNIPS, the folder that holds all.iob.snips.txt, slots.txt, train, valid and test"),
    "librimix": ("ROOT", "for sd: the folder of train, dev and test, as LibriMix's prepare_diarization.py writes them"),
    "iemocap": ("ROOT", "for er: IEMOCAP, the folder that holds Session1 to Session5; -v fold2 tests on the second"),
    "quesst": ("ROOT", "for qbe: QUESST 2014, the folder that holds Audio, dev_queries, eval_queries and scoring"),
    "prepared": ("DIR", "what s3prl-ofa prepare all wrote: bucket lengths, lexicon, speaker list"),
    "bucket": ("DIR", "bucket lengths for asr"),
    "lexicon": ("FILE[,FILE]", "pronunciations for pr"),
    "vocabulary": (
        "FILE",
        "labels for asr, pr or sf (default: SUPERB's, or what prepare vocabulary wrote to --prepared)",
    ),
    "speaker_list": ("FILE", "for sid: the files of train, dev and test"),
    "trials": ("FILE", "for asv: the pairs of files to test on (default: veri_test2.txt in --voxceleb1)"),
    "splits": ("TRAIN,DEV,TEST", "folders of LibriSpeech, several joined by +"),
}

FINE_TUNING = {
    "upstream_lr": (float, "LR", "with -f: the upstream's learning rate (default: the config's, as for the task)"),
    "freeze_layers": (int, "N", "with -f: do not train the upstream's front end, compressor and first N layers"),
    "unfreeze_after": (int, "N", "with -f: train the task alone for N updates"),
}


def add_arguments(parser: Parser) -> None:
    parser.description = (
        "S3PRL's run_downstream with the upstream ofa_wav2vec2. -d also takes SUPERB's names of the tasks, such as asr "
        "or ks, and -c defaults to SUPERB's config of the task. The rate is stored with the experiment, so -e resumes "
        "at the same rate."
    )
    parser.examples = (
        "s3prl-ofa run_downstream -m train -u ofa_wav2vec2 -k tiny -d sid --mini --voxceleb1 VoxCeleb1 -n sid_half "
        "--lambd 0.5",
        "s3prl-ofa run_downstream -m train -u ofa_wav2vec2 -k checkpoint.pt -d asr --librispeech LibriSpeech "
        "--prepared prepared -n asr_40ms --frame-period-ms 40",
        "s3prl-ofa run_downstream -m evaluate -e result/downstream/sid_half",
    )
    parser.conflict_handler = "resolve"  # -v and --verbose are S3PRL's, but --verbose also logs more
    add_our_options(parser.add_argument_group("options of s3prl-ofa"))
    add_s3prl_options(parser.add_argument_group("options of S3PRL"))


def add_our_options(group: argparse._ArgumentGroup) -> None:
    rate = group.add_mutually_exclusive_group()
    lambd_help = "from 0 (20 ms per frame, the default) to below 2; adaptive: learnt by the task (experimental)"
    rate.add_argument("--lambd", metavar=f"L|{ADAPTIVE}", help=lambd_help)
    rate.add_argument("--frame-period-ms", type=float, metavar="P", help="mean frame period, 20 or more")
    rate.add_argument("--pool", type=int, metavar="N", help="at lambd 0, the mean of every N frames: a fixed rate")
    group.add_argument("--rate-weight", type=float, metavar="W", help="with adaptive: the cost of frames (default: 0)")
    group.add_argument("--lambd-start", type=float, metavar="L", help="with adaptive: its start, 0 to 1 (default: 0.5)")
    group.add_argument("--lambd-max", type=float, metavar="L", help="with adaptive: its upper limit (default: 1)")
    boundaries_help = "learnt by the model (the default); or for comparison uniform: equally many, of equal length"
    group.add_argument("--boundaries", choices=BOUNDARIES, help=boundaries_help)
    group.add_argument(
        "--layers", type=int, metavar="K", help="run only the first K layers of the encoder (early exit)"
    )
    dtype_help = (
        "dtype of the upstream (default: float32); auto: the device's fastest; int8: on a CPU. The task gets float32"
    )
    group.add_argument("--dtype", choices=DTYPES, help=dtype_help)
    frames_help = (
        "native: the compressed frames, the default for tasks that can use them, such as asr, pr and "
        "sid; upsampled: repeated to 20 ms, the default for the others"
    )
    group.add_argument("--output-frames", choices=OUTPUT_FRAMES, help=frames_help)
    group.add_argument(OLD_OUTPUT_FRAMES, choices=OUTPUT_FRAMES, help=argparse.SUPPRESS)
    repeat_help = "repeat each native frame, for CTC; auto: as often as the training labels need"
    group.add_argument("--repeat", type=repeat_count, metavar="N|auto", help=repeat_help)
    gb_help = "cache the features of a frozen upstream on disk, up to this many 10^9 bytes, and use those already there"
    group.add_argument("--cache-gb", type=float, metavar="GB", help=gb_help)
    cache_help = "folder of the cache; default: ~/.cache/s3prl_ofa/features"
    group.add_argument("--feature-cache", metavar="DIR", help=cache_help)
    group.add_argument("--mini", action="store_true", help="the small config, for minutes on two CPU cores")
    for name, (kind, metavar, text) in FINE_TUNING.items():
        group.add_argument(option(name), type=kind, metavar=metavar, help=text)
    for name, (metavar, text) in ROOTS.items():
        group.add_argument(option(name), metavar=metavar, help=text)


def add_s3prl_options(group: argparse._ArgumentGroup) -> None:
    """The options of S3PRL 0.4.18's run_downstream.py, in its order, and --local-rank as newer launchers spell it."""
    add = group.add_argument
    add("-m", "--mode", choices=["train", "evaluate", "inference"], required=True)
    add("-t", "--evaluate_split", default="test")
    add("-o", "--override", help="Used to override args and config, this is at the highest priority")
    add("--backend", default="nccl", help="The backend for distributed training")
    rank_help = "The GPU id of this process in distributed training; None if not launched by torch.distributed.launch"
    add("--local_rank", "--local-rank", type=int, help=rank_help)
    add("-e", "--past_exp", metavar="{CKPT_PATH,CKPT_DIR}", help="Resume training from a checkpoint")
    add("-i", "--init_ckpt", metavar="CKPT_PATH", help="Load the checkpoint for evaluation")
    add("-c", "--config", help="The yaml file for configuring the whole experiment except the upstream model")
    add("-d", "--downstream", help="Its dataset typically needs manual preparation; see downstream/README.md")
    add("-v", "--downstream_variant", help="Downstream variants given the same expert")
    hub_help = "The model Hub used to retrieve the upstream model."
    add("--hub", default="torch", choices=["torch", "huggingface"], help=hub_help)
    upstream_help = (
        'Upstreams with "_local" or "_url" postfix need local ckpt (-k) or config file (-g). Other upstreams download '
        "two files on the fly and cache them, so just -u is enough. See upstream/README.md. Available in S3PRL: "
    )
    add("-u", "--upstream", help=upstream_help + ", ".join(s3prl_upstreams()))
    ckpt_help = (
        "Only set if the upstream needs it; ofa_wav2vec2 takes a file, USER/NAME on the Hugging Face Hub or a URL"
    )
    add("-k", "--upstream_ckpt", metavar="{PATH,USER/NAME,URL}", help=ckpt_help)
    add("-g", "--upstream_model_config", help="The config file for constructing the pretrained model")
    add("-r", "--upstream_refresh", action="store_true", help="Download cached ckpts of on-the-fly upstreams again")
    add("-f", "--upstream_trainable", action="store_true", help="Fine-tune, set upstream.train(). Default is eval()")
    layer_help = "The layer to be extracted as the representation"
    add("-s", "--upstream_feature_selection", default="hidden_states", help=layer_help)
    add("-l", "--upstream_layer_selection", type=int, help="A specific layer of the features selected by -s")
    normalize_help = "Normalize hidden features before the weighted sum"
    add("--upstream_feature_normalize", action="store_true", help=normalize_help)
    add("--upstream_model_name", default="model.pt", help="The name of the model file in the HuggingFace Hub repo.")
    add("--upstream_revision", help="The commit hash of the specified HuggingFace Repository")
    add("-n", "--expname", help="Save experiment at result/downstream/expname")
    add("-p", "--expdir", help="Save experiment at expdir")
    add("-a", "--auto_resume", action="store_true", help="Auto-resume if the expdir contains checkpoints")
    push_help = "Push the experiment directory to the Hugging Face Hub; needs HF_USERNAME and HF_PASSWORD in the shell"
    add("--push_to_hf_hub", default=False, help=push_help)
    add("--hf_hub_org", help="The Hugging Face Hub organisation to push fine-tuned models to")
    add("--seed", default=1337, type=int)
    add("--device", default="cuda", help="model.to(device)")
    add("--cache_dir", help="The cache directory for pretrained model downloading")
    add("--verbose", action="store_true", help="Print model information")
    add("--disable_cudnn", action="store_true", help="Disable CUDNN")


def s3prl_upstreams() -> list[str]:
    """The names of the installed S3PRL's upstreams, read from its sources, because importing it takes seconds."""
    folder = pathlib.Path(importlib.util.find_spec("s3prl").submodule_search_locations[0])
    names: set[str] = set()
    for module, imported in re.findall(
        r"^from s3prl\.([\w.]+) import (.+)", (folder / "hub.py").read_text("utf-8"), re.M
    ):
        source = folder.joinpath(*module.split(".")).with_suffix(".py").read_text("utf-8")
        defined = re.findall(r"^(?:def|from \S+hubconf import \w+ as) ([a-zA-Z]\w*)", source, re.M)
        names.update(defined if imported == "*" else [imported])
    return sorted(names)


def repeat_count(value: str) -> int | str:
    if value != AUTO and not value.isdecimal():
        raise argparse.ArgumentTypeError(f"a whole number or {AUTO} is expected, found {value!r}")
    return value if value == AUTO else int(value)


def option(name: str) -> str:
    return "--" + name.replace("_", "-")
