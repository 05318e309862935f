"""YAML from a user's file or option, bounded in size: with aliases a few lines can expand without limit."""

import re

import yaml

from s3prl_ofa.checkpoint.plain_values import plain


class Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as in YAML 1.2; PyYAML would read a text."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


class UniqueKeys(Loader):
    """YAML that refuses duplicate keys, of which PyYAML would silently take the last."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = [key.value for key, _ in node.value]
        for index, key in enumerate(keys):
            if key in keys[:index] and key != "<<":
                mark = node.value[index][0].start_mark
                raise yaml.constructor.ConstructorError(None, None, f"the key {key} is given twice", mark)
        return node


def read_yaml(text: str, loader: type[yaml.SafeLoader] = Loader) -> object:
    """The plain values in the text. Raises ValueError, on one line, if it is not YAML or too large."""
    try:
        loaded = yaml.load(text, loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: impossible numbers and dates
        raise ValueError(" ".join(str(error).split())[:300]) from error
    plain(loaded)
    return loaded
