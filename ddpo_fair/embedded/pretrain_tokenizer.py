"""The embedded model's tokenizer: CLIP's byte-pair encoding, built from its captions.

Many words are whole tokens, but not all: a merge of another word may come first ("face"
is f, ac, e). So a few captions are longer than `MAX_LENGTH` and lose their end, in
pretraining as in use. The folder opens as an official `CLIPTokenizer`.
"""

import json
from pathlib import Path

from ddpo_fair.diffusion import prompt_tokens

MAX_LENGTH = 16  # tokens
BEGIN, END = "<|startoftext|>", "<|endoftext|>"  # CLIP's names


def byte_characters() -> list[str]:
    """The printable characters that stand for the 256 bytes in CLIP's vocabulary.

    Source: `bytes_to_unicode` of https://github.com/openai/CLIP (GPT-2's rule): a byte
    that prints stands for itself, the others take the characters from 256 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


def merges_of(words: list[str]) -> list[tuple[str, str]]:
    """The merges that build every word from left to right, each once, in a fixed order.

    Longer words come first, so that few merges break up another word.
    """
    merges: dict[tuple[str, str], None] = {}
    for word in sorted(set(words), key=lambda word: (-len(word), word)):
        pieces = [*word[:-1], word[-1] + "</w>"]
        left = pieces[0]
        for piece in pieces[1:]:
            merges[(left, piece)] = None
            left += piece
    return list(merges)


def save(folder: Path, captions: list[str]) -> None:
    """Write the tokenizer with the words of `captions`, in the official layout."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [word for caption in captions for word in caption.lower().split()]
    merges = merges_of([word for word in words if word.isalpha() and word.isascii()])
    letters = byte_characters()
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    tokens += [token for token in map("".join, merges) if token not in tokens]
    tokens += [BEGIN, END]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    files = {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
        "merges.txt": "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges),
        "special_tokens_map.json": json.dumps(
            {
                "bos_token": BEGIN,
                "eos_token": END,
                "unk_token": END,
                "pad_token": END,
            }
        ),
        "tokenizer_config.json": json.dumps(
            {
                "tokenizer_class": "CLIPTokenizer",
                "model_max_length": MAX_LENGTH,
                "bos_token": BEGIN,
                "eos_token": END,
                "unk_token": END,
                "pad_token": END,
                "do_lower_case": True,
                prompt_tokens.CUT: True,  # captions are, in pretraining
            },
            indent=2,
        ),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
