"""A cache of the Hugging Face hub by hand: models--ORG--NAME/{blobs,refs,snapshots}, as huggingface_hub keeps it."""

import hashlib
from collections.abc import Mapping
from pathlib import Path


def put(cache: Path, repo: str, files: Mapping[str, bytes], branch: str = "main") -> str:
    """Put files into the cache as the newest commit of a repository's branch; returns the commit."""
    home = cache / f"models--{repo.replace('/', '--')}"
    commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
    for folder in ("blobs", "refs", f"snapshots/{commit}"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    (home / "refs" / branch).write_text(commit)
    for name, data in files.items():
        blob = hashlib.sha256(data).hexdigest()
        (home / "blobs" / blob).write_bytes(data)
        (home / "snapshots" / commit / name).symlink_to(f"../../blobs/{blob}")
    return commit
