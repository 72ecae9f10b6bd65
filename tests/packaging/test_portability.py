"""One binary for every CPU: no instruction of a newer set stands outside that set's code.

The linker keeps one copy of an inline function that several objects emit. If that were the copy of
an AVX object, the module would crash on a CPU without AVX, which no machine of CI would notice.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections import Counter

import pytest

from fastfss.ops import _native_call

# AVX and all that follows it is encoded with VEX or EVEX: mnemonics with a v; and AMX's tiles.
NEWER = re.compile(r"v[a-z]|tdp|tile|ldtile|sttile")
SETS = ("avx2", "avx512", "avx512_bf16", "amx")


def newer_instructions(disassembly: str) -> tuple[Counter[str], Counter[str]]:
    """How many stand in the code of each set, and in each function that belongs to none."""
    inside: Counter[str] = Counter()
    outside: Counter[str] = Counter()
    function = ""
    for line in disassembly.splitlines():
        if begin := re.match(r"[0-9a-f]+ <(.+)>:$", line):
            function = begin[1]
        elif (code := re.match(r"\s+[0-9a-f]+:\s+(\S+)", line)) and NEWER.match(code[1]):
            owner = re.search(rf"fastfss::({'|'.join(SETS)})::", function)
            if owner:
                inside[owner[1]] += 1
            else:
                outside[function] += 1
    return inside, outside


def test_an_instruction_outside_its_set_is_seen():
    disassembly = """
0000000000001000 <fastfss::avx2::pool(int)>:
    1000:\tvaddps %ymm0,%ymm1,%ymm2
0000000000001010 <fastfss::choose()>:
    1010:\tmov    %rax,%rbx
    1013:\tvmovups (%rax),%ymm0
"""
    inside, outside = newer_instructions(disassembly)
    assert inside == {"avx2": 1}
    assert outside == {"fastfss::choose()": 1}


@pytest.mark.skipif(_native_call.module is None, reason="a build without native code")
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="about x86-64 alone")
def test_newer_instructions_stay_in_the_code_of_their_set():
    if (objdump := shutil.which("objdump")) is None:
        pytest.skip("needs objdump (binutils)")
    command = [objdump, "-d", "-C", "--no-show-raw-insn", _native_call.module.__file__]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    inside, outside = newer_instructions(done.stdout)
    assert set(inside) == set(_native_call.module.compiled_isas.split(",")) - {"portable"}
    assert not outside
