"""Texts to the tokens that a CLIP model's text tower reads; torch.

Most models have CLIP's own vocabulary, which open_clip brings along. Those with one of the hub (SigLIP and others)
state it as tokenizer.json, which the package `tokenizers` reads; open_clip would take `transformers` for it, a package
that mmdetection imports at every start where it is installed.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from open_clip import tokenizer as clip
from torch import Tensor

from networks import hub
from retrieval.clip_models import ClipSpec

FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"
Encode = Callable[[Sequence[str]], list[list[int]]]  # every text's tokens, those of beginning and end included


def tokenizer(spec: ClipSpec) -> Callable[[Sequence[str]], Tensor]:
    """The function from N texts to (N, length of the model's context) int64 tokens.

    It raises ValueError for a text that is longer than the model reads. ValueError here: tokens of a kind that is not
    supported, or a vocabulary that is neither cached nor to be had from the hub.
    """
    text = spec.network["text_cfg"]
    length = text.get("context_length", clip.DEFAULT_CONTEXT_LENGTH)
    options = dict(text.get("tokenizer_kwargs", {}))
    if text.get("tokenizer_mode"):
        raise ValueError(f"{spec.name}: tokens of mode {text['tokenizer_mode']!r} are not supported; no text search")
    encode, padding = _of_hub(spec.tokenizer, options) if spec.tokenizer else _of_clip(options)

    def tokens(texts: Sequence[str]) -> Tensor:
        out = torch.full((len(texts), length), padding, dtype=torch.long)
        for row, (words, ids) in enumerate(zip(texts, encode(texts), strict=True)):
            if len(ids) > length:
                raise ValueError(
                    f"{spec.name}: {words[:40]!r}… has {len(ids)} tokens, the model reads {length}; shorten the text"
                )
            out[row, : len(ids)] = torch.tensor(ids)
        return out

    return tokens


def _of_clip(options: dict[str, Any]) -> tuple[Encode, int]:
    simple = clip.SimpleTokenizer(**options)
    start, end = simple.sot_token_id, simple.eot_token_id
    return lambda texts: [[start, *simple.encode(text), end] for text in texts], 0


def _of_hub(place: str, options: dict[str, Any]) -> tuple[Encode, int]:
    """Of a folder or a repository with tokenizer.json; `options` are `clean` and `strip_sep_token` of open_clip's."""
    from tokenizers import Tokenizer

    folder = Path(place)
    files = {name: folder / name if folder.is_dir() else hub.fetch(place, [name]) for name in (FILE, CONFIG)}
    fast, config = Tokenizer.from_file(str(files[FILE])), json.loads(files[CONFIG].read_text(encoding="utf-8"))
    fast.no_padding()
    fast.no_truncation()
    special = {name: _id(fast, config.get(name)) for name in ("pad_token", "sep_token")}
    clean = clip.get_clean_fn(options.get("clean", "whitespace"))
    dropped = special["sep_token"] if options.get("strip_sep_token") else None

    def encode(texts: Sequence[str]) -> list[list[int]]:
        found = fast.encode_batch([clean(text) for text in texts])
        return [[0 if token == dropped else token for token in one.ids] for one in found]

    return encode, special["pad_token"] or 0


def _id(fast: Any, token: Any) -> int | None:
    """The number of a special token, which a configuration gives as text or as {content: text}; None for none."""
    text = token.get("content") if isinstance(token, dict) else token
    return None if text is None else fast.token_to_id(text)
