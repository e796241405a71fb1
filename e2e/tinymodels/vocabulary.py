"""A small byte-level BPE vocabulary: any text can be encoded, and a few dozen whole words can be generated."""

from dataclasses import dataclass

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
BOS_ID = 0
EOS_ID = 2  # <|im_end|> closes every turn of the ChatML template, so generation ends with it

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_WORDS = """
    anchor bay beacon berth boat bollard bow breeze bridge buoy cabin calm captain cargo chart cleat coast compass
    crane crew current deck dock drift ferry fleet fog gale gangway gull harbor haul heave hull island jetty keel
    knot lantern ledger line mast moor mooring night ocean pier pilot port quay rope rudder sail sea shore signal
    steady stern tide tug vessel voyage water wave wharf wind
"""


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in order of their ids, the BPE merges by priority, and the ids that the model may generate."""

    tokens: tuple[str, ...]
    merges: tuple[str, ...]
    word_ids: frozenset[int]


def _byte_symbols() -> list[str]:
    """Return the printable character that GPT-2's byte-level BPE uses for each byte value (`bytes_to_unicode`)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    symbols, shifted = [], 256
    for byte in range(256):
        if byte in printable:
            symbols.append(chr(byte))
        else:
            symbols.append(chr(shifted))
            shifted += 1
    return symbols


def build_vocabulary() -> Vocabulary:
    """Return the one vocabulary that every tiny model shares."""
    symbols = _byte_symbols()
    space = symbols[ord(" ")]
    tokens = dict.fromkeys((*SPECIAL_TOKENS, *symbols))
    merges: dict[str, None] = {}
    words = [space + word for word in _WORDS.split()]
    for word in words:
        for end in range(2, len(word) + 1):
            merges[f"{word[: end - 1]} {word[end - 1]}"] = None
            tokens[word[:end]] = None
    ordered = tuple(tokens)
    return Vocabulary(ordered, tuple(merges), frozenset(ordered.index(word) for word in words))
