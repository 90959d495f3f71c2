"""A shared library that is made of USDT probes and nothing else, written byte by byte: no compiler has to be there.

Each probe is a function that returns at once. A note in the file says where it is, what it is called, in which
registers its arguments are (those of an ordinary call), and which number of 16 bits, its semaphore, is above 0 while
somebody watches. Who watches puts a breakpoint on the function's first instruction.

Source: for the notes https://sourceware.org/systemtap/wiki/UserSpaceProbeImplementation, for the file the ELF
specification, of which this is the least that dynamic linkers ask for. 64 bits, little-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True)
class Machine:
    """What differs from one processor to another."""

    elf_number: int
    nop_and_return: bytes
    registers: tuple[str, ...]
    """Those of a call's first arguments, as its assembler writes them."""


MACHINES = {
    "x86_64": Machine(62, bytes.fromhex("90 c3"), ("%rdi", "%rsi", "%rdx", "%rcx", "%r8", "%r9")),
    "aarch64": Machine(183, bytes.fromhex("1f2003d5 c0035fd6"), ("x0", "x1", "x2", "x3", "x4", "x5")),
}
"""By the name that `platform.machine()` gives them on Linux."""

SEMAPHORES = "semaphores"
"""The symbol of the array of semaphores: one for each probe, in the order of the probes."""

# A segment that is written to must share no page with one that is not; no machine here has larger pages.
_LARGEST_PAGE = 0x10000
# Kinds of segments and what may be done with them.
_LOAD, _DYNAMIC, _STACK = 1, 2, 0x6474E551
_READ, _WRITE, _EXECUTE = 4, 2, 1
# Kinds of sections and what holds of them.
_CONTENT, _STRINGS, _HASH, _DYNAMIC_TABLE, _NOTE, _SYMBOLS = 1, 3, 5, 6, 7, 11
_WRITABLE, _LOADED, _CODE = 1, 2, 4
# Kinds of symbols: both can be found from outside.
_VARIABLE, _FUNCTION = 0x11, 0x12
_STAPSDT = 3


@dataclass(eq=False)
class _Section:
    name: str
    kind: int
    flags: int
    content: bytes
    entry_size: int = 0
    link: _Section | None = None
    offset: int = 0
    address: int = 0


@dataclass
class _File:
    """A file that grows section by section. Addresses are offsets, and for what is writable one page more."""

    sections: list[_Section] = field(default_factory=list["_Section"])
    end: int = 64 + 4 * 56  # of the header, and of those of the segments

    def add(self, section: _Section) -> _Section:
        """Give the section its place, a multiple of 16 bytes."""
        section.offset = -(-self.end // 16) * 16
        if section.flags & _LOADED:
            section.address = section.offset + (_LARGEST_PAGE if section.flags & _WRITABLE else 0)
        self.end = section.offset + len(section.content)
        self.sections.append(section)
        return section

    def written(self, machine: Machine) -> bytes:
        names = _Strings([*(section.name for section in self.sections), ".shstrtab"])
        self.add(_Section(".shstrtab", _STRINGS, 0, names.table))
        table = -(-self.end // 16) * 16
        image = bytearray(table)
        for section in self.sections:
            image[section.offset : section.offset + len(section.content)] = section.content
        header = struct.pack(
            "<16sHHIQQQIHHHHHH",
            b"\x7fELF\x02\x01\x01",
            *(3, machine.elf_number, 1),  # a shared library
            *(0, 64, table, 0),
            *(64, 56, 4, 64, len(self.sections) + 1, len(self.sections)),
        )
        header += self._segments()
        image[: len(header)] = header
        return bytes(image) + bytes(64) + b"".join(map(self._section_header, names.offsets, self.sections))

    def _segments(self) -> bytes:
        loaded = [section for section in self.sections if section.flags & _LOADED]
        fixed = [section for section in loaded if not section.flags & _WRITABLE]
        writable = [section for section in loaded if section.flags & _WRITABLE]
        dynamic = [section for section in writable if section.kind == _DYNAMIC_TABLE]

        def segment(kind: int, may: int, start: int, address: int, end: int, alignment: int) -> bytes:
            return struct.pack("<IIQQQQQQ", kind, may, start, address, address, end - start, end - start, alignment)

        def around(kind: int, may: int, parts: list[_Section], alignment: int) -> bytes:
            end = parts[-1].offset + len(parts[-1].content)
            return segment(kind, may, parts[0].offset, parts[0].address, end, alignment)

        return b"".join(
            (
                segment(_LOAD, _READ | _EXECUTE, 0, 0, fixed[-1].offset + len(fixed[-1].content), _LARGEST_PAGE),
                around(_LOAD, _READ | _WRITE, writable, _LARGEST_PAGE),
                around(_DYNAMIC, _READ | _WRITE, dynamic, 16),
                # Without this a dynamic linker takes it that the program's stack must become executable.
                segment(_STACK, _READ | _WRITE, 0, 0, 0, 16),
            )
        )

    def _section_header(self, name: int, section: _Section) -> bytes:
        return struct.pack(
            "<IIQQQQIIQQ",
            *(name, section.kind, section.flags, section.address, section.offset, len(section.content)),
            0 if section.link is None else self.sections.index(section.link) + 1,
            1 if section.kind == _SYMBOLS else 0,  # the first symbol that can be found from outside
            *(4 if section.kind == _NOTE else 16, section.entry_size),
        )


class _Strings:
    """A table of strings, and where in it each of them begins."""

    def __init__(self, strings: Iterable[str]) -> None:
        self.table = b"\0"
        self.offsets: list[int] = []
        for string in strings:
            self.offsets.append(len(self.table))
            self.table += string.encode() + b"\0"


def symbol(probe: str) -> str:
    """Give the name of the function that is the probe."""
    return probe.replace("-", "_")


def probe_library(provider: str, probes: Mapping[str, int], machine: Machine) -> bytes:
    """Write the library of these probes, each with its number of arguments, all of 64 bits."""
    file = _File()
    names = _Strings([*map(symbol, probes), SEMAPHORES])
    strings = _Section(".dynstr", _STRINGS, _LOADED, names.table)
    # What the symbols mean is known when all has its place; until then there is only the room for them.
    symbols = _Section(".dynsym", _SYMBOLS, _LOADED, bytes(24 * (len(names.offsets) + 1)), 24, strings)
    hashes = _Section(".hash", _HASH, _LOADED, _one_bucket(len(names.offsets)), 4, symbols)
    code = _Section(".text", _CONTENT, _LOADED | _CODE, machine.nop_and_return * len(probes))
    # Its address stands in the notes, too: when the two differ, the library was moved, and all addresses with it.
    base = _Section(".stapsdt.base", _CONTENT, _LOADED, bytes(1))
    for section in (hashes, symbols, strings, code, base):
        file.add(section)
    # In pairs: where the hashes, the strings and the symbols are, the size of the strings and of a symbol, the end.
    entries = (4, hashes.address, 5, strings.address, 6, symbols.address, 10, len(names.table), 11, 24, 0, 0)
    file.add(_Section(".dynamic", _DYNAMIC_TABLE, _LOADED | _WRITABLE, struct.pack("<12Q", *entries), 16, strings))
    semaphores = file.add(_Section(".probes", _CONTENT, _LOADED | _WRITABLE, bytes(2 * len(probes))))

    size = len(machine.nop_and_return)
    functions = range(code.address, code.address + size * len(probes), size)
    notes = bytearray()
    for number, (name, arguments) in enumerate(probes.items()):
        where = struct.pack("<3Q", functions[number], base.address, semaphores.address + 2 * number)
        registers = " ".join(f"8@{register}" for register in machine.registers[:arguments])
        notes += _note(where + b"".join(text.encode() + b"\0" for text in (provider, name, registers)))
    file.add(_Section(".note.stapsdt", _NOTE, 0, bytes(notes)))

    meanings = [(_FUNCTION, code, function, size) for function in functions]
    meanings.append((_VARIABLE, semaphores, semaphores.address, len(semaphores.content)))
    symbols.content = bytes(24) + b"".join(
        struct.pack("<IBBHQQ", name, kind, 0, file.sections.index(section) + 1, address, length)
        for name, (kind, section, address, length) in zip(names.offsets, meanings, strict=True)
    )
    return file.written(machine)


def _one_bucket(symbols: int) -> bytes:
    """Write a hash table that chains all the symbols: it is searched once for each, when the library is loaded."""
    chain = (0, *range(2, symbols + 1), 0)
    return struct.pack(f"<3I{len(chain)}I", 1, len(chain), 1, *chain)


def _note(content: bytes) -> bytes:
    owner = b"stapsdt\0"
    return struct.pack("<3I", len(owner), len(content), _STAPSDT) + owner + content + bytes(-len(content) % 4)
