"""The constants of the model, with their sources, and how many CTAs an SM holds.

None was fitted to the time of a kernel. SCALE alone was, to FlashAttention-2's published speeds (docs/predicted.md).
Figures of papers are quoted from memory.

    [DATA SHEET]  NVIDIA's data sheet of the H100
    [CUDA]        CUDA C++ programming guide, table of arithmetic throughput, compute capability 9.0
    [SASS]        what ptxas keeps between two independent instructions of a kind, read from stall counts of sm_90 code
    [LUO]         Luo et al., arXiv 2402.13499 and 2501.12084: microbenchmarks of Hopper
    [HUERTA]      Huerta et al., arXiv 2503.20481: issue and memory pipeline of Ampere
    [JIA]         Jia et al., arXiv 1903.07486: Turing
    [GUESS]       nobody's
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.predict.instructions import Kernel

SCALE = 1.117  # published / predicted time, the mean over FlashAttention-2's published speeds
SHARED_BYTES = 128  # of shared memory, per clock


@dataclass(frozen=True)
class Chip:
    """Holds the constants of the model: those of an H100 SXM5. "per clock" is per SM if nothing else is said."""

    multiprocessors: int = 132  # [DATA SHEET]
    ghz: float = 1.755  # [DATA SHEET] boost 1.98; what attention sustains in publications: 1.6 to 1.9
    hbm: float = 3.0e12  # bytes per second that are reached of 3.35e12 [GUESS]
    l2: float = 5.5e12  # bytes per second of reads [LUO: 4e12 to 6e12, by size]
    red: float = 0.5  # throughput of L2 reductions as a part of its reads [GUESS]
    port: float = 64.0  # bytes per clock between the L2 and an SM [LUO; A100 white paper]
    shared_bytes: float = 128.0  # bytes per clock [LUO]
    agu: float = (
        4  # clocks that a memory instruction occupies the address unit of its SMSP [HUERTA; SASS: LDSM, LDS, SHFL 4]
    )
    queue: float = 5  # memory instructions that wait there before issue stops [HUERTA]
    lat_shared: float = 29  # [LUO]
    lat_ldsm: float = 33  # [SASS/JIA: LDSM is a few clocks above LDS]
    lat_shuffle: float = 23  # [JIA]
    lat_l1: float = 41  # [LUO]
    lat_l2: float = 263  # [LUO]
    lat_hbm: float = 479  # without load [LUO]
    lat_mufu: float = 18  # [JIA] on top of the pipe's 8
    lat_const: float = 30  # LDC, S2R [JIA: 20 to 50]
    lat_bar: float = 20  # from the last warp's arrival to the first's next instruction [GUESS]
    lat_mbarrier: float = 20  # the same of an mbarrier [GUESS]
    lat_tma: float = 170  # of a bulk copy on top of a load's [LUO]
    fma: float = 2  # clocks per warp in each of the two FP32 pipes [CUDA: 128 lanes per clock]
    alu: float = 2  # [CUDA: 64; SASS: 2]
    xu: float = 8  # [CUDA: 16; SASS: MUFU 8]
    hmma: float = 6.0  # clocks of m16n8k16 by mma.sync [SASS]; 4 / 6 of the peak: [LUO] measures 63 % with throttling
    lat_hgmma: float = 32  # on top of its N / 2 clocks [LUO: m64n64k16 64 with 32 of them the pipe's]
    launch: float = 300  # clocks until a CTA that ends is replaced [GUESS]
    overhead: float = 2.0  # microseconds from kernel to kernel in a stream [GUESS]
    slack: float = 4000  # clocks of its share of L2 and HBM that an SM may be ahead: loads are bursts [GUESS]
    ports: bool = True  # two register banks per SMSP, each of which reads one register per clock [HUERTA]
    window: float = 2  # clocks that the reads of an instruction may lag behind [HUERTA: read in three clocks]
    branch: float = 0  # clocks that a taken branch loses beyond its stall count [not known]
    youngest: bool = False  # greedy then youngest [HUERTA] instead of oldest


def changed(words: list[str]) -> Chip:
    """Returns a chip with other constants, given as NAME=VALUE: another clock, or a pipe that costs nothing.

    Raises ValueError for a name that is no constant or a value that is no number.
    """
    chip = Chip()
    for name, _, value in (word.partition("=") for word in words):
        if not hasattr(chip, name):
            raise ValueError(f"a constant of the chip expected, got {name!r}: one of {', '.join(vars(chip))}")
        kind = type(getattr(chip, name))
        chip = replace(chip, **{name: kind(float(value))})
    return chip


def resident(kernel: Kernel, threads: int, dynamic: int) -> int:
    """Returns how many CTAs an SM holds (CUDA programming guide, compute capability 9.0)."""
    warps = -(-threads // 32)
    by_registers = 4 * (16384 // (-(-kernel.registers * 32 // 256) * 256)) // warps
    by_shared = 228 * 1024 // (-(-(max(1024, kernel.shared) + dynamic) // 128) * 128)  # 1 KiB is the system's
    return min(32, 64 // warps, by_registers, by_shared)
