/* A mark: a library that exports moe_isa_<isa> was built with that set. Compiled like a kernel, once per set. */
#include "moe.h"

MOE_EXPORT int MOE_CAT(moe_, isa, MOE_ISA)(void);
int MOE_CAT(moe_, isa, MOE_ISA)(void) { return 1; }
