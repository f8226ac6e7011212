/// config.json of a model: what is refused has a message, and what is taken can be written and taken again.
#include "models/models.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    kr_model_config m, again;
    if (kr_model_config_parse((const char *)data, bytes, &m)) {
        if (!*kr_status_message()) abort();
        return 0;
    }
    char *json = kr_model_config_json(&m);
    if (!json || kr_model_config_parse(json, strlen(json), &again)) abort();
    free(json);
    return 0;
}
