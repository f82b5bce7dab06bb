"""What each instruction takes: its pipe, clocks, latency and bytes, as simulate.cpp reads them."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

from benchmarks.predict.chip import Chip
from benchmarks.predict.instructions import Instruction, Kernel, names, reads, width

ALU = names(
    "IADD3 LOP3 SHF LEA ISETP FSETP FMNMX SEL FSEL PRMT VIADD VIMNMX MOV F2FP I2FP PLOP3 P2R R2P IABS BMSK SGXT "
    "IMNMX LOP ISCADD VABSDIFF FCHK CSEL HSETP2 HMNMX2 VOTE IADD FSET ISET SHL SHR HSET2 CS2R MATCH VIADDMNMX VOTEU"
)
FP32 = names("FFMA FADD FMUL")
HALF = names("HFMA2 HADD2 HMUL2")
XU = names("MUFU I2F F2I F2F FRND POPC FLO BREV I2I")
CONTROL = names(
    "BRA BSSY BSYNC EXIT NOP WARPSYNC CALL RET BREAK YIELD BPT BRX JMP ERRBAR CCTL MEMBAR FENCE ACQBULK NANOSLEEP "
    "DEPBAR PREEXIT PLOP WARPGROUP KILL RPCMOV BMOV ENDCOLLECTIVE USETMAXREG UTMACCTL UTMAPF"
)

# The numbers of simulate.cpp.
(
    PLAIN, MEMORY, BAR, DEPBAR, LEAVE, GROUP, WGMMA, WAIT_WGMMA, SLOW, BARRIER_INIT, BARRIER_ARRIVE, BARRIER_WAIT,
    COPY_ARRIVE, BULK_LOAD, BULK_STORE, BULK_COMMIT,
) = range(16)  # fmt: skip
NO_PIPE, HEAVY, LITE, ALU_PIPE, XU_PIPE, TENSOR, UNIFORM, ADDRESS, FMA = range(-1, 8)
NOTHING, STORE, REDUCTION, COPY = range(4)
REASONS = (
    "stall count", "dependency", "register ports", "memory queue", "fma", "alu", "xu", "tensor", "uniform", "copies",
    "wgmma", "barrier", "mbarrier", "not selected", "no block",
)  # fmt: skip
RESOURCES = ("issue", "fma", "alu", "xu", "tensor", "uniform", "agu", "ports", "shared", "l2", "hbm")
OF_A_MULTIPROCESSOR = ("shared", "l2", "hbm")  # the others are an SMSP's

OP_INTEGERS = "kind pipe stall yields write read wait extra0 extra1 extra2 is_branch sources".split()  # noqa: SIM905
OP = np.dtype(
    [
        (n, "<i4")
        for n in [
            "kind",
            "pipe",
            "stall",
            "yields",
            "write",
            "read",
            "wait",
            "extra0",
            "extra1",
            "extra2",
            "is_branch",
            "sources",
        ]
    ]
    + [(n, "<f8") for n in ("clocks", "latency", "size", "shared")]
    + [("source", "<i4", 16)],
    align=True,
)
INSTANCE = np.dtype(
    [(n, "<i4") for n in ("off", "hit", "name", "count")]
    + [(n, "<f8") for n in ("size", "shared", "value")]
    + [("address", "<i8")],
    align=True,
)
not_known: Counter[str] = Counter()  # instructions without figures, which are treated as ALU instructions


def classify(i: Instruction, chip: Chip) -> dict:
    """Returns the fields of OP that are not zero: pipe, clocks in it, latency, bytes per warp from or to the L2, ..."""
    op, full = i.op, i.full
    plain = {"kind": PLAIN, "pipe": NO_PIPE}
    if i.guard == "@!PT":
        return plain
    if op == "HMMA":
        return plain | {"pipe": TENSOR, "clocks": chip.hmma * (1.0 if "16816" in full else 0.5), "latency": 33}
    if op in ("HGMMA", "QGMMA", "IGMMA"):
        n = int(re.search(r"64x(\d+)x", full)[1])
        from_shared = "gdesc" in i.operands.split(",")[1]
        bytes_read = n * 32 + 2048 * from_shared  # of B, and A where it is not in registers: once for four warps
        return plain | {
            "kind": WGMMA,
            "pipe": TENSOR,
            "clocks": n / 2,
            "latency": chip.lat_hgmma,
            "shared": bytes_read / 4 / chip.shared_bytes,
            "extra0": int("gsb" in i.operands),
        }
    if op == "WARPGROUP":
        return plain | ({"kind": WAIT_WGMMA, "extra0": int(i.operands.split(",")[-1], 16)} if "DEPBAR" in full else {})
    if op in XU:
        return plain | {"kind": SLOW, "pipe": XU_PIPE, "clocks": chip.xu, "latency": chip.lat_mufu}
    if op in FP32:
        return plain | {"pipe": FMA, "clocks": chip.fma, "latency": 4}  # [CUDA] 128 a clock: two pipes of 16 lanes
    if op in HALF:
        return plain | {"pipe": FMA, "clocks": chip.fma, "latency": 5}  # [CUDA] 256 results a clock, two a lane
    if op in ("IMAD", "IDP"):
        wide = ".WIDE" in full or ".HI" in full
        return plain | {
            "pipe": HEAVY,
            "clocks": chip.fma * (2 if wide else 1),
            "latency": 4,
        }  # [CUDA] 64; wide half [SASS]
    if op in ALU:
        return plain | {"pipe": ALU_PIPE, "clocks": chip.alu, "latency": 4}  # [CUDA] 64 a clock
    if op in ("LDSM", "LDS", "STS", "STSM", "ATOMS"):
        if op in ("LDSM", "STSM"):
            clocks = {"4": 4, "2": 2}.get(full.split(".")[-1], 1)
        else:
            clocks = max(1, width(full) * 32 / chip.shared_bytes)
        return plain | {"kind": MEMORY, "latency": chip.lat_ldsm if op == "LDSM" else chip.lat_shared, "shared": clocks}
    if op == "SHFL":
        return plain | {"kind": MEMORY, "latency": chip.lat_shuffle, "shared": 1}  # [CUDA] 32 a clock
    if op in ("LDG", "LDGSTS", "LD", "STG", "ST", "RED", "REDG", "ATOM", "ATOMG"):
        size = width(full) * 32
        extra = {"STG": STORE, "ST": STORE, "RED": REDUCTION, "REDG": REDUCTION, "LDGSTS": COPY}.get(op, NOTHING)
        return plain | {
            "kind": MEMORY,
            "latency": chip.lat_l2,
            "size": size,
            "shared": size / chip.shared_bytes,
            "extra0": extra,
        }
    if op in ("LDL", "STL"):
        return plain | {"kind": MEMORY, "latency": chip.lat_l1, "shared": width(full) * 32 / chip.shared_bytes}
    if op == "LDGDEPBAR":
        return plain | {"kind": GROUP}
    if op == "DEPBAR":
        if found := re.match(r"SB(\d), (0x[0-9a-f]+)", i.operands):
            return plain | {"kind": DEPBAR, "extra0": int(found[1]), "extra1": int(found[2], 16)}
        return plain
    if op == "BAR":
        parts = [p.strip() for p in i.operands.split(",")]
        number = [int(p, 16) if p.startswith("0x") else 0 for p in [*parts, ""]]
        count = number[1] // 32 if len(parts) > 1 else 0
        return plain | {
            "kind": BAR, "latency": chip.lat_bar, "extra0": number[0], "extra1": count, "extra2": int("ARV" in full),
        }  # fmt: skip
    if op == "UCGABAR_WAIT":  # all blocks of a cluster are taken to go as this one does
        return plain | {"kind": BAR, "latency": 4 * chip.lat_bar, "extra0": 99}
    if op == "UCGABAR_ARV":
        return plain
    if op == "SYNCS":
        kinds = {"EXCH": BARRIER_INIT, "ARRIVE": BARRIER_ARRIVE, "PHASECHK": BARRIER_WAIT}
        kind = next((k for name, k in kinds.items() if name in full), PLAIN)
        return plain | {"kind": kind, "latency": chip.lat_mbarrier}
    if op == "ARRIVES":
        return plain | {"kind": COPY_ARRIVE, "latency": chip.lat_mbarrier}
    if op == "UTMALDG" or (op == "UBLKCP" and ".S" in full):
        return plain | {"kind": BULK_LOAD, "latency": chip.lat_const}
    if op in ("UTMASTG", "UTMAREDG", "UBLKCP", "UBLKRED"):
        return plain | {"kind": BULK_STORE, "latency": chip.lat_const, "extra0": REDUCTION if "RED" in op else NOTHING}
    if op == "UTMACMDFLUSH":
        return plain | {"kind": BULK_COMMIT}
    if op == "EXIT":
        return plain | {"kind": LEAVE}
    if op in ("LDC", "S2R", "S2UR", "R2UR", "ULDC", "REDUX", "LDCU", "ELECT"):
        return plain | {"kind": SLOW, "latency": chip.lat_const}
    if op.startswith("U"):
        return plain | {"pipe": UNIFORM, "clocks": 2, "latency": 4}
    if op in CONTROL:
        return plain
    not_known[op] += 1
    return plain | {"pipe": ALU_PIPE, "clocks": 2, "latency": 4}


def operations(kernel: Kernel, chip: Chip) -> np.ndarray:
    """Returns the table of a kernel's instructions, by position, with the dtype OP."""
    if chip in kernel.operations:
        return kernel.operations[chip]
    table = kernel.operations[chip] = np.zeros(len(kernel.code), OP)
    for n, i in enumerate(kernel.code):
        row = table[n]
        row["stall"], row["yields"], row["write"], row["read"], row["wait"] = i.stall, i.yields, i.write, i.read, i.wait
        row["is_branch"] = i.op == "BRA"
        for name, value in classify(i, chip).items():
            row[name] = value
        if chip.ports and i.guard != "@!PT":
            sources = reads(i)[:16]
            row["sources"] = len(sources)
            for k, (slot, register, keeps) in enumerate(sources):
                row["source"][k] = slot | register << 8 | int(keeps) << 24
    return table
