"""The HuggingFace hub: `hf:ORG/NAME[@REVISION]` → a folder in the hub's own cache, read like any other folder."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from lipcheck.errors import SourceError, UnknownModelError, WeightsError
from lipcheck.sources.surroundings import hub_within_reach, quiet
from lipcheck.sources.wording import WAYS_OUT, plain, reason

REPOSITORY = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
CONFIGS = ("config.json", "preprocessor_config.json")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def split(repository: str, *, written: str) -> tuple[str, str | None]:
    """ORG/NAME and the revision; UnknownModelError when the text is no such thing."""
    found = REPOSITORY.fullmatch(repository)
    if not found:
        raise UnknownModelError(f"{plain(written)}: expected hf:ORG/NAME or hf:ORG/NAME@REVISION")
    return found["id"], found["revision"]


def fetch_config(repository: str, *, written: str) -> Path:
    """The cached folder that holds the repository's config.json.

    Errors: UnknownModelError when the hub has no such repository, SourceError when it cannot be asked.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    split(repository, written=written)
    try:
        folder = _fetch(repository, CONFIGS[0], written=written).parent
    except GatedRepoError as error:
        raise SourceError(f"{written}: the hub asks for a login; run `hf auth login` or give a folder") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UnknownModelError(f"{written}: the hub shows no such model; check the spelling") from error
    except Exception as error:  # whatever the client's transport raises
        raise SourceError(
            f"{written}: its config.json could not be fetched ({reason(error)}); give the path of a downloaded folder, "
            "or a timm or torchvision name with --weights random or --weights FILE"
        ) from error
    with contextlib.suppress(Exception):  # many repositories have none; the config alone will do
        _fetch(repository, CONFIGS[1], written=written)
    return folder


def fetch_weights(repository: str, *, written: str) -> None:
    """The repository's weights lie beside its config; WeightsError when they cannot be had."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for name in WEIGHTS:
        try:
            _fetch(repository, name, written=written)
            return
        except LocalEntryNotFoundError as error:
            raise _unfetched(written, error) from error
        except EntryNotFoundError:
            continue
        except Exception as error:  # whatever the client's transport raises
            raise _unfetched(written, error) from error
    raise WeightsError(f"{written}: the repository holds none of {', '.join(WEIGHTS)}; {WAYS_OUT}")


def _fetch(repository: str, name: str, *, written: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    identity, revision = split(repository, written=written)
    with quiet(), hub_within_reach() as answers:
        try:
            return Path(hf_hub_download(identity, name, revision=revision))
        except LocalEntryNotFoundError as error:
            if answers:
                raise
            raise LocalEntryNotFoundError("the model hub does not answer, and its cache has no copy") from error


def _unfetched(written: str, error: Exception) -> WeightsError:
    return WeightsError(f"{written}: its pretrained weights could not be fetched ({reason(error)}); {WAYS_OUT}")
