"""Published weights from the Hugging Face hub, fetched once a machine: without torch, for the driver knows them too.

The cache is huggingface_hub's own, below HF_HOME, and so are the locks that let one process of a machine fetch a file
while the others wait. What is cached is taken as it is, without asking the network; HF_HUB_OFFLINE=1 forbids asking.
"""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from huggingface_hub.utils import disable_progress_bars

from store.errors import UserError
from store.files import file_sha256


def fetch(repo: str, names: Sequence[str], revision: str = "") -> Path:
    """The first of the named files that a repository has, as a file on this machine, cached ones first.

    Raises UserError where it is not cached and cannot be fetched.

    Args:
        repo: `ORG/NAME`.
        names: of files in it, best first.
        revision: a branch, tag or commit; "" for the main branch. A cached commit needs no network.
    """
    disable_progress_bars()
    for name in names:
        try:
            return Path(hf_hub_download(repo, name, revision=revision or None, local_files_only=True))
        except EntryNotFoundError:  # not cached
            continue
        except Exception as error:  # not even a name
            raise UserError(f"{repo}: {_line(error)}") from None
    reason = "the repository has no such file"
    for name in names:
        try:
            return Path(hf_hub_download(repo, name, revision=revision or None))
        except LocalEntryNotFoundError as error:  # no network; a kind of EntryNotFoundError
            reason = _line(error)
        except EntryNotFoundError:
            continue
        except Exception as error:  # no such repository, no permission, a broken connection
            reason = _line(error)
        break
    raise UserError(
        f"{' or '.join(names)} of {repo} is not in {constants.HF_HUB_CACHE} and cannot be fetched ({reason}); fetch it "
        f"where there is a network (`hf download {repo}`) and set HF_HOME, or name a file with `weights`"
    )


def commit_of(path: Path) -> str:
    """The commit that a fetched file belongs to, as its folder in the cache is named; "" where it is elsewhere.

    >>> commit_of(Path("/hub/models--timm--x/snapshots/0a1b/model.safetensors"))
    '0a1b'
    """
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else ""


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def pinned(published: Sequence[str], sha256: str) -> tuple[tuple[str, str, str], str]:
    """Published weights fetched, as (repository, commit, file name), and the sha256 of the file, in hex.

    `published` is a repository, a revision and the file names to try; `sha256` is what the file must have, "" for any.
    Raises UserError as `fetch` does, and for another digest.
    """
    repository, revision, *names = published
    path = fetch(repository, names, revision)
    digest = file_sha256(path)
    if sha256 and sha256 != digest:
        raise UserError(f"{path} has sha256 {digest[:16]}…, its entry wants {sha256[:16]}…")
    return (repository, commit_of(path), path.name), digest
