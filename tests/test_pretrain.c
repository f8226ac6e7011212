/// The `krait` program from the outside: training, stopping, resuming, failing, writing.
#include "models/models.h"
#include "compiler/compiler.h"
#include "program.h"

#include <math.h>
#include <signal.h>
#include <sys/stat.h>

#define TINY "pretrain --model mamba1-tiny --target local -- --text-file text --batch-size 2 --seq-len 32 --warmup 3 " \
    "--eval-batches 2 --log-every 1 "

/// Training that must succeed.
__attribute__((format(printf, 1, 2))) static void train(const char *format, ...) {
    char extra[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(extra, sizeof extra, format, args);
    va_end(args);
    cr_assert_eq(krait(TINY "%s", extra), 0, "%s", output);
}

/// Both checkpoints hold the same parameters and the same optimiser state, byte for byte.
static void expect_same(const char *a, const char *b) {
    static const char *const files[] = {"model.safetensors", "optimizer.safetensors.zst"};
    for (int k = 0; k < 2; k++) {
        char command[512];
        snprintf(command, sizeof command, "cmp %s/%s %s/%s", a, files[k], b, files[k]);
        cr_expect_eq(system(command), 0, "%s of %s and %s differ", files[k], a, b);
    }
}

Test(pretrain, writes_what_it_says, .init = enter, .fini = leave) {
    train("--output-dir run --steps 12 --eval-every 4 --save-every 3 --keep 2");
    static const char *const files[] = {"metrics.jsonl", "report.md", "loss.svg", "latest/model.safetensors",
        "best/MANIFEST", "latest/state.json", "step-00000012/optimizer.safetensors.zst"};
    for (size_t k = 0; k < sizeof files / sizeof *files; k++) {
        char path[256];
        snprintf(path, sizeof path, "run/%s", files[k]);
        cr_expect_eq(access(path, R_OK), 0, "%s is missing", path);
    }
    cr_expect_neq(access("run/step-00000003", F_OK), 0, "old checkpoints are removed");
    cr_expect_eq(system("test $(wc -l < run/metrics.jsonl) = 12 && grep -q '\"step\": 8,.*\"loss\": .*\"lr\": .*"
                        "\"grad_norm\": .*\"tokens\": 512,.*\"tokens_per_second\": .*\"time\": .*\"eval_loss\": "
                        "' run/metrics.jsonl"), 0);
    expect_said("held out");
    expect_said("tokens/s");
    train("--steps 1");
    expect_said("run      runs/mamba1-tiny-1");
    train("--steps 1");
    expect_said("run      runs/mamba1-tiny-2");
}

Test(pretrain, the_number_of_threads_changes_no_bit, .init = enter, .fini = leave) {
    train("--output-dir one --steps 10 --threads 1");
    train("--output-dir two --steps 10 --threads 2");
    train("--output-dir five --steps 10 --threads 5");
    expect_same("one/latest", "two/latest");
    expect_same("one/latest", "five/latest");
    train("--output-dir other --steps 10 --seed 1");
    cr_expect_neq(system("cmp -s one/latest/model.safetensors other/latest/model.safetensors"), 0, "the seed matters");
}

Test(pretrain, resumed_is_uninterrupted, .init = enter, .fini = leave) {
    train("--output-dir whole --steps 14 --eval-every 4 --save-every 5");
    train("--output-dir parts --steps 14 --eval-every 4 --save-every 5 --stop-after 7");
    expect_said("to go on");
    cr_expect_eq(access("parts/step-00000007/MANIFEST", R_OK), 0);
    train("--output-dir parts --steps 14 --eval-every 4 --save-every 5 --resume --threads 2");
    expect_said("resumed  parts/step-00000007 at step 7");
    expect_same("whole/latest", "parts/latest");
    expect_same("whole/best", "parts/best");
    cr_expect_eq(system("cmp whole/latest/state.json parts/latest/state.json"), 0);
    cr_expect_eq(system("test $(wc -l < parts/metrics.jsonl) = 14"), 0);
    // The same with two micro-batches.
    train("--output-dir whole2 --steps 6 --grad-accumulation 2");
    train("--output-dir parts2 --steps 6 --grad-accumulation 2 --stop-after 3");
    train("--output-dir parts2 --steps 6 --grad-accumulation 2 --resume");
    expect_same("whole2/latest", "parts2/latest");
}

Test(pretrain, documents_are_kept_apart, .init = enter, .fini = leave) {
    train("--output-dir plain --steps 6 --seed 3");
    train("--output-dir split --steps 6 --seed 3 --document-separator 'text.\n' --eval-every 2");
    expect_said("1001 documents");
    cr_expect_neq(system("cmp -s plain/latest/model.safetensors split/latest/model.safetensors"), 0, "borders matter");
    train("--output-dir parts --steps 6 --seed 3 --document-separator 'text.\n' --eval-every 2 --stop-after 4");
    cr_expect_eq(krait(TINY "--output-dir parts --steps 6 --seed 3 --eval-every 2 --resume"), 2);
    expect_said("--document-separator");
    train("--output-dir parts --steps 6 --seed 3 --document-separator 'text.\n' --eval-every 2 --resume");
    expect_same("split/latest", "parts/latest");
    cr_expect_eq(krait(TINY "--steps 6 --document-separator '<|endoftext|>'"), 2);
    expect_said("--document-separator: '<|endoftext|>' stands nowhere in text");
}

Test(pretrain, carried_state_is_saved_and_resumed, .init = enter, .fini = leave) {
    train("--output-dir plain --steps 9");
    train("--output-dir whole --steps 9 --carry-state --eval-every 4");
    expect_said("go on where");
    cr_expect_eq(access("whole/latest/carry.safetensors.zst", R_OK), 0);
    cr_expect_neq(access("plain/latest/carry.safetensors.zst", R_OK), 0);
    train("--output-dir parts --steps 9 --carry-state --eval-every 4 --stop-after 5");
    train("--output-dir parts --steps 9 --carry-state --eval-every 4 --resume --threads 2");
    expect_same("whole/latest", "parts/latest");
    cr_expect_eq(system("cmp whole/latest/carry.safetensors.zst parts/latest/carry.safetensors.zst"), 0);
    cr_expect_eq(krait(TINY "--output-dir parts --steps 12 --resume"), 2);
    expect_said("was trained with --carry-state");
    // Micro-batches are pieces of the same streams.
    train("--output-dir whole2 --steps 6 --grad-accumulation 2 --carry-state");
    train("--output-dir parts2 --steps 6 --grad-accumulation 2 --carry-state --stop-after 3");
    train("--output-dir parts2 --steps 6 --grad-accumulation 2 --carry-state --resume");
    expect_same("whole2/latest", "parts2/latest");
    cr_assert_eq(krait("generate --checkpoint whole --max-new-tokens 5 --no-echo"), 0, "%s", output);
    // What is not finite is found again from the state of before the step.
    train("--output-dir bad --steps 50 --carry-state --stop-after 4");
    cr_expect_eq(krait(TINY "--output-dir bad --steps 50 --carry-state --learning-rate 1e30 --resume"), 1);
    expect_said("the first non-finite value");
}

/// Starts a long run, waits for its `lines`th metric, sends the signal and gives the wait status.
static int run_and_signal(const char *run, int lines, int number) {
    const pid_t child = fork();
    if (child == 0) {
        char arguments[1024];
        snprintf(arguments, sizeof arguments,
                 "exec '%s' " TINY "--output-dir %s --steps 4000 --save-every 10 >log 2>&1", getenv("KRAIT_BINARY"),
                 run);
        execl("/bin/sh", "sh", "-c", arguments, (char *)NULL);
        _exit(127);
    }
    char test[256];
    snprintf(test, sizeof test, "test \"$(cat %s/metrics.jsonl 2>/dev/null | wc -l)\" -ge %d", run, lines);
    int status;
    while (system(test) != 0) {
        usleep(10000);
        if (waitpid(child, &status, WNOHANG) == child) return status; // it ended before
    }
    kill(child, number);
    waitpid(child, &status, 0);
    return status;
}

static void check_signal(int number) {
    const int status = run_and_signal("cut", 15, number);
    cr_assert(number == SIGKILL ? WIFSIGNALED(status) : WIFEXITED(status) && WEXITSTATUS(status) == 0);
    if (number != SIGKILL) cr_expect_eq(system("grep -q 'saved; to go on' log"), 0);
    // Where it stopped is not known in advance: go on for a few steps, and do as many without a stop.
    FILE *pipe = popen("readlink cut/latest | sed 's/step-0*//'", "r");
    int at = 0;
    cr_assert_eq(fscanf(pipe, "%d", &at), 1);
    pclose(pipe);
    cr_assert_gt(at, 0);
    train("--output-dir cut --steps 4000 --save-every 10 --resume --stop-after %d", at + 4);
    train("--output-dir straight --steps 4000 --save-every 10 --stop-after %d", at + 4);
    expect_same("cut/latest", "straight/latest");
    cr_expect_eq(system("cut -d, -f1-5 cut/metrics.jsonl > a; cut -d, -f1-5 straight/metrics.jsonl > b; cmp a b"), 0,
                 "every step is logged once");
}

Test(pretrain, sigint_saves_and_leaves, .init = enter, .fini = leave) { check_signal(SIGINT); }
Test(pretrain, sigterm_saves_and_leaves, .init = enter, .fini = leave) { check_signal(SIGTERM); }
Test(pretrain, a_killed_run_goes_on_from_its_checkpoint, .init = enter, .fini = leave) { check_signal(SIGKILL); }

/// Relative distance of all parameters of two checkpoints.
static double distance(const char *a, const char *b) {
    char path[256];
    kr_tensor_file *x, *y;
    double difference = 0, size = 0;
    snprintf(path, sizeof path, "%s/model.safetensors", a);
    cr_assert_eq(kr_tensors_open(path, &x), KR_OK, "%s", kr_status_message());
    snprintf(path, sizeof path, "%s/model.safetensors", b);
    cr_assert_eq(kr_tensors_open(path, &y), KR_OK, "%s", kr_status_message());
    for (int k = 0; k < kr_tensors_count(x); k++) {
        const kr_tensor_entry *p = kr_tensors_at(x, k), *q = kr_tensors_find(y, p->name);
        cr_assert(q, "%s", p->name);
        const int64_t n = kr_shape_count(&p->shape);
        double *u = calloc((size_t)n, sizeof *u), *v = calloc((size_t)n, sizeof *v);
        kr_tensors_to_f64(p, u, n);
        kr_tensors_to_f64(q, v, n);
        for (int64_t i = 0; i < n; i++) difference += (u[i] - v[i]) * (u[i] - v[i]), size += u[i] * u[i];
        free(u);
        free(v);
    }
    kr_tensors_close(x);
    kr_tensors_close(y);
    return sqrt(difference / size);
}

Test(pretrain, micro_batches_add_up, .init = enter, .fini = leave) {
    cr_assert_eq(krait("pretrain --model mamba1-tiny --text-file text --seq-len 32 --steps 5 --warmup 2 --batch-size 8 "
                       "--output-dir large"), 0, "%s", output);
    cr_assert_eq(krait("pretrain --model mamba1-tiny --text-file text --seq-len 32 --steps 5 --warmup 2 --batch-size 2 "
                       "--grad-accumulation 4 --output-dir small"), 0, "%s", output);
    // Sums in another order: equal up to rounding, which Adam's division makes larger for tiny gradients.
    const double d = distance("large/latest", "small/latest");
    cr_expect_lt(d, 1e-3, "the parameters differ by %g", d);
}

Test(pretrain, not_finite_names_a_node_and_keeps_the_checkpoint, .init = enter, .fini = leave) {
    train("--output-dir run --steps 50 --stop-after 4");
    cr_assert_eq(system("cp -r run before"), 0);
    cr_expect_eq(krait(TINY "--output-dir run --steps 50 --learning-rate 1e30 --resume"), 1);
    expect_said("the first non-finite value");
    expect_said("node ");
    expect_said("run/step-00000004");
    expect_same("run/latest", "before/latest");
    train("--output-dir run --steps 50 --resume --stop-after 6");
}

/// Puts a NaN into one parameter of a checkpoint, which stays well-formed.
static void poison(const char *checkpoint, const char *param) {
    kr_device *device;
    kr_session *session;
    kr_graph *g;
    kr_plan *plan;
    kr_plan_stats stats;
    char *state;
    kr_model_config model = kr_model_defaults();
    model.d_model = 32;
    model.n_layer = 2;
    model.vocab_size = 256;
    strcpy(model.layer, "mamba1");
    const kr_compile_options options = {.goal = KR_GOAL_TRAIN, .optimizer = {.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8}};
    cr_assert_eq(kr_model_build(&model, KR_MODE_TRAIN, 1, 8, &g), KR_OK, "%s", kr_status_message());
    cr_assert_eq(kr_compile(g, &options, &plan, &stats), KR_OK, "%s", kr_status_message());
    cr_assert_eq(kr_device_cpu(&device), KR_OK);
    cr_assert_eq(kr_session_open(device, 1, &session), KR_OK);
    cr_assert_eq(kr_session_add(session, plan), KR_OK);
    cr_assert_eq(kr_checkpoint_load(checkpoint, session, KR_LOAD_PARAMS | KR_LOAD_OPTIMIZER | KR_LOAD_STATE, &state),
                 KR_OK, "%s", kr_status_message());
    const int index = kr_session_find(session, param);
    cr_assert_geq(index, 0);
    const size_t bytes = kr_session_slot(session, index)->bytes;
    float *values = malloc(bytes);
    kr_session_read(session, index, values, bytes);
    values[3] = NAN;
    kr_session_write(session, index, values, bytes);
    cr_assert_eq(kr_checkpoint_save(checkpoint, session, state, false), KR_OK, "%s", kr_status_message());
    free(values);
    free(state);
    kr_session_close(session);
    kr_device_close(device);
    kr_plan_free(plan);
    kr_graph_free(g);
}

/// Takes the step count out of a checkpoint, which then says that it is of format "krait run <version>": versions
/// before
/// 2 had none.
static void drop_count(const char *checkpoint, char version) {
    kr_device *device;
    kr_session *now, *then;
    kr_plan *plan, *fewer;
    kr_graph *g;
    char *state;
    kr_model_config model = kr_model_defaults();
    model.d_model = 32;
    model.n_layer = 2;
    model.vocab_size = 256;
    strcpy(model.layer, "mamba1");
    cr_assert_eq(kr_model_build(&model, KR_MODE_TRAIN, 1, 8, &g), KR_OK, "%s", kr_status_message());
    cr_assert_eq(kr_compile(g, &(kr_compile_options){.goal = KR_GOAL_TRAIN}, &plan, NULL), KR_OK);
    cr_assert_eq(kr_device_cpu(&device), KR_OK);
    cr_assert_eq(kr_session_open(device, 1, &now), KR_OK);
    cr_assert_eq(kr_session_open(device, 1, &then), KR_OK);
    cr_assert_eq(kr_session_add(now, plan), KR_OK);
    cr_assert_eq(kr_checkpoint_load(checkpoint, now, KR_LOAD_PARAMS | KR_LOAD_OPTIMIZER | KR_LOAD_STATE, &state),
                 KR_OK, "%s", kr_status_message());
    cr_assert_eq(kr_plan_new("cpu", &fewer), KR_OK);
    for (int k = 0; k < kr_session_slots(now); k++)
        if (strcmp(kr_session_slot(now, k)->name, KR_OPTIMIZER_STEP))
            cr_assert_neq(kr_plan_add_slot(fewer, kr_session_slot(now, k)), -1);
    cr_assert_eq(kr_plan_finish(fewer), KR_OK);
    cr_assert_eq(kr_session_add(then, fewer), KR_OK);
    cr_assert_eq(kr_session_slots(then), kr_session_slots(now) - 1);
    for (int k = 0; k < kr_session_slots(then); k++) {
        const kr_slot *slot = kr_session_slot(then, k);
        void *data = malloc(slot->bytes);
        cr_assert_eq(kr_session_read(now, kr_session_find(now, slot->name), data, slot->bytes), KR_OK);
        cr_assert_eq(kr_session_write(then, k, data, slot->bytes), KR_OK);
        free(data);
    }
    char *format = strstr(state, "krait run 2");
    cr_assert(format);
    format[strlen("krait run ")] = version;
    cr_assert_eq(kr_checkpoint_save(checkpoint, then, state, false), KR_OK, "%s", kr_status_message());
    free(state);
    kr_session_close(now);
    kr_session_close(then);
    kr_device_close(device);
    kr_plan_free(plan);
    kr_plan_free(fewer);
    kr_graph_free(g);
}

Test(pretrain, a_run_of_an_older_version_goes_on_with_the_right_count, .init = enter, .fini = leave) {
    train("--output-dir whole --steps 14");
    train("--output-dir parts --steps 14 --stop-after 7");
    drop_count("parts/step-00000007", '1');
    train("--output-dir parts --steps 14 --resume");
    expect_said("resumed  parts/step-00000007 at step 7");
    expect_same("whole/latest", "parts/latest");
    cr_expect_eq(system("cmp whole/latest/state.json parts/latest/state.json"), 0);
    drop_count("parts/step-00000014", '2');
    cr_expect_eq(krait(TINY "--output-dir parts --steps 20 --resume"), 1);
    expect_said("has no 'optimizer.step', which the model has");
}

Test(pretrain, a_bad_parameter_is_found_at_its_first_node, .init = enter, .fini = leave) {
    train("--output-dir run --steps 50 --stop-after 3");
    poison("run/step-00000003", "backbone.layers.1.mixer.dt_proj.bias");
    cr_expect_eq(krait(TINY "--output-dir run --steps 50 --resume"), 1);
    expect_said("the loss is nan");
    expect_said("backbone.layers.1.mixer");
    cr_expect_neq(access("run/step-00000004", F_OK), 0, "nothing was saved");
}

Test(pretrain, what_does_not_fit_is_refused, .init = enter, .fini = leave) {
    static const struct {
        const char *arguments;
        int status;
        const char *part[2];
    } cases[] = {
        {"", 2, {"usage: krait COMMAND"}},
        {"pretrian", 2, {"did you mean 'pretrain'"}},
        {"pretrain", 2, {"--model NAME is missing"}},
        {"pretrain --model mamba1-tiny --target local -- --text-flie text", 2, {"--text-flie", "--text-file"}},
        {"pretrain --model mamba1-tiny", 2, {"no text to learn", "--text-file FILE"}},
        {"pretrain --model mamba1-tny --text-file text", 2, {"'mamba1-tny'", "'mamba1-tiny'"}},
        {"pretrain --model mamba1-tiny --target cluster --text-file text", 2, {"'cluster'", "local"}},
        {"pretrain --model mamba1-tiny --text-file nowhere", 1, {"nowhere"}},
        {"pretrain --model mamba1-tiny --text-file text --seq-len 4000", 2, {"at least 40010"}},
        {"pretrain --model mamba1-tiny --text-file text --batch-size 0", 2, {"--batch-size is 0"}},
        {"pretrain --model mamba1-tiny --text-file text --config nowhere.yaml", 1, {"nowhere.yaml"}},
        {"pretrain --model mamba1-tiny --text-file text --resume", 2, {"--resume", "--output-dir"}},
        {"pretrain --model mamba1-tiny --text-file text --resume --output-dir nowhere",
         2,
         {"no checkpoint in nowhere"}},
        {"generate --checkpoint nowhere", 2, {"nowhere"}},
        {"generate --checkpoint .", 2, {"neither a checkpoint nor a run"}},
        {"generate", 2, {"--checkpoint DIR is missing"}},
        {"generate --checkpoint x --top-p 2", 2, {"--top-p is 2"}},
    };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        const int status = krait("%s", cases[k].arguments);
        cr_expect_eq(status, cases[k].status, "krait %s ended with %d: %s", cases[k].arguments, status, output);
        for (int p = 0; p < 2 && cases[k].part[p]; p++) expect_said(cases[k].part[p]);
    }
    cr_expect_neq(access("runs", F_OK), 0, "nothing is left of what was refused");
    cr_expect_eq(system("printf 'pretrain:\\n  steps: 5\\n  stepps: 6\\n' > krait.yaml"), 0);
    cr_expect_eq(krait("pretrain --model mamba1-tiny --text-file text"), 2);
    expect_said("krait.yaml:3:");
    expect_said("'steps'");
}

Test(pretrain, another_model_or_text_cannot_be_resumed, .init = enter, .fini = leave) {
    train("--output-dir run --steps 9 --stop-after 2");
    cr_expect_eq(krait(TINY "--output-dir run --steps 9"), 2);
    expect_said("holds a run already");
    cr_expect_eq(
        system("sed 's/5 of/6 of/' text > text2; printf 'models:\\n  mamba1-tiny: {layer: mamba1, d_model: 40, "
               "n_layer: 2, vocab_size: 256}\\n' > k.yaml"),
        0);
    cr_expect_eq(krait("pretrain --model mamba1-tiny --text-file text2 --seq-len 32 --output-dir run --resume"), 2);
    expect_said("the text is not the one");
    cr_expect_eq(
        krait("pretrain --config k.yaml --model mamba1-tiny --text-file text --seq-len 32 --output-dir run --resume"),
        2);
    expect_said("d_model is 32 in the checkpoint, 40 now");
    train("--output-dir run --steps 9 --learning-rate 1e-4 --resume");
    expect_said("settings changed since the checkpoint: learning-rate 0.003 -> 0.0001");
}

Test(pretrain, dry_run_announces_memory, .init = enter, .fini = leave) {
    cr_assert_eq(krait("pretrain --model mamba1-tiny --dry-run"), 0, "%s", output);
    expect_said("activation");
    expect_said("lower bound");
    expect_said("ratio");
    expect_said("expected resident");
    cr_expect_neq(access("runs", F_OK), 0, "a dry run writes nothing");
}

/// Writes a text form: a bigram model with a running mean of the bytes so far.
static void write_graph(const char *name, const char *extra_input, const char *outputs) {
    FILE *file = fopen(name, "w");
    fprintf(file,
            "krait graph 1\n"
            "%%tokens = input \"tokens\" : i32[2,32]\n"
            "%%targets = input \"targets\" : i32[2,32]\n"
            "%%reset = input \"reset\" : i32[2,32]\n"
            "%%state = carry \"memory\" state : f32[2,16]\n"
            "%s"
            "%%table = param \"table\" init=normal(0.02) : f32[256,16]\n"
            "%%head = param \"head\" init=normal(0.1) decay : f32[256,16]\n"
            "%%x = embedding(%%table, %%tokens)\n"
            "%%keep = const 0.5 : f32[2,32,16]\n"
            "%%h, %%last = linear_scan(%%keep, %%x, %%state, %%reset)\n"
            "%%logits = matmul(%%h, %%head, _, _) {transpose_b=1}\n"
            "%%loss, %%each, %%lse = cross_entropy(%%logits, %%targets)\n"
            "assign %%state = %%last\n"
            "%s"
            "end\n", extra_input, outputs);
    fclose(file);
}

#define GRAPH "pretrain --graph g.kg --text-file text --warmup 3 --eval-batches 2 --log-every 1 --learning-rate 0.01 "

Test(pretrain, a_graph_written_by_hand, .init = enter, .fini = leave) {
    static char first[OUTPUT];
    write_graph("g.kg", "", "output \"loss\" = %loss\noutput \"logits\" = %logits\n");
    cr_assert_eq(krait(GRAPH "--steps 60"), 0, "%s", output);
    expect_said("graph    g.kg: 8192 parameters");
    expect_said("run      runs/g-1");
    double loss[2];
    FILE *pipe = popen("sed -n 's/.*\"loss\": \\([0-9.]*\\), \"lr.*/\\1/p' runs/g-1/metrics.jsonl | sed -n '1p;60p'",
                       "r");
    cr_assert_eq(fscanf(pipe, "%lf %lf", &loss[0], &loss[1]), 2);
    pclose(pipe);
    cr_expect(loss[0] > 5 && loss[1] < 3, "the loss goes from %g to %g", loss[0], loss[1]);
    // Stopped and resumed, with carried state; documents too.
    cr_assert_eq(krait(GRAPH "--steps 9 --carry-state --document-separator 'text.\n' --output-dir whole"), 0, "%s",
                 output);
    cr_assert_eq(
        krait(GRAPH "--steps 9 --carry-state --document-separator 'text.\n' --output-dir parts --stop-after 4"), 0);
    cr_assert_eq(krait(GRAPH "--steps 9 --carry-state --document-separator 'text.\n' --output-dir parts --resume"), 0,
                 "%s", output);
    expect_same("whole/latest", "parts/latest");
    // It writes by reading its row again and again.
    cr_assert_eq(krait("generate --checkpoint runs/g-1 --graph g.kg --prompt 'line ' --max-new-tokens 60 --seed 3"), 0,
                 "%s", output);
    strcpy(first, output);
    cr_expect_eq(strlen(first), 65);
    cr_assert_eq(krait("generate --checkpoint runs/g-1 --graph g.kg --prompt 'line ' --max-new-tokens 60 --seed 3"), 0);
    cr_expect_str_eq(first, output);
    // Another graph is another run; a comment is not another graph.
    cr_expect_eq(system("sed -i 's/^end/# the end\\nend/' g.kg"), 0);
    cr_expect_eq(krait(GRAPH "--steps 9 --carry-state --document-separator 'text.\n' --output-dir parts --resume"), 0,
                 "%s", output);
    cr_expect_eq(system("sed 's/const 0.5/const 0.25/' g.kg > h.kg"), 0);
    cr_expect_eq(krait("pretrain --graph h.kg --text-file text --steps 9 --output-dir runs/g-1 --resume"), 2);
    expect_said("not one of this graph");
    cr_expect_eq(krait("generate --checkpoint runs/g-1 --graph h.kg"), 2);
    expect_said("not the graph");
    cr_expect_eq(krait("generate --checkpoint runs/g-1"), 2);
    expect_said("--graph FILE");
}

Test(pretrain, a_graph_that_cannot_be_trained_says_why, .init = enter, .fini = leave) {
    static const struct {
        const char *extra, *outputs, *edit, *arguments;
        int status;
        const char *part[2];
    } cases[] = {
        {"", "", "", "", 2, {"g.kg has no output \"loss\""}},
        {"", "output \"loss\" = %each\n", "", "", 2, {"f32 [2, 32]", "one element"}},
        {"%extra = input \"noise\" : f32[3]\n",
         "output \"loss\" = %loss\n",
         "",
         "",
         2,
         {"\"noise\"", "nobody would feed"}},
        {"", "output \"loss\" = %loss\n", "s/\"targets\"/\"wanted\"/", "", 2, {"no input \"targets\""}},
        {"", "output \"loss\" = %loss\n", "s/\"tokens\" : i32/\"tokens\" : f32/", "", 1, {"g.kg:"}},
        {"", "output \"loss\" = %loss\n", "s/linear_scan/linear_scam/", "", 1, {"g.kg:10:", "linear_scan"}},
        {"", "output \"loss\" = %loss\n", "/^end/d", "", 1, {"g.kg:"}},
        {"", "output \"loss\" = %loss\n", "", "--batch-size 4", 2, {"--batch-size", "g.kg"}},
        {"", "output \"loss\" = %loss\n", "", "--model mamba1-tiny", 2, {"exclude each other"}},
        {"",
         "output \"loss\" = %loss\n",
         "/reset\" :/d; s/%reset/_/",
         "--document-separator a",
         2,
         {"no input \"reset\""}},
        {"",
         "output \"loss\" = %loss\n",
         "/reset\" :/d; s/%reset/_/",
         "--carry-state",
         2,
         {"--carry-state", "\"reset\""}},
        {"", "output \"loss\" = %loss\n", "/assign/d; /%state =/d; s/%state/_/", "--carry-state", 2, {"no carry"}},
    };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        write_graph("g.kg", cases[k].extra, cases[k].outputs);
        char command[256];
        snprintf(command, sizeof command, "sed -i '%s' g.kg", cases[k].edit);
        if (*cases[k].edit) cr_assert_eq(system(command), 0);
        const int status = krait(GRAPH "%s", cases[k].arguments);
        cr_expect_eq(status, cases[k].status, "case %zu ended with %d: %s", k, status, output);
        for (int p = 0; p < 2 && cases[k].part[p]; p++) expect_said(cases[k].part[p]);
    }
    write_graph("g.kg", "", "output \"loss\" = %loss\n");
    cr_assert_eq(krait(GRAPH "--steps 2 --output-dir run"), 0, "%s", output);
    cr_expect_eq(krait("generate --checkpoint run --graph g.kg"), 1);
    expect_said("no output \"logits\"");
    cr_expect_eq(krait("pretrain --graph nowhere.kg --text-file text"), 1);
    expect_said("nowhere.kg");
}

Test(generate, repeats_from_its_seed, .init = enter, .fini = leave) {
    static char first[OUTPUT];
    train("--output-dir run --steps 40");
    cr_assert_eq(krait("generate --checkpoint run --prompt 'line ' --max-new-tokens 100 --seed 3"), 0, "%s", output);
    strcpy(first, output);
    cr_expect_eq(strlen(first), 105);
    cr_assert_eq(krait("generate --checkpoint run/latest --prompt 'line ' --max-new-tokens 100 --seed 3 --threads 2"),
                 0);
    cr_expect_str_eq(output, first);
    cr_assert_eq(krait("generate --checkpoint run --prompt 'line ' --max-new-tokens 100 --seed 4"), 0);
    cr_expect_str_neq(output, first);
    cr_assert_eq(krait("generate --checkpoint run --max-new-tokens 0 --no-echo"), 0);
    cr_expect_str_eq(output, "");
}

Test(generate, a_prompt_may_be_cut_anywhere, .init = enter, .fini = leave) {
    // Greedy text from a prompt, and from that prompt and part of its text, is the same text: prefill of any length,
    // in pieces or not, leaves the state that decoding leaves.
    static char whole[OUTPUT];
    train("--output-dir run --steps 40");
    cr_assert_eq(krait("generate --checkpoint run --prompt 'line ' --max-new-tokens 700 --temperature 0"), 0, "%s",
                 output);
    strcpy(whole, output);
    static const int lengths[] = {1, 2, 5, 6, 255, 256, 257, 258, 512, 600};
    for (size_t k = 0; k < sizeof lengths / sizeof *lengths; k++) {
        FILE *file = fopen("prompt", "w");
        fwrite(whole, 1, (size_t)lengths[k] + 5, file);
        fclose(file);
        cr_assert_eq(krait("generate --checkpoint run --prompt-file prompt --max-new-tokens %d --temperature 0",
                           700 - lengths[k]), 0, "%s", output);
        cr_expect_str_eq(output, whole, "prompt of %d bytes", lengths[k] + 5);
    }
}
