"""YAML from a user's file or option, bounded: aliases make a few lines as large as one likes."""

import yaml

from s3prl_ofa.checkpoint.plain_values import plain


def read_yaml(text: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> object:
    """What the text holds, plain values alone. Raises ValueError, one line, for what is no YAML, or is too large."""
    try:
        loaded = yaml.load(text, loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # the second for numbers and dates that are none
        raise ValueError(" ".join(str(error).split())[:300]) from error
    plain(loaded)
    return loaded
