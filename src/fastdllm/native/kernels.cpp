// Passes over few rows on one CPU: products, attention, norms and rotation for processors with AVX-512, in bfloat16
// with AVX-512 BF16 or AMX. Built on the machine that runs them (build.py), called through kernels.py and stack.py, which
// say what each computes.
#include "layers.h"
