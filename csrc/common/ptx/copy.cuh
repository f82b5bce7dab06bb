// PTX for copies: ldmatrix from shared memory to registers, cp.async from global to shared memory. Functions take
// ordinary pointers into shared memory. emulator/ptx/copy.h has a twin of each function.
//
// ldmatrix loads 8 x 8 matrices of 16-bit values. Lane l receives two values of each matrix, those in row l / 4 and
// columns 2 (l % 4) and 2 (l % 4) + 1. The picture shows the lane that receives each element:
//
//   column    0  1  2  3  4  5  6  7
//   row 0     0  0  1  1  2  2  3  3
//   row 1     4  4  5  5  6  6  7  7
//   row 2     8  8  9  9 10 10 11 11
//   row 3    12 12 13 13 14 14 15 15
//   row 4    16 16 17 17 18 18 19 19
//   row 5    20 20 21 21 22 22 23 23
//   row 6    24 24 25 25 26 26 27 27
//   row 7    28 28 29 29 30 30 31 31
#pragma once

#include "common/cuda.cuh"

#if defined(FASTLM_EMULATOR)
#include "emulator/ptx/copy.h"
#else

namespace fastlm {

__device__ __forceinline__ uint32_t shared_address(const void* at) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}

// Loads one, two or four matrices: r[m] is this lane's two values of matrix m, the lower column in the low half. `row`
// of lane l is the address of row l % 8 of matrix l / 8, aligned to 16 bytes. Lanes beyond the last matrix may
// pass any row. All lanes of the warp must call.
__device__ __forceinline__ void ldmatrix(uint32_t (&r)[1], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
               : "=r"(r[0])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// Loads the transposed matrices: as ldmatrix, but with rows and columns exchanged in the picture above.
__device__ __forceinline__ void ldmatrix_trans(uint32_t (&r)[1], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
               : "=r"(r[0])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_trans(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// Starts to copy 16 bytes (bypassing the L1 cache) or 4 bytes from global to shared memory. If not `valid`, writes
// zeros and does not read `from`. Both addresses are multiples of kBytes. The copy belongs to the group that the
// thread's next cp_async_commit() closes. After cp_async_wait for that group this thread sees the copy; other threads
// need a barrier too.
template <int kBytes = 16>
__device__ __forceinline__ void cp_async(void* to, const void* from, bool valid) {
  static_assert(kBytes == 16 || kBytes == 4);
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                 "r"(valid ? 16 : 0)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 4 : 0)
                 : "memory");
  }
}

__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the kPending groups committed last are still in flight.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace fastlm

#endif
