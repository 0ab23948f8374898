"""What a compiled program does, counted in its optimised HLO: kernels, bytes, scatters, convolutions, donations.

An instruction that is scheduled is a kernel: it reads its operands and writes its result, once each. Caches that serve
two kernels, and a kernel that reads twice, are not seen; of one chip the bytes are what its memory must move at least.
"""

import math
import re
from collections import defaultdict

_SIZE = {
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2"), 1),
    **dict.fromkeys(("bf16", "f16", "s16", "u16"), 2),
    **dict.fromkeys(("f32", "s32", "u32"), 4),
    **dict.fromkeys(("f64", "s64", "u64"), 8),
}
_TYPE = re.compile(r"\b(" + "|".join(_SIZE) + r")\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_FREE = ("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id")


def computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    """The instructions of every computation by its name, and the entry's name."""
    bodies: dict[str, list[str]] = {}
    current = entry = ""
    for line in hlo.splitlines():
        head = re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
        if head:
            current = head.group(2)
            bodies[current] = []
            entry = current if head.group(1) else entry
        elif line.startswith("}"):
            current = ""
        elif current and line.strip():
            bodies[current].append(line.strip())
    return bodies, entry


def num_bytes(types: str) -> int:
    """Of all arrays whose types stand in the text."""
    return sum(_SIZE[dtype] * _num_elements(dims) for dtype, dims in _TYPE.findall(types))


def _num_elements(dims: str) -> int:
    return math.prod(int(dim) for dim in dims.split(",") if dim)


def _read(body: list[str], operands: list[str]) -> list[str]:
    """What a fusion reads of each operand: of one that it only slices, converted or not, the slices, else the whole."""
    parsed = [found.groups() for line in body if (found := _INSTRUCTION.match(line))]
    users: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for name, result, op, rest in parsed:
        for operand in re.findall(r"%([\w.\-]+)", rest.split(", metadata=")[0]):
            users[operand].append((name, result, op))
    read = list(operands)
    for name, _, op, rest in parsed:
        if op == "parameter":
            used = [end for user in users[name] for end in (users[user[0]] if user[2] == "convert" else [user])]
            if used and all(kind == "slice" for _, _, kind in used):
                read[int(rest.split(")")[0])] = " ".join(result for _, result, _ in used)
    return read


def count(hlo: str, images: int, activation_elements: int = 2000) -> dict:
    """The counts of the entry computation, for a batch of `images`.

    scatters: of results with `activation_elements` or more an image, wherever they stand.
    float32_convolutions: how many convolutions have a float32 operand.
    donated: how many parameters' memory results take over.
    """
    bodies, entry = computations(hlo)
    types: dict[str, str] = {}
    kinds: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    convolutions = float32 = 0
    for line in bodies[entry]:
        found = _INSTRUCTION.match(line)
        if not found:
            continue
        name, result, op, rest = found.groups()
        types[name] = result
        if op in _FREE:
            continue
        operands = [types.get(operand, "") for operand in re.findall(r"%([\w.\-]+)", rest.split("), ")[0])]
        if op == "fusion" and (body := re.search(r"calls=%([\w.\-]+)", rest)):
            operands = _read(bodies[body.group(1)], operands)
        if op == "custom-call":
            result = re.sub(r"u8\[\d+\]", "", result)  # scratch space is not traffic
            op = (re.search(r'custom_call_target="([^"]+)"', line) or [None, op])[1]
        if op == "convolution" or op.startswith("__cudnn$conv"):
            convolutions += 1
            float32 += any(operand.startswith("f32[") for operand in operands)
        kinds[op][0] += 1
        kinds[op][1] += num_bytes(result) + sum(map(num_bytes, operands))
    scatters = [
        found.group(1)
        for lines in bodies.values()
        for line in lines
        if (found := _INSTRUCTION.match(line))
        and found.group(3) in ("scatter", "select-and-scatter")
        and max(_num_elements(dims) for _, dims in _TYPE.findall(found.group(2))) >= activation_elements * images
    ]
    header = hlo.split("\n", 1)[0]
    kernels, moved = (sum(row[i] for row in kinds.values()) for i in (0, 1))
    return {
        "kernels": kernels,
        "megabytes_an_image": moved / images / 1e6,
        "activation_scatters": len(scatters),
        "convolutions": convolutions,
        "float32_convolutions": float32,
        "donated": len(re.findall(r"\{[\d, ]*\}: \(\d+", header)),
        "by_kind": {
            kind: {"kernels": number, "megabytes": round(b / 1e6, 3)}
            for kind, (number, b) in sorted(kinds.items(), key=lambda row: -row[1][1])
        },
    }
