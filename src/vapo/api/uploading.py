"""Upload a trained policy to the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from vapo.errors import ConfigError
from vapo.session.whole_folders import whole_folder

UPLOAD_ARGUMENTS = frozenset((
    "allow_patterns", "commit_description", "create_pr", "delete_patterns", "ignore_patterns", "parent_commit",
    "path_in_repo",
))  # fmt: skip
CARD_ARGUMENTS = frozenset((
    "dataset", "dataset_args", "dataset_name", "dataset_tags", "finetuned_from", "language", "license", "model_name",
    "tags", "tasks",
))  # fmt: skip
"""Arguments of `create_model_card`, which transformers' and TRL's `push_to_hub` pass on."""


def upload_policy(
    policy: Path,
    name: str,
    commit_message: str,
    *,
    blocking: bool,
    token: str | None,
    revision: str | None,
    private: bool | None,
    more: Mapping[str, Any],
) -> str | Future[str]:
    """Upload the folder of a policy to the repository `name`, which is made if it is not there.

    Returns the address of the commit, or a future of it where `blocking` is off. `more` are arguments of
    `HfApi.upload_folder`; those of a model card change nothing. Raises ConfigError for others, before anything is made.
    """
    from huggingface_hub import HfApi

    options = {name: value for name, value in more.items() if name not in CARD_ARGUMENTS}
    if unknown := sorted(options.keys() - UPLOAD_ARGUMENTS):
        raise ConfigError(
            f"push_to_hub has no argument {unknown[0]}. It takes commit_message, repo_id, blocking, token, "
            f"revision, private, {', '.join(sorted(UPLOAD_ARGUMENTS))}."
        )
    api = HfApi(token=token)
    repository = api.create_repo(name, private=private, exist_ok=True)
    if revision is not None:
        options["revision"] = revision

    def upload() -> str:
        with whole_folder(policy, merged=True) as folder:
            commit = api.upload_folder(
                repo_id=repository.repo_id, folder_path=folder, commit_message=commit_message, **options
            )
        return str(commit.commit_url)

    return upload() if blocking else api.run_as_future(upload)
