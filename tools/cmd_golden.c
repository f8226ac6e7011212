// krait golden DIR: runs every golden file of a directory and says how far each result is from the right one.
#include "tools/cli/device.h"
#include "tools/command.h"
#include "tools/golden/golden.h"

typedef struct settings {
    int threads;
    int isa;
    const char *device;
} settings;

static const kr_option options[] = {
    {"isa", KR_OPTION_CHOICE, offsetof(settings, isa), 0, 0, "auto|base|avx2|avx512", "LEVEL",
     "kernels to use (default: the best of this machine)", KR_OPTION_COMMAND_LINE},
    {"threads", KR_OPTION_INT, offsetof(settings, threads), 0, 1024, NULL, "T", "threads (default 0: all)",
     KR_OPTION_COMMAND_LINE},
    KR_DEVICE_OPTION(offsetof(settings, device)),
    {0},
};

static const kr_usage usage = {
    .command = "golden",
    .synopsis = "DIR [--isa LEVEL] [--threads T] [--device NAME]",
    .text = "Runs every *.safetensors file in DIR through graph, gradients, memory plan and kernels, and compares the\n"
            "results with those in the file. A line per file shows the largest error as a share of its tolerance.\n"
            "The status is 1 when a file failed or none could be run.",
    .options = options,
    .positional = "DIR",
    .positional_min = 1,
    .positional_max = 1,
};

int kr_cmd_golden(int argc, char **argv) {
    settings s = {0};
    kr_text_list words = {0};
    bool help = false;
    kr_status status = kr_command_options(&usage, argc, argv, &s, &words, &help);
    if (help) return KR_EXIT_OK;
    const kr_target *target = NULL;
    kr_device *device = NULL;
    kr_golden_totals totals;
    if (!status && s.isa) status = kr_isa_limit((kr_isa)(s.isa - 1));
    if (!status) status = kr_tool_target(s.device, &target);
    if (!status) status = kr_tool_device(s.device, &device);
    if (!status) status = kr_golden_directory(words.at[0], target, device, s.threads, stdout, &totals);
    kr_device_close(device);
    if (status) return kr_command_end("golden", status);
    printf("%d passed, %d failed, %d skipped\n", totals.passed, totals.failed, totals.skipped);
    return totals.failed || !totals.passed ? KR_EXIT_FAILED : KR_EXIT_OK;
}
