/// The device of the second target (tests/reference/target.c).
#ifndef KRAIT_TESTS_REFERENCE_DEVICE_H
#define KRAIT_TESTS_REFERENCE_DEVICE_H

#include "ops/ops.h"

enum { REFERENCE_ALIGN = 256 }; ///< of its memory, and of every buffer in it
kr_status reference_open(kr_device **out);

#endif
