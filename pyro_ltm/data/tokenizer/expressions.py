"""Regular expressions of tokenizers from strangers: refused where they could backtrack for ever.

Those of published tokenizers are known. In any other no group that is repeated may itself hold a repetition or a
choice, which is where exponential time comes from; what is left takes polynomial time, and is measured on a megabyte of
text in a process of its own, under a limit.
"""

from __future__ import annotations

import functools
import re
import string
import subprocess
import sys

from pyro_ltm.data.tokenizer.cutting import PARTIAL, PATTERNS

LONGEST = 4096
"""Characters of an expression."""

LIMIT = 5.0
"""Seconds for `_probes`; a good expression takes a tenth of one."""

KNOWN = (
    PATTERNS
    | PARTIAL
    | {
        # CLIP's and BLOOM's, and what normalizers join spaces with.
        r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
        r" ?[^(\s|[.,!?…。，、।۔،])]+",
        *(" {2,}", " +", r"\s+", r"\s{2,}"),
    }
)
"""Expressions of published tokenizers."""

_LENGTH = 1 << 16

_REPEATED = re.compile(r"[*+]|\{\d*,?\d*\}")
_FORBIDDEN = {
    r"\\[1-9]|\\[kg][<'{]": "refers back to what it found",
    r"\(\?(?:[R0-9&+(~]|P[=>])": "calls itself or has conditions",
    r"\\K|\\G": "moves where it looks",
}
_MEASURE = """
import sys, tokenizers
expression, text = sys.stdin.read().split("\\0")
splitter = tokenizers.pre_tokenizers.Split(tokenizers.Regex(expression), "isolated")
for probe in text.split("\\1"):
    splitter.pre_tokenize_str(probe)
"""


def refusal(expression: str) -> str:
    """Why a regular expression is refused, in a few words; empty where it is not."""
    if expression in KNOWN:
        return ""
    if len(expression) > LONGEST:
        return f"it has {len(expression):,} characters, {LONGEST:,} at most are read"
    for pattern, reason in _FORBIDDEN.items():
        if re.search(pattern, re.sub(r"\\\\", "", expression)):
            return f"it {reason}"
    if _repeats_what_varies(expression):
        return "it repeats a group that holds a repetition or a choice, which can take for ever"
    return _measured(expression)


def _repeats_what_varies(expression: str) -> bool:
    """Whether a repeated group holds a repetition or a choice, at any depth."""
    groups, closed, place = [False], False, 0  # of each open group, whether its length or its ways vary
    while place < len(expression):
        character, was_closed, closed = expression[place], closed, False
        if character == "\\":
            place += 2
        elif character == "[":
            place = _class_end(expression, place)
        elif character == "(":
            groups.append(False)
            place += 2 if expression[place + 1 : place + 2] == "?" else 1
        elif character == ")":
            inner = groups.pop() if len(groups) > 1 else False
            groups[-1] |= inner
            closed = inner
            place += 1
        elif found := _REPEATED.match(expression, place):
            if was_closed:
                return True
            groups[-1], place = True, found.end()
        else:
            groups[-1] |= character in "?|"
            place += 1
    return False


def _class_end(expression: str, place: int) -> int:
    """Where the character class that begins at `place` is over; classes may hold classes."""
    depth = 0
    while place < len(expression):
        character = expression[place]
        if character == "\\":
            place += 1
        elif character == "[":
            depth += 1
            place += 1 if expression[place + 1 : place + 2] == "^" else 0
            place += 1 if expression[place + 1 : place + 2] == "]" else 0  # a first bracket is one of the characters
        elif character == "]":
            depth -= 1
            if not depth:
                return place + 1
        place += 1
    return place


@functools.cache
def _measured(expression: str) -> str:
    try:
        done = subprocess.run(
            [sys.executable, "-c", _MEASURE],
            input=(expression + "\0" + "\1".join(_probes(expression))).encode("utf-8"),
            timeout=LIMIT,
            capture_output=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it takes over {LIMIT:.0f} seconds for a megabyte of text"
    except (OSError, UnicodeEncodeError) as error:
        return f"it is none of those known, and cannot be tried ({error})"
    return "" if done.returncode == 0 else "the library cannot apply it, or gives it up as too slow"


def _probes(expression: str) -> list[str]:
    """Ordinary text, and long runs of what the expression names, of white space and of what is in no word."""
    prose = "The quick brown fox, it's said, didn't jump over 1,234 lazy dogs (or 5.6e7 cats?) at http://x.org/a_b!\n"
    other = "Größe naïve, Привет мир, 你好世界。 日本語のテキスト、한국어 مرحبا 🙂\r\n\r\n\tint main() { return 0; }\n"
    named = sorted({*expression} & {*string.ascii_letters, *string.digits, *"_-'. "})[:8]
    runs = {"a", "Z", "7", " ", "\n", "!", "你", *named}
    ordinary = [(text * (_LENGTH // len(text) + 1))[:_LENGTH] for text in (prose, other, "aA1 b2-B.")]
    return [*ordinary, *(run * (_LENGTH // 2) + end for run in sorted(runs) for end in ("", "\u2603"))]
