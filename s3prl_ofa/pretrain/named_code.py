"""Keeps hydra and fairseq from importing, building or calling foreign code that a configuration names.

hydra builds the callbacks and the launcher named in its section, and passes its logging sections to Python, which
imports and calls whatever they name; fairseq imports ``common.user_dir``.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from s3prl_ofa.checkpoint.safe_loading import patched_attributes
from s3prl_ofa.errors import UsageError, shown

NO_USER_DIR = "common.user_dir is for fairseq-hydra-train; this command includes the plugin"
# keys of hydra's section that name code, with the allowed prefixes of names; "()" is a key of Python's logging
NAMING = {"_target_": ("hydra.", "hydra_plugins."), "class": ("logging.",), "()": ()}


@contextlib.contextmanager
def no_code_from_names() -> Iterator[None]:
    """Checks every configuration after hydra has composed it and before hydra uses it. Raises UsageError."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from omegaconf import OmegaConf

    load = ConfigLoaderImpl.load_configuration

    @functools.wraps(load)
    def load_checked(*args: Any, **kwargs: Any) -> Any:
        cfg = load(*args, **kwargs)
        if OmegaConf.select(cfg, "common.user_dir", throw_on_missing=False):
            raise UsageError(NO_USER_DIR)
        check_names(OmegaConf.to_container(cfg.hydra), "hydra")
        return cfg

    with patched_attributes(ConfigLoaderImpl, load_configuration=load_checked):
        yield


def check_names(value: Any, where: str) -> None:
    """Raises UsageError for a name outside hydra and logging. where: the key of the value."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if key in NAMING and not str(item).startswith(NAMING[key]):
            raise UsageError(f"{where}.{key}: {shown(str(item))} is not built; expected only parts of hydra")
        check_names(item, f"{where}.{key}")
