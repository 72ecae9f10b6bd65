"""Damage done to files, by seed: to their bytes, and to what their JSON or TOML says."""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Callable
from typing import Any

Mutation = Callable[[bytes, random.Random], bytes]

# What stands where something else should: wrong kinds, and numbers that overflow.
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 255, 2**31, 2**70, 0.5, -0.0, 1e308),
    *(float("inf"), float("nan"), "", "x", "..", "\u2028", "\x00", [], {}, [[]], [None]),
    *([0, 1], {"x": 1}, [["a", 1]], "layer9", [1e400, 2]),
)
ODD_TOML = (
    "",
    "true",
    "-1",
    "0",
    "1e400",
    "nan",
    "'x'",
    "[]",
    "{}",
    "[1, 'a']",
    "1979-05-27",
)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One to three of: cut, bits flipped, bytes put in, a range zeroed, two blocks swapped."""
    for _ in range(rng.randint(1, 3)):
        if not data:
            break
        at, span = rng.randrange(len(data)), rng.randint(1, max(1, len(data) // 8))
        kind = rng.choice(("cut", "flip", "insert", "zero", "swap"))
        if kind == "cut":
            data = data[:at]
        elif kind == "flip":
            changed = bytearray(data)
            for _ in range(rng.randint(1, 8)):
                changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            data = bytes(changed)
        elif kind == "insert":
            data = data[:at] + rng.randbytes(min(span, 64)) + data[at:]
        elif kind == "zero":
            data = data[:at] + bytes(len(data[at : at + span])) + data[at + span :]
        else:
            first, second = sorted((at, rng.randrange(len(data))))
            span = min(span, second - first)
            one, two = data[first : first + span], data[second : second + span]
            rest = data[first + span : second], data[second + span :]
            data = data[:first] + two + rest[0] + one + rest[1]
    return data


def _odd(plain: Any, rng: random.Random) -> Any:
    """JSON with one node replaced, left out or said twice."""
    if isinstance(plain, dict) and plain and rng.random() < 0.9:
        key = rng.choice(list(plain))
        if rng.random() < 0.2:
            return {k: v for k, v in plain.items() if k != key}
        if rng.random() < 0.1:
            return {**plain, key + "x": plain[key]}
        return {**plain, key: _odd(plain[key], rng)}
    if isinstance(plain, list) and plain and rng.random() < 0.9:
        at = rng.randrange(len(plain))
        if rng.random() < 0.2:
            return plain[:at] + plain[at + 1 :]
        if rng.random() < 0.1:
            return [*plain, plain[at]]
        return [*plain[:at], _odd(plain[at], rng), *plain[at + 1 :]]
    return rng.choice(ODD_VALUES)


def odd_json(data: bytes, rng: random.Random) -> bytes:
    """A JSON file, or a file of lines of JSON, that says something odd."""
    if rng.random() < 0.02:
        return b"[" * 100_000  # deeper than Python reads
    try:
        return json.dumps(_odd(json.loads(data), rng)).encode()
    except ValueError:
        lines = data.splitlines()
        at = rng.randrange(len(lines))
        lines[at] = json.dumps(_odd(json.loads(lines[at]), rng)).encode()
        if rng.random() < 0.1:
            lines.insert(at, lines[at])
        return b"\n".join(lines) + b"\n"


def odd_toml(data: bytes, rng: random.Random) -> bytes:
    """TOML with one value, or one key, of another kind."""
    lines = data.decode().splitlines()
    at = rng.choice([n for n, line in enumerate(lines) if "=" in line])
    key, _, value = lines[at].partition("=")
    if rng.random() < 0.8:
        lines[at] = f"{key}= {rng.choice(ODD_TOML)}"
    else:
        lines[at] = f"{re.sub('[a-z]', 'q', key, count=1)}={value}"
    return "\n".join(lines).encode()


def odd_header(data: bytes, rng: random.Random) -> bytes:
    """Safetensors whose header says something odd, its length being right."""
    (length,) = struct.unpack_from("<Q", data)
    header = odd_json(data[8 : 8 + length], rng)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]
