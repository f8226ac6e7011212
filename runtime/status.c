/// Status: the newest failure of each thread, in fixed buffers, so that reporting works when memory has ended.
#include "runtime/runtime.h"

#include <stdarg.h>
#include <string.h>

enum { MESSAGE_BYTES = 2048, PLACE_BYTES = 256 };

static _Thread_local char message[MESSAGE_BYTES];
static _Thread_local char place[PLACE_BYTES];

static const char *const status_names[KR_STATUS_COUNT] = {
    [KR_OK] = "ok",
    [KR_BAD_ARGUMENT] = "bad argument",
    [KR_BAD_SHAPE] = "bad shape",
    [KR_BAD_FILE] = "bad file",
    [KR_IO] = "input/output error",
    [KR_NO_MEMORY] = "out of memory",
    [KR_UNSUPPORTED] = "unsupported",
    [KR_NOT_FINITE] = "not finite",
    [KR_DEVICE_LOST] = "device lost",
};

/// Compilers are handed paths relative to the build directory. What they share with the path of this file, up to its
/// folder, is the way from there to the source tree and tells a reader nothing.
static const char *path_in_tree(const char *file) {
    static const char self[] = __FILE__;
    static const char tail[] = "runtime/status.c";
    if (sizeof self < sizeof tail) return file;
    const size_t root = sizeof self - sizeof tail;
    return strcmp(self + root, tail) == 0 && strncmp(file, self, root) == 0 ? file + root : file;
}

/// A message that was cut ends in dots, not in half a character.
static void close_text(char *text, size_t size, int wanted) {
    if (wanted < 0) snprintf(text, size, "(a message that could not be formatted)");
    if (wanted < 0 || (size_t)wanted < size) return;
    size_t end = size - 4;
    while (end > 0 && ((unsigned char)text[end] & 0xC0) == 0x80) end--;
    memcpy(text + end, "...", 4);
}

kr_status kr_status_record(kr_status code, const char *file, int line, const char *format, ...) {
    char text[MESSAGE_BYTES]; // the arguments may point into the old message
    va_list list;
    va_start(list, format);
    const int wanted = vsnprintf(text, sizeof text, format, list);
    va_end(list);
    close_text(text, sizeof text, wanted);
    memcpy(message, text, sizeof message);
    snprintf(place, sizeof place, "%s:%d", path_in_tree(file), line);
    return code;
}

kr_status kr_status_prefix(kr_status code, const char *format, ...) {
    char text[MESSAGE_BYTES];
    va_list list;
    va_start(list, format);
    int length = vsnprintf(text, sizeof text, format, list);
    va_end(list);
    if (length >= 0 && (size_t)length < sizeof text) {
        const int rest = snprintf(text + length, sizeof text - (size_t)length, ": %s", message);
        length = rest < 0 ? rest : length + rest;
    }
    close_text(text, sizeof text, length);
    memcpy(message, text, sizeof message);
    return code;
}

const char *kr_status_message(void) { return message; }

const char *kr_status_place(void) { return place; }

const char *kr_status_name(kr_status code) {
    return (unsigned)code < KR_STATUS_COUNT ? status_names[code] : "unknown status";
}
