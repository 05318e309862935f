"""YAML from a user's file or option, bounded in size: with aliases a few lines can expand without limit."""

import yaml

from s3prl_ofa.checkpoint.plain_values import plain


def read_yaml(text: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> object:
    """The plain values in the text. Raises ValueError, on one line, if it is not YAML or too large."""
    try:
        loaded = yaml.load(text, loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: impossible numbers and dates
        raise ValueError(" ".join(str(error).split())[:300]) from error
    plain(loaded)
    return loaded
