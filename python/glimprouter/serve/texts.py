"""Generated text as an answer has it: thinking apart from content, markers and stops left out.

Everything that is given out stays given: what could yet become a marker or a stop is held back.
The result does not depend on how the text was cut into pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from glimprouter.serve.pair import Markers


class Delta(NamedTuple):
    """Text that is new."""

    reasoning: str = ""
    content: str = ""


class _Held:
    """Text that has not been given out; special tokens in it are not given out either."""

    def __init__(self) -> None:
        self.text = ""
        self._special: list[tuple[int, int]] = []  # places in the text

    def add(self, text: str, special: str) -> None:
        """Text whose end may be that of a special token."""
        self.text += text
        if special and text.endswith(special):
            self._special.append((len(self.text) - len(special), len(self.text)))

    def give(self, count: int) -> str:
        """The first so many characters, without special tokens."""
        kept, place = [], 0
        for start, end in self._special:
            kept.append(self.text[place : max(place, min(start, count))])
            place = min(end, count)
        kept.append(self.text[place:count])
        self.text = self.text[count:]
        ends = ((start - count, end - count) for start, end in self._special)
        self._special = [(max(start, 0), end) for start, end in ends if end > 0]
        return "".join(kept)


def _begun(text: str, wanted: Sequence[str]) -> int:
    """How many characters at the end may be the beginning of one of some texts."""
    longest = max(map(len, wanted), default=0)
    for count in range(min(len(text), longest), 0, -1):
        if any(one.startswith(text[-count:]) for one in wanted):
            return count
    return 0


class StopFinder:
    """Content up to the first stop; white space around the whole is left out unless it is raw."""

    def __init__(self, stops: Sequence[str], *, raw: bool = False) -> None:
        """Nothing is known yet.

        Args:
            stops: Texts that end it, none of them empty.
            raw: Whether white space at both ends is kept.
        """
        self.stopped = False
        self._stops = list(stops)
        self._raw = raw
        self._held = ""
        self._begun = raw

    def push(self, text: str) -> str:
        """What can be given out now."""
        if self.stopped:
            return ""
        self._held += text
        if not self._begun:
            self._held = self._held.lstrip()
            self._begun = bool(self._held)
        found = [
            (place + len(stop), place)
            for stop in self._stops
            if (place := self._held.find(stop)) >= 0
        ]
        if found:
            self.stopped = True
            return self._held[: min(found)[1]]
        sure = len(self._held) - _begun(self._held, self._stops)
        if not self._raw:
            sure = len(self._held[:sure].rstrip())
        given, self._held = self._held[:sure], self._held[sure:]
        return given

    def flush(self) -> str:
        """What is left at the end."""
        rest = "" if self.stopped else self._held
        self._held = ""
        return rest if self._raw else rest.rstrip()


class TextSplitter:
    """Pieces of a sequence, in order, as reasoning and content."""

    def __init__(self, markers: Markers | None, stops: Sequence[str], *, raw: bool = False) -> None:
        """Nothing is known yet.

        Args:
            markers: Around the thinking; None where there is none.
            stops: Texts that end the content.
            raw: Whether all of the text is content, markers included.
        """
        self.thinking = markers is not None and not raw
        self._markers = markers or Markers((), ())
        self._held = _Held()
        self._content = StopFinder(stops, raw=raw)
        self._begun = False  # the thinking, behind its marker and white space

    @property
    def stopped(self) -> bool:
        """Whether a stop ended the content."""
        return self._content.stopped

    def push(self, text: str, special: str = "") -> Delta:
        """What can be given out now.

        Args:
            text: A piece.
            special: Text of its last token where that is a special one.
        """
        self._held.add(text, special)
        if not self.thinking:
            return Delta("", self._content.push(self._held.give(len(self._held.text))))
        return Delta(self._think(last=False), "")

    def answer(self) -> Delta:
        """The thinking is over: what comes now is content."""
        if not self.thinking:
            return Delta()
        own = self._held.text.rstrip()
        end = next((one for one in self._markers.ends if own.endswith(one)), "")
        self._held.text = own[: len(own) - len(end)]
        given = self._think(last=True)
        self.thinking = False
        self._held = _Held()
        return Delta(given, "")

    def flush(self) -> Delta:
        """What is left at the end of the sequence."""
        given = self._think(last=True) if self.thinking else ""
        return Delta(given, self._content.flush())

    def _think(self, *, last: bool) -> str:
        """Thinking that is no marker, and no white space at either end."""
        if not self._begun:
            text = self._held.text.lstrip()
            self._held.give(len(self._held.text) - len(text))
            start = next((one for one in self._markers.starts if text.startswith(one)), "")
            if not start and not last and any(one.startswith(text) for one in self._markers.starts):
                return ""
            if start:
                self._held.give(len(start))
                text = self._held.text.lstrip()
                self._held.give(len(self._held.text) - len(text))
                if not text:
                    self._markers = Markers((), self._markers.ends)
                    return ""
            self._begun = bool(text)
        text = self._held.text.rstrip()
        if last:
            return self._held.give(len(text)).rstrip()
        sure = len(text) - _begun(text, self._markers.ends)
        return self._held.give(len(text[:sure].rstrip()))
