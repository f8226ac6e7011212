/// Targets by name: the CPU's, and those in shared objects of their own.
#include "ops/graph/internal.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { NAME_LENGTH = 32, PATH_LENGTH = 4096, REASON_LENGTH = 512 };

/// The target's part of a device's name. Letters, digits and _, so that it cannot lead out of the directories that are
/// searched.
static bool target_name(const char *device, char name[NAME_LENGTH]) {
    const size_t n = device ? strcspn(device, ":") : 0;
    if (!n || n >= NAME_LENGTH || strspn(device, "abcdefghijklmnopqrstuvwxyz0123456789_") < n) return false;
    memcpy(name, device, n);
    name[n] = 0;
    return true;
}

/// The first reason is kept: that a file which is there cannot be loaded says more than that the next place has none.
static void *load(const char *path, char why[REASON_LENGTH]) {
    void *object = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    const char *reason = object ? NULL : dlerror();
    if (reason && !*why) snprintf(why, REASON_LENGTH, "%s", reason);
    return object;
}

static void *open_in(const char *directory, size_t length, const char *name, char why[REASON_LENGTH]) {
    char path[PATH_LENGTH];
    if (!length || length > PATH_LENGTH) return NULL;
    const int n = snprintf(path, sizeof path, "%.*s/libkrait_%s.so", (int)length, directory, name);
    return n > 0 && (size_t)n < sizeof path && !access(path, F_OK) ? load(path, why) : NULL;
}

/// The directories of KRAIT_TARGET_PATH, then the one that this library was loaded from, then those of the system.
static void *open_object(const char *name, char why[REASON_LENGTH]) {
    void *object = NULL;
    for (const char *at = getenv("KRAIT_TARGET_PATH"); at && *at && !object;) {
        const size_t length = strcspn(at, ":");
        object = open_in(at, length, name, why);
        at += length + (at[length] == ':');
    }
    Dl_info here;
    if (!object && dladdr((const void *)kr_target_find, &here) && here.dli_fname) {
        const char *slash = strrchr(here.dli_fname, '/');
        if (slash) object = open_in(here.dli_fname, (size_t)(slash - here.dli_fname), name, why);
    }
    char file[NAME_LENGTH + 32];
    snprintf(file, sizeof file, "libkrait_%s.so", name);
    return object ? object : load(file, why);
}

/// What the compiler divides by, rounds to and calls must be there, whoever wrote the target.
static kr_status check_target(const char *name, const kr_target *t) {
    KR_FAIL_IF(t->abi != KR_TARGET_ABI, KR_UNSUPPORTED,
               "libkrait_%s.so was built for another Krait (interface %u, want %d): build both together", name, t->abi,
               KR_TARGET_ABI);
    KR_FAIL_IF(!t->name || strcmp(t->name, name), KR_UNSUPPORTED, "libkrait_%s.so: its target calls itself \"%s\"",
               name, t->name ? t->name : "");
    const char *missing = !t->impl ? "impl" : !t->open ? "open" : !t->multiplies_bf16 ? "multiplies_bf16" : NULL;
    KR_FAIL_IF(missing, KR_UNSUPPORTED, "libkrait_%s.so: its target has no function %s", name, missing);
    const bool rates = t->flops_per_ns > 0 && t->bytes_per_ns > 0 && t->ns_per_step >= 0;
    const bool sizes = t->align >= 64 && !(t->align & (t->align - 1)) && t->line && t->logits;
    const kr_program_limits *p = &t->program;
    const bool program = p->length >= 1 && p->length <= KR_PROGRAM_LENGTH && p->inputs >= 1 &&
                         p->inputs <= KR_PROGRAM_INPUTS && p->outputs >= 1 && p->outputs <= KR_PROGRAM_OUTPUTS &&
                         p->reals >= 0 && p->reals <= KR_PROGRAM_REALS;
    const char *wrong = !rates ? "rates (flops_per_ns, bytes_per_ns, ns_per_step)"
                        : !sizes ? "sizes (align, line, logits)"
                        : !program ? "limits of programs" : NULL;
    KR_FAIL_IF(wrong, KR_UNSUPPORTED, "libkrait_%s.so: the %s of its target cannot be used; see runtime/target.h", name,
               wrong);
    return KR_OK;
}

kr_status kr_target_find(const char *device, const kr_target **out) {
    char name[NAME_LENGTH];
    *out = NULL;
    KR_FAIL_IF(!target_name(device, name), KR_BAD_ARGUMENT,
               "\"%s\" is not the name of a device: known is cpu, others come with a libkrait_NAME.so",
               device ? device : "");
    if (!strcmp(name, kr_target_cpu.name)) {
        *out = &kr_target_cpu;
        return KR_OK;
    }
    char why[REASON_LENGTH] = "";
    void *object = open_object(name, why); // stays loaded: plans point into it
    KR_FAIL_IF(!object, KR_UNSUPPORTED,
               "unknown device \"%s\": known is cpu, and there is no libkrait_%s.so that can be loaded (%s)", name,
               name, *why ? why : "no reason given");
    char symbol[NAME_LENGTH + 16];
    snprintf(symbol, sizeof symbol, "kr_target_%s", name);
    const kr_target *target = dlsym(object, symbol);
    KR_FAIL_IF(!target, KR_UNSUPPORTED, "libkrait_%s.so exports no %s", name, symbol);
    KR_TRY(check_target(name, target));
    *out = target;
    return KR_OK;
}

const kr_impl *kr_op_impl(const kr_op *op, const kr_target *target) {
    for (const kr_own_impl *o = op->own; o && o->target; o++)
        if (!strcmp(o->target, target->name)) return o->impl;
    return op->flags & (KR_OP_VIEW | KR_OP_SOURCE) ? NULL : target->impl(target, op->name);
}

kr_status kr_target_impl(const kr_target *target, const kr_op *op, const kr_impl **out) {
    *out = kr_op_impl(op, target);
    KR_FAIL_IF(!*out, KR_UNSUPPORTED, "%s: target %s has no kernel for it", op->name, target->name);
    return KR_OK;
}

kr_status kr_device_open(const char *name, const kr_target **target, kr_device **out) {
    const kr_target *found;
    *out = NULL;
    KR_TRY(kr_target_find(name, &found));
    if (target) *target = found;
    const char *colon = strchr(name, ':');
    return found->open(found, colon ? colon + 1 : NULL, out);
}
