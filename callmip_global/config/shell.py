"""Putting a value into a shell command so that the shell can only ever read it as one argument.

Quoting is not enough: inside quotes that the author of the command wrote, the quotes around the
value end theirs, and the shell runs what the value holds. So a value with special characters is
quoted where the shell reads a plain word, and refused everywhere else.
"""

from __future__ import annotations

import re
import shlex

# What every shell reads as itself wherever it stands: inside quotes, in a here-document, and when
# it is read twice (bash -c, ssh). {year} and {var} are left for the model to fill in.
_PLAIN = re.compile(r"(?:[\w@%+=:,./-]|\{[A-Za-z_]\w*\})*")
# These read their arguments as code or as the name of a variable, whose subscript is code.
_READ_TWICE = re.compile(
    r"(?<![\w./-])(?:eval|let|declare|typeset|local|unset|alias|trap|ssh|su|getopts"
    r"|read|mapfile|readarray|printf\s+-v|(?:test|\[)\s+(?:!\s+)?-v)(?![\w./-])"
)
_INTEGER = re.compile(r"(?:declare|typeset|local)\s+-\w*i")
_SUBSCRIPT = re.compile(r"\w\[[^\]\s]*\Z")
_HERE = re.compile(r"<<(-?)[ \t]*(?:'([^'\n]+)'|\"([^\"\n$`\\]+)\"|([A-Za-z0-9_.+-]+))(?=[\s;&|>])")
# Substitutions in which nothing can go wrong: ${NAME}, $(nproc), `pwd`.
_SIMPLE = re.compile(r"\$\{[A-Za-z_]\w*\}|\$\([\w./ -]*\)|`[\w./ -]*`")
_CASE = re.compile(r"(?:^|[\s;&|(])case\s")


def insert(value: str, before: str) -> str:
    """The text that puts ``value`` behind ``before``, the script up to the place.

    A value of plain characters goes in as it is. Any other is quoted, so that the command gets
    exactly its bytes as (part of) one argument. ValueError with the reason where that cannot be:
    the place is inside quotes, a comment, a here-document, arithmetic, ``eval``, or something we
    do not follow.
    """
    if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
        raise ValueError("a value without NUL and of valid Unicode")
    plain = _PLAIN.fullmatch(value) is not None
    if plain and value and value.isascii() and "{" not in value:
        return value
    if is_bare(before):
        return shlex.quote(value)
    if plain:
        return value
    raise ValueError("a word of its own, outside quotes, comments, << and eval")


def is_bare(before: str) -> bool:
    """Whether bash reads what follows ``before`` as a plain word of a command.

    Errs on the side of no: after anything that is not followed here (arithmetic, ``[[``, nested
    substitutions, a here-document without a plain end mark) it says no.
    """
    if _INTEGER.search(before) or _SUBSCRIPT.search(before) or before.endswith("$"):
        return False
    reader = _Reader(before)
    return reader.is_bare() and not _READ_TWICE.search(before, reader.command)


class _Reader:
    """Follows quotes, comments, parentheses and here-documents of a script up to its end."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.inside: list[str] = []
        self.here: list[tuple[str, bool]] = []
        self.escaped = -1
        self.command = 0

    def is_bare(self) -> bool:
        """Whether the end of the text is outside of everything but commands and subshells."""
        while self.at < len(self.text):
            within = self.inside[-1] if self.inside else "("
            step = self._plain() if within == "(" else self._quoted(within)
            if not step:
                return False
            self.at += step
        return not self.here and all(part == "(" for part in self.inside)

    def _quoted(self, within: str) -> int:
        """Length of what stands at this place inside quotes (``A``: ``$'``); 0 if unknown."""
        c = self.text[self.at]
        if c == ('"' if within == '"' else "'"):
            self.inside.pop()
        elif c == "\\" and within != "'":
            return self._escaped()
        elif within == '"' and c in "$`":
            return self._substitution()
        return 1

    def _plain(self) -> int:
        """Length of what stands at this place outside quotes; 0 if unknown."""
        c, text = self.text[self.at], self.text
        if c == "\\":
            return self._escaped()
        if self._starts("((", "[[", "<<<", "=("):
            return 0
        last = text[self.at - 1 : self.at]
        if c == "#" and last in ("(", ")"):
            return 0  # a comment, or a part of the word $(x)#
        if c == "#" and self.at != self.escaped and last in ("", *" \t\n;&|"):
            end = text.find("\n", self.at)
            return end - self.at if end >= 0 else 0
        if self._starts("<<"):
            return self._here_document()
        if c in "\n;":
            self.command = self.at + 1
        if c == "\n" and self.here:
            return self._documents()
        if self._starts("$'"):
            self.inside.append("A")
            return 2
        if self._starts("$(") and not self._starts("$(("):
            self.inside.append("(")
            return 2
        if c in "$`":
            return self._substitution()
        if c in "'\"(":
            self.inside.append(c)
        elif c == ")" and self.inside:
            # It may end a pattern of `case`, and close nothing.
            if _CASE.search(text[: self.at]):
                return 0
            self.inside.pop()
        return 1

    def _escaped(self) -> int:
        self.escaped = self.at + 2
        return 2 if self.at + 1 < len(self.text) else 0

    def _substitution(self) -> int:
        simple = _SIMPLE.match(self.text, self.at)
        if simple is not None:
            return len(simple.group())
        return 0 if self._starts("`", "$(", "${", "$[") else 1

    def _here_document(self) -> int:
        mark = _HERE.match(self.text, self.at)
        if mark is None:
            return 0
        word = next(group for group in mark.groups()[1:] if group)
        self.here.append((word, bool(mark.group(1))))
        return len(mark.group())

    def _documents(self) -> int:
        """Over the here-documents that begin at this end of line; 0 if one has no end."""
        at = self.at + 1
        while self.here:
            word, tabs = self.here[0]
            end = self.text.find("\n", at)
            if end < 0:
                return 0
            line, at = self.text[at:end], end + 1
            if line.endswith("\\"):  # the shell may join it with the next line
                return 0
            if (line.lstrip("\t") if tabs else line) == word:
                self.here.pop(0)
        return at - self.at

    def _starts(self, *words: str) -> bool:
        return self.text.startswith(words, self.at)
