"""Small tokenizers of every kind that texts have to be right for, made with the ``tokenizers`` library alone."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.models.tiny import CHAT_TEMPLATE

SPECIAL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")  # ids 0 to 4
FALLBACK_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))  # ids from 5 on
_CORPUS = """The quick brown fox jumps over the lazy dog. Pig Latin: ananabay itsplay, ewspapernay, otalay estday.
English: banana split, newspaper, total rest, quantum physics. The capital of France is Paris, and this is the end."""


def make_sentencepiece_tokenizer(style: str = "llama") -> PreTrainedTokenizerFast:
    """A BPE with byte fallback, as SentencePiece models are converted.

    ``style`` "llama": a space before the text, and the decoder strips it; "metaspace": the same by Metaspace;
    "gemma": neither.
    """
    pieces, merges = _trained_pieces()
    words = [*SPECIAL, *FALLBACK_BYTES, *pieces]
    raw = Tokenizer(
        models.BPE(
            {word: i for i, word in enumerate(words)}, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
        )
    )
    spaces = decoders.Replace("▁", " ")
    if style == "llama":
        raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        raw.decoder = decoders.Sequence(
            [spaces, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", left=1, right=0)]
        )
    elif style == "metaspace":
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        raw.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    else:
        raw.normalizer = normalizers.Replace(" ", "▁")
        raw.decoder = decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse()])
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    raw.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in SPECIAL])
    return _named(raw)


def make_worded_tokenizer(words: Sequence[str], decoder: decoders.Decoder | None) -> PreTrainedTokenizerFast:
    """Whole words only, put together by ``decoder``."""
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*SPECIAL, *words])}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if decoder is not None:
        raw.decoder = decoder
    raw.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in SPECIAL])
    return _named(raw)


def less(whole: str, before: str) -> str:
    """Reference text after a prompt; a character that the prompt began belongs to it."""
    differ = (i for i, (one, other) in enumerate(zip(whole, before, strict=False)) if one != other)
    return whole[next(differ, min(len(whole), len(before))) :]


def _named(raw: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _trained_pieces() -> tuple[list[str], list[tuple[str, str]]]:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.train_from_iterator([_CORPUS.replace("\n", " ")], trainers.BpeTrainer(vocab_size=200, show_progress=False))
    pieces = sorted(raw.get_vocab(), key=raw.get_vocab().__getitem__)
    known = set(pieces)
    merges = []
    for piece in pieces:  # in the order in which they were merged
        halves = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        merges += [pair for pair in halves if known.issuperset(pair)][:1]
    return pieces, merges
