"""Sending an export to a Hugging Face hub, in one commit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitp.errors import OutputError, VitpError


def check_push(repo: str) -> None:
    """See whether pushing can work before anything is computed.

    Raises:
        VitpError: the name is no ``owner/name``, or there is no token.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    owner, slash, name = repo.partition("/")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise VitpError(f"--push-to {repo}: {str(error).splitlines()[0]}") from error
    if not (owner and slash and name):
        raise VitpError(f"--push-to {repo}: give owner/name, the repository on the hub")
    if get_token() is None:
        raise VitpError(f"--push-to {repo}: no token for the hub; run `hf auth login` or set HF_TOKEN")


def push(files: Mapping[str, Path], repo: str, *, private: bool, message: str) -> str:
    """Upload `files` (name in the repository -> file) as one commit; the repository is made if missing.

    Returns:
        the commit's address.

    Raises:
        OutputError: no right to write there, the hub is out of reach, or a private push meets a public repository.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api: Any = HfApi()
    kept = f"the export stays at {next(iter(files.values())).parent}"
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        if private and api.repo_info(repo).private is False:
            raise OutputError(
                f"{repo} is public on the hub: add --public to push there, or choose another name; {kept}"
            )
        operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(file)) for name, file in files.items()]
        return str(api.create_commit(repo, operations, commit_message=message).commit_url)
    except OutputError:
        raise
    except Exception as error:
        raise OutputError(f"--push-to {repo}: {_reason(error)}; {kept}") from error


def _reason(error: Exception) -> str:
    """One clause for what the hub or the way to it answered; anything else is ours and is raised again."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return "the hub does not accept the token; run `hf auth login` or set HF_TOKEN"
    if status == 403:
        return "the token has no right to write there; use one with write access to that owner"
    if isinstance(error, HfHubHTTPError):
        return f"the hub refused ({str(error).splitlines()[0]})"
    if isinstance(error, HTTPError | OSError):
        return f"the hub cannot be reached ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    raise error
