/// What calls give back, and what went wrong: a code, and a message with its place for each thread.
#ifndef KRAIT_RUNTIME_STATUS_H
#define KRAIT_RUNTIME_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

/// What a call can return. Zero is success; every other value has its explanation in kr_status_message().
typedef enum kr_status {
    KR_OK = 0,
    KR_BAD_ARGUMENT,  ///< a value, flag or configuration that cannot be used
    KR_BAD_SHAPE,     ///< shapes or dtypes that do not fit together
    KR_BAD_FILE,      ///< a file whose content is wrong or cut
    KR_IO,            ///< the system refused a file operation
    KR_NO_MEMORY,
    KR_UNSUPPORTED,   ///< not available in this build, on this machine, or for this op
    KR_NOT_FINITE,    ///< a NaN or infinity appeared where the caller asked to be told
    KR_DEVICE_LOST,
    KR_STATUS_COUNT
} kr_status;

/// Records where and why, for this thread, and gives back `code`. Use through KR_FAIL.
__attribute__((format(printf, 4, 5), cold)) kr_status kr_status_record(kr_status code, const char *file, int line,
                                                                      const char *format, ...);
/// Puts "context: " before the newest message of this thread and gives back `code`.
__attribute__((format(printf, 2, 3), cold)) kr_status kr_status_prefix(kr_status code, const char *format, ...);
/// The newest failure of this thread, without its place: "rms_norm: weight is [512], want [768]". Valid until the next.
const char *kr_status_message(void);
/// Where the newest failure of this thread was recorded: "ops/norm/op.c:31".
const char *kr_status_place(void);
/// The code's name, "bad shape".
const char *kr_status_name(kr_status code);

#define KR_FAIL(code, ...) return kr_status_record((code), __FILE__, __LINE__, __VA_ARGS__)
#define KR_FAIL_IF(condition, code, ...)                                  \
    do {                                                                  \
        if (__builtin_expect(!!(condition), 0)) KR_FAIL(code, __VA_ARGS__); \
    } while (0)
#define KR_TRY(call)                                                       \
    do {                                                                   \
        kr_status kr_try_ = (call);                                        \
        if (__builtin_expect(kr_try_ != KR_OK, 0)) return kr_try_;         \
    } while (0)

#ifdef __cplusplus
}
#endif
#endif
