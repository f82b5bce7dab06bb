// PTX for tensor cores: mma. emulator/ptx/mma.h has a twin.
//
// mma_m16n8k16 computes d += a b for a (16 x 16), b (16 x 8) and d (16 x 8). The fragments, with the lane that holds
// each element; g = lane / 4 and t = lane % 4:
//
//   a (row, k), and d in columns 0-7                                b (k, column)
//           0  1  2  3  4  5  6  7    8  9 10 11 12 13 14 15                0  1  2  3  4  5  6  7
//    0      0  0  1  1  2  2  3  3 |  0  0  1  1  2  2  3  3         0      0  4  8 12 16 20 24 28
//    1      4  4  5  5  6  6  7  7 |  4  4  5  5  6  6  7  7         1      0  4  8 12 16 20 24 28
//    2      8  8  9  9 10 10 11 11 |  8  8  9  9 10 10 11 11         2      1  5  9 13 17 21 25 29
//    3     12 12 13 13 14 14 15 15 | 12 12 13 13 14 14 15 15         3      1  5  9 13 17 21 25 29
//    4     16 16 17 17 18 18 19 19 | 16 16 17 17 18 18 19 19         4      2  6 10 14 18 22 26 30
//    5     20 20 21 21 22 22 23 23 | 20 20 21 21 22 22 23 23         5      2  6 10 14 18 22 26 30
//    6     24 24 25 25 26 26 27 27 | 24 24 25 25 26 26 27 27         6      3  7 11 15 19 23 27 31
//    7     28 28 29 29 30 30 31 31 | 28 28 29 29 30 30 31 31         7      3  7 11 15 19 23 27 31
//          ------------------------+------------------------              -----------------------
//    8      0  0  1  1  2  2  3  3 |  0  0  1  1  2  2  3  3         8      0  4  8 12 16 20 24 28
//    9      4  4  5  5  6  6  7  7 |  4  4  5  5  6  6  7  7         9      0  4  8 12 16 20 24 28
//   10      8  8  9  9 10 10 11 11 |  8  8  9  9 10 10 11 11        10      1  5  9 13 17 21 25 29
//   11     12 12 13 13 14 14 15 15 | 12 12 13 13 14 14 15 15        11      1  5  9 13 17 21 25 29
//   12     16 16 17 17 18 18 19 19 | 16 16 17 17 18 18 19 19        12      2  6 10 14 18 22 26 30
//   13     20 20 21 21 22 22 23 23 | 20 20 21 21 22 22 23 23        13      2  6 10 14 18 22 26 30
//   14     24 24 25 25 26 26 27 27 | 24 24 25 25 26 26 27 27        14      3  7 11 15 19 23 27 31
//   15     28 28 29 29 30 30 31 31 | 28 28 29 29 30 30 31 31        15      3  7 11 15 19 23 27 31
//
//   register       holds                                         register     holds
//   a[0]           row g,     columns 2t, 2t + 1                 b[0]         column g, rows 2t, 2t + 1
//   a[1]           row g + 8, columns 2t, 2t + 1                 b[1]         column g, rows 2t + 8, 2t + 9
//   a[2]           row g,     columns 2t + 8, 2t + 9             d[0], d[1]   row g,     columns 2t, 2t + 1
//   a[3]           row g + 8, columns 2t + 8, 2t + 9             d[2], d[3]   row g + 8, columns 2t, 2t + 1
#pragma once

#include "common/cuda.cuh"

#if defined(FASTLM_EMULATOR)
#include "emulator/ptx/mma.h"
#else

namespace fastlm {

// Adds a b to d. a and b hold half_t or bf16_t, two per register with the first in the low half; d is float32.
template <typename input_t>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<input_t, half_t>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    static_assert(std::is_same_v<input_t, bf16_t>);
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

}  // namespace fastlm

#endif
