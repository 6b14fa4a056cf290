"""Tokens of prompts, as the tokenizers of CLIP and T5 have them."""

import codecs
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from ddpo_fair.errors import UserError, shown
from ddpo_fair.models import clip, t5, tensor_files

# Those that transformers reads, by the name of its class.
FILES = {"CLIPTokenizer": ("vocab.json", "merges.txt"), "T5Tokenizer": ()}
WORD = "photo"  # that every one has tokens of
T5_LENGTH = 256  # diffusers' max_sequence_length
CUT = "prompts_are_cut"  # in tokenizer_config.json: true where long ones lose their end


def load(folder: Path, kind: str = "CLIPTokenizer") -> Any:
    """The tokenizer of a folder; a UserError if there is none that can be read.

    Its kind is one of `FILES`.
    """
    # Of transformers only the tokenizer serves: its advice to install PyTorch puzzles.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers  # seconds, and only where weights are read

    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        tokenizer = getattr(transformers, kind).from_pretrained(
            folder, local_files_only=True
        )  # a folder: nothing to pin
    except Exception as error:  # whatever a broken file brings up
        raise UserError(
            f"{folder} holds no {kind[:-9]} tokenizer that can be read"
            f" ({type(error).__name__}: {str(error)[:200]}); {_way_out(folder, kind)}."
        ) from error
    # Of an empty folder, or one of another kind, it is one that knows nothing.
    ids = tokenizer(WORD, add_special_tokens=False)["input_ids"]
    of_clip, lacks = kind == "CLIPTokenizer", ""
    if tokenizer.unk_token_id in ids or (of_clip and len(ids) >= len(WORD)):
        lacks = f"it knows {WORD!r} by its letters at most"
    elif lost := _unmade(tokenizer) if of_clip else ():
        lacks = f"it is cut, no merge makes {shown(lost[0])}"
    if lacks:
        raise UserError(
            f"{folder} holds no {kind[:-9]} tokenizer: {lacks}; put all files of the"
            " original model's in the place of its own."
        )
    return tokenizer


def _unmade(tokenizer: Any) -> list[str]:
    """Tokens of CLIP's vocabulary that no merge makes, and that are no letter."""
    known = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    made = {"".join(x.split() if isinstance(x, str) else x) for x in known["merges"]}
    others = known["vocab"].keys() - made - tokenizer.get_added_vocab().keys()
    return [x for x in sorted(others) if len(x.removesuffix("</w>")) > 1]


def _way_out(folder: Path, kind: str) -> str:
    """What to do about a tokenizer that cannot be read."""
    if lacking := [name for name in FILES[kind] if not (folder / name).is_file()]:
        return f"it lacks {' and '.join(lacking)}: copy them from the original model"
    for path in filter(Path.is_file, folder.glob("*.json")):
        if path.read_bytes().startswith(codecs.BOM_UTF8):
            return f"{path.name} begins with a byte-order mark: save it as UTF-8 alone"
    again = tensor_files.again(folder)
    return tensor_files.way_out(*folder.glob("*"), otherwise=again)


def length_of(encoder: clip.Config | t5.Config) -> int:
    """Tokens that a text encoder reads, L."""
    return getattr(encoder, "max_position_embeddings", T5_LENGTH)


def of(
    tokenizer: Any, encoder: clip.Config | t5.Config, prompts: list[str]
) -> np.ndarray:
    """Token numbers int32 [N, L], padded to the text encoder's length.

    A longer prompt loses its end only where the model was trained so, which its
    tokenizer_config.json says with `CUT`. A UserError for a prompt that is longer, or
    of which it has no token.
    """
    length, vocab_size = length_of(encoder), encoder.vocab_size
    cut = tokenizer.init_kwargs.get(CUT) is True
    found = tokenizer(prompts, padding="max_length", max_length=length, truncation=cut)[
        "input_ids"
    ]
    for prompt, ids in zip(prompts, found, strict=True):
        if len(ids) > length:
            raise UserError(
                f"The prompt {shown(prompt)} has {len(ids)} tokens, but the text"
                f" encoder reads {length} with those that mark its ends; shorten it."
            )
        if max(ids) >= vocab_size:
            raise UserError(
                f"{tokenizer.name_or_path}: the tokenizer's vocabulary is larger than"
                f" the text encoder's, vocab_size={vocab_size}; copy both from the"
                " same model."
            )
    return np.asarray(found, np.int32)
