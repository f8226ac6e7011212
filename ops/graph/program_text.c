// Tile programs as text: {t0 = silu(x1), t1 = affine(t0, scale=2, shift=0), sum t1 axis=0 axes=2 shape=[10], out t0
// t1}. x0, x1 are the node's inputs, t0, t1 the results of instructions in their order.
#include "ops/graph/text.h"


static void print_register(FILE *to, int r) {
    fprintf(to, r < KR_PROGRAM_INPUTS ? "x%d" : "t%d", r < KR_PROGRAM_INPUTS ? r : r - KR_PROGRAM_INPUTS);
}

void kr_text_program(FILE *to, const kr_node *n) {
    kr_program p;
    kr_program_of(n, &p);
    for (int k = 0; k < p.length; k++) {
        const kr_instruction *c = &p.code[k];
        fprintf(to, "%st%d = %s(", k ? ", " : " {", k, c->op->name);
        for (int j = 0; j < c->op->inputs; j++) {
            if (j) fputs(", ", to);
            print_register(to, c->in[j]);
        }
        for (int j = 0; c->op->attr.r[j]; j++) {
            fprintf(to, ", %s=", c->op->attr.r[j]);
            kr_text_real(to, j ? c->b : c->a);
        }
        putc(')', to);
    }
    if (p.sums) {
        fputs(", sum ", to);
        print_register(to, p.summed);
        fprintf(to, " axis=%d axes=%d shape=[", p.axis, p.axes);
        for (int k = 0; k < p.sum_shape.rank; k++) fprintf(to, "%s%lld", k ? "," : "", (long long)p.sum_shape.dim[k]);
        putc(']', to);
    }
    if (p.outputs) fputs(", out", to);
    for (int k = 0; k < p.outputs; k++) {
        putc(' ', to);
        print_register(to, p.out[k]);
    }
    putc('}', to);
}

// Reading ---------------------------------------------------------------------------------------------------------

/// A letter and the number behind it.
static kr_status read_numbered(kr_reader *r, const char *what, char *letter, int *number) {
    char word[64];
    kr_reader_skip(r);
    const char *where = r->at;
    KR_TRY(kr_reader_word(r, what, word));
    int n = 0, digits = 0;
    for (; kr_is_digit(word[1 + digits]) && digits < 3; digits++) n = 10 * n + (word[1 + digits] - '0');
    KR_WRONG_IF(!digits || word[1 + digits], where, "expected %s, found '%s'", what, word);
    *letter = word[0];
    *number = n;
    return KR_OK;
}

/// "x1" or "t3", one of the results so far.
static kr_status read_register(kr_reader *r, int results, int *out) {
    char letter = 0;
    int number = 0;
    kr_reader_skip(r);
    const char *where = r->at;
    KR_TRY(read_numbered(r, "a register such as x0 or t0", &letter, &number));
    KR_WRONG_IF(letter != 'x' && letter != 't', where, "expected a register such as x0 or t0, found '%c%d'", letter,
                number);
    KR_WRONG_IF(letter == 'x' && number >= KR_PROGRAM_INPUTS, where, "a program has at most %d inputs",
                KR_PROGRAM_INPUTS);
    KR_WRONG_IF(letter == 't' && number >= results, where, "t%d is read before it is defined", number);
    *out = letter == 'x' ? number : KR_PROGRAM_INPUTS + number;
    return KR_OK;
}

/// t0 = op(x0, x1, lo=0, hi=1)
static kr_status read_instruction(kr_reader *r, kr_program *p) {
    kr_instruction *c = &p->code[p->length];
    char letter = 0, name[64];
    int number = 0;
    kr_reader_skip(r);
    const char *where = r->at;
    KR_WRONG_IF(p->length == KR_PROGRAM_LENGTH, where, "a program has at most %d instructions", KR_PROGRAM_LENGTH);
    KR_TRY(read_numbered(r, "a result such as t0, sum or out", &letter, &number));
    KR_WRONG_IF(letter != 't' || number != p->length, where, "expected the result t%d", p->length);
    KR_TRY(kr_reader_expect(r, '=', "after a result"));
    kr_reader_skip(r);
    where = r->at;
    KR_TRY(kr_reader_word(r, "the name of an elementwise op", name));
    *c = (kr_instruction){.op = kr_op_find(name)};
    KR_WRONG_IF(!c->op || !kr_program_takes(c->op, NULL), where, "'%s' is not an elementwise op, which programs are made of",
                name);
    KR_TRY(kr_reader_expect(r, '(', "after the name of an op"));
    for (int j = 0; j < c->op->inputs; j++) {
        if (j) KR_TRY(kr_reader_expect(r, ',', "before the next operand"));
        KR_TRY(read_register(r, p->length, &c->in[j]));
    }
    for (int j = 0; c->op->attr.r[j]; j++) {
        KR_TRY(kr_reader_expect(r, ',', "before a constant"));
        KR_WRONG_IF(!kr_reader_take_word(r, c->op->attr.r[j]), r->at, "expected %s=", c->op->attr.r[j]);
        KR_TRY(kr_reader_expect(r, '=', "after the name of a constant"));
        KR_TRY(kr_reader_real(r, "a number", j ? &c->b : &c->a));
    }
    KR_TRY(kr_reader_expect(r, ')', "after the operands"));
    p->length++;
    return KR_OK;
}

static kr_status read_named_integer(kr_reader *r, const char *name, int *out) {
    int64_t value;
    KR_WRONG_IF(!kr_reader_take_word(r, name), r->at, "expected %s=", name);
    KR_TRY(kr_reader_expect(r, '=', "after the name of a number"));
    kr_reader_skip(r);
    const char *where = r->at;
    KR_TRY(kr_reader_integer(r, "an integer", &value));
    KR_WRONG_IF(value < 0 || value > KR_MAX_RANK, where, "%s is %lld, want 0 to %d", name, (long long)value,
                KR_MAX_RANK);
    *out = (int)value;
    return KR_OK;
}

static kr_status read_sum(kr_reader *r, kr_program *p) {
    p->sums = true;
    KR_TRY(read_register(r, p->length, &p->summed));
    KR_TRY(read_named_integer(r, "axis", &p->axis));
    KR_TRY(read_named_integer(r, "axes", &p->axes));
    KR_WRONG_IF(!kr_reader_take_word(r, "shape"), r->at, "expected shape=");
    KR_TRY(kr_reader_expect(r, '=', "after shape"));
    return kr_reader_dims(r, &p->sum_shape, true);
}

static kr_status read_outputs(kr_reader *r, kr_program *p) {
    do {
        KR_WRONG_IF(p->outputs == KR_PROGRAM_OUTPUTS, r->at, "a program puts out at most %d results",
                    KR_PROGRAM_OUTPUTS);
        KR_TRY(read_register(r, p->length, &p->out[p->outputs++]));
        kr_reader_skip(r);
    } while (r->at < r->end && *r->at == 't');
    return KR_OK;
}

kr_status kr_reader_program(kr_reader *r, kr_attrs *attrs) {
    kr_program p = {0};
    KR_TRY(kr_reader_expect(r, '{', "before a program"));
    kr_reader_skip(r);
    const char *start = r->at;
    do {
        if (!p.sums && kr_reader_take_word(r, "sum")) KR_TRY(read_sum(r, &p));
        else if (kr_reader_take_word(r, "out")) {
            KR_TRY(read_outputs(r, &p));
            break;
        } else KR_TRY(read_instruction(r, &p));
    } while (kr_reader_take(r, ','));
    KR_TRY(kr_reader_expect(r, '}', "after a program"));
    KR_WRONG_IF(!kr_program_pack(&p, attrs), start, "the program has more than %d instructions with constants",
                KR_PROGRAM_REALS);
    return KR_OK;
}
