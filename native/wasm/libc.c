/*
 * The three functions of the C library that a compiler may call on its own. With bulk memory each is one instruction.
 */
#include <stddef.h>

void *memcpy(void *restrict target, const void *restrict source, size_t bytes) { return __builtin_memcpy(target, source, bytes); }
void *memmove(void *target, const void *source, size_t bytes) { return __builtin_memmove(target, source, bytes); }
void *memset(void *target, int value, size_t bytes) { return __builtin_memset(target, value, bytes); }
