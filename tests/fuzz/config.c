/// krait.yaml: what is refused has a message; models that are taken survive the way through config.json.
#include "tools/config/config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void there_and_back(const kr_model_config *m) {
    kr_model_config back;
    char *json = kr_model_config_json(m);
    if (!json) abort();
    if (kr_model_config_parse(json, strlen(json), &back)) {
        fprintf(stderr, "config.json is refused: %s\n%s\n", kr_status_message(), json);
        abort();
    }
    free(json);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    kr_config *c = NULL;
    if (kr_config_parse((const char *)data, bytes, "fuzz", &c)) {
        if (c || !*kr_status_message()) abort();
        return 0;
    }
    kr_model_config m;
    const char *name;
    for (int k = 0; (name = kr_config_model_name(c, k)); k++)
        if (!kr_config_model(c, name, &m)) there_and_back(&m);
    kr_machine machine;
    (void)kr_config_target(c, "local", &machine);
    kr_config_free(c);
    return 0;
}
