// YAML as a small tree with line numbers, built from libyaml's events. Only what a configuration needs is accepted:
// one document of maps, lists and scalars. Anchors, aliases and tags are refused, so that the tree can never be larger
// than the file ("billion laughs"), and every value stands where its line number says.
#include "tools/config/yaml.h"
#include "tools/cli/text.h"

#include <stdlib.h>
#include <string.h>
#include <yaml.h>

enum { DEEPEST = 32, MOST_NODES = 5000, LARGEST = 1 << 20 };

typedef struct reader {
    yaml_parser_t parser;
    yaml_event_t event;
    bool has_event;
    const char *label;
    kr_pool *pool;
    int nodes;
} reader;

static int line_of(yaml_mark_t mark) { return (int)mark.line + 1; }

static kr_status next_event(reader *r) {
    if (r->has_event) yaml_event_delete(&r->event);
    r->has_event = yaml_parser_parse(&r->parser, &r->event);
    if (r->has_event) return KR_OK;
    const yaml_parser_t *p = &r->parser;
    const int line = line_of(p->problem_mark);
    if (p->error == YAML_MEMORY_ERROR) KR_FAIL(KR_NO_MEMORY, "%s: no memory to parse it", r->label);
    if (p->error == YAML_READER_ERROR)
        KR_FAIL(KR_BAD_FILE, "%s: %s at byte %zu", r->label, p->problem ? p->problem : "unreadable text",
                p->problem_offset);
    if (p->context)
        KR_FAIL(KR_BAD_FILE, "%s:%d: %s (%s from line %d)", r->label, line, p->problem, p->context,
                line_of(p->context_mark));
    KR_FAIL(KR_BAD_FILE, "%s:%d: %s", r->label, line, p->problem ? p->problem : "not YAML");
}

static kr_status new_node(reader *r, kr_yaml_kind kind, const void *anchor, const void *tag, kr_yaml **out) {
    const int line = line_of(r->event.start_mark);
    KR_FAIL_IF(anchor, KR_BAD_FILE, "%s:%d: anchors (&%s) are not supported; write the value where it is used",
               r->label, line, (const char *)anchor);
    KR_FAIL_IF(tag, KR_BAD_FILE, "%s:%d: tags (%s) are not supported", r->label, line, (const char *)tag);
    KR_FAIL_IF(++r->nodes > MOST_NODES, KR_BAD_FILE, "%s:%d: more than %d values", r->label, line, MOST_NODES);
    kr_yaml *node = kr_pool_take(r->pool, sizeof *node);
    KR_FAIL_IF(!node, KR_NO_MEMORY, "%s: no memory to parse it", r->label);
    node->kind = kind;
    node->line = line;
    return *out = node, KR_OK;
}

static kr_status take_text(reader *r, const char **out) {
    const char *text = (const char *)r->event.data.scalar.value;
    KR_FAIL_IF(strlen(text) != r->event.data.scalar.length, KR_BAD_FILE, "%s:%d: a 0 byte inside text", r->label,
               line_of(r->event.start_mark));
    *out = kr_pool_text(r->pool, text);
    KR_FAIL_IF(!*out, KR_NO_MEMORY, "%s: no memory to parse it", r->label);
    return KR_OK;
}

/// Reads the node that starts at the current event.
static kr_status read_node(reader *r, int depth, kr_yaml **out);

static kr_status read_map(reader *r, int depth, kr_yaml *map) {
    kr_yaml **tail = &map->first;
    for (;;) {
        KR_TRY(next_event(r));
        const int line = line_of(r->event.start_mark);
        if (r->event.type == YAML_MAPPING_END_EVENT) return KR_OK;
        KR_FAIL_IF(r->event.type == YAML_ALIAS_EVENT, KR_BAD_FILE, "%s:%d: aliases are not supported as keys", r->label,
                   line);
        KR_FAIL_IF(r->event.type != YAML_SCALAR_EVENT, KR_BAD_FILE, "%s:%d: a key must be plain text", r->label, line);
        KR_FAIL_IF(r->event.data.scalar.anchor || r->event.data.scalar.tag, KR_BAD_FILE,
                   "%s:%d: anchors and tags are not supported on keys", r->label, line);
        const char *key;
        KR_TRY(take_text(r, &key));
        const kr_yaml *same = kr_yaml_find(map, key);
        KR_FAIL_IF(same, KR_BAD_FILE, "%s:%d: '%s' is already given in line %d", r->label, line, key, same->key_line);
        KR_TRY(next_event(r));
        kr_yaml *value;
        KR_TRY(read_node(r, depth + 1, &value));
        value->key = key;
        value->key_line = line;
        *tail = value;
        tail = &value->next;
    }
}

static kr_status read_list(reader *r, int depth, kr_yaml *list) {
    kr_yaml **tail = &list->first;
    for (;;) {
        KR_TRY(next_event(r));
        if (r->event.type == YAML_SEQUENCE_END_EVENT) return KR_OK;
        kr_yaml *value;
        KR_TRY(read_node(r, depth + 1, &value));
        *tail = value;
        tail = &value->next;
    }
}

static kr_status read_node(reader *r, int depth, kr_yaml **out) {
    const yaml_event_t *e = &r->event;
    KR_FAIL_IF(depth > DEEPEST, KR_BAD_FILE, "%s:%d: nested more than %d deep", r->label, line_of(e->start_mark),
               DEEPEST);
    switch (e->type) {
    case YAML_SCALAR_EVENT:
        KR_TRY(new_node(r, KR_YAML_SCALAR, e->data.scalar.anchor, e->data.scalar.tag, out));
        (*out)->quoted = e->data.scalar.style != YAML_PLAIN_SCALAR_STYLE;
        return take_text(r, &(*out)->text);
    case YAML_MAPPING_START_EVENT:
        KR_TRY(new_node(r, KR_YAML_MAP, e->data.mapping_start.anchor, e->data.mapping_start.tag, out));
        return read_map(r, depth, *out);
    case YAML_SEQUENCE_START_EVENT:
        KR_TRY(new_node(r, KR_YAML_LIST, e->data.sequence_start.anchor, e->data.sequence_start.tag, out));
        return read_list(r, depth, *out);
    case YAML_ALIAS_EVENT:
        KR_FAIL(KR_BAD_FILE, "%s:%d: aliases (*%s) are not supported; write the value out", r->label,
                line_of(e->start_mark), (const char *)e->data.alias.anchor);
    default: KR_FAIL(KR_BAD_FILE, "%s:%d: a value is missing", r->label, line_of(e->start_mark));
    }
}

static kr_status read_document(reader *r, kr_yaml **out) {
    KR_TRY(next_event(r)); // stream start
    KR_TRY(next_event(r));
    KR_FAIL_IF(r->event.type == YAML_STREAM_END_EVENT, KR_BAD_FILE, "%s: the file is empty", r->label);
    KR_TRY(next_event(r));
    KR_TRY(read_node(r, 0, out));
    KR_TRY(next_event(r)); // document end
    KR_TRY(next_event(r));
    KR_FAIL_IF(r->event.type != YAML_STREAM_END_EVENT, KR_BAD_FILE,
               "%s:%d: a second document starts here; only one is read", r->label, line_of(r->event.start_mark));
    return KR_OK;
}

kr_status kr_yaml_parse(const char *text, size_t bytes, const char *label, kr_pool *pool, kr_yaml **out) {
    KR_FAIL_IF(bytes > LARGEST, KR_BAD_FILE, "%s: has %zu bytes; a configuration has at most %d", label, bytes,
               LARGEST);
    reader r = {.label = label, .pool = pool};
    KR_FAIL_IF(!yaml_parser_initialize(&r.parser), KR_NO_MEMORY, "%s: no memory to parse it", label);
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, bytes);
    const kr_status status = read_document(&r, out);
    if (r.has_event) yaml_event_delete(&r.event);
    yaml_parser_delete(&r.parser);
    return status;
}

const kr_yaml *kr_yaml_find(const kr_yaml *map, const char *key) {
    for (const kr_yaml *m = map->first; m; m = m->next)
        if (kr_same_name(m->key, key)) return m;
    return NULL;
}

static const char *kind_name(const kr_yaml *node) {
    return node->kind == KR_YAML_MAP ? "a map" : node->kind == KR_YAML_LIST ? "a list" : "a single value";
}

/// A name in the spelling of YAML keys.
static const char *yaml_name(const char *name, char text[80]) {
    snprintf(text, 80, "%s", name);
    for (char *c = text; *c; c++)
        if (*c == '-') *c = '_';
    return text;
}

static kr_status unknown_key(const kr_yaml *key, const char *label, const char *what, const kr_option *table) {
    const char *names[128];
    int count = 0;
    for (const kr_option *o = table; o->name && count < 128; o++)
        if (!(o->flags & KR_OPTION_COMMAND_LINE)) names[count++] = o->name;
    const char *nearest = kr_nearest(key->key, names, count);
    char text[80];
    const kr_option *known = kr_option_find(table, key->key);
    KR_FAIL_IF(known, KR_BAD_ARGUMENT, "%s:%d: '%s' belongs on the command line (--%s), not into %s", label,
               key->key_line, key->key, known->name, what);
    if (nearest)
        KR_FAIL(KR_BAD_ARGUMENT, "%s:%d: unknown key '%s' in %s; did you mean '%s'?", label, key->key_line, key->key,
                what, yaml_name(nearest, text));
    char all[512] = "";
    size_t n = 0;
    for (int k = 0; k < count && n < sizeof all - 90; k++)
        n += (size_t)snprintf(all + n, sizeof all - n, "%s%s", k ? ", " : "", yaml_name(names[k], text));
    KR_FAIL(KR_BAD_ARGUMENT, "%s:%d: unknown key '%s' in %s; it can have: %s", label, key->key_line, key->key, what,
            all);
}

/// "a,b,c" of a list of single values.
static kr_status join(const kr_yaml *list, const char *spelling, char *text, size_t room) {
    size_t n = 0;
    for (const kr_yaml *m = list->first; m; m = m->next) {
        KR_FAIL_IF(m->kind != KR_YAML_SCALAR || !*m->text || strchr(m->text, ','), KR_BAD_ARGUMENT,
                   "%s: member %s is not a plain word", spelling, m->kind == KR_YAML_SCALAR ? m->text : kind_name(m));
        n += (size_t)snprintf(text + n, room - n, "%s%s", n ? "," : "", m->text);
        KR_FAIL_IF(n >= room, KR_BAD_ARGUMENT, "%s is too long: its words have more than %zu characters", spelling,
                   room - 1);
    }
    KR_FAIL_IF(!n, KR_BAD_ARGUMENT, "%s is empty", spelling);
    return KR_OK;
}

kr_status kr_yaml_set(const kr_yaml *m, const char *label, const char *what, const kr_option *o, void *to) {
    const bool listed = o->type == KR_OPTION_WORDS || o->type == KR_OPTION_RANGE;
    const bool text = o->type == KR_OPTION_TEXT || o->type == KR_OPTION_NAME || o->type == KR_OPTION_CHOICE ||
                      o->type == KR_OPTION_SIZE;
    char spelling[256], joined[2048];
    snprintf(spelling, sizeof spelling, "%s:%d: %s in %s", label, m->line, m->key, what);
    KR_FAIL_IF(m->kind != (listed ? KR_YAML_LIST : KR_YAML_SCALAR), KR_BAD_ARGUMENT, "%s is %s, want %s", spelling,
               kind_name(m), listed ? "a list: [a, b]" : "a single value");
    if (listed) {
        KR_TRY(join(m, spelling, joined, sizeof joined));
        return kr_option_set(o, spelling, joined, to);
    }
    const bool empty = !m->quoted && (!*m->text || !strcmp(m->text, "~") || !strcasecmp(m->text, "null"));
    KR_FAIL_IF(empty, KR_BAD_ARGUMENT, "%s has no value", spelling);
    KR_FAIL_IF(m->quoted && !text, KR_BAD_ARGUMENT, "%s is the text \"%s\", want %s", spelling, m->text,
               o->type == KR_OPTION_FLAG ? "true or false" : "a number without quotes");
    return kr_option_set(o, spelling, m->text, to);
}

kr_status kr_yaml_want_map(const kr_yaml *node, const char *label, const char *what) {
    KR_FAIL_IF(node->kind != KR_YAML_MAP, KR_BAD_ARGUMENT, "%s:%d: %s is %s, want a map of keys and values", label,
               node->line, what, kind_name(node));
    return KR_OK;
}

kr_status kr_yaml_apply(const kr_yaml *map, const char *label, const char *what, const kr_option *table, void *to) {
    KR_TRY(kr_yaml_want_map(map, label, what));
    for (const kr_yaml *m = map->first; m; m = m->next) {
        const kr_option *o = kr_option_find(table, m->key);
        if (!o || o->flags & KR_OPTION_COMMAND_LINE) return unknown_key(m, label, what, table);
        KR_TRY(kr_yaml_set(m, label, what, o, to));
    }
    return KR_OK;
}
