"""A launch of a kernel, and the constant bank that its code reads."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from benchmarks.predict.instructions import Kernel


@dataclass
class Launch:
    """Says how a kernel is launched. `parameters` are the bytes of its parameters, from the first one on."""

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    dynamic: int = 0  # bytes of dynamic shared memory
    parameters: bytes = b""
    memory: dict[int, bytes] = field(default_factory=dict)  # by address, what decides branches: lengths, targets
    cluster: int = 1

    @property
    def threads(self) -> int:
        return self.block[0] * self.block[1] * self.block[2]

    @property
    def blocks(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]


PARAMETERS = 0x210  # where the parameter block lies in constant bank 0, compute capability 9.0
PARAMETER_SPACE = 0x7F0000000000  # its address for instructions that take one


class Constants:
    """Holds constant bank 0: the sizes of the launch, then the parameters. Bytes that are not known are marked."""

    def __init__(self, kernel: Kernel, launch: Launch):
        bank = bytearray(max(PARAMETERS + len(launch.parameters), kernel.parameters_at + kernel.parameters_size) + 16)
        self.known = bytearray(len(bank))
        self.bank = bank
        for at, value in ((0, launch.block), (12, launch.grid)):
            self.put(at, b"".join(x.to_bytes(4, "little") for x in value))
        self.put(0x28, (0xFFFD00).to_bytes(4, "little"))  # stack pointer
        ones = (1).to_bytes(4, "little") * 3
        self.put(0x144, (launch.cluster).to_bytes(4, "little") + ones[:8])
        self.put(0x150, b"".join(np.float32(1 / x).tobytes() for x in (launch.cluster, 1, 1)))
        self.put(0x198, PARAMETER_SPACE.to_bytes(8, "little"))
        self.put(0x208, (0).to_bytes(8, "little"))  # descriptor of global memory
        self.put(kernel.parameters_at, launch.parameters)

    def put(self, at: int, data: bytes) -> None:
        self.bank[at : at + len(data)] = data
        self.known[at : at + len(data)] = b"\1" * len(data)

    def read(self, at: int, size: int = 4) -> int | None:
        if at < 0 or at + size > len(self.bank) or not all(self.known[at : at + size]):
            return None
        return int.from_bytes(self.bank[at : at + size], "little")
