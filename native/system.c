/*
 * What the native library needs of the machine: copies between JavaScript's memory and the heap, file mappings, and what the
 * processor can do. Not compiled for WebAssembly.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#if defined(__linux__)
#include <sys/syscall.h>
#endif
#include <unistd.h>

#include "moe.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

/* Two names for one copy: the loader declares the JavaScript side as a buffer and the other as an address. */
MOE_EXPORT void moe_copy_in(void *target, const void *source, size_t bytes) { memcpy(target, source, bytes); }
MOE_EXPORT void moe_copy_out(void *target, const void *source, size_t bytes) { memcpy(target, source, bytes); }

/* Maps a file read-only. Returns 0, or errno; size[0] is its length. An empty file has nothing to map: address[0] is 0. */
MOE_EXPORT int moe_map_file(const char *path, uint64_t *address, uint64_t *size) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return errno;
  struct stat info;
  int error = 0;
  address[0] = size[0] = 0;
  if (fstat(fd, &info) != 0) error = errno;
  else if (S_ISDIR(info.st_mode)) error = EISDIR;
  else if (!S_ISREG(info.st_mode)) error = EINVAL;
  else if (info.st_size > 0) {
    void *memory = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (memory == MAP_FAILED) error = errno;
    else {
      address[0] = (uint64_t)(uintptr_t)memory;
      size[0] = (uint64_t)info.st_size;
    }
  }
  close(fd);
  return error;
}

MOE_EXPORT int moe_unmap_file(void *address, size_t size) { return munmap(address, size) == 0 ? 0 : errno; }

MOE_EXPORT const char *moe_error_text(int error) { return strerror(error); }

/* Bits: 1 avx2 set, 2 avx512 set, 4 avx512bf16 set, 8 neon set, 16: vdpbf16ps is faster than widening to f32 here, 32 amx set. */
enum { CAN_AVX2 = 1, CAN_AVX512 = 2, CAN_AVX512_BF16 = 4, CAN_NEON = 8, FAST_BF16 = 16, CAN_AMX = 32 };

#if defined(__x86_64__)
static uint64_t enabled_state(void) {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t)high << 32 | low;
}

static int is_zen4_or_later(void) {
  uint32_t a, b, c, d;
  __cpuid(0, a, b, c, d);
  if (b != signature_AMD_ebx || c != signature_AMD_ecx || d != signature_AMD_edx) return 0;
  __cpuid(1, a, b, c, d);
  uint32_t family = (a >> 8 & 15) + (a >> 20 & 255);
  return family >= 0x19; /* of family 19h only Zen 4 reports avx512_bf16 at all */
}

/* Tile registers have to be asked for, once a process; the kernel refuses where a thread's signal stack is too small for them. */
static int may_use_tiles(void) {
#if defined(__linux__)
  enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
  return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
  return 0;
#endif
}

MOE_EXPORT int moe_cpu_features(void) {
  uint32_t a, b, c, d, b7, c7, d7, a71 = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
  int has_xgetbv = c & bit_OSXSAVE, has_fma = (c & bit_FMA) && (c & bit_F16C) && (c & bit_AVX);
  if (!has_xgetbv || !has_fma || !__get_cpuid_count(7, 0, &a, &b7, &c7, &d7)) return 0;
  uint32_t subleaves = a;
  uint64_t state = enabled_state();
  int result = 0;
  if ((state & 0x6) == 0x6 && (b7 & bit_AVX2) && (b7 & bit_BMI2)) result |= CAN_AVX2;
  const uint32_t avx512 = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
  if ((result & CAN_AVX2) && (state & 0xe6) == 0xe6 && (b7 & avx512) == avx512) result |= CAN_AVX512;
  if (subleaves >= 1 && __get_cpuid_count(7, 1, &a71, &b, &c, &d) && (result & CAN_AVX512) && (a71 & 1 << 5)) result |= CAN_AVX512_BF16;
  if ((result & CAN_AVX512_BF16) && is_zen4_or_later()) result |= FAST_BF16;
  const uint32_t tiles = 1u << 22 | 1u << 24, tileState = 3u << 17; /* amx_bf16, amx_tile; configuration and data */
  if ((result & CAN_AVX512) && (d7 & tiles) == tiles && (state & tileState) == tileState && may_use_tiles()) result |= CAN_AMX;
  return result;
}
#elif defined(__aarch64__)
MOE_EXPORT int moe_cpu_features(void) { return CAN_NEON; }
#else
MOE_EXPORT int moe_cpu_features(void) { return 0; }
#endif
