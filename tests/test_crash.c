/// Saving and removing checkpoints where something goes wrong: no space, no permission, other people's files, another
/// process, and a death at every system call. A whole checkpoint is left, the old one or the new one.
#include "tests/checkpoints.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

TestSuite(crash, .init = make_folder, .fini = remove_folder);

// Failing saves ------------------------------------------------------------------------------------------------------

/// Runs `body` in a child, which exits with 0 when all is as wanted.
static int in_child(int (*body)(small), small s) {
    const pid_t child = fork();
    cr_assert(child >= 0);
    if (child == 0) _exit(body(s));
    int status;
    cr_assert_eq(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

static int save_in_little_space(small s) {
    signal(SIGXFSZ, SIG_IGN);
    for (rlim_t limit = 0;; limit += 13) {
        setrlimit(RLIMIT_FSIZE, &(struct rlimit){limit, RLIM_INFINITY});
        const kr_status status = kr_checkpoint_save(latest, s.session, "{\"step\": 2}\n", true);
        if (!status) return limit > 500 ? 0 : 6;
        if (status != KR_IO) return 2;
        const char *m = kr_status_message();
        if (!strstr(m, latest) || !strstr(m, "File too large") || !strstr(m, "the one before is kept")) {
            fprintf(stderr, "%s\n", m);
            return 3;
        }
        setrlimit(RLIMIT_FSIZE, &(struct rlimit){RLIM_INFINITY, RLIM_INFINITY});
        if (entries_of(folder) != 1) return 4;
        char *state;
        if (kr_checkpoint_load(latest, NULL, KR_LOAD_STATE, &state) != KR_OK || !strstr(state, "1")) return 5;
        free(state);
    }
}

Test(crash, disk_full) {
    small a = open_small(), b = open_small();
    save_seed(a, 1);
    fill(a, 2);
    cr_assert_eq(in_child(save_in_little_space, a), 0);
    cr_assert_eq(seed_of(b, 2), 2);
    close_small(a);
    close_small(b);
}

static int save_as_nobody(small s) {
    if (getuid() == 0 && (setgid(65534) || setuid(65534))) return 2;
    if (kr_checkpoint_save(latest, s.session, "{}", true) != KR_IO) return 3;
    if (!strstr(kr_status_message(), latest) || !strstr(kr_status_message(), "Permission denied")) return 4;
    // What may be read can be loaded all the same.
    return kr_checkpoint_load(latest, s.session, LOAD_ALL, NULL) == KR_OK ? 0 : 5;
}

Test(crash, no_permission) {
    small a = open_small(), b = open_small();
    save_seed(a, 1);
    cr_assert_eq(chmod(folder, 0555), 0);
    cr_assert_eq(in_child(save_as_nobody, a), 0);
    cr_assert_eq(chmod(folder, 0755), 0);
    cr_assert_eq(seed_of(b, 1), 1);

    char inside[300];
    snprintf(inside, sizeof inside, "%s/below", in_latest("state.json"));
    cr_assert_eq(kr_checkpoint_save(inside, a.session, "{}", true), KR_IO);
    cr_assert_not_null(strstr(kr_status_message(), "state.json is a file"), "%s", kr_status_message());
    close_small(a);
    close_small(b);
}

Test(crash, only_checkpoints_are_replaced_and_removed) {
    small a = open_small();
    char file[128];
    mkdir(latest, 0755);
    cr_assert_eq(kr_checkpoint_save(latest, a.session, "{}", true), KR_OK, "an empty directory is in nobody's way");
    cr_assert_eq(kr_checkpoint_remove(latest), KR_OK);
    cr_assert_not(there(latest));
    cr_assert_eq(kr_checkpoint_remove(latest), KR_OK, "%s", kr_status_message());

    snprintf(file, sizeof file, "%s/no/such", folder);
    cr_assert_eq(kr_checkpoint_remove(file), KR_IO);
    cr_assert_eq(entries_of(folder), 0, "removing made a directory");

    mkdir(latest, 0755);
    put_file(in_latest("thesis.txt"), "words", 5);
    cr_assert_eq(kr_checkpoint_save(latest, a.session, "{}", true), KR_BAD_ARGUMENT);
    cr_assert_not_null(strstr(kr_status_message(), "is not a checkpoint"), "%s", kr_status_message());
    cr_assert_eq(kr_checkpoint_remove(latest), KR_BAD_ARGUMENT);
    cr_assert(there(in_latest("thesis.txt")));

    snprintf(file, sizeof file, "%s/file", folder);
    put_file(file, "words", 5);
    cr_assert_eq(kr_checkpoint_save(file, a.session, "{}", true), KR_IO);
    cr_assert_eq(kr_checkpoint_remove(file), KR_IO);
    cr_assert_eq(kr_checkpoint_load(file, a.session, LOAD_ALL, NULL), KR_IO);
    cr_assert(there(file));
    close_small(a);
}

Test(crash, files_of_others_are_kept) {
    small a = open_small(), b = open_small();
    save_seed(a, 1);
    put_file(in_latest("notes.txt"), "words", 5);
    mkdir(in_latest("plots"), 0755);
    put_file(in_latest("plots/loss.txt"), "3", 1);
    for (int seed = 2; seed < 5; seed++) {
        save_seed(a, (uint64_t)seed);
        cr_assert_eq(seed_of(b, seed), seed);
        cr_assert(there(in_latest("notes.txt")) && there(in_latest("plots/loss.txt")));
        cr_assert_eq(entries_of(folder), 1);
    }
    kr_checkpoint_remove(latest);
    cr_assert(there(in_latest("notes.txt")) && there(in_latest("plots/loss.txt")));
    cr_assert_eq(entries_of(latest), 2, "only the files of others are left");
    cr_assert_eq(entries_of(folder), 1);
    close_small(a);
    close_small(b);
}

Test(crash, names_of_all_kinds) {
    small a = open_small(), b = open_small();
    char path[256], link[128], *old = getcwd(NULL, 0);
    save_seed(a, 1);
    snprintf(path, sizeof path, "%s///", latest);
    cr_assert_eq(kr_checkpoint_load(path, b.session, LOAD_ALL, NULL), KR_OK, "%s", kr_status_message());
    snprintf(link, sizeof link, "%s/best", folder);
    cr_assert_eq(symlink("latest", link), 0);
    fill(a, 2);
    cr_assert_eq(kr_checkpoint_save(link, a.session, "{\"step\": 2}\n", true), KR_OK, "%s", kr_status_message());
    cr_assert_eq(seed_of(b, 2), 2, "saving through a link writes what it points to");
    cr_assert_eq(entries_of(folder), 2);
    cr_assert_eq(chdir(folder), 0);
    cr_assert_eq(kr_checkpoint_save("here", a.session, "{}", true), KR_OK);
    cr_assert_eq(kr_checkpoint_load("here", b.session, LOAD_ALL, NULL), KR_OK);
    cr_assert_eq(kr_checkpoint_save("./deep/er/here", a.session, "{}", true), KR_OK, "%s", kr_status_message());
    cr_assert_eq(kr_checkpoint_remove("deep/er/here/"), KR_OK);
    cr_assert_eq(chdir(old), 0);
    free(old);
    close_small(a);
    close_small(b);
}

/// One process saves without pause, another loads: it never sees anything but a whole checkpoint.
static int save_for_a_while(small s) {
    for (int k = 0; k < 40; k++) {
        char state[64];
        const int seed = 1 + k % 3;
        snprintf(state, sizeof state, "{\"step\": %d}\n", seed);
        fill(s, (uint64_t)seed);
        if (kr_checkpoint_save(latest, s.session, state, true)) return 2;
    }
    return 0;
}

Test(crash, loading_while_another_process_saves) {
    small a = open_small(), b = open_small();
    save_seed(a, 1);
    const pid_t child = fork();
    if (child == 0) _exit(save_for_a_while(a));
    int status = 0, loads = 0;
    while (waitpid(child, &status, WNOHANG) == 0) {
        const int seed = seed_of(b, 3);
        cr_assert(seed >= 1, "%s", kr_status_message());
        loads++;
    }
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    cr_assert(loads > 0);
    cr_assert_eq(entries_of(folder), 1);
    close_small(a);
    close_small(b);
}

// Killed at every system call ----------------------------------------------------------------------------------------

/// From here on this process has no exchange of names, as on file systems without it.
static bool forbid_exchange(void) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_renameat2, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[4])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, RENAME_EXCHANGE, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

enum action { SAVE, SAVE_WITHOUT_EXCHANGE, REMOVE };

static int act(enum action what, small s, int seed) {
    char state[64];
    snprintf(state, sizeof state, "{\"step\": %d}\n", seed);
    if (what == SAVE_WITHOUT_EXCHANGE && !forbid_exchange()) return 77;
    const kr_status status = what == REMOVE ? kr_checkpoint_remove(latest)
                                            : kr_checkpoint_save(latest, s.session, state, true);
    return status ? 3 : 0;
}

/// Runs the action in a child that dies at its `stop`-th entry to or return from a system call. Gives -1 when it was
/// killed, else its exit status; -2 when processes cannot be traced here.
static int act_and_die(enum action what, small s, int seed, int stop) {
    const pid_t child = fork();
    cr_assert(child >= 0);
    if (child == 0) {
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0) _exit(99);
        raise(SIGSTOP);
        _exit(act(what, s, seed));
    }
    int status, count = 0;
    cr_assert_eq(waitpid(child, &status, 0), child);
    while (WIFSTOPPED(status)) {
        if (count++ == stop) kill(child, SIGKILL);
        ptrace(PTRACE_SYSCALL, child, NULL, NULL);
        cr_assert_eq(waitpid(child, &status, 0), child);
    }
    if (WIFSIGNALED(status)) return -1;
    return WEXITSTATUS(status) == 99 ? -2 : WEXITSTATUS(status);
}

/// Where tracing is forbidden: dies after so many microseconds.
static int act_and_die_later(enum action what, small s, int seed, int microseconds) {
    const pid_t child = fork();
    cr_assert(child >= 0);
    if (child == 0) _exit(act(what, s, seed));
    usleep((useconds_t)microseconds);
    kill(child, SIGKILL);
    int status;
    cr_assert_eq(waitpid(child, &status, 0), child);
    return WIFSIGNALED(status) ? -1 : WEXITSTATUS(status);
}

/// old: whether there is a checkpoint (seed 1) before; the killed one has seed 2.
static void die_everywhere(enum action what, bool old) {
    small s = open_small();
    int stops = 0, olds = 0, news = 0, nones = 0;
    bool traced = true;
    for (bool ended = false; !ended; stops++) {
        if (old) save_seed(s, 1);
        else cr_assert_eq(kr_checkpoint_remove(latest), KR_OK, "%s", kr_status_message());
        fill(s, 2);
        int how = traced ? act_and_die(what, s, 2, stops) : act_and_die_later(what, s, 2, stops * 50);
        if (how == -2) {
            fprintf(stderr, "checkpoint: tracing is not permitted here; killing after every 50 microseconds instead\n");
            traced = false;
            how = act_and_die_later(what, s, 2, 0);
        }
        if (how == 77) cr_skip_test("system call filters are not permitted here");
        cr_assert(how <= 0, "the save failed by itself: %d", how);
        ended = how == 0;
        const int seed = seed_of(s, 2);
        cr_assert_neq(seed, -1, "killed at stop %d: a mixture", stops);
        if (old && what != REMOVE)
            cr_assert(seed > 0, "killed at stop %d: nothing whole is left: %s", stops, kr_status_message());
        if (seed == -2)
            cr_assert_not(there(latest), "killed at stop %d: something broken is left: %s", stops, kr_status_message());
        if (ended) cr_assert_eq(seed, what == REMOVE ? -2 : 2);
        olds += seed == 1, news += seed == 2, nones += seed == -2;
        cr_assert_eq(entries_of(folder), seed == -2 ? 0 : 1, "killed at stop %d: waste is left", stops);
    }
    cr_assert(stops > 20);
    cr_assert(what == REMOVE ? olds > 3 && nones > 3 : news > 3 && (old ? olds : nones) > 10,
              "%d stops: %d old, %d new, %d none", stops, olds, news, nones);
    close_small(s);
}

Test(crash, first_save_killed_at_every_system_call) { die_everywhere(SAVE, false); }

Test(crash, save_killed_at_every_system_call) { die_everywhere(SAVE, true); }

Test(crash, save_without_exchange_killed_at_every_system_call) { die_everywhere(SAVE_WITHOUT_EXCHANGE, true); }

Test(crash, removal_killed_at_every_system_call) { die_everywhere(REMOVE, true); }

/// What every crash between two renames can leave, also by versions or systems of which no test here knows.
Test(crash, recovery) {
    small a = open_small(), b = open_small();
    char fresh[128], old[128];
    snprintf(fresh, sizeof fresh, "%s.saving", latest);
    snprintf(old, sizeof old, "%s.replaced", latest);
    for (int state = 0; state < 27; state++) {
        // Each of the three names: nothing, a part, a whole checkpoint.
        const char *const names[3] = {latest, fresh, old};
        const int have[3] = {state % 3, state / 3 % 3, state / 9};
        char command[512];
        snprintf(command, sizeof command, "rm -rf %s %s %s", latest, fresh, old);
        for (int k = 2; k >= 0; k--) {
            if (!have[k]) continue;
            char elsewhere[128];
            snprintf(elsewhere, sizeof elsewhere, "%s/made/x%d", folder, k);
            fill(a, (uint64_t)k + 1);
            char text[64];
            snprintf(text, sizeof text, "{\"step\": %d}\n", k + 1);
            cr_assert_eq(kr_checkpoint_save(elsewhere, a.session, text, true), KR_OK);
            cr_assert_eq(rename(elsewhere, names[k]), 0);
            char part[256];
            snprintf(part, sizeof part, "%s/%s", names[k], state % 2 ? "MANIFEST" : "model.safetensors");
            if (have[k] == 1) unlink(part);
        }
        cr_assert_eq(kr_checkpoint_recover(latest), KR_OK, "state %d: %s", state, kr_status_message());
        const int want = have[0] == 2 ? 1 : have[0] == 1 ? -2 : have[1] == 2 ? 2 : have[2] == 2 ? 3 : -2;
        cr_assert_eq(seed_of(b, 3), want, "state %d", state);
        cr_assert(!there(fresh) && !there(old), "state %d", state);
        cr_assert_eq(system(command), 0);
    }
    close_small(a);
    close_small(b);
}
