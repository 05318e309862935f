"""Writes the corpus's manifests for pretraining, without the test speakers.

    python benchmarks/tiny_checkpoint/manifests.py CORPUS OUT

OUT/train.tsv has the train and dev speakers, except for every eighth utterance of the dev speakers, which is in
OUT/valid.tsv.
"""

import argparse
import pathlib

from corpus import Utterance, read_corpus

from s3prl_ofa.superb.prepare.manifest import write_manifest

HELD_OUT = 8  # every eighth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    args = parser.parse_args()
    utterances = read_corpus(args.corpus.absolute())
    dev = [utterance for utterance in utterances if utterance.text_split == "dev"]
    valid = dev[::HELD_OUT]
    held_out = {utterance.name for utterance in valid}
    train = [one for one in utterances if one.text_split in ("train", "dev") and one.name not in held_out]
    for name, part in {"train": train, "valid": valid}.items():
        write(args.out / f"{name}.tsv", args.corpus.absolute() / "audio", part)


def write(path: pathlib.Path, root: pathlib.Path, utterances: list[Utterance]) -> None:
    write_manifest(path, root, {utterance.path: utterance.samples for utterance in utterances})


if __name__ == "__main__":
    main()
