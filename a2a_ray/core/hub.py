"""Local copies of models: from a folder, an installed package, or the Hugging Face hub; and silence while they load.

The libraries are imported on first use, so that `import a2a_ray` stays fast.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import threading
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from a2a_ray.core.errors import ConfigurationError

HUB_SECONDS = 3.0
"""How long the hub may take to answer before it counts as unreachable (its client would try for 23 s)."""


def folder_of(name: str, model: str) -> Path | None:
    """Return the folder that a model's name denotes, or None if the name denotes no folder.

    model: the model in an error, such as "model './tiny'". Raises ConfigurationError for a path without a folder.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name.startswith((".", "/", "~")) or folder.exists():
        raise ConfigurationError(f"{model}: no such folder")
    return None


def package_folder(package: str) -> Path | None:
    """Return the folder `model` of an installed package that carries a model. Does not import the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "model"


def hub_folder(
    repository: str,
    revision: str | None,
    *,
    model: str,
    files: Sequence[str],
    ignore: Sequence[str],
    missing: Callable[[Path], str],
    remedy: str,
    package: str | None = None,
    unreachable: type[ConfigurationError] = ConfigurationError,
) -> Path:
    """Return the folder of a hub model: from the local cache, from a package that carries it, or downloaded.

    Args:
        model: the model in an error, such as "model 'owner/name'".
        files, ignore: patterns of the files to download.
        missing: what a folder lacks to be complete, as a phrase; empty for a complete one.
        remedy: what to do without a network.
        package: the package that carries this revision.
        unreachable: the error to raise if the hub cannot be reached.

    Raises:
        ConfigurationError: the model does not exist, is incomplete, or cannot be downloaded.
    """
    from huggingface_hub import constants

    with silence():
        here, state = _folder_here(repository, revision, model, missing, package)
        if here:
            return here
        if constants.HF_HUB_OFFLINE:
            raise unreachable(f"{model} {state}, and the hub is switched off; {remedy}")
        if not reachable(constants.ENDPOINT):
            raise unreachable(f"{model} {state}, and {constants.ENDPOINT} cannot be reached; {remedy}")
        try:
            folder = _download(repository, revision, files, ignore)
        except ConfigurationError as error:
            raise ConfigurationError(f"{model} {error}") from None
        except Exception as error:  # a proxy, a full disk: the client and its transport raise a dozen kinds
            reason = first_line(error).removeprefix("Got: ")
            raise ConfigurationError(f"{model} {state} and could not be downloaded ({reason}): {remedy}") from None
    if lacking := missing(folder):
        raise ConfigurationError(f"{model} is incomplete: {lacking}")
    return folder


def is_here(repository: str, revision: str | None, missing: Callable[[Path], str], package: str | None) -> bool:
    """Return whether a model is on this machine: in the local cache, or in the package that carries it."""
    with silence():
        return _folder_here(repository, revision, repository, missing, package)[0] is not None


def _folder_here(
    repository: str, revision: str | None, model: str, missing: Callable[[Path], str], package: str | None
) -> tuple[Path | None, str]:
    """Return the folder in the local cache or in the package, or None and the state of the cache as a phrase."""
    cached, state = _cached_folder(repository, revision, model, missing)
    if cached is None and package and (carried := package_folder(package)) and not missing(carried):
        return carried, ""
    return cached, state


def _cached_folder(
    repository: str, revision: str | None, model: str, missing: Callable[[Path], str]
) -> tuple[Path | None, str]:
    """Return the folder in the local cache, or None and the state of the cache as a phrase."""
    from huggingface_hub import errors, snapshot_download

    try:
        folder = Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except errors.HFValidationError as error:
        raise ConfigurationError(f"{model}: {error}") from None
    except (OSError, ValueError):
        return None, "is not in the local cache"
    lacking = missing(folder)
    return (None, f"is incomplete in the local cache ({lacking})") if lacking else (folder, "")


def _download(repository: str, revision: str | None, files: Sequence[str], ignore: Sequence[str]) -> Path:
    """Download a model. Raises ConfigurationError, without the model's name, if the hub does not give it."""
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(
            snapshot_download(repository, revision=revision, allow_patterns=list(files), ignore_patterns=list(ignore))
        )
    except errors.GatedRepoError:
        problem = "is gated: accept its terms on its page and set HF_TOKEN to a token of your account"
    except errors.RepositoryNotFoundError:
        problem = "is not on the hub, or private: check the name, or set HF_TOKEN"
    except errors.RevisionNotFoundError:
        problem = "is not on the hub: there is no such revision"
    raise ConfigurationError(problem)


def reachable(address: str) -> bool:
    """Return whether a server gives any answer within HUB_SECONDS, the lookup of its name included."""
    answered = threading.Event()

    def request() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=HUB_SECONDS).close()
        except urllib.error.HTTPError:
            pass
        except (OSError, ValueError):
            return
        answered.set()

    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    return answered.is_set()


@contextmanager
def silence() -> Iterator[None]:
    """Suppress warnings and the progress bars of the hub and, if it is imported, of transformers."""
    with ExitStack() as stack:
        _silence_hub(stack)
        if "transformers" in sys.modules:
            _silence_transformers(stack)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield


def _silence_hub(stack: ExitStack) -> None:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hub_log = logging.getLogger("huggingface_hub")
    stack.callback(hub_log.setLevel, hub_log.level)
    hub_log.setLevel(logging.ERROR)
    if not are_progress_bars_disabled():
        stack.callback(enable_progress_bars)
        disable_progress_bars()


def _silence_transformers(stack: ExitStack) -> None:
    from transformers.utils import logging as transformers_logging

    stack.callback(transformers_logging.set_verbosity, transformers_logging.get_verbosity())
    transformers_logging.set_verbosity_error()
    if transformers_logging.is_progress_bar_enabled():
        stack.callback(transformers_logging.enable_progress_bar)
        transformers_logging.disable_progress_bar()


def first_line(error: BaseException) -> str:
    """Return the first line of an error that is not blank, or the error's class."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
