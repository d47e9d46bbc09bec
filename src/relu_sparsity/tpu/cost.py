"""What a compiled program computes and moves, every turn of its loops counted.

XLA's own count, `compiled.cost_analysis()`, has the body of a loop once, however often it runs: a
model that scans over its layers looks as if it had one layer. It also counts what stays in a TPU's
on-chip memory as if it were in HBM.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import jax
from jaxlib import _hlo, _jax  # type: ignore[attr-defined]

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\) -> .* \{")
_INSTRUCTION = re.compile(r"  (?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(?:, |$)")
_SOURCE = re.compile(r" stack_frame_id=\d+")
_CALLEE = re.compile(r"to_apply=%?([\w.-]+)")
_LOOP = re.compile(r"condition=%?([\w.-]+), body=%?([\w.-]+)")
_KNOWN_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_LESS = re.compile(r"ROOT .* compare\(%?[\w.-]+, %?([\w.-]+)\), direction=LT")
_CONSTANT = re.compile(r"%?([\w.-]+) = s32\[\]\S* constant\((\d+)\)")
_ARRAY = re.compile(r"([a-z]+)(\d*)\w*\[([\d,]*)\](\{[^}]*\})?")
_ON_CHIP = "S(1)"
# XLA counts no bytes for these, and none for a custom call.
_FREE = ("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "custom-call")


class ProgramCost(NamedTuple):
    """What one device does in one call of a program.

    Attributes:
      flops: Floating-point operations, those of elementwise functions among them.
      hbm_bytes: Bytes read from and written to its memory by all operations, where a fusion is one
        operation. Arrays in a TPU's on-chip memory do not count.
    """

    flops: float
    hbm_bytes: float

    def plus(self, other: "ProgramCost", times: int = 1) -> "ProgramCost":
        """The sum, `other` counted `times` times."""
        return ProgramCost(
            self.flops + times * other.flops, self.hbm_bytes + times * other.hbm_bytes
        )


def program_cost(compiled: jax.stages.Compiled) -> ProgramCost:
    """Counts what a compiled program does, for whatever platform it was compiled.

    Raises:
      ValueError: A loop's number of turns cannot be read from the program.
    """
    text = compiled.as_text()
    assert text is not None
    program = _Program(text)
    cost = program.cost(program.entry)
    program.check_all_loops_counted()
    return cost


class _Program:
    """The text of an HLO module, by computation."""

    def __init__(self, text: str) -> None:
        lines = text.splitlines()
        # The rest of the first line describes the entry, which here becomes another one.
        self.header = lines[0].split(",")[0]
        self.entry = ""
        self._counted: dict[str, ProgramCost] = {}
        self._visited: set[str] = set()
        self.computations: dict[str, list[str]] = {}
        current: list[str] | None = None
        for line in lines[1:]:
            match = _COMPUTATION.fullmatch(line)
            if match is not None:
                current = self.computations[match[2]] = []
                if match[1]:
                    self.entry = match[2]
            if current is not None:
                # Without the tables of source lines that it points to.
                current.append(_SOURCE.sub("", line))
            if line == "}":
                current = None

    def cost(self, name: str) -> ProgramCost:
        """What a computation and all that it calls do."""
        self._visited.add(name)
        total = self.counted_once(name).plus(ProgramCost(0.0, -self.not_in_hbm(name)))
        for line in self.computations[name]:
            instruction = _INSTRUCTION.match(line)
            operation = instruction[3] if instruction else ""
            if operation == "call" and (match := _CALLEE.search(line)):
                callee, turns = match[1], 1
            elif operation == "while" and (match := _LOOP.search(line)):
                callee, turns = match[2], self.turns(line, match[1])
            else:
                continue
            total = total.plus(self.cost(callee), turns).plus(self.counted_once(callee), -1)
        return total

    def check_all_loops_counted(self) -> None:
        """Raises if a loop is where `cost` does not look, such as in a branch."""
        for name, lines in self.computations.items():
            if name not in self._visited and any(" while(" in line for line in lines):
                raise ValueError(f"the loops in the computation {name} cannot be counted")

    def counted_once(self, name: str) -> ProgramCost:
        """XLA's count of a computation and all that it calls: each loop's body once."""
        if name in self._counted:
            return self._counted[name]
        lines = [self.header]
        for each, body in self.computations.items():
            first = body[0].removeprefix("ENTRY ")
            lines += [f"ENTRY {first}" if each == name else first, *body[1:]]
        module = _hlo.hlo_module_from_text("\n".join(lines))
        analysis = _jax.hlo_module_cost_analysis(jax.devices("cpu")[0].client, module)
        cost = ProgramCost(analysis.get("flops", 0.0), analysis.get("bytes accessed", 0.0))
        self._counted[name] = cost
        return cost

    def not_in_hbm(self, name: str) -> float:
        """The bytes of a computation's own operations that XLA counts and HBM does not see."""
        instructions = {
            match[1]: match
            for line in self.computations[name]
            if (match := _INSTRUCTION.match(line)) is not None
        }
        total = 0
        for _, result, operation, operands in (match.groups() for match in instructions.values()):
            types = [
                instructions[operand][2]
                for operand in re.findall(r"%([\w.-]+)", operands)
                if operand in instructions
            ]
            if operation in (*_FREE, "while", "call"):
                continue
            if operation == "copy-start":
                # XLA counts the source twice, and the copy once more when it is done.
                copy, source = list(_arrays(result))[:2]
                total += source[0] + sum(size for size, on_chip in (copy, source) if on_chip)
            elif operation == "copy-done":
                total += sum(size for size, _ in _arrays(result))
            elif operation == "slice-start":
                # XLA counts the part as read and as written.
                source, part = list(_arrays(result))[:2]
                total += part[0] * (part[1] + source[1])
            elif not operation.endswith("-done"):
                total += sum(
                    size for each in (result, *types) for size, on_chip in _arrays(each) if on_chip
                )
        return float(total)

    def turns(self, line: str, condition: str) -> int:
        """How often a loop's body runs, where JAX's loops count from 0 by 1."""
        if match := _KNOWN_TURNS.search(line):
            return int(match[1])
        lines = self.computations[condition]
        limit = next((match[1] for each in lines if (match := _LESS.search(each))), None)
        for each in lines:
            match = _CONSTANT.search(each)
            if match is not None and match[1] == limit:
                return int(match[2])
        raise ValueError(f"the loop with the condition {condition} has no known number of turns")


def _arrays(types: str) -> Iterator[tuple[int, bool]]:
    """The bytes of each array of a type, and whether it is in on-chip memory."""
    for name, bits, dims, layout in _ARRAY.findall(types):
        size = math.prod(int(dim) for dim in dims.split(",") if dim)
        # A pred, whose name has no number of bits, takes a byte.
        yield math.ceil(size * int(bits or 8) / 8) if name != "token" else 0, _ON_CHIP in layout
