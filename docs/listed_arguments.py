"""A griffe extension: "name: text" lines of a docstring, one per argument or attribute, become a list on the page."""

import re

import griffe


class ListedArguments(griffe.Extension):
    """Docstrings here give one line per argument or attribute, which Markdown would join into one paragraph."""

    def on_object(self, *, obj: griffe.Object, loader: griffe.GriffeLoader, **kwargs: object) -> None:
        if obj.docstring is None or not (obj.is_function or obj.is_class):
            return
        names = {parameter.name for parameter in obj.parameters} | set(obj.members)
        listed = []
        for line in obj.docstring.value.splitlines():
            match = re.match(r"(\w+(?:, \w+)*): ", line)
            if match and set(match[1].split(", ")) <= names:
                listed += ["", f"* `{match[1]}`: {line[match.end() :]}"]
            else:
                listed.append(line)
        obj.docstring.value = "\n".join(listed)
