"""``s3prl-ofa prepare``: from corpora to the files that the tasks and pretraining need."""

import argparse

from s3prl_ofa.errors import UsageError
from s3prl_ofa.superb.prepare.audio import convert_corpus
from s3prl_ofa.superb.prepare.bucket import write_bucket_files
from s3prl_ofa.superb.prepare.lexicon import write_lexicon
from s3prl_ofa.superb.prepare.manifest import write_manifests
from s3prl_ofa.superb.prepare.output import Output
from s3prl_ofa.superb.prepare.speaker_list import write_speaker_list
from s3prl_ofa.superb.prepare.vocabulary import write_vocabularies
from s3prl_ofa.superb.tasks.corpora import corpus_root


def run(args: argparse.Namespace) -> int:
    """Runs the chosen sub-command; 1 when files had to be left out, which it names, else 0."""
    if args.out.exists() and not args.out.is_dir():
        raise UsageError(f"--out {args.out} is a file; a folder is expected")
    if args.jobs is not None and args.jobs < 1:
        raise UsageError(f"--jobs must be at least 1, found {args.jobs}")
    output = Output(args.out, args.force, args.jobs, getattr(args, "verify", False))
    given = {option: getattr(args, option, None) for option in ("librispeech", "voxceleb1")}
    librispeech, voxceleb1 = (root and corpus_root(root, option) for option, root in given.items())
    if args.what == "all" and not (librispeech or voxceleb1):
        raise UsageError("give --librispeech ROOT, --voxceleb1 ROOT or both")
    if args.what == "bucket" or args.what == "all" and librispeech:
        write_bucket_files(output, librispeech, args.splits)
    if args.what == "lexicon" or args.what == "all" and librispeech:
        write_lexicon(output, librispeech, args.lexicon)
    if args.what == "voxceleb1" or args.what == "all" and voxceleb1:
        write_speaker_list(output, voxceleb1, args.list, args.seed)
    if args.what == "vocabulary":
        write_vocabularies(output, librispeech, args.splits, args.lexicon)
    if args.what == "manifest":
        write_manifests(output, args.audio, args.valid_fraction, args.seed)
    if args.what == "audio":
        convert_corpus(output, args.corpus)
    return output.report()
