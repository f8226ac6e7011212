// krait new-block: a working block to change. In the sources of Krait it is one file and two lines; anywhere else it is
// a folder with a Makefile and a test, built against the installed library.
#include "models/models.h"
#include "tools/tools.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct settings {
    const char *out;
} settings;

static const kr_option options[] = {
    {"out", KR_OPTION_TEXT, offsetof(settings, out), .value = "DIR",
     .help = "a folder of its own, outside of the sources of Krait (made when it is not there)"},
    {0},
};
static const kr_usage usage = {
    .command = "new-block",
    .synopsis = "NAME [--out DIR]",
    .text =
        "Writes a block that works: a gated memory, linear in its state, in some 40 lines to be changed. With --out\n"
        "it is a shared object of your own: `make` builds it, `make test` trains it for a moment and checks that\n"
        "steps equal the whole sequence, and --block FILE.so lets pretrain, generate and graph know it. Without\n"
        "--out it goes into models/blocks of the current directory, the sources of Krait, whose tests then check\n"
        "it with the others.",
    .options = options,
    .positional = "NAME",
    .positional_min = 1,
    .positional_max = 1,
};

// @ stands for the name.
static const char block_text[] =
    "/// Its hyper-parameters. Each has a row that says its default, its least and largest value and what it is. With\n"
    "/// one row more, krait.yaml can set one more, and checkpoints remember it.\n"
    "typedef struct @_config {\n"
    "    int64_t expand;\n"
    "    bool bias;\n"
    "} @_config;\n"
    "\n"
    "static const kr_key keys[] = {\n"
    "    KR_KEY_INT(@_config, expand, 2, 1, 64, \"inner width over d_model\"),\n"
    "    KR_KEY_BOOL(@_config, bias, false, \"of in_proj and out_proj\"),\n"
    "    {0},\n"
    "};\n"
    "\n"
    "/// A memory that keeps what its gate lets it keep; change it into what you have in mind.\n"
    "///   f_t = sigmoid(W_f x_t)                        how much is kept\n"
    "///   h_t = f_t h_{t-1} + (1 - f_t) (W_x x_t)\n"
    "///   y_t = W_o (h_t silu(W_g x_t))\n"
    "/// x [B, L, d_model] to [B, L, d_model]. State: h [B, expand * d_model].\n"
    "static kr_value @(kr_graph *g, const kr_block_config *c, kr_value x) {\n"
    "    const @_config *own = c->keys;\n"
    "    const int64_t B = kr_value_shape(g, x).dim[0], E = own->expand * c->d_model;\n"
    "    kr_value part[3], last;\n"
    "\n"
    "    // One product for W_f, W_x and W_g\n"
    "    kr_split(g, kr_block_linear(g, c, \"in_proj\", x, 3 * E, own->bias, 1), -1, (int64_t[]){E, E, E}, 3, part);\n"
    "    const kr_value keep = kr_sigmoid(g, part[0]), add = kr_mul(g, kr_affine(g, keep, -1, 1), part[1]);\n"
    "\n"
    "    // The state that the call before left, and the one for the next call: that is all that decoding needs\n"
    "    const kr_value h0 = kr_carry(g, \"hidden\", KR_F32, KR_SHAPE(B, E));\n"
    "    const kr_value h = kr_linear_scan(g, keep, add, h0, c->reset, &last);\n"
    "    kr_carry_set(g, h0, last);\n"
    "\n"
    "    const kr_value y = kr_mul(g, h, kr_silu(g, part[2]));\n"
    "    return kr_block_linear(g, c, \"out_proj\", y, c->d_model, own->bias, kr_block_output_scale(c));\n"
    "}\n"
    "\n";
static const char tree_head[] = "#include \"models/internal.h\"\n\n";
static const char tree_foot[] = "const kr_block_kind kr_block_@ = {\n"
                                "    .name = \"@\", .keys = keys, .config_bytes = sizeof(@_config), .build = @,\n"
                                "};\n";
static const char own_head[] = "#include <krait/krait.h>\n\n";
static const char own_foot[] = "static const kr_block_kind kind = {\n"
                               "    .name = \"@\", .keys = keys, .config_bytes = sizeof(@_config), .build = @,\n"
                               "};\n"
                               "KR_BLOCK_EXPORT(kind);\n";

static const char make_text[] =
    "# make: @.so, for `krait pretrain --block ./@.so`. make test: trains it for a moment.\n"
    "# Krait is found by pkg-config; where it is not installed for the system, set PKG_CONFIG_PATH.\n"
    "CFLAGS ?= -O2 -g -Wall -Wextra\n"
    "KRAIT_CFLAGS := $(shell pkg-config --cflags krait)\n"
    "KRAIT_LIBS := $(shell pkg-config --libs krait) -Wl,-rpath,$(shell pkg-config --variable=libdir krait)\n"
    "\n"
    "@.so: @.c\n"
    "\t$(CC) -std=gnu17 $(CFLAGS) $(KRAIT_CFLAGS) -fPIC -shared -o $@@ $< $(KRAIT_LIBS) -lm\n"
    "\n"
    "test: test_@\n"
    "\t./test_@\n"
    "\n"
    "test_@: test_@.c @.c\n"
    "\t$(CC) -std=gnu17 $(CFLAGS) $(KRAIT_CFLAGS) -o $@@ test_@.c @.c $(KRAIT_LIBS) -lm\n"
    "\n"
    "clean:\n"
    "\trm -f @.so test_@\n"
    "\n"
    ".PHONY: test clean\n";

static const char config_text[] =
    "# krait pretrain --block ./@.so --config krait.yaml --model @-1m -- --text-file FILE\n"
    "models:\n"
    "  @-1m:\n"
    "    layers: [@, gated_mlp, @, gated_mlp, @, gated_mlp]\n"
    "    d_model: 128\n"
    "    vocab_size: 256\n"
    "    expand: 2 # a key of the block's own\n"
    "targets:\n"
    "  local: {device: cpu, threads: 0}\n";

static const char test_text[] =
    "/// Trains a small model of @ blocks on a pattern, then reads a text at once and token by token.\n"
    "#include <krait/krait.h>\n"
    "\n"
    "#include <math.h>\n"
    "#include <string.h>\n"
    "\n"
    "extern const kr_block_shared kr_block_export;\n"
    "enum { BATCH = 4, LENGTH = 24, VOCABULARY = 8, STEPS = 60 };\n"
    "\n"
    "static kr_status plan_of(const kr_model_config *m, kr_mode mode, int batch, int length, kr_session *s,\n"
    "                         kr_plan **plan) {\n"
    "    const kr_compile_options options = {.goal = mode == KR_MODE_TRAIN ? KR_GOAL_TRAIN : KR_GOAL_FORWARD,\n"
    "                                        .optimizer = {0.9, 0.95, 1e-8, 0.01, 1}};\n"
    "    kr_graph *g;\n"
    "    KR_TRY(kr_model_build(m, mode, batch, length, &g));\n"
    "    const kr_status status = kr_compile(g, &options, plan, 0);\n"
    "    kr_graph_free(g);\n"
    "    return status ? status : kr_session_add(s, *plan);\n"
    "}\n"
    "\n"
    "static kr_status train(kr_session *s, kr_plan *plan, float *first, float *last) {\n"
    "    int32_t tokens[BATCH][LENGTH], targets[BATCH][LENGTH];\n"
    "    KR_TRY(kr_session_init(s, 1));\n"
    "    for (int step = 1; step <= STEPS; step++) {\n"
    "        float learning_rate = 0.01f, loss;\n"
    "        for (int k = 0; k < BATCH * LENGTH; k++) { // 0 1 2 .. 7 0 1 .., from another place in each row\n"
    "            const int at = k / LENGTH * 5 + k % LENGTH + step;\n"
    "            tokens[k / LENGTH][k % LENGTH] = at % VOCABULARY;\n"
    "            targets[k / LENGTH][k % LENGTH] = (at + 1) % VOCABULARY;\n"
    "        }\n"
    "        kr_binding run[] = {{\"tokens\", tokens, sizeof tokens}, {\"targets\", targets, sizeof targets},\n"
    "                            {\"learning_rate\", &learning_rate, sizeof learning_rate},\n"
    "                            {\"loss\", &loss, sizeof loss}};\n"
    "        KR_TRY(kr_plan_run(s, plan, run, 4, 0));\n"
    "        if (step == 1) *first = loss;\n"
    "        *last = loss;\n"
    "    }\n"
    "    return KR_OK;\n"
    "}\n"
    "\n"
    "static kr_status read_both_ways(kr_session *s, kr_plan *whole, kr_plan *step, float *difference) {\n"
    "    int32_t tokens[LENGTH];\n"
    "    float a[VOCABULARY], b[VOCABULARY];\n"
    "    for (int k = 0; k < LENGTH; k++) tokens[k] = k * k % VOCABULARY;\n"
    "    kr_binding all[] = {{\"tokens\", tokens, sizeof tokens}, {\"logits\", a, sizeof a}};\n"
    "    KR_TRY(kr_session_reset_carries(s));\n"
    "    KR_TRY(kr_plan_run(s, whole, all, 2, 0));\n"
    "    KR_TRY(kr_session_reset_carries(s));\n"
    "    for (int k = 0; k < LENGTH; k++) {\n"
    "        kr_binding one[] = {{\"tokens\", &tokens[k], sizeof *tokens}, {\"logits\", b, sizeof b}};\n"
    "        KR_TRY(kr_plan_run(s, step, one, 2, 0));\n"
    "    }\n"
    "    *difference = 0;\n"
    "    for (int k = 0; k < VOCABULARY; k++) *difference = fmaxf(*difference, fabsf(a[k] - b[k]));\n"
    "    return KR_OK;\n"
    "}\n"
    "\n"
    "static kr_status check(float *first, float *last, float *difference) {\n"
    "    kr_device *device;\n"
    "    kr_session *s;\n"
    "    kr_plan *plan[3] = {0};\n"
    "    kr_model_config m = kr_model_defaults();\n"
    "    m.d_model = 16;\n"
    "    m.n_layer = 2;\n"
    "    m.vocab_size = VOCABULARY;\n"
    "    strcpy(m.layer, \"@\");\n"
    "    KR_TRY(kr_block_register(kr_block_export.kind));\n"
    "    KR_TRY(kr_device_cpu(&device));\n"
    "    KR_TRY(kr_session_open(device, 2, &s));\n"
    "    kr_status status = plan_of(&m, KR_MODE_TRAIN, BATCH, LENGTH, s, &plan[0]);\n"
    "    if (!status) status = plan_of(&m, KR_MODE_PREFILL, 1, LENGTH, s, &plan[1]);\n"
    "    if (!status) status = plan_of(&m, KR_MODE_DECODE, 1, 1, s, &plan[2]);\n"
    "    if (!status) status = train(s, plan[0], first, last);\n"
    "    if (!status) status = read_both_ways(s, plan[1], plan[2], difference);\n"
    "    for (int k = 0; k < 3; k++) kr_plan_free(plan[k]);\n"
    "    kr_session_close(s);\n"
    "    kr_device_close(device);\n"
    "    return status;\n"
    "}\n"
    "\n"
    "int main(void) {\n"
    "    float first = 0, last = 0, difference = 0;\n"
    "    const kr_status status = check(&first, &last, &difference);\n"
    "    if (status) {\n"
    "        fprintf(stderr, \"%s: %s (%s)\\n\", kr_status_name(status), kr_status_message(), kr_status_place());\n"
    "        return 1;\n"
    "    }\n"
    "    printf(\"@: loss %.3f at the first step, %.3f at the last; \", first, last);\n"
    "    printf(\"steps differ from the whole by %g\\n\", difference);\n"
    "    return last < first / 2 && difference < 1e-4f ? 0 : 1;\n"
    "}\n";

static kr_status check_name(const char *name) {
    const size_t length = strlen(name);
    bool plain = name[0] >= 'a' && name[0] <= 'z' && length <= 31;
    for (const char *c = name; *c; c++) plain &= (*c >= 'a' && *c <= 'z') || (*c >= '0' && *c <= '9') || *c == '_';
    KR_FAIL_IF(!plain, KR_BAD_ARGUMENT,
               "'%s' cannot name a block: want a letter, then letters, digits and _ (lower case, 31 at "
               "most), since a C function and a key of krait.yaml have that name too",
               name);
    KR_FAIL_IF(kr_block_find(name), KR_BAD_ARGUMENT, "there is a block %s already; choose another name", name);
    static const char *const words[] = {
        "auto",    "break",    "case",     "char",   "const",    "continue", "default", "do",     "double", "else",
        "enum",    "extern",   "float",    "for",    "goto",     "if",       "inline",  "int",    "keys",   "kind",
        "long",    "main",     "register", "restrict", "return", "short",   "signed",  "sizeof", "static", "struct",
        "switch",  "typedef", "union",    "unsigned", "void",   "volatile", "while",    "asm",     "typeof"};
    for (size_t k = 0; k < sizeof words / sizeof *words; k++)
        KR_FAIL_IF(!strcmp(words[k], name), KR_BAD_ARGUMENT, "'%s' is a word of C; choose another name", name);
    return KR_OK;
}

/// Texts one after another, with the name in place of @ (@@ is one @).
static kr_status write_file(const char *directory, const char *format, const char *name, const char *const *texts) {
    char file[256], path[4352], *content = NULL;
    size_t bytes = 0;
    snprintf(file, sizeof file, format, name);
    KR_FAIL_IF((size_t)snprintf(path, sizeof path, "%s/%s", directory, file) >= sizeof path, KR_BAD_ARGUMENT,
               "--out: the path is too long");
    KR_FAIL_IF(access(path, F_OK) == 0, KR_BAD_ARGUMENT, "%s is there already; it was left alone", path);
    FILE *to = open_memstream(&content, &bytes);
    KR_FAIL_IF(!to, KR_NO_MEMORY, "no memory for %s", path);
    for (; *texts; texts++)
        for (const char *c = *texts; *c; c++) {
            if (*c != '@') fputc(*c, to);
            else if (c[1] == '@') fputc(*c++, to);
            else fputs(name, to);
        }
    const bool whole = fclose(to) == 0;
    const kr_status status = whole ? kr_file_write(path, content, bytes)
                                   : kr_status_record(KR_NO_MEMORY, __FILE__, __LINE__, "no memory for %s", path);
    free(content);
    if (!status) printf("wrote %s\n", path);
    return status;
}

static kr_status write_in_tree(const char *name) {
    KR_FAIL_IF(
        access("models/blocks.c", F_OK), KR_BAD_ARGUMENT,
        "this is not the top of Krait's sources (there is no models/blocks.c): give --out DIR for a block of your own");
    KR_TRY(write_file("models/blocks", "%s.c", name, (const char *const[]){tree_head, block_text, tree_foot, NULL}));
    printf("two lines make it known: in models/blocks.c    #define BLOCKS(X) ... X(%s)\n"
           "                         in models/meson.build models_sources = files(..., 'blocks/%s.c')\n"
           "the tests of all blocks check it then: meson test -C build block packing\n", name, name);
    return KR_OK;
}

static kr_status write_own(const char *name, const char *out) {
    KR_TRY(kr_directory_make(out));
    KR_TRY(write_file(out, "%s.c", name, (const char *const[]){own_head, block_text, own_foot, NULL}));
    KR_TRY(write_file(out, "test_%s.c", name, (const char *const[]){test_text, NULL}));
    KR_TRY(write_file(out, "Makefile", name, (const char *const[]){make_text, NULL}));
    KR_TRY(write_file(out, "krait.yaml", name, (const char *const[]){config_text, NULL}));
    printf("next: cd %s && make && make test\n"
           "      krait pretrain --block ./%s.so --model %s-1m -- --text-file FILE\n", out, name, name);
    return KR_OK;
}

int kr_cmd_new_block(int argc, char **argv) {
    settings s = {0};
    kr_text_list words;
    bool help = false;
    kr_status status = kr_options_parse(&usage, argc, argv, &s, &words, &help);
    if (help) return KR_EXIT_OK;
    if (!status) status = check_name(words.at[0]);
    if (!status) status = s.out ? write_own(words.at[0], s.out) : write_in_tree(words.at[0]);
    return status ? kr_tool_fail("new-block", status) : KR_EXIT_OK;
}
