"""``s3prl-ofa push CKPT USER/NAME``: uploads a checkpoint to a repository on the Hugging Face Hub."""

import argparse
import os
import pathlib
import tempfile

from s3prl_ofa.checkpoint.conversion import convert
from s3prl_ofa.checkpoint.reading import read_checkpoint
from s3prl_ofa.checkpoint.sources import HUB_SCHEME, REPOSITORY
from s3prl_ofa.errors import UsageError
from s3prl_ofa.version import __version__

CARD, TEMPLATE = "README.md", "model_card.md.jinja"


def run(args: argparse.Namespace) -> int:
    """Prints the address of the repository. Raises UsageError and CheckpointError."""
    print(push(args.ckpt, args.repository, args.private, args.revision))
    return 0


def push(ckpt: str | os.PathLike, repository: str, private: bool = False, revision: str | None = None) -> str:
    """Uploads weights, config.json and, unless there is one, a model card to a repository, created if new.

    Returns the repository's address. ckpt: of any known format. private: make a new repository private. revision: the
    branch to write to, created if new. The token is that of ``hf auth login`` or ``HF_TOKEN``. Raises CheckpointError,
    and UsageError if the Hub refuses.
    """
    from huggingface_hub import HfApi, errors

    repository = repository.removeprefix(HUB_SCHEME)
    found = REPOSITORY.fullmatch(repository)
    if found is None or found["revision"]:
        raise UsageError(f"{repository}: expected the name of a repository, USER/NAME; give a branch with --revision")
    with tempfile.TemporaryDirectory() as scratch:
        folder = convert(ckpt, pathlib.Path(scratch, "model"), "huggingface")
        (folder / CARD).write_text(model_card(ckpt, repository, revision), "utf-8")
        api = HfApi(library_name="s3prl-ofa", library_version=__version__)
        try:
            url = api.create_repo(repository, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(repository, branch=revision, exist_ok=True)
            if api.file_exists(repository, CARD, revision=revision):  # it may have been written by hand
                (folder / CARD).unlink()
            api.upload_folder(
                repo_id=repository, folder_path=folder, revision=revision, commit_message="Checkpoint by s3prl-ofa push"
            )
        except (OSError, ValueError, errors.HTTPError) as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise UsageError(
                f"{repository}: the Hugging Face Hub does not accept it ({reason}); "
                "a token with write access is needed: hf auth login"
            ) from error
    return str(url)


def model_card(ckpt: str | os.PathLike, repository: str, revision: str | None) -> str:
    """The text of the repository's README.md, with code that loads the model."""
    from jinja2 import Environment, StrictUndefined

    checkpoint = read_checkpoint(ckpt)
    template = pathlib.Path(__file__).with_name(TEMPLATE).read_text("utf-8")
    return (
        Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
        .from_string(template)
        .render(
            repository=repository,
            revision=revision,
            config=checkpoint.config,
            parameters=sum(weight.numel() for weight in checkpoint.weights.values()),
            version=__version__,
        )
    )
