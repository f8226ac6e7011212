// Blocks of one's own: shared objects that export a kr_block_kind.
#include "tools/config/block_file.h"
#include "models/models.h"

#include <dlfcn.h>
#include <string.h>

kr_status kr_block_load(const char *path) {
    char own[4096];
    // A bare name would be looked for among the system's libraries.
    KR_FAIL_IF((size_t)snprintf(own, sizeof own, "%s%s", strchr(path, '/') ? "" : "./", path) >= sizeof own,
               KR_BAD_ARGUMENT, "--block: the path is too long");
    void *object = dlopen(own, RTLD_NOW | RTLD_LOCAL);
    KR_FAIL_IF(!object, KR_BAD_FILE, "--block: cannot open %s: %s", own, dlerror());
    const kr_block_shared *shared = dlsym(object, "kr_block_export");
    kr_status status = KR_OK;
    if (!shared)
        status = kr_status_record(
            KR_BAD_FILE, __FILE__, __LINE__,
            "--block: %s exports no kr_block_export; its source wants a line KR_BLOCK_EXPORT(kind);", own);
    else if (shared->abi != KR_BLOCK_ABI || shared->config_bytes != sizeof(kr_block_config))
        status = kr_status_record(
            KR_UNSUPPORTED, __FILE__, __LINE__,
            "--block: %s was built for another version of Krait (interface %u with a configuration of %u "
            "bytes; this is %d with %zu): build it again",
            own, shared->abi, shared->config_bytes, KR_BLOCK_ABI, sizeof(kr_block_config));
    else status = kr_block_register(shared->kind);
    if (status) {
        if (status == KR_BAD_ARGUMENT) status = kr_status_prefix(status, "--block: %s", own);
        dlclose(object);
    }
    return status;
}

kr_status kr_block_load_all(const kr_text_list *paths) {
    for (int k = 0; k < paths->count; k++) KR_TRY(kr_block_load(paths->at[k]));
    return KR_OK;
}
