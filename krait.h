/// Everything that Krait offers to a program: graphs of ops, the compiler that turns them into plans, the sessions that
/// run plans, and language models made of blocks.
///
///     cc program.c $(pkg-config --cflags --libs krait)
#ifndef KRAIT_H
#define KRAIT_H

#include "compiler/compiler.h"
#include "models/models.h"
#include "ops/ops.h"
#include "runtime/runtime.h"

#endif
