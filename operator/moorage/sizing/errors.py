"""What reading a model's header can end in.

MoorageError
|-- HeaderError        the bytes are not a header Moorage accepts; the message says what and where
|   `-- UnsizedError   the header is in order, but its words do not say what the formulas need
NeedMoreBytes          not a failure: the prefix handed in is too short
"""

from moorage.errors import MoorageError


class HeaderError(MoorageError):
    """The header is broken, out of bounds, or of a kind that no engine here loads; reading it again cannot help."""


class UnsizedError(HeaderError):
    """Memory cannot be computed from this header; an engine may load the model all the same."""


class NeedMoreBytes(Exception):
    """The header goes on behind the bytes handed in.

    `at_least` is a length in bytes, counted from the start of the file: with fewer the next attempt cannot succeed
    (with exactly that many it may ask again).
    """

    def __init__(self, at_least: int) -> None:
        super().__init__(f"at least the first {at_least} bytes are needed")
        self.at_least = at_least
