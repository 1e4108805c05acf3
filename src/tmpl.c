/* tmpl.c - chat templates: a bounded interpreter for the Jinja subset that published ones use.
 *
 * Owns:      one arena per rendering, given back before it returns; the caller owns the TmplOut.
 * Stands on: base mem json utf8
 * Promises:  no attribute reaches outside the template's own values; work, memory, output and nesting
 *            are limited; every output byte carries a flag that says whether the template wrote it (1)
 *            or a message did (0), through every operation.
 *
 * A template is compiled in one pass to a flat array of instructions for a stack machine, which runs
 * in one loop. Statements nest on an explicit stack. Only two things recurse, both behind a counter
 * that refuses at TMPL_DEPTH_MAX, which bounds the C stack they take to some 100 KiB: the expression
 * parser, and walking a value that holds values (equality, printing, tojson). White space is treated
 * as transformers does: trim_blocks and lstrip_blocks on. Undefined names print as nothing, as in
 * Jinja. Known differences: upper, lower and title change ASCII letters only; strftime_now is UTC;
 * generators (select, map, items ...) are lists; a chain of comparisons is refused. */
#ifndef DLM_TMPL_C
#define DLM_TMPL_C

#include "base.c"
#include "json.c"
#include "mem.c"
#include "utf8.c"

#define TMPL_SOURCE_MAX ((size_t)1 << 20) /* bytes of template text */
#define TMPL_OUTPUT_MAX ((size_t)64 << 20)
#define TMPL_MEMORY_BASE ((u64)64 << 20) /* bytes, and TMPL_PER_BYTE more for each byte of input */
#define TMPL_WORK_BASE ((u64)256 << 20)  /* about a byte touched; an instruction counts as 32 */
#define TMPL_PER_BYTE 64u
#define TMPL_NODE_BYTES 4u  /* that a value of JSON counts for: two bytes at least, and its text */
#define TMPL_DEPTH_MAX 64u  /* nested expressions; values in values */
#define TMPL_BLOCKS_MAX 48u /* nested statements */
#define TMPL_STACK_MAX 512u /* values on the machine's stack */
#define TMPL_VARS_MAX 512u
#define TMPL_SCOPES_MAX 96u
#define TMPL_LOOPS_MAX 64u
#define TMPL_FRAMES_MAX 32u /* macro calls within macro calls */
#define TMPL_NAMES_MAX 1024u
#define TMPL_CODE_MAX 262144u
#define TMPL_ARGS_MAX 32u   /* of one call */
#define TMPL_PARAMS_MAX 16u /* of one macro */
#define TMPL_TARGETS_MAX 8u /* names in `for a, b` and `set a, b` */
#define TMPL_LIST_MAX ((u32)1 << 20)
/* Bytes of the first chunk of memory, each next one being twice as large, and of the largest. Most templates
 * need the first or two, and musl's malloc gives larger blocks back to the system each time. */
#define TMPL_CHUNK ((u64)4 << 10)
#define TMPL_CHUNK_MAX ((u64)24 << 10)

/* A value in a document of JSON that outlives the rendering; no document, no value. */
typedef struct {
    const JsonDoc *doc;
    u32 node;
} TmplData;

/* All of a message but its role is untrusted. */
typedef struct {
    Str role, content;
    TmplData content_data; /* in place of `content`: null, or a list of parts */
    /* An object: what else the message has, as tool_calls, tool_call_id, name. Its "role" and "content"
     * are passed over. A string under "arguments" that spells an object is that object, which is what
     * templates expect and clients do not send. */
    TmplData more;
} TmplMsg;

static TmplMsg tmpl_msg(Str role, Str content) {
    return (TmplMsg){.role = role, .content = content};
}

typedef struct {
    Str bos_token, eos_token;
    bool add_generation_prompt;
    i64 now_unix;   /* seconds; what strftime_now sees */
    TmplData tools; /* a list, or none */
    TmplData more;  /* an object: further variables, as enable_thinking; ours hold before them */
} TmplVars;

typedef struct {
    Buf text;
    Buf trust; /* [text.n]: 1 = written by the template, 0 = came from a message */
} TmplOut;

/* ---- values ---- */

typedef enum {
    TMPL_UNDEFINED, /* s is the name, for messages */
    TMPL_NONE,
    TMPL_BOOL,
    TMPL_INT,
    TMPL_FLOAT,
    TMPL_STR,
    TMPL_LIST,
    TMPL_TUPLE,
    TMPL_DICT,
    TMPL_NAMESPACE,
    TMPL_LOOP,
    TMPL_MACRO,
    TMPL_FUNC
} TmplKind_;

static const char *const TMPL_KINDS_[] = {
    "undefined", "none",   "a bool",      "an int", "a float", "a string",  "a list",
    "a tuple",   "a dict", "a namespace", "a loop", "a macro", "a function"};

/* A string and the trust of its bytes: [n] flags, or one of two marks for all alike. */
typedef struct {
    const char *p;
    size_t n;
    const u8 *trust; /* [n], or NULL: none trusted, or &tmpl_trusted_: all */
} TmplStr_;

static const u8 tmpl_trusted_ = 1;

typedef struct TmplList_ TmplList_;
typedef struct TmplDict_ TmplDict_;
typedef struct TmplLoop_ TmplLoop_;
typedef struct TmplMacro_ TmplMacro_;

typedef struct {
    TmplKind_ kind;
    bool tainted; /* a number that was read out of untrusted text */
    union {
        bool b;
        i64 i;
        f64 f;
        TmplStr_ s;
        TmplList_ *list;
        TmplDict_ *dict;
        TmplLoop_ *loop;
        const TmplMacro_ *macro;
        u32 func; /* index into TMPL_FUNCS_ */
    };
} TmplVal_;

struct TmplList_ {
    TmplVal_ *v; /* [n] */
    u32 n, cap;
};

typedef struct {
    TmplVal_ key, value;
} TmplPair_;

struct TmplDict_ {
    TmplPair_ *v; /* [n], in order of insertion */
    u32 n, cap;
};

struct TmplLoop_ {
    const TmplList_ *items;
    u32 i;
    TmplList_ *kept; /* the filter of `for x in xs if c`: what passed; NULL in a real loop */
    TmplVal_ last;   /* of loop.changed() */
    bool has_last;
};

struct TmplMacro_ {
    Str name;
    u32 entry; /* instruction */
    u32 n_params;
    u32 params[TMPL_PARAMS_MAX]; /* name ids */
};

/* ---- instructions ---- */

typedef enum {
    OP_TEXT_,     /* emits constant a */
    OP_EMIT_,     /* emits the top */
    OP_CONST_,    /* pushes constant a */
    OP_NAME_,     /* pushes the variable a */
    OP_STORE_,    /* variable a = top, in the innermost scope */
    OP_STORE_NS_, /* stack: value, namespace; namespace.a = value */
    OP_UNPACK_,   /* top, a sequence of a values -> those, first on top */
    OP_ATTR_,     /* top.a */
    OP_ITEM_,     /* stack: object, key -> object[key] */
    OP_SLICE_,    /* stack: object, from, to, step */
    OP_LIST_,     /* a values -> a list */
    OP_TUPLE_,
    OP_DICT_, /* a pairs -> a dict */
    OP_NOT_,
    OP_NEG_,
    OP_POS_,
    OP_BINARY_,     /* a: TmplBinary_ */
    OP_JUMP_,       /* by a, relative to the next instruction, as all jumps */
    OP_JUMP_FALSE_, /* pops */
    OP_AND_,        /* top is false: jump and keep it; else pop */
    OP_OR_,
    OP_FILTER_,    /* a: index into TMPL_FILTERS_; stack: value, arguments */
    OP_TEST_,      /* a: index into TMPL_TESTS_ */
    OP_CALL_,      /* stack: callee, arguments */
    OP_METHOD_,    /* a: name; stack: object, arguments */
    OP_FOR_,       /* pops a sequence and begins to loop; nothing in it: jump by a */
    OP_STEP_,      /* opens a scope, pushes the item */
    OP_NEXT_,      /* closes the scope; more: jump by a, else the loop ends */
    OP_BREAK_,     /* closes scope and loop, jumps by a */
    OP_PICK_,      /* pops a sequence and begins to filter it */
    OP_PICK_STEP_, /* as STEP; none left: pushes the list of those kept, jumps by a */
    OP_PICK_NEXT_, /* pops a condition: keeps the item or not; jumps by a */
    OP_CAPTURE_,   /* output goes to a string, in a scope */
    OP_CAPTURED_,  /* pushes that string */
    OP_MACRO_, /* pushes constant a, a macro, whose body begins at the instruction after the next */
    OP_DEFAULT_, /* parameter n_pos of the macro was given: jump by a */
    OP_RETURN_,
    OP_UNSUPPORTED_ /* refuses: constant a is the construct */
} TmplOp_;

typedef enum {
    BIN_ADD_,
    BIN_SUB_,
    BIN_MUL_,
    BIN_DIV_,
    BIN_FLOORDIV_,
    BIN_MOD_,
    BIN_POW_,
    BIN_CONCAT_,
    BIN_EQ_,
    BIN_NE_,
    BIN_LT_,
    BIN_LE_,
    BIN_GT_,
    BIN_GE_,
    BIN_IN_,
    BIN_NOT_IN_,
    BIN_AND_,
    BIN_OR_
} TmplBinary_;

typedef struct {
    u8 op;          /* TmplOp_ */
    u8 n_pos, n_kw; /* arguments: n_pos values, then n_kw pairs of name and value */
    i32 a;
    u32 at; /* byte of the source, for messages */
} TmplIns_;

/* ---- the state of one rendering ---- */

typedef struct TmplChunk_ {
    struct TmplChunk_ *next;
    u64 used, cap; /* bytes behind the header */
} TmplChunk_;
#define TMPL_CHUNK_HEAD (sizeof(TmplChunk_) + 8)
_Static_assert(TMPL_CHUNK_HEAD % 16 == 0, "what lies behind the header is aligned as the chunk");

typedef struct {
    u32 name;
    TmplVal_ v;
} TmplVar_;

typedef struct {
    u32 ret;                  /* instruction */
    u32 vars;                 /* where the frame's variables begin */
    u32 scopes, loops, stack; /* to be restored */
    size_t mark;              /* of the output it captures */
    u32 given;                /* bit i: parameter i was passed */
} TmplFrame_;

typedef enum { TOK_END_, TOK_NAME_, TOK_STR_, TOK_INT_, TOK_FLOAT_, TOK_OP_ } TmplTokKind_;

typedef struct {
    TmplTokKind_ kind;
    Str text; /* a string's without its quotes, escapes undecoded */
    u32 at;
} TmplTok_;

typedef enum { BLOCK_IF_, BLOCK_FOR_, BLOCK_MACRO_, BLOCK_SET_, BLOCK_GENERATION_ } TmplBlockKind_;

#define TMPL_NO_PATCH_ UINT32_MAX

/* A statement that is open while its body is compiled. */
typedef struct {
    TmplBlockKind_ kind;
    u32 at;
    u32 skip; /* the jump that leaves this branch (or the loop, when there is nothing to loop over) */
    u32 ends;  /* chain of jumps to the end, through their `a` */
    u32 nexts; /* for: chain of `continue`s */
    u32 top;   /* for: the OP_STEP_ */
    bool in_else;
    u32 name; /* macro, set */
} TmplBlock_;

typedef struct {
    Err *e;
    Str src; /* normalized: newlines are \n, and not one at the end */
    u32 at;  /* byte of the source that messages name */
    u64 work_left, memory_left;
    TmplChunk_ *chunks;
    const TmplVars *vars_in;

    /* compiler */
    u32 pos;          /* the cursor */
    u32 brackets;     /* open ( [ { in the tag */
    bool in_variable; /* the tag ends with }} rather than %} */
    bool line_start;
    TmplTok_ tok;
    u32 depth;
    TmplBlock_ blocks[TMPL_BLOCKS_MAX];
    u32 n_blocks;
    TmplIns_ *code; /* [n_code] */
    u32 n_code, cap_code;
    TmplVal_ *consts;
    u32 n_consts, cap_consts;
    Str *names; /* [n_names] */
    u32 n_names, cap_names;

    /* machine */
    u32 ip;
    TmplVal_ *stack; /* [n_stack] */
    u32 n_stack, cap_stack;
    TmplVar_ *vars; /* [n_vars] */
    u32 n_vars, cap_vars;
    u32 scopes[TMPL_SCOPES_MAX];   /* n_vars when each was opened */
    size_t marks[TMPL_SCOPES_MAX]; /* where the output of a capture begins */
    u32 n_scopes;
    TmplLoop_ *loops[TMPL_LOOPS_MAX];
    u32 n_loops;
    TmplFrame_ frames[TMPL_FRAMES_MAX];
    u32 n_frames;
    TmplOut *out;
} Tmpl_;

/* ---- failing, working, remembering ---- */

static u32 tmpl_line_(const Tmpl_ *s) {
    u32 line = 1;
    for (u32 i = 0; i < s->at && i < s->src.n; i++) line += s->src.p[i] == '\n';
    return line;
}

PRINTF_LIKE(2, 3)
static bool tmpl_fail_(Tmpl_ *s, const char *fmt, ...) {
    char what[ERR_MSG_MAX - 64];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    return err_set(s->e, ERR_MODEL, "chat template, line %u: %s", tmpl_line_(s), what);
}

/* Accounts for n units of work: about one for each byte looked at. */
static bool tmpl_work_(Tmpl_ *s, u64 n) {
    if (n > s->work_left) {
        s->work_left = 0;
        return tmpl_fail_(s, "the template runs too long");
    }
    s->work_left -= n;
    return true;
}

/* Memory that lives as long as the rendering; zeroed, 16-byte aligned. */
static void *tmpl_alloc_(Tmpl_ *s, u64 n) {
    TmplChunk_ *c = s->chunks;
    if (!align_ok(n, 16, &n) || n > s->memory_left) {
        tmpl_fail_(s, "the template needs too much memory");
        return NULL;
    }
    if (!tmpl_work_(s, n)) return NULL;
    s->memory_left -= n;
    if (n > c->cap - c->used) {
        u64 cap = MAX_OF(n, MIN_OF(2 * c->cap, TMPL_CHUNK_MAX));
        c = mem_alloc(TMPL_CHUNK_HEAD + cap, s->e);
        if (!c) return NULL;
        c->cap = cap;
        c->next = s->chunks;
        s->chunks = c;
    }
    void *p = (u8 *)c + TMPL_CHUNK_HEAD + c->used;
    c->used += n;
    return p;
}

/* Room for one more of `size` bytes in an array; growing leaves the old one to the arena. array: the address
 * of the pointer to it, of whatever type. */
static bool tmpl_grow_(Tmpl_ *s, void *array, u32 *cap, u32 n, size_t size) {
    if (n < *cap) return true;
    u32 bigger = *cap ? *cap * 2 : 8;
    void *old, *q = tmpl_alloc_(s, bigger * size);
    if (!q) return false;
    memcpy(&old, array, sizeof old);
    if (n) memcpy(q, old, n * size);
    memcpy(array, &q, sizeof q);
    *cap = bigger;
    return true;
}

static TmplVal_ tmpl_undefined_(Str name) {
    return (TmplVal_){.kind = TMPL_UNDEFINED, .s = {name.p, name.n, &tmpl_trusted_}};
}

static TmplVal_ tmpl_none_(void) {
    return (TmplVal_){.kind = TMPL_NONE};
}

static TmplVal_ tmpl_bool_(bool b) {
    return (TmplVal_){.kind = TMPL_BOOL, .b = b};
}

static TmplVal_ tmpl_int_(i64 i) {
    return (TmplVal_){.kind = TMPL_INT, .i = i};
}

static TmplVal_ tmpl_float_(f64 f) {
    return (TmplVal_){.kind = TMPL_FLOAT, .f = f};
}

static TmplVal_ tmpl_str_(TmplStr_ v) {
    return (TmplVal_){.kind = TMPL_STR, .s = v};
}

/* Text of the template itself, or of a message. */
static TmplVal_ tmpl_text_(Str text, bool trusted) {
    return tmpl_str_((TmplStr_){text.p, text.n, trusted ? &tmpl_trusted_ : NULL});
}

static Str tmpl_bytes_(TmplStr_ v) {
    return (Str){v.p, v.n};
}

static bool tmpl_trusts_(TmplStr_ v, size_t i) {
    return v.trust && (v.trust == &tmpl_trusted_ || v.trust[i]);
}

static bool tmpl_all_trusted_(TmplStr_ v) {
    size_t i = 0;
    while (i < v.n && tmpl_trusts_(v, i)) i++;
    return i == v.n;
}

static TmplStr_ tmpl_cut_(TmplStr_ v, size_t from, size_t to) {
    Str cut = str_cut(tmpl_bytes_(v), from, to);
    bool marked = !v.trust || v.trust == &tmpl_trusted_;
    return (TmplStr_){cut.p, cut.n, marked ? v.trust : v.trust + (cut.p - v.p)};
}

static TmplList_ *tmpl_list_new_(Tmpl_ *s, u32 cap) {
    TmplList_ *list = tmpl_alloc_(s, sizeof *list);
    if (!list) return NULL;
    list->v = cap ? tmpl_alloc_(s, (u64)cap * sizeof *list->v) : NULL;
    list->cap = cap;
    return !cap || list->v ? list : NULL;
}

static bool tmpl_list_add_(Tmpl_ *s, TmplList_ *list, TmplVal_ v) {
    if (list->n >= TMPL_LIST_MAX)
        return tmpl_fail_(s, "a list grows beyond %u values", TMPL_LIST_MAX);
    if (!tmpl_grow_(s, &list->v, &list->cap, list->n, sizeof v)) return false;
    list->v[list->n++] = v;
    return true;
}

static TmplVal_ tmpl_list_(TmplList_ *list) {
    return (TmplVal_){.kind = TMPL_LIST, .list = list};
}

/* ---- output, and strings built through it ----
 *
 * There is one output. What has to become a string (a macro's text, join, tojson ...) is written behind
 * a mark and cut off again. */

static bool tmpl_put_(Tmpl_ *s, TmplStr_ v) {
    Buf *text = &s->out->text, *trust = &s->out->trust;
    if (v.n == 0) return true;
    if (!tmpl_work_(s, v.n)) return false;
    buf_put(text, v.p, v.n);
    if (!v.trust || v.trust == &tmpl_trusted_) {
        if (buf_reserve(trust, v.n)) {
            memset(trust->p + trust->n, v.trust != NULL, v.n);
            trust->n += v.n;
        }
    } else {
        buf_put(trust, v.trust, v.n);
    }
    return buf_ok(text, "the text of the chat template", s->e) &&
           buf_ok(trust, "the text of the chat template", s->e);
}

static bool tmpl_put_text_(Tmpl_ *s, Str text, bool trusted) {
    return tmpl_put_(s, tmpl_text_(text, trusted).s);
}

static size_t tmpl_mark_(const Tmpl_ *s) {
    return s->out->text.n;
}

/* Takes what was written since the mark as a string. */
static bool tmpl_cut_output_(Tmpl_ *s, size_t mark, TmplVal_ *out) {
    Buf *text = &s->out->text, *trust = &s->out->trust;
    size_t n = text->n - mark, ones = 0;
    *out = tmpl_text_(STR(""), true);
    if (n == 0) return true;
    const u8 *flags = (const u8 *)trust->p + mark;
    for (size_t i = 0; i < n; i++) ones += flags[i];
    char *p = tmpl_alloc_(s, n);
    u8 *copy = ones && ones < n ? tmpl_alloc_(s, n) : NULL;
    if (!p || (ones && ones < n && !copy)) return false;
    memcpy(p, text->p + mark, n);
    if (copy) memcpy(copy, flags, n);
    text->n = trust->n = mark;
    *out = tmpl_str_((TmplStr_){p, n, copy ? copy : ones ? &tmpl_trusted_ : NULL});
    return true;
}

/* ---- what Python's str() and repr() print ---- */

/* Shortest spelling that reads back; a float shows that it is one. */
static void tmpl_spell_float_(f64 v, char out[48]) {
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(out, 40, "%.*g", digits, v);
        if (!(v - v == 0) || strtod(out, NULL) == v) break;
    }
    size_t n = strlen(out);
    if (!strpbrk(out, ".en")) memcpy(out + n, ".0", 3);
}

static bool tmpl_put_number_(Tmpl_ *s, const TmplVal_ *v) {
    char z[48];
    if (v->kind == TMPL_INT)
        snprintf(z, sizeof z, "%lld", (long long)v->i);
    else
        tmpl_spell_float_(v->f, z);
    return tmpl_put_text_(s, str_of(z), !v->tainted);
}

/* One character of a Python string literal. */
static bool tmpl_put_repr_char_(Tmpl_ *s, TmplStr_ one, u32 cp, char quote) {
    static const u32 hidden = UTF8_BITS(UTF8_ZS, UTF8_ZP) | 1u << UTF8_CN | 1u << UTF8_CC |
                              1u << UTF8_CF | 1u << UTF8_CS | 1u << UTF8_CO | 1u << UTF8_CW;
    const char *letter = cp == '\n'   ? "\\n"
                         : cp == '\r' ? "\\r"
                         : cp == '\t' ? "\\t"
                         : cp == '\\' ? "\\\\"
                                      : NULL;
    char z[16];
    if (cp == (u32)quote)
        snprintf(z, sizeof z, "\\%c", quote);
    else if (letter)
        snprintf(z, sizeof z, "%s", letter);
    else if (cp == ' ' || !(utf8_class(cp) & hidden))
        return tmpl_put_(s, one);
    else
        snprintf(z, sizeof z, cp < 0x100 ? "\\x%02x" : cp < 0x10000 ? "\\u%04x" : "\\U%08x", cp);
    return tmpl_put_text_(s, str_of(z), tmpl_trusts_(one, 0));
}

static bool tmpl_put_repr_str_(Tmpl_ *s, TmplStr_ v) {
    Str all = tmpl_bytes_(v);
    char quote = memchr(v.n ? v.p : "", '\'', v.n) && !memchr(v.p, '"', v.n) ? '"' : '\'';
    if (!tmpl_put_text_(s, (Str){&quote, 1}, true)) return false;
    for (size_t i = 0; i < v.n;) {
        size_t from = i;
        u32 cp = utf8_next(all, &i);
        if (!tmpl_put_repr_char_(s, tmpl_cut_(v, from, i), cp, quote)) return false;
    }
    return tmpl_put_text_(s, (Str){&quote, 1}, true);
}

static bool tmpl_enter_(Tmpl_ *s) {
    if (s->depth >= TMPL_DEPTH_MAX)
        return tmpl_fail_(s, "nested more than %u deep", TMPL_DEPTH_MAX);
    s->depth++;
    return tmpl_work_(s, 32);
}

static bool tmpl_put_repr_(Tmpl_ *s, const TmplVal_ *v);

/* Recurses through tmpl_put_repr_, which counts the depth. */
static bool tmpl_put_sequence_(Tmpl_ *s, const TmplVal_ *v) {
    bool dict = v->kind == TMPL_DICT, list = v->kind == TMPL_LIST;
    u32 n = dict ? v->dict->n : v->list->n;
    if (!tmpl_put_text_(s, dict ? STR("{") : list ? STR("[") : STR("("), true)) return false;
    for (u32 i = 0; i < n; i++) {
        if (i && !tmpl_put_text_(s, STR(", "), true)) return false;
        if (dict && !(tmpl_put_repr_(s, &v->dict->v[i].key) && tmpl_put_text_(s, STR(": "), true)))
            return false;
        if (!tmpl_put_repr_(s, dict ? &v->dict->v[i].value : &v->list->v[i])) return false;
    }
    Str close = dict ? STR("}") : list ? STR("]") : n == 1 ? STR(",)") : STR(")");
    return tmpl_put_text_(s, close, true);
}

/* str(v): strings as they are, the rest as Python prints them. */
static bool tmpl_put_value_(Tmpl_ *s, const TmplVal_ *v) {
    switch (v->kind) {
    case TMPL_UNDEFINED: return true;
    case TMPL_NONE: return tmpl_put_text_(s, STR("None"), true);
    case TMPL_BOOL: return tmpl_put_text_(s, v->b ? STR("True") : STR("False"), true);
    case TMPL_INT:
    case TMPL_FLOAT: return tmpl_put_number_(s, v);
    case TMPL_STR: return tmpl_put_(s, v->s);
    case TMPL_LIST:
    case TMPL_TUPLE:
    case TMPL_DICT: return tmpl_put_sequence_(s, v);
    default: return tmpl_fail_(s, "cannot print %s", TMPL_KINDS_[v->kind]);
    }
}

static bool tmpl_put_repr_(Tmpl_ *s, const TmplVal_ *v) {
    if (!tmpl_enter_(s)) return false;
    bool ok = v->kind == TMPL_STR         ? tmpl_put_repr_str_(s, v->s)
              : v->kind == TMPL_UNDEFINED ? tmpl_put_text_(s, STR("Undefined"), true)
                                          : tmpl_put_value_(s, v);
    s->depth--;
    return ok;
}

/* str(v) as a string. */
static bool tmpl_to_str_(Tmpl_ *s, const TmplVal_ *v, TmplStr_ *out) {
    TmplVal_ made;
    if (v->kind == TMPL_STR) {
        *out = v->s;
        return true;
    }
    size_t mark = tmpl_mark_(s);
    if (!tmpl_put_value_(s, v) || !tmpl_cut_output_(s, mark, &made)) return false;
    *out = made.s;
    return true;
}

/* ---- truth, equality, order, membership ---- */

static bool tmpl_true_(const TmplVal_ *v) {
    switch (v->kind) {
    case TMPL_UNDEFINED:
    case TMPL_NONE: return false;
    case TMPL_BOOL: return v->b;
    case TMPL_INT: return v->i != 0;
    case TMPL_FLOAT: return v->f != 0;
    case TMPL_STR: return v->s.n != 0;
    case TMPL_LIST:
    case TMPL_TUPLE: return v->list->n != 0;
    case TMPL_DICT: return v->dict->n != 0;
    default: return true;
    }
}

static bool tmpl_is_number_(const TmplVal_ *v) {
    return v->kind == TMPL_BOOL || v->kind == TMPL_INT || v->kind == TMPL_FLOAT;
}

static i64 tmpl_as_int_(const TmplVal_ *v) {
    return v->kind == TMPL_BOOL ? v->b : v->i;
}

static f64 tmpl_as_float_(const TmplVal_ *v) {
    return v->kind == TMPL_FLOAT ? v->f : (f64)tmpl_as_int_(v);
}

static bool tmpl_equal_(Tmpl_ *s, const TmplVal_ *a, const TmplVal_ *b, bool *out);

/* Recurses through tmpl_equal_, which counts the depth. */
static bool tmpl_equal_dicts_(Tmpl_ *s, const TmplDict_ *a, const TmplDict_ *b, bool *out) {
    *out = a->n == b->n;
    for (u32 i = 0; *out && i < a->n; i++) {
        bool same = false;
        for (u32 j = 0; !same && j < b->n; j++) {
            if (!tmpl_equal_(s, &a->v[i].key, &b->v[j].key, &same)) return false;
            if (same && !tmpl_equal_(s, &a->v[i].value, &b->v[j].value, out)) return false;
        }
        if (!same) *out = false;
    }
    return true;
}

static bool tmpl_equal_lists_(Tmpl_ *s, const TmplList_ *a, const TmplList_ *b, bool *out) {
    *out = a->n == b->n;
    for (u32 i = 0; *out && i < a->n; i++)
        if (!tmpl_equal_(s, &a->v[i], &b->v[i], out)) return false;
    return true;
}

static bool tmpl_equal_(Tmpl_ *s, const TmplVal_ *a, const TmplVal_ *b, bool *out) {
    *out = false;
    if (!tmpl_enter_(s)) return false;
    bool ok = true;
    if (tmpl_is_number_(a) && tmpl_is_number_(b)) {
        bool floats = a->kind == TMPL_FLOAT || b->kind == TMPL_FLOAT;
        *out = floats ? tmpl_as_float_(a) == tmpl_as_float_(b) : tmpl_as_int_(a) == tmpl_as_int_(b);
    } else if (a->kind == b->kind) {
        switch (a->kind) {
        case TMPL_UNDEFINED:
        case TMPL_NONE: *out = true; break;
        case TMPL_STR:
            ok = tmpl_work_(s, MIN_OF(a->s.n, b->s.n));
            *out = str_eq(tmpl_bytes_(a->s), tmpl_bytes_(b->s));
            break;
        case TMPL_LIST:
        case TMPL_TUPLE: ok = tmpl_equal_lists_(s, a->list, b->list, out); break;
        case TMPL_DICT: ok = tmpl_equal_dicts_(s, a->dict, b->dict, out); break;
        default: *out = a->dict == b->dict; /* the same object */
        }
    }
    s->depth--;
    return ok;
}

/* a < b, a <= b ... UTF-8 sorts by bytes as it does by code points. */
static bool tmpl_order_(Tmpl_ *s, TmplBinary_ op, const TmplVal_ *a, const TmplVal_ *b, bool *out) {
    int c;
    if (tmpl_is_number_(a) && tmpl_is_number_(b)) {
        if (a->kind != TMPL_FLOAT && b->kind != TMPL_FLOAT) {
            i64 x = tmpl_as_int_(a), y = tmpl_as_int_(b);
            c = (x > y) - (x < y);
        } else {
            f64 x = tmpl_as_float_(a), y = tmpl_as_float_(b);
            c = (x > y) - (x < y);
        }
    } else if (a->kind == TMPL_STR && b->kind == TMPL_STR) {
        size_t n = MIN_OF(a->s.n, b->s.n);
        if (!tmpl_work_(s, n)) return false;
        c = n ? memcmp(a->s.p, b->s.p, n) : 0;
        if (!c) c = (a->s.n > b->s.n) - (a->s.n < b->s.n);
    } else {
        return tmpl_fail_(s, "cannot order %s and %s", TMPL_KINDS_[a->kind], TMPL_KINDS_[b->kind]);
    }
    *out = op == BIN_LT_ ? c < 0 : op == BIN_LE_ ? c <= 0 : op == BIN_GT_ ? c > 0 : c >= 0;
    return true;
}

/* Where `needle` is in v at or after `from`, else SIZE_MAX. What is compared is accounted for: both
 * strings can be a user's, and made to almost match everywhere. */
static bool tmpl_search_(Tmpl_ *s, Str hay, Str needle, size_t from, size_t *out) {
    *out = SIZE_MAX;
    if (needle.n > hay.n || from > hay.n - needle.n) return true;
    if (!tmpl_work_(s, 8)) return false;
    if (needle.n == 0) {
        *out = from;
        return true;
    }
    size_t last = hay.n - needle.n;
    for (size_t i = from; i <= last; i++) {
        const char *hit = memchr(hay.p + i, needle.p[0], last - i + 1);
        size_t next = hit ? (size_t)(hit - hay.p) : last + 1;
        if (!tmpl_work_(s, next - i + (hit ? needle.n : 0))) return false;
        if (!hit) return true;
        i = next;
        if (memcmp(hit, needle.p, needle.n) == 0) {
            *out = i;
            return true;
        }
    }
    return true;
}

/* dict[key]: NULL in *out when absent. */
static bool tmpl_dict_find_(Tmpl_ *s, const TmplDict_ *d, const TmplVal_ *key, TmplVal_ **out) {
    *out = NULL;
    for (u32 i = 0; i < d->n; i++) {
        bool same;
        if (!tmpl_equal_(s, &d->v[i].key, key, &same)) return false;
        if (!same) continue;
        *out = &d->v[i].value;
        return true;
    }
    return true;
}

static bool tmpl_dict_put_(Tmpl_ *s, TmplDict_ *d, TmplVal_ key, TmplVal_ value) {
    TmplVal_ *old;
    if (!tmpl_dict_find_(s, d, &key, &old)) return false;
    if (old) {
        *old = value;
        return true;
    }
    if (d->n >= TMPL_LIST_MAX) return tmpl_fail_(s, "a dict grows beyond %u pairs", TMPL_LIST_MAX);
    if (!tmpl_grow_(s, &d->v, &d->cap, d->n, sizeof *d->v)) return false;
    d->v[d->n++] = (TmplPair_){key, value};
    return true;
}

/* ---- values out of JSON ---- */

static bool tmpl_json_value_(Tmpl_ *s, const JsonDoc *d, u32 node, bool copy, TmplVal_ *out) {
    Str text;
    bool flag = false;
    switch (json_type(d, node)) {
    case JSON_BOOL:
        json_bool(d, node, &flag);
        *out = tmpl_bool_(flag);
        return true;
    case JSON_STRING:
        json_str(d, node, &text);
        if (copy && text.n) {
            char *p = tmpl_alloc_(s, text.n);
            if (!p) return false;
            text.p = memcpy(p, text.p, text.n);
        }
        *out = tmpl_text_(text, false);
        return true;
    case JSON_NUMBER:
        text = d->nodes[node].text;
        out->tainted = true;
        out->kind = TMPL_FLOAT;
        for (size_t i = 0; i < text.n; i++)
            if (strchr(".eE", text.p[i]))
                return json_f64(d, node, &out->f) ||
                       tmpl_fail_(s, "a number that does not fit: %.*s", STR_ARG(text));
        out->kind = TMPL_INT;
        return json_i64(d, node, &out->i) ||
               tmpl_fail_(s, "a number that does not fit 64 bits: %.*s", STR_ARG(text));
    case JSON_ARRAY:
        *out = tmpl_list_(tmpl_list_new_(s, json_count(d, node)));
        return out->list != NULL;
    case JSON_OBJECT:
        *out = (TmplVal_){.kind = TMPL_DICT, .dict = tmpl_alloc_(s, sizeof *out->dict)};
        if (!out->dict) return false;
        out->dict->cap = json_count(d, node);
        out->dict->v = tmpl_alloc_(s, (u64)out->dict->cap * sizeof *out->dict->v);
        return out->dict->v != NULL;
    default: *out = tmpl_none_(); return true;
    }
}

static bool tmpl_from_json_(Tmpl_ *s, const JsonDoc *d, u32 node, bool copy, TmplVal_ *out);

/* A string that spells an object of JSON becomes it; any other stays. */
static bool tmpl_arguments_(Tmpl_ *s, TmplVal_ *v) {
    JsonDoc doc = {0};
    Str text = tmpl_bytes_(v->s);
    if (text.n == 0 || !tmpl_work_(s, 4 * (u64)text.n)) return text.n == 0;
    Err e = {0};
    bool parsed = json_parse(&doc, text, &e), ok = true;
    if (e.code == ERR_MEMORY) return err_set(s->e, e.code, "%s", e.msg);
    if (parsed && json_type(&doc, 0) == JSON_OBJECT) ok = tmpl_from_json_(s, &doc, 0, true, v);
    json_free(&doc);
    return ok;
}

/* Nothing in it is trusted. copy: the document is gone before the value, and an inner one, whose
 * "arguments" stay as they are. Nodes lie in document order: what is open waits on a stack. */
static bool tmpl_from_json_(Tmpl_ *s, const JsonDoc *d, u32 node, bool copy, TmplVal_ *out) {
    struct {
        TmplVal_ v;
        u32 left; /* values that are still to come */
    } open[JSON_DEPTH_MAX];
    u32 depth = 0;
    do {
        TmplVal_ key = {0}, v = {0};
        bool in_dict = depth && open[depth - 1].v.kind == TMPL_DICT;
        if (in_dict && !tmpl_json_value_(s, d, node++, copy, &key)) return false;
        if (!tmpl_json_value_(s, d, node++, copy, &v)) return false;
        if (in_dict && !copy && v.kind == TMPL_STR &&
            str_eq(tmpl_bytes_(key.s), STR("arguments")) && !tmpl_arguments_(s, &v))
            return false;
        if (depth == 0)
            *out = v;
        else if (in_dict)
            open[depth - 1].v.dict->v[open[depth - 1].v.dict->n++] = (TmplPair_){key, v};
        else
            open[depth - 1].v.list->v[open[depth - 1].v.list->n++] = v;
        if (depth) open[depth - 1].left--;
        u32 inside = json_count(d, node - 1);
        if (inside && json_type(d, node - 1) >= JSON_ARRAY) {
            ASSERT(depth < JSON_DEPTH_MAX);
            open[depth].v = v;
            open[depth++].left = inside;
        }
        while (depth && open[depth - 1].left == 0) depth--;
    } while (depth);
    return true;
}

static bool tmpl_from_data_(Tmpl_ *s, TmplData data, TmplVal_ *out) {
    *out = tmpl_none_();
    return !data.doc || tmpl_from_json_(s, data.doc, data.node, false, out);
}

static bool tmpl_in_(Tmpl_ *s, const TmplVal_ *a, const TmplVal_ *b, bool *out) {
    *out = false;
    if (b->kind == TMPL_UNDEFINED) return true;
    if (b->kind == TMPL_STR) {
        size_t at;
        if (a->kind != TMPL_STR)
            return tmpl_fail_(s, "cannot look for %s in a string", TMPL_KINDS_[a->kind]);
        if (!tmpl_search_(s, tmpl_bytes_(b->s), tmpl_bytes_(a->s), 0, &at)) return false;
        *out = at != SIZE_MAX;
        return true;
    }
    if (b->kind == TMPL_DICT) {
        TmplVal_ *found;
        if (!tmpl_dict_find_(s, b->dict, a, &found)) return false;
        *out = found != NULL;
        return true;
    }
    if (b->kind != TMPL_LIST && b->kind != TMPL_TUPLE)
        return tmpl_fail_(s, "cannot look for a value in %s", TMPL_KINDS_[b->kind]);
    for (u32 i = 0; !*out && i < b->list->n; i++)
        if (!tmpl_equal_(s, a, &b->list->v[i], out)) return false;
    return true;
}

/* ---- sequences ---- */

/* What a `for` sees: a list's values, a dict's keys, a string's characters. */
static bool tmpl_items_(Tmpl_ *s, const TmplVal_ *v, TmplList_ **out) {
    if (v->kind == TMPL_LIST || v->kind == TMPL_TUPLE) {
        *out = v->list;
        return true;
    }
    if (!(*out = tmpl_list_new_(s, 0))) return false;
    if (v->kind == TMPL_UNDEFINED) return true;
    if (v->kind == TMPL_DICT) {
        for (u32 i = 0; i < v->dict->n; i++)
            if (!tmpl_list_add_(s, *out, v->dict->v[i].key)) return false;
        return true;
    }
    if (v->kind != TMPL_STR) return tmpl_fail_(s, "cannot iterate over %s", TMPL_KINDS_[v->kind]);
    for (size_t i = 0; i < v->s.n;) {
        size_t from = i;
        utf8_next(tmpl_bytes_(v->s), &i);
        if (!tmpl_list_add_(s, *out, tmpl_str_(tmpl_cut_(v->s, from, i)))) return false;
    }
    return true;
}

static i64 tmpl_str_length_(TmplStr_ v) {
    i64 n = 0;
    for (size_t i = 0; i < v.n; n++) utf8_next(tmpl_bytes_(v), &i);
    return n;
}

static bool tmpl_length_(Tmpl_ *s, const TmplVal_ *v, i64 *out) {
    switch (v->kind) {
    case TMPL_UNDEFINED: *out = 0; return true;
    case TMPL_STR: *out = tmpl_str_length_(v->s); return tmpl_work_(s, v->s.n);
    case TMPL_LIST:
    case TMPL_TUPLE: *out = v->list->n; return true;
    case TMPL_DICT: *out = v->dict->n; return true;
    default: return tmpl_fail_(s, "%s has no length", TMPL_KINDS_[v->kind]);
    }
}

/* The byte where character i of v begins; i <= its length. */
static size_t tmpl_char_at_(TmplStr_ v, i64 i) {
    size_t at = 0;
    while (i-- > 0) utf8_next(tmpl_bytes_(v), &at);
    return at;
}

static bool tmpl_str_slice_(Tmpl_ *s, TmplStr_ v, i64 from, i64 to, i64 step, TmplVal_ *out) {
    if (step == 1) {
        size_t begin = tmpl_char_at_(v, from);
        *out = tmpl_str_(tmpl_cut_(v, begin, MAX_OF(begin, tmpl_char_at_(v, to))));
        return tmpl_work_(s, v.n);
    }
    TmplVal_ whole = tmpl_str_(v);
    TmplList_ *chars;
    size_t mark = tmpl_mark_(s);
    if (!tmpl_items_(s, &whole, &chars)) return false;
    for (i64 i = from; step > 0 ? i < to : i > to; i += step)
        if (!tmpl_put_(s, chars->v[i].s)) return false;
    return tmpl_cut_output_(s, mark, out);
}

/* A bound of a slice: none, or an int; negative counts from the end. Clamped to [low, high]. */
static bool tmpl_bound_(Tmpl_ *s, const TmplVal_ *v, i64 n, i64 absent, i64 low, i64 high,
                        i64 *out) {
    if (v->kind == TMPL_NONE) {
        *out = absent;
        return true;
    }
    if (v->kind != TMPL_INT && v->kind != TMPL_BOOL)
        return tmpl_fail_(s, "a slice wants ints, not %s", TMPL_KINDS_[v->kind]);
    i64 i = tmpl_as_int_(v);
    if (i < 0) i += n; /* n is small: no overflow from below */
    *out = i < low ? low : i > high ? high : i;
    return true;
}

/* Python's v[from:to:step]; the three arguments stand behind v in `a`. */
static bool tmpl_slice_(Tmpl_ *s, const TmplVal_ *a, TmplVal_ *out) {
    i64 n, step = 1, from = 0, to = 0;
    if (a->kind != TMPL_STR && a->kind != TMPL_LIST && a->kind != TMPL_TUPLE) {
        if (a->kind == TMPL_UNDEFINED)
            return tmpl_fail_(s, "'%.*s' is undefined", STR_ARG(tmpl_bytes_(a->s)));
        *out = tmpl_undefined_(STR("slice"));
        return true;
    }
    if (a[3].kind != TMPL_NONE && a[3].kind != TMPL_INT) return tmpl_fail_(s, "a slice wants ints");
    if (a[3].kind == TMPL_INT) step = a[3].i;
    if (step == 0) return tmpl_fail_(s, "a slice's step is 0");
    if (step > INT32_MAX || step < -INT32_MAX) step = step > 0 ? INT32_MAX : -INT32_MAX;
    i64 low = step > 0 ? 0 : -1, high;
    if (!tmpl_length_(s, a, &n)) return false;
    high = step > 0 ? n : n - 1;
    if (!tmpl_bound_(s, &a[1], n, step > 0 ? low : high, low, high, &from) ||
        !tmpl_bound_(s, &a[2], n, step > 0 ? high : low, low, high, &to))
        return false;
    if (a->kind == TMPL_STR) return tmpl_str_slice_(s, a->s, from, to, step, out);
    TmplList_ *list = tmpl_list_new_(s, 0);
    if (!list) return false;
    for (i64 i = from; step > 0 ? i < to : i > to; i += step)
        if (!tmpl_list_add_(s, list, a->list->v[i])) return false;
    *out = (TmplVal_){.kind = a->kind, .list = list};
    return true;
}

/* loop.name */
static TmplVal_ tmpl_loop_attr_(const TmplLoop_ *l, Str name) {
    i64 i = l->i, n = l->items->n;
    if (str_eq(name, STR("index"))) return tmpl_int_(i + 1);
    if (str_eq(name, STR("index0"))) return tmpl_int_(i);
    if (str_eq(name, STR("revindex"))) return tmpl_int_(n - i);
    if (str_eq(name, STR("revindex0"))) return tmpl_int_(n - i - 1);
    if (str_eq(name, STR("first"))) return tmpl_bool_(i == 0);
    if (str_eq(name, STR("last"))) return tmpl_bool_(i == n - 1);
    if (str_eq(name, STR("length"))) return tmpl_int_(n);
    if (str_eq(name, STR("depth"))) return tmpl_int_(1); /* counts recursive loops only */
    if (str_eq(name, STR("depth0"))) return tmpl_int_(0);
    if (str_eq(name, STR("previtem")) && i > 0) return l->items->v[i - 1];
    if (str_eq(name, STR("nextitem")) && i < n - 1) return l->items->v[i + 1];
    return tmpl_undefined_(name);
}

/* obj.name, which is obj["name"] for what has items. Nothing else is reachable. */
static bool tmpl_attr_(Tmpl_ *s, const TmplVal_ *obj, Str name, TmplVal_ *out) {
    TmplVal_ key = tmpl_text_(name, true), *found = NULL;
    *out = tmpl_undefined_(name);
    if (obj->kind == TMPL_UNDEFINED)
        return tmpl_fail_(s, "'%.*s' is undefined", STR_ARG(tmpl_bytes_(obj->s)));
    if (obj->kind == TMPL_LOOP) *out = tmpl_loop_attr_(obj->loop, name);
    if (obj->kind != TMPL_DICT && obj->kind != TMPL_NAMESPACE) return true;
    if (!tmpl_dict_find_(s, obj->dict, &key, &found)) return false;
    if (found) *out = *found;
    return true;
}

/* obj[key]: undefined when there is no such thing. */
static bool tmpl_item_(Tmpl_ *s, const TmplVal_ *obj, const TmplVal_ *key, TmplVal_ *out) {
    if (key->kind == TMPL_STR) return tmpl_attr_(s, obj, tmpl_bytes_(key->s), out);
    *out = tmpl_undefined_(STR("item"));
    if (obj->kind == TMPL_UNDEFINED)
        return tmpl_fail_(s, "'%.*s' is undefined", STR_ARG(tmpl_bytes_(obj->s)));
    if (obj->kind == TMPL_DICT) {
        TmplVal_ *found;
        if (!tmpl_dict_find_(s, obj->dict, key, &found)) return false;
        if (found) *out = *found;
        return true;
    }
    bool sequence = obj->kind == TMPL_STR || obj->kind == TMPL_LIST || obj->kind == TMPL_TUPLE;
    if (!sequence || (key->kind != TMPL_INT && key->kind != TMPL_BOOL)) return true;
    i64 n, i = tmpl_as_int_(key);
    if (!tmpl_length_(s, obj, &n)) return false;
    if (i < 0) i += n;
    if (i < 0 || i >= n) return true;
    if (obj->kind == TMPL_STR) return tmpl_str_slice_(s, obj->s, i, i + 1, 1, out);
    *out = obj->list->v[i];
    return true;
}

/* ---- filters, methods and functions: v is the value before the bar, dot or parenthesis; arg[i] is the
 * i-th parameter of the table's row, NULL when it was not given ---- */

#define TMPL_ROW_PARAMS_ 5

typedef bool (*TmplFn_)(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg, TmplVal_ *out);

typedef struct {
    const char *name;
    TmplFn_ fn;
    const char *params[TMPL_ROW_PARAMS_]; /* "" takes no keyword */
} TmplRow_;

/* A string argument: `absent` when not given or none. */
static bool tmpl_arg_str_(Tmpl_ *s, const TmplVal_ *a, TmplStr_ absent, TmplStr_ *out) {
    *out = absent;
    if (!a || a->kind == TMPL_NONE) return true;
    if (a->kind != TMPL_STR)
        return tmpl_fail_(s, "a string argument is wanted, not %s", TMPL_KINDS_[a->kind]);
    *out = a->s;
    return true;
}

static bool tmpl_arg_int_(Tmpl_ *s, const TmplVal_ *a, i64 absent, i64 *out) {
    *out = absent;
    if (!a || a->kind == TMPL_NONE) return true;
    if (a->kind != TMPL_INT && a->kind != TMPL_BOOL)
        return tmpl_fail_(s, "an int argument is wanted, not %s", TMPL_KINDS_[a->kind]);
    *out = tmpl_as_int_(a);
    return true;
}

/* Python's str.isspace: White_Space and the four ASCII separators. */
static bool tmpl_space_(u32 cp) {
    return (utf8_class(cp) & UTF8_SPACE) || (cp >= 0x1c && cp <= 0x1f);
}

/* The bytes of v's first or last character if it is to be stripped (white space, or one of `set`),
 * else 0. */
static size_t tmpl_strippable_(Str v, const Str *set, bool front) {
    if (!v.n) return 0;
    size_t from = 0, to = 0;
    if (!front) { /* back over continuation bytes; a damaged tail is a byte at a time */
        from = v.n - 1;
        while (from > 0 && v.n - from < UTF8_MAX && ((u8)v.p[from] & 0xc0) == 0x80) from--;
        to = from;
        utf8_next(v, &to);
        if (to != v.n) from = v.n - 1;
    }
    to = from;
    u32 cp = utf8_next(v, &to);
    if (!set) return tmpl_space_(cp) ? to - from : 0;
    for (size_t i = 0; i < set->n;)
        if (utf8_next(*set, &i) == cp) return to - from;
    return 0;
}

/* When the work that is left does not suffice it is spent, which whoever asks for more is told. */
static TmplStr_ tmpl_strip_side_(Tmpl_ *s, TmplStr_ v, const Str *set, bool front) {
    u64 work = 8 + (set ? set->n : 0);
    for (size_t n; (n = tmpl_strippable_(tmpl_bytes_(v), set, front)) > 0;) {
        if (s->work_left < work) s->work_left = 0;
        if (s->work_left == 0) break;
        s->work_left -= work;
        v = front ? tmpl_cut_(v, n, v.n) : tmpl_cut_(v, 0, v.n - n);
    }
    return v;
}

static bool tmpl_strip_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *chars, bool left, bool right,
                        TmplVal_ *out) {
    TmplStr_ text, given;
    if (!tmpl_to_str_(s, v, &text) || !tmpl_arg_str_(s, chars, (TmplStr_){NULL, 0, NULL}, &given))
        return false;
    Str set = tmpl_bytes_(given);
    if (!tmpl_work_(s, 2 * (u64)set.n)) return false;
    if (left) text = tmpl_strip_side_(s, text, set.p ? &set : NULL, true);
    if (right) text = tmpl_strip_side_(s, text, set.p ? &set : NULL, false);
    *out = tmpl_str_(text);
    return true;
}

static bool tmpl_fn_strip_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg, TmplVal_ *out) {
    return tmpl_strip_(s, v, arg[0], true, true, out);
}

static bool tmpl_fn_lstrip_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg,
                            TmplVal_ *out) {
    return tmpl_strip_(s, v, arg[0], true, false, out);
}

static bool tmpl_fn_rstrip_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg,
                            TmplVal_ *out) {
    return tmpl_strip_(s, v, arg[0], false, true, out);
}

/* ---- letters: ASCII only ---- */

typedef enum { CASE_UPPER_, CASE_LOWER_, CASE_CAPITAL_, CASE_TITLE_, CASE_TITLE_WORDS_ } TmplCase_;

static bool tmpl_is_letter_(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (u8)c >= 0x80;
}

/* Does the byte at i get the upper case? str.title() begins a word after any non-letter, the title
 * filter after a space, a hyphen or an opening bracket. */
static bool tmpl_case_up_(Str v, size_t i, TmplCase_ how) {
    if (how == CASE_UPPER_ || how == CASE_LOWER_) return how == CASE_UPPER_;
    if (i == 0) return true;
    if (how == CASE_TITLE_) return !tmpl_is_letter_(v.p[i - 1]);
    return how == CASE_TITLE_WORDS_ && strchr(" \t\n\r\v\f-({[<", v.p[i - 1]) && v.p[i - 1];
}

static bool tmpl_case_(Tmpl_ *s, const TmplVal_ *v, TmplCase_ how, TmplVal_ *out) {
    TmplStr_ text;
    if (!tmpl_to_str_(s, v, &text)) return false;
    char *p = tmpl_alloc_(s, text.n);
    if (!p) return false;
    for (size_t i = 0; i < text.n; i++) {
        char c = text.p[i];
        if (tmpl_case_up_(tmpl_bytes_(text), i, how))
            p[i] = c >= 'a' && c <= 'z' ? (char)(c - 32) : c;
        else
            p[i] = c >= 'A' && c <= 'Z' ? (char)(c + 32) : c;
    }
    *out = tmpl_str_((TmplStr_){p, text.n, text.trust});
    return true;
}

static bool tmpl_fn_upper_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg, TmplVal_ *out) {
    (void)arg;
    return tmpl_case_(s, v, CASE_UPPER_, out);
}

static bool tmpl_fn_lower_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg, TmplVal_ *out) {
    (void)arg;
    return tmpl_case_(s, v, CASE_LOWER_, out);
}

static bool tmpl_fn_capitalize_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg,
                                TmplVal_ *out) {
    (void)arg;
    return tmpl_case_(s, v, CASE_CAPITAL_, out);
}

static bool tmpl_fn_title_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg, TmplVal_ *out) {
    (void)arg;
    return tmpl_case_(s, v, CASE_TITLE_, out);
}

static bool tmpl_fn_title_words_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg,
                                 TmplVal_ *out) {
    (void)arg;
    return tmpl_case_(s, v, CASE_TITLE_WORDS_, out);
}

/* ---- cutting, joining, replacing ---- */

/* Splits at white space; at most `max` cuts when max >= 0. */
static bool tmpl_split_spaces_(Tmpl_ *s, TmplStr_ v, i64 max, TmplList_ *list) {
    v = tmpl_strip_side_(s, v, NULL, true);
    while (v.n) {
        size_t end = 0;
        for (size_t next = 0; end < v.n && !tmpl_space_(utf8_next(tmpl_bytes_(v), &next));
             end = next) {}
        if (max >= 0 && list->n >= max) end = v.n;
        if (!tmpl_work_(s, 16 + (u64)end) ||
            !tmpl_list_add_(s, list, tmpl_str_(tmpl_cut_(v, 0, end))))
            return false;
        v = tmpl_strip_side_(s, tmpl_cut_(v, end, v.n), NULL, true);
    }
    return true;
}

/* str.split(sep, maxsplit) */
static bool tmpl_fn_split_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg, TmplVal_ *out) {
    TmplStr_ sep, rest = v->s;
    i64 max;
    TmplList_ *list = tmpl_list_new_(s, 0);
    if (!list || !tmpl_arg_str_(s, arg[0], (TmplStr_){NULL, 0, NULL}, &sep) ||
        !tmpl_arg_int_(s, arg[1], -1, &max) || !tmpl_work_(s, rest.n))
        return false;
    *out = tmpl_list_(list);
    if (!sep.p) return tmpl_split_spaces_(s, rest, max, list);
    if (!sep.n) return tmpl_fail_(s, "split() wants a separator that is not empty");
    for (;;) {
        size_t at = SIZE_MAX;
        if ((max < 0 || list->n < max) &&
            !tmpl_search_(s, tmpl_bytes_(rest), tmpl_bytes_(sep), 0, &at))
            return false;
        if (at == SIZE_MAX) return tmpl_list_add_(s, list, tmpl_str_(rest));
        if (!tmpl_list_add_(s, list, tmpl_str_(tmpl_cut_(rest, 0, at)))) return false;
        rest = tmpl_cut_(rest, at + sep.n, rest.n);
    }
}

/* str.rsplit(sep, maxsplit) with a separator: cuts from the end. */
static bool tmpl_fn_rsplit_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg,
                            TmplVal_ *out) {
    TmplStr_ sep, rest = v->s;
    i64 max;
    TmplList_ *list = tmpl_list_new_(s, 0);
    if (!list || !tmpl_arg_str_(s, arg[0], (TmplStr_){NULL, 0, NULL}, &sep) ||
        !tmpl_arg_int_(s, arg[1], -1, &max))
        return false;
    if (!sep.p && max < 0) return tmpl_fn_split_(s, v, arg, out);
    if (!sep.n) return tmpl_fail_(s, "rsplit() wants a separator that is not empty");
    for (size_t end = rest.n; end >= sep.n && (max < 0 || list->n < max);) {
        if (!tmpl_work_(s, sep.n)) return false;
        if (memcmp(rest.p + end - sep.n, sep.p, sep.n) != 0) {
            end--;
            continue;
        }
        if (!tmpl_list_add_(s, list, tmpl_str_(tmpl_cut_(rest, end, rest.n)))) return false;
        end -= sep.n;
        rest = tmpl_cut_(rest, 0, end);
    }
    if (!tmpl_list_add_(s, list, tmpl_str_(rest))) return false;
    for (u32 i = 0, j = list->n - 1; i < j; i++, j--) {
        TmplVal_ swap = list->v[i];
        list->v[i] = list->v[j];
        list->v[j] = swap;
    }
    *out = tmpl_list_(list);
    return true;
}

/* str.splitlines(): \n, \r\n, \r and the rarer line ends of Unicode. */
static bool tmpl_fn_splitlines_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg,
                                TmplVal_ *out) {
    Str all = tmpl_bytes_(v->s);
    TmplList_ *list = tmpl_list_new_(s, 0);
    bool keep = arg[0] && tmpl_true_(arg[0]);
    if (!list || !tmpl_work_(s, all.n)) return false;
    size_t begin = 0;
    for (size_t i = 0; i < all.n;) {
        size_t from = i;
        u32 cp = utf8_next(all, &i);
        bool ends = (cp >= '\n' && cp <= '\r') || (cp >= 0x1c && cp <= 0x1e) || cp == 0x85 ||
                    cp == 0x2028 || cp == 0x2029;
        if (!ends) continue;
        if (cp == '\r' && i < all.n && all.p[i] == '\n') i++;
        if (!tmpl_list_add_(s, list, tmpl_str_(tmpl_cut_(v->s, begin, keep ? i : from))))
            return false;
        begin = i;
    }
    if (begin < all.n && !tmpl_list_add_(s, list, tmpl_str_(tmpl_cut_(v->s, begin, all.n))))
        return false;
    *out = tmpl_list_(list);
    return true;
}

/* The attribute of a filter: a key, or keys with dots between them, of which a number is an index. */
static bool tmpl_attribute_(Tmpl_ *s, const TmplVal_ *obj, const TmplVal_ *attribute,
                            TmplVal_ *out) {
    *out = *obj;
    if (attribute->kind != TMPL_STR) return tmpl_item_(s, obj, attribute, out);
    Str path = tmpl_bytes_(attribute->s);
    if (!tmpl_work_(s, path.n)) return false;
    for (size_t i = 0, end; i <= path.n; i = end + 1) {
        end = MIN_OF(str_find(path, STR("."), i), path.n);
        TmplVal_ key = tmpl_str_(tmpl_cut_(attribute->s, i, end)), from = *out;
        i64 index = 0;
        size_t k = i;
        for (; k < end && end - i < 10 && path.p[k] >= '0' && path.p[k] <= '9'; k++)
            index = index * 10 + (path.p[k] - '0');
        if (k == end && end > i) key = tmpl_int_(index);
        if (!tmpl_item_(s, &from, &key, out)) return false;
    }
    return true;
}

/* v is a sequence, d goes between its values. */
static bool tmpl_join_(Tmpl_ *s, const TmplVal_ *v, TmplStr_ d, const TmplVal_ *attribute,
                       TmplVal_ *out) {
    TmplList_ *items;
    if (!tmpl_items_(s, v, &items)) return false;
    size_t mark = tmpl_mark_(s);
    for (u32 i = 0; i < items->n; i++) {
        TmplVal_ one = items->v[i];
        if (i && !tmpl_put_(s, d)) return false;
        if (attribute && !tmpl_attribute_(s, &items->v[i], attribute, &one)) return false;
        if (!tmpl_work_(s, 16) || !tmpl_put_value_(s, &one)) return false;
    }
    return tmpl_cut_output_(s, mark, out);
}

static bool tmpl_fn_join_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg, TmplVal_ *out) {
    TmplStr_ d;
    return tmpl_arg_str_(s, arg[0], tmpl_text_(STR(""), true).s, &d) &&
           tmpl_join_(s, v, d, arg[1], out);
}

/* "d".join(items) */
static bool tmpl_fn_str_join_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg,
                              TmplVal_ *out) {
    if (!arg[0]) return tmpl_fail_(s, "join() wants a list");
    return tmpl_join_(s, arg[0], v->s, NULL, out);
}

static bool tmpl_fn_replace_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg,
                             TmplVal_ *out) {
    TmplStr_ text, from, to;
    i64 max;
    if (!arg[0] || !arg[1]) return tmpl_fail_(s, "replace wants what and with what");
    if (!tmpl_to_str_(s, v, &text) || !tmpl_to_str_(s, arg[0], &from) ||
        !tmpl_to_str_(s, arg[1], &to) || !tmpl_arg_int_(s, arg[2], -1, &max))
        return false;
    size_t mark = tmpl_mark_(s), at, done = 0;
    for (i64 n = 0; max < 0 || n < max; n++) {
        /* An empty `from` is found before every character and at the end. */
        size_t begin = done;
        if (!from.n && n) {
            if (done == text.n) break;
            utf8_next(tmpl_bytes_(text), &begin);
        }
        if (!tmpl_search_(s, tmpl_bytes_(text), tmpl_bytes_(from), begin, &at)) return false;
        if (at == SIZE_MAX) break;
        if (!tmpl_put_(s, tmpl_cut_(text, done, at)) || !tmpl_put_(s, to)) return false;
        done = at + from.n;
    }
    return tmpl_put_(s, tmpl_cut_(text, done, text.n)) && tmpl_cut_output_(s, mark, out);
}

/* startswith and endswith take one string or a tuple of them. */
static bool tmpl_affix_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *a, bool front, TmplVal_ *out) {
    *out = tmpl_bool_(false);
    TmplList_ *list = NULL;
    if (a && a->kind == TMPL_TUPLE)
        list = a->list;
    else if (!a || a->kind != TMPL_STR)
        return tmpl_fail_(s, "startswith and endswith want a string");
    for (u32 i = 0; i < (list ? list->n : 1) && !out->b; i++) {
        const TmplVal_ *one = list ? &list->v[i] : a;
        if (one->kind != TMPL_STR) return tmpl_fail_(s, "startswith and endswith want strings");
        Str text = tmpl_bytes_(v->s), part = tmpl_bytes_(one->s);
        if (!tmpl_work_(s, part.n)) return false;
        out->b = front ? str_starts(text, part) : str_ends(text, part);
    }
    return true;
}

static bool tmpl_fn_startswith_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg,
                                TmplVal_ *out) {
    return tmpl_affix_(s, v, arg[0], true, out);
}

static bool tmpl_fn_endswith_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg,
                              TmplVal_ *out) {
    return tmpl_affix_(s, v, arg[0], false, out);
}

static bool tmpl_fn_removeprefix_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg,
                                  TmplVal_ *out) {
    TmplVal_ has;
    if (!tmpl_affix_(s, v, arg[0], true, &has)) return false;
    *out = has.b && arg[0]->kind == TMPL_STR ? tmpl_str_(tmpl_cut_(v->s, arg[0]->s.n, v->s.n)) : *v;
    return true;
}

static bool tmpl_fn_removesuffix_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg,
                                  TmplVal_ *out) {
    TmplVal_ has;
    if (!tmpl_affix_(s, v, arg[0], false, &has)) return false;
    *out = has.b && arg[0]->kind == TMPL_STR ? tmpl_str_(tmpl_cut_(v->s, 0, v->s.n - arg[0]->s.n))
                                             : *v;
    return true;
}

/* The character where arg[0] first (last) is, or -1. */
static bool tmpl_find_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *a, bool last, TmplVal_ *out) {
    size_t at = SIZE_MAX, from = 0;
    if (!a || a->kind != TMPL_STR) return tmpl_fail_(s, "find() wants a string");
    for (;;) {
        size_t hit;
        if (!tmpl_search_(s, tmpl_bytes_(v->s), tmpl_bytes_(a->s), from, &hit)) return false;
        if (hit != SIZE_MAX) at = hit;
        if (hit == SIZE_MAX || !last) break;
        from = hit + 1;
    }
    *out = tmpl_int_(at == SIZE_MAX ? -1 : tmpl_str_length_(tmpl_cut_(v->s, 0, at)));
    return tmpl_work_(s, v->s.n);
}

static bool tmpl_fn_find_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg, TmplVal_ *out) {
    return tmpl_find_(s, v, arg[0], false, out);
}

static bool tmpl_fn_rfind_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg, TmplVal_ *out) {
    return tmpl_find_(s, v, arg[0], true, out);
}

static bool tmpl_fn_index_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg, TmplVal_ *out) {
    if (!tmpl_find_(s, v, arg[0], false, out)) return false;
    return out->i >= 0 || tmpl_fail_(s, "index() did not find its argument");
}

static bool tmpl_fn_count_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg, TmplVal_ *out) {
    if (!arg[0] || arg[0]->kind != TMPL_STR) return tmpl_fail_(s, "count() wants a string");
    size_t part = arg[0]->s.n, at = 0;
    if (!part && !tmpl_work_(s, v->s.n)) return false;
    *out = tmpl_int_(part ? 0 : tmpl_str_length_(v->s) + 1);
    while (part) {
        if (!tmpl_search_(s, tmpl_bytes_(v->s), tmpl_bytes_(arg[0]->s), at, &at)) return false;
        if (at == SIZE_MAX) break;
        out->i++;
        at += part;
    }
    return true;
}

/* isdigit, isalpha, isalnum, isspace: not empty, and every character is. */
static bool tmpl_all_of_(Tmpl_ *s, const TmplVal_ *v, u32 classes, TmplVal_ *out) {
    bool all = v->s.n > 0;
    for (size_t i = 0; all && i < v->s.n;) {
        u32 cp = utf8_next(tmpl_bytes_(v->s), &i);
        all = classes == UTF8_SPACE ? tmpl_space_(cp) : (utf8_class(cp) & classes) != 0;
    }
    *out = tmpl_bool_(all);
    return tmpl_work_(s, v->s.n);
}

static bool tmpl_fn_isdigit_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg,
                             TmplVal_ *out) {
    (void)arg;
    return tmpl_all_of_(s, v, 1u << UTF8_ND, out);
}

static bool tmpl_fn_isalpha_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg,
                             TmplVal_ *out) {
    (void)arg;
    return tmpl_all_of_(s, v, UTF8_LETTER, out);
}

static bool tmpl_fn_isalnum_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg,
                             TmplVal_ *out) {
    (void)arg;
    return tmpl_all_of_(s, v, UTF8_LETTER | UTF8_NUMBER, out);
}

static bool tmpl_fn_isspace_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg,
                             TmplVal_ *out) {
    (void)arg;
    return tmpl_all_of_(s, v, UTF8_SPACE, out);
}

/* ---- sorting ---- */

/* Sorts v[0 .. n) by key; equal keys stay in their order, also when reversed. */
static bool tmpl_sort_(Tmpl_ *s, TmplPair_ *v, u32 n, bool reverse) {
    TmplPair_ *from = v, *to = tmpl_alloc_(s, (u64)n * sizeof *v);
    if (!to) return false;
    for (u32 width = 1; width < n; width *= 2) {
        for (u32 low = 0; low < n; low += 2 * width) {
            u32 mid = MIN_OF(low + width, n), high = MIN_OF(mid + width, n), a = low, b = mid;
            for (u32 k = low; k < high; k++) {
                bool right = a == mid;
                if (!right && b < high &&
                    (!tmpl_work_(s, 16) || !tmpl_order_(s, reverse ? BIN_GT_ : BIN_LT_,
                                                        &from[b].key, &from[a].key, &right)))
                    return false;
                to[k] = right ? from[b++] : from[a++];
            }
        }
        TmplPair_ *swap = from;
        from = to;
        to = swap;
    }
    if (from != v) memcpy(v, from, n * sizeof *v);
    return true;
}

/* What a value is sorted by: itself or an attribute of it, letters in lower case unless that matters. */
static bool tmpl_sort_key_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *attribute,
                           bool case_matters, TmplVal_ *key) {
    *key = *v;
    if (attribute && attribute->kind != TMPL_NONE && !tmpl_attribute_(s, v, attribute, key))
        return false;
    TmplVal_ any_case = *key;
    return key->kind != TMPL_STR || case_matters || tmpl_fn_lower_(s, &any_case, NULL, key);
}

/* The values of v, each behind its key, sorted. */
static bool tmpl_sorted_by_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *attribute,
                            const TmplVal_ *case_matters, const TmplVal_ *reverse, TmplVal_ *out) {
    TmplList_ *items, *list;
    if (!tmpl_items_(s, v, &items)) return false;
    TmplPair_ *pairs = tmpl_alloc_(s, (u64)items->n * sizeof *pairs);
    if (!pairs || !(list = tmpl_list_new_(s, items->n))) return false;
    for (u32 i = 0; i < items->n; i++) {
        pairs[i].value = items->v[i];
        if (!tmpl_sort_key_(s, &items->v[i], attribute, case_matters && tmpl_true_(case_matters),
                            &pairs[i].key))
            return false;
    }
    if (!tmpl_sort_(s, pairs, items->n, reverse && tmpl_true_(reverse))) return false;
    for (u32 i = 0; i < items->n; i++)
        if (!tmpl_list_add_(s, list, pairs[i].value)) return false;
    *out = tmpl_list_(list);
    return true;
}

static bool tmpl_fn_sort_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg, TmplVal_ *out) {
    return tmpl_sorted_by_(s, v, arg[2], arg[1], arg[0], out);
}

/* The first of the sorted values; undefined when there are none. */
static bool tmpl_extreme_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg, bool greatest,
                          TmplVal_ *out) {
    TmplVal_ sorted, reverse = tmpl_bool_(greatest);
    if (!tmpl_sorted_by_(s, v, arg[1], arg[0], &reverse, &sorted)) return false;
    *out = sorted.list->n ? sorted.list->v[0] : tmpl_undefined_(STR("the extreme of nothing"));
    return true;
}

static bool tmpl_fn_min_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg, TmplVal_ *out) {
    return tmpl_extreme_(s, v, arg, false, out);
}

static bool tmpl_fn_max_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg, TmplVal_ *out) {
    return tmpl_extreme_(s, v, arg, true, out);
}

/* ---- tojson, as transformers has it: json.dumps with ensure_ascii off ---- */

typedef struct {
    i64 indent; /* negative: all on one line */
    TmplStr_ comma, colon;
    bool ascii, sorted;
} TmplJson_;

/* The character of v at *i as \uXXXX, or as two of them; not UTF-8: as it is. */
static bool tmpl_json_escape_(Tmpl_ *s, TmplStr_ v, size_t *i) {
    char z[16];
    u32 cp;
    size_t n, from = *i;
    bool ok = utf8_read(tmpl_bytes_(v), from, &cp, &n) == UTF8_OK;
    *i += n;
    if (!ok) return tmpl_put_(s, tmpl_cut_(v, from, *i));
    if (cp < 0x10000)
        snprintf(z, sizeof z, "\\u%04x", cp);
    else
        snprintf(z, sizeof z, "\\u%04x\\u%04x", 0xD7C0 + (cp >> 10), 0xDC00 + (cp & 0x3FF));
    return tmpl_put_text_(s, str_of(z), tmpl_trusts_(v, from));
}

static bool tmpl_json_str_(Tmpl_ *s, TmplStr_ v, bool ascii) {
    if (!tmpl_put_text_(s, STR("\""), true)) return false;
    for (size_t i = 0; i < v.n;) {
        size_t from = i;
        while (i < v.n && (u8)v.p[i] >= 0x20 && v.p[i] != '"' && v.p[i] != '\\' &&
               !(ascii && (u8)v.p[i] >= 0x7F))
            i++;
        if (!tmpl_put_(s, tmpl_cut_(v, from, i))) return false;
        if (i == v.n) break;
        if ((u8)v.p[i] >= 0x80) {
            if (!tmpl_json_escape_(s, v, &i)) return false;
            continue;
        }
        static const char letters[] = "\b\f\n\r\t\"\\", spelled[] = "bfnrt\"\\";
        const char *letter = v.p[i] ? strchr(letters, v.p[i]) : NULL;
        char z[8];
        if (letter)
            snprintf(z, sizeof z, "\\%c", spelled[letter - letters]);
        else
            snprintf(z, sizeof z, "\\u%04x", (u8)v.p[i]);
        if (!tmpl_put_text_(s, str_of(z), tmpl_trusts_(v, i))) return false;
        i++;
    }
    return tmpl_put_text_(s, STR("\""), true);
}

static bool tmpl_json_line_(Tmpl_ *s, const TmplJson_ *how, u32 level) {
    if (how->indent < 0) return true;
    if (!tmpl_put_text_(s, STR("\n"), true)) return false;
    for (i64 i = 0; i < how->indent * level; i++)
        if (!tmpl_put_text_(s, STR(" "), true)) return false;
    return true;
}

static bool tmpl_json_(Tmpl_ *s, const TmplVal_ *v, const TmplJson_ *how, u32 level);

static bool tmpl_json_key_(Tmpl_ *s, const TmplVal_ *key) {
    return key->kind == TMPL_STR ||
           tmpl_fail_(s, "tojson wants string keys, not %s", TMPL_KINDS_[key->kind]);
}

/* The pairs in the order of their keys, or NULL. */
static const TmplPair_ *tmpl_sorted_(Tmpl_ *s, const TmplDict_ *d) {
    for (u32 i = 0; i < d->n; i++)
        if (!tmpl_json_key_(s, &d->v[i].key)) return NULL;
    TmplPair_ *pairs = tmpl_alloc_(s, (u64)d->n * sizeof *pairs);
    if (!pairs) return NULL;
    if (d->n) memcpy(pairs, d->v, d->n * sizeof *pairs);
    return tmpl_sort_(s, pairs, d->n, false) ? pairs : NULL;
}

/* Recurses through tmpl_json_, which counts the depth. */
static bool tmpl_json_sequence_(Tmpl_ *s, const TmplVal_ *v, const TmplJson_ *how, u32 level) {
    bool dict = v->kind == TMPL_DICT;
    u32 n = dict ? v->dict->n : v->list->n;
    const TmplPair_ *pairs = dict ? v->dict->v : NULL;
    if (dict && how->sorted && !(pairs = tmpl_sorted_(s, v->dict))) return false;
    if (n == 0) return tmpl_put_text_(s, dict ? STR("{}") : STR("[]"), true);
    if (!tmpl_put_text_(s, dict ? STR("{") : STR("["), true)) return false;
    for (u32 i = 0; i < n; i++) {
        if ((i && !tmpl_put_(s, how->comma)) || !tmpl_json_line_(s, how, level + 1)) return false;
        if (dict) {
            const TmplVal_ *key = &pairs[i].key;
            if (!tmpl_json_key_(s, key)) return false;
            if (!tmpl_json_str_(s, key->s, how->ascii) || !tmpl_put_(s, how->colon)) return false;
        }
        if (!tmpl_json_(s, dict ? &pairs[i].value : &v->list->v[i], how, level + 1)) return false;
    }
    return tmpl_json_line_(s, how, level) && tmpl_put_text_(s, dict ? STR("}") : STR("]"), true);
}

static bool tmpl_json_(Tmpl_ *s, const TmplVal_ *v, const TmplJson_ *how, u32 level) {
    if (!tmpl_enter_(s)) return false;
    bool ok;
    switch (v->kind) {
    case TMPL_NONE: ok = tmpl_put_text_(s, STR("null"), true); break;
    case TMPL_BOOL: ok = tmpl_put_text_(s, v->b ? STR("true") : STR("false"), true); break;
    case TMPL_INT:
    case TMPL_FLOAT: ok = tmpl_put_number_(s, v); break;
    case TMPL_STR: ok = tmpl_json_str_(s, v->s, how->ascii); break;
    case TMPL_LIST:
    case TMPL_TUPLE:
    case TMPL_DICT: ok = tmpl_json_sequence_(s, v, how, level); break;
    default: ok = tmpl_fail_(s, "tojson of %s", TMPL_KINDS_[v->kind]);
    }
    s->depth--;
    return ok;
}

#define TMPL_INDENT_MAX 16

static bool tmpl_fn_tojson_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg,
                            TmplVal_ *out) {
    TmplJson_ how = {.colon = tmpl_text_(STR(": "), true).s};
    if (!tmpl_arg_int_(s, arg[1], -1, &how.indent)) return false;
    if (how.indent > TMPL_INDENT_MAX)
        return tmpl_fail_(s, "tojson indents by at most %d", TMPL_INDENT_MAX);
    how.comma = tmpl_text_(how.indent < 0 ? STR(", ") : STR(","), true).s;
    if (arg[2] && arg[2]->kind != TMPL_NONE) {
        const TmplVal_ *pair = arg[2];
        bool ok = (pair->kind == TMPL_TUPLE || pair->kind == TMPL_LIST) && pair->list->n == 2 &&
                  pair->list->v[0].kind == TMPL_STR && pair->list->v[1].kind == TMPL_STR;
        if (!ok) return tmpl_fail_(s, "tojson wants separators=(',', ':')");
        how.comma = pair->list->v[0].s;
        how.colon = pair->list->v[1].s;
    }
    how.ascii = arg[0] && tmpl_true_(arg[0]);
    how.sorted = arg[3] && tmpl_true_(arg[3]);
    size_t mark = tmpl_mark_(s);
    return tmpl_json_(s, v, &how, 0) && tmpl_cut_output_(s, mark, out);
}

/* ---- the other filters ---- */

static bool tmpl_fn_length_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg,
                            TmplVal_ *out) {
    (void)arg;
    *out = tmpl_int_(0);
    return tmpl_length_(s, v, &out->i);
}

static bool tmpl_fn_first_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg, TmplVal_ *out) {
    (void)arg;
    TmplList_ *items;
    if (!tmpl_items_(s, v, &items)) return false;
    *out = items->n ? items->v[0] : tmpl_undefined_(STR("first of nothing"));
    return true;
}

static bool tmpl_fn_last_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg, TmplVal_ *out) {
    (void)arg;
    TmplList_ *items;
    if (!tmpl_items_(s, v, &items)) return false;
    *out = items->n ? items->v[items->n - 1] : tmpl_undefined_(STR("last of nothing"));
    return true;
}

static bool tmpl_fn_default_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg,
                             TmplVal_ *out) {
    (void)s;
    bool falsy_too = arg[1] && tmpl_true_(arg[1]);
    bool take = v->kind == TMPL_UNDEFINED || (falsy_too && !tmpl_true_(v));
    *out = !take ? *v : arg[0] ? *arg[0] : tmpl_text_(STR(""), true);
    return true;
}

static bool tmpl_fn_string_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg,
                            TmplVal_ *out) {
    (void)arg;
    *out = tmpl_text_(STR(""), true);
    return tmpl_to_str_(s, v, &out->s);
}

/* Marks a string as safe from HTML escaping, of which there is none here. */
static bool tmpl_fn_safe_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg, TmplVal_ *out) {
    return tmpl_fn_string_(s, v, arg, out);
}

static bool tmpl_fn_list_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg, TmplVal_ *out) {
    (void)arg;
    TmplList_ *items;
    if (!tmpl_items_(s, v, &items)) return false;
    *out = tmpl_list_(items);
    return true;
}

static bool tmpl_fn_reverse_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg,
                             TmplVal_ *out) {
    (void)arg;
    TmplVal_ a[4] = {*v, tmpl_none_(), tmpl_none_(), tmpl_int_(-1)};
    TmplList_ *items;
    if (v->kind != TMPL_STR) {
        if (!tmpl_items_(s, v, &items)) return false;
        a[0] = tmpl_list_(items);
    }
    return tmpl_slice_(s, a, out);
}

/* The pairs of a dict: which of key (1) and value (2) goes into the list. */
static bool tmpl_pairs_(Tmpl_ *s, const TmplVal_ *v, int which, TmplVal_ *out) {
    TmplList_ *list = tmpl_list_new_(s, 0);
    if (!list) return false;
    *out = tmpl_list_(list);
    if (v->kind == TMPL_UNDEFINED) return true;
    if (v->kind != TMPL_DICT) return tmpl_fail_(s, "items of %s", TMPL_KINDS_[v->kind]);
    for (u32 i = 0; i < v->dict->n; i++) {
        TmplVal_ one = which == 1 ? v->dict->v[i].key : v->dict->v[i].value;
        if (which == 3) {
            one = (TmplVal_){.kind = TMPL_TUPLE, .list = tmpl_list_new_(s, 2)};
            if (!one.list || !tmpl_list_add_(s, one.list, v->dict->v[i].key) ||
                !tmpl_list_add_(s, one.list, v->dict->v[i].value))
                return false;
        }
        if (!tmpl_list_add_(s, list, one)) return false;
    }
    return true;
}

/* The pairs of a dict, by key or by value. */
static bool tmpl_fn_dictsort_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg,
                              TmplVal_ *out) {
    TmplVal_ pairs, by = tmpl_int_(0);
    if (v->kind != TMPL_DICT) return tmpl_fail_(s, "dictsort of %s", TMPL_KINDS_[v->kind]);
    if (arg[1] && arg[1]->kind == TMPL_STR && str_eq(tmpl_bytes_(arg[1]->s), STR("value")))
        by.i = 1;
    else if (arg[1] && (arg[1]->kind != TMPL_STR || !str_eq(tmpl_bytes_(arg[1]->s), STR("key"))))
        return tmpl_fail_(s, "dictsort sorts by 'key' or by 'value'");
    return tmpl_pairs_(s, v, 3, &pairs) && tmpl_sorted_by_(s, &pairs, &by, arg[0], arg[2], out);
}

static bool tmpl_fn_items_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg, TmplVal_ *out) {
    (void)arg;
    return tmpl_pairs_(s, v, 3, out);
}

static bool tmpl_fn_keys_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg, TmplVal_ *out) {
    (void)arg;
    return tmpl_pairs_(s, v, 1, out);
}

static bool tmpl_fn_values_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg,
                            TmplVal_ *out) {
    (void)arg;
    return tmpl_pairs_(s, v, 2, out);
}

static bool tmpl_fn_get_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg, TmplVal_ *out) {
    TmplVal_ *found;
    if (!arg[0]) return tmpl_fail_(s, "get() wants a key");
    if (!tmpl_dict_find_(s, v->dict, arg[0], &found)) return false;
    *out = found ? *found : arg[1] ? *arg[1] : tmpl_none_();
    return true;
}

/* The number at the beginning of a string that int() or float() takes whole; false when it does not. */
static bool tmpl_read_number_(Tmpl_ *s, TmplStr_ text, bool whole, TmplVal_ *out) {
    char z[64];
    text = tmpl_strip_side_(s, tmpl_strip_side_(s, text, NULL, true), NULL, false);
    if (text.n == 0 || text.n >= sizeof z) return false;
    for (size_t i = 0; i < text.n; i++) {
        bool digit = text.p[i] >= '0' && text.p[i] <= '9';
        bool sign = (text.p[i] == '+' || text.p[i] == '-') &&
                    (i == 0 || text.p[i - 1] == 'e' || text.p[i - 1] == 'E');
        if (!digit && !sign && (whole || !text.p[i] || !strchr(".eE", text.p[i]))) return false;
    }
    memcpy(z, text.p, text.n);
    z[text.n] = 0;
    char *end = z;
    if (whole) {
        i64 v = 0;
        size_t i = z[0] == '-' || z[0] == '+';
        if (i == text.n) return false;
        for (; i < text.n; i++)
            if (__builtin_mul_overflow(v, 10, &v) || __builtin_sub_overflow(v, z[i] - '0', &v))
                return false;
        if (z[0] != '-' && v == INT64_MIN) return false;
        *out = tmpl_int_(z[0] == '-' ? v : -v);
        return true;
    }
    *out = tmpl_float_(strtod(z, &end));
    return end == z + text.n;
}

static bool tmpl_fn_int_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg, TmplVal_ *out) {
    const f64 top = 9223372036854774784.0; /* the largest f64 below 2^63 */
    TmplVal_ number = *v;
    *out = arg[0] ? *arg[0] : tmpl_int_(0);
    if (v->kind == TMPL_STR) {
        if (!tmpl_read_number_(s, v->s, true, &number) &&
            !tmpl_read_number_(s, v->s, false, &number))
            return true;
        number.tainted = !tmpl_all_trusted_(v->s);
    }
    if (number.kind == TMPL_FLOAT && !(number.f >= -top && number.f <= top)) return true;
    if (!tmpl_is_number_(&number)) return true;
    *out = tmpl_int_(number.kind == TMPL_FLOAT ? (i64)number.f : tmpl_as_int_(&number));
    out->tainted = number.tainted;
    return true;
}

static bool tmpl_fn_float_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg, TmplVal_ *out) {
    TmplVal_ number = *v;
    *out = arg[0] ? *arg[0] : tmpl_float_(0);
    if (v->kind == TMPL_STR) {
        if (!tmpl_read_number_(s, v->s, false, &number)) return true;
        number.tainted = !tmpl_all_trusted_(v->s);
    }
    if (!tmpl_is_number_(&number)) return true;
    *out = tmpl_float_(tmpl_as_float_(&number));
    out->tainted = number.tainted;
    return true;
}

static bool tmpl_fn_abs_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg, TmplVal_ *out) {
    (void)arg;
    *out = *v;
    if (v->kind == TMPL_FLOAT)
        out->f = v->f < 0 ? -v->f : v->f;
    else if (v->kind != TMPL_INT || v->i == INT64_MIN)
        return tmpl_fail_(s, "abs of %s", TMPL_KINDS_[v->kind]);
    else
        out->i = v->i < 0 ? -v->i : v->i;
    return true;
}

/* ---- tests: `x is name(argument)` ---- */

typedef enum {
    IS_DEFINED_,
    IS_UNDEFINED_,
    IS_NONE_,
    IS_STRING_,
    IS_MAPPING_,
    IS_ITERABLE_,
    IS_SEQUENCE_,
    IS_NUMBER_,
    IS_INTEGER_,
    IS_FLOAT_,
    IS_BOOLEAN_,
    IS_TRUE_,
    IS_FALSE_,
    IS_ODD_,
    IS_EVEN_,
    IS_DIVISIBLE_,
    IS_CALLABLE_,
    IS_EQ_,
    IS_NE_,
    IS_LT_,
    IS_LE_,
    IS_GT_,
    IS_GE_,
    IS_IN_,
    IS_SAME_
} TmplIs_;

static const struct {
    const char *name;
    TmplIs_ is;
} TMPL_TESTS_[] = {
    {"defined", IS_DEFINED_},
    {"undefined", IS_UNDEFINED_},
    {"none", IS_NONE_},
    {"string", IS_STRING_},
    {"mapping", IS_MAPPING_},
    {"iterable", IS_ITERABLE_},
    {"sequence", IS_SEQUENCE_},
    {"number", IS_NUMBER_},
    {"integer", IS_INTEGER_},
    {"float", IS_FLOAT_},
    {"boolean", IS_BOOLEAN_},
    {"true", IS_TRUE_},
    {"false", IS_FALSE_},
    {"odd", IS_ODD_},
    {"even", IS_EVEN_},
    {"divisibleby", IS_DIVISIBLE_},
    {"callable", IS_CALLABLE_},
    {"sameas", IS_SAME_},
    {"eq", IS_EQ_},
    {"equalto", IS_EQ_},
    {"==", IS_EQ_},
    {"ne", IS_NE_},
    {"!=", IS_NE_},
    {"lt", IS_LT_},
    {"lessthan", IS_LT_},
    {"<", IS_LT_},
    {"le", IS_LE_},
    {"<=", IS_LE_},
    {"gt", IS_GT_},
    {"greaterthan", IS_GT_},
    {">", IS_GT_},
    {"ge", IS_GE_},
    {">=", IS_GE_},
    {"in", IS_IN_},
};

static i32 tmpl_test_find_(Str name) {
    for (size_t i = 0; i < COUNT_OF(TMPL_TESTS_); i++)
        if (str_eq(name, str_of(TMPL_TESTS_[i].name))) return (i32)i;
    return -1;
}

static bool tmpl_test_remainder_(Tmpl_ *s, TmplIs_ is, const TmplVal_ *v, const TmplVal_ *arg,
                                 bool *out) {
    if (v->kind != TMPL_INT || (arg && arg->kind != TMPL_INT))
        return tmpl_fail_(s, "odd, even and divisibleby want ints");
    i64 by = is == IS_DIVISIBLE_ ? arg->i : 2;
    if (by == 0) return tmpl_fail_(s, "division by zero");
    *out = by == -1 || (v->i % by == 0) == (is != IS_ODD_);
    return true;
}

static bool tmpl_test_(Tmpl_ *s, TmplIs_ is, const TmplVal_ *v, const TmplVal_ *arg, bool *out) {
    bool sequence = v->kind == TMPL_STR || v->kind == TMPL_LIST || v->kind == TMPL_TUPLE ||
                    v->kind == TMPL_DICT || v->kind == TMPL_UNDEFINED;
    bool wants = is == IS_DIVISIBLE_ || is >= IS_EQ_;
    if (wants != (arg != NULL))
        return tmpl_fail_(s, "a test with %s argument", wants ? "no" : "a needless");
    switch (is) {
    case IS_DEFINED_: *out = v->kind != TMPL_UNDEFINED; return true;
    case IS_UNDEFINED_: *out = v->kind == TMPL_UNDEFINED; return true;
    case IS_NONE_: *out = v->kind == TMPL_NONE; return true;
    case IS_STRING_: *out = v->kind == TMPL_STR; return true;
    case IS_MAPPING_: *out = v->kind == TMPL_DICT; return true;
    case IS_ITERABLE_: *out = sequence || v->kind == TMPL_LOOP; return true;
    case IS_SEQUENCE_: *out = sequence; return true;
    case IS_NUMBER_: *out = tmpl_is_number_(v); return true;
    case IS_INTEGER_: *out = v->kind == TMPL_INT; return true;
    case IS_FLOAT_: *out = v->kind == TMPL_FLOAT; return true;
    case IS_BOOLEAN_: *out = v->kind == TMPL_BOOL; return true;
    case IS_TRUE_: *out = v->kind == TMPL_BOOL && v->b; return true;
    case IS_FALSE_: *out = v->kind == TMPL_BOOL && !v->b; return true;
    case IS_CALLABLE_: *out = v->kind == TMPL_MACRO || v->kind == TMPL_FUNC; return true;
    case IS_ODD_:
    case IS_EVEN_:
    case IS_DIVISIBLE_: return tmpl_test_remainder_(s, is, v, arg, out);
    case IS_IN_: return tmpl_in_(s, v, arg, out);
    case IS_SAME_: return tmpl_equal_(s, v, arg, out) && (*out &= v->kind == arg->kind, true);
    case IS_EQ_: return tmpl_equal_(s, v, arg, out);
    case IS_NE_: return tmpl_equal_(s, v, arg, out) && (*out = !*out, true);
    case IS_LT_: return tmpl_order_(s, BIN_LT_, v, arg, out);
    case IS_LE_: return tmpl_order_(s, BIN_LE_, v, arg, out);
    case IS_GT_: return tmpl_order_(s, BIN_GT_, v, arg, out);
    case IS_GE_: return tmpl_order_(s, BIN_GE_, v, arg, out);
    }
    return false;
}

/* ---- filters over lists ---- */

/* As tmpl_items_, but anything false is empty. */
static bool tmpl_items_or_none_(Tmpl_ *s, const TmplVal_ *v, TmplList_ **out) {
    if (tmpl_true_(v)) return tmpl_items_(s, v, out);
    return (*out = tmpl_list_new_(s, 0)) != NULL;
}

/* Keeps the values for which a test on them (or on their attribute) holds, or the others. */
static bool tmpl_pick_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *attribute,
                       const TmplVal_ *const *arg, bool keep, TmplVal_ *out) {
    TmplList_ *items, *list = tmpl_list_new_(s, 0);
    i32 test = -1;
    if (!list || !tmpl_items_or_none_(s, v, &items)) return false;
    if (arg[0]) {
        test = arg[0]->kind == TMPL_STR ? tmpl_test_find_(tmpl_bytes_(arg[0]->s)) : -1;
        if (test < 0) return tmpl_fail_(s, "a filter uses a test that dlm does not know");
    }
    for (u32 i = 0; i < items->n; i++) {
        TmplVal_ one = items->v[i];
        bool holds;
        if (!tmpl_work_(s, 16)) return false;
        if (attribute && !tmpl_attribute_(s, &items->v[i], attribute, &one)) return false;
        if (!arg[0])
            holds = tmpl_true_(&one);
        else if (!tmpl_test_(s, TMPL_TESTS_[test].is, &one, arg[1], &holds))
            return false;
        if (holds == keep && !tmpl_list_add_(s, list, items->v[i])) return false;
    }
    *out = tmpl_list_(list);
    return true;
}

static bool tmpl_fn_select_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg,
                            TmplVal_ *out) {
    return tmpl_pick_(s, v, NULL, arg, true, out);
}

static bool tmpl_fn_reject_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg,
                            TmplVal_ *out) {
    return tmpl_pick_(s, v, NULL, arg, false, out);
}

static bool tmpl_fn_selectattr_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg,
                                TmplVal_ *out) {
    if (!arg[0]) return tmpl_fail_(s, "selectattr wants an attribute");
    return tmpl_pick_(s, v, arg[0], arg + 1, true, out);
}

static bool tmpl_fn_rejectattr_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg,
                                TmplVal_ *out) {
    if (!arg[0]) return tmpl_fail_(s, "rejectattr wants an attribute");
    return tmpl_pick_(s, v, arg[0], arg + 1, false, out);
}

static bool tmpl_fn_map_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg, TmplVal_ *out);

static const TmplRow_ TMPL_FILTERS_[] = {
    {"abs", tmpl_fn_abs_, {0}},
    {"capitalize", tmpl_fn_capitalize_, {0}},
    {"count", tmpl_fn_length_, {0}},
    {"d", tmpl_fn_default_, {"default_value", "boolean"}},
    {"default", tmpl_fn_default_, {"default_value", "boolean"}},
    {"dictsort", tmpl_fn_dictsort_, {"case_sensitive", "by", "reverse"}},
    {"first", tmpl_fn_first_, {0}},
    {"float", tmpl_fn_float_, {"default"}},
    {"int", tmpl_fn_int_, {"default"}},
    {"items", tmpl_fn_items_, {0}},
    {"join", tmpl_fn_join_, {"d", "attribute"}},
    {"last", tmpl_fn_last_, {0}},
    {"length", tmpl_fn_length_, {0}},
    {"list", tmpl_fn_list_, {0}},
    {"lower", tmpl_fn_lower_, {0}},
    {"map", tmpl_fn_map_, {"", "", "", "attribute", "default"}},
    {"max", tmpl_fn_max_, {"case_sensitive", "attribute"}},
    {"min", tmpl_fn_min_, {"case_sensitive", "attribute"}},
    {"reject", tmpl_fn_reject_, {"", ""}},
    {"rejectattr", tmpl_fn_rejectattr_, {"", "", ""}},
    {"replace", tmpl_fn_replace_, {"old", "new", "count"}},
    {"reverse", tmpl_fn_reverse_, {0}},
    {"safe", tmpl_fn_safe_, {0}},
    {"select", tmpl_fn_select_, {"", ""}},
    {"selectattr", tmpl_fn_selectattr_, {"", "", ""}},
    {"sort", tmpl_fn_sort_, {"reverse", "case_sensitive", "attribute"}},
    {"string", tmpl_fn_string_, {0}},
    {"title", tmpl_fn_title_words_, {0}},
    {"tojson", tmpl_fn_tojson_, {"ensure_ascii", "indent", "separators", "sort_keys"}},
    {"trim", tmpl_fn_strip_, {"chars"}},
    {"upper", tmpl_fn_upper_, {0}},
};

static const TmplRow_ *tmpl_row_find_(const TmplRow_ *rows, size_t n, Str name) {
    for (size_t i = 0; i < n; i++)
        if (str_eq(name, str_of(rows[i].name))) return &rows[i];
    return NULL;
}

/* map(attribute="x"), or map("filter", arguments ...) with any filter but map itself. */
static bool tmpl_fn_map_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg, TmplVal_ *out) {
    TmplList_ *items, *list = tmpl_list_new_(s, 0);
    const TmplRow_ *row = NULL;
    if (!list || !tmpl_items_or_none_(s, v, &items)) return false;
    if (!arg[3]) {
        if (arg[0] && arg[0]->kind == TMPL_STR)
            row = tmpl_row_find_(TMPL_FILTERS_, COUNT_OF(TMPL_FILTERS_), tmpl_bytes_(arg[0]->s));
        if (!row || row->fn == tmpl_fn_map_)
            return tmpl_fail_(s, "map with a filter that dlm does not know");
    }
    const TmplVal_ *passed[TMPL_ROW_PARAMS_] = {arg[1], arg[2]};
    for (u32 i = 0; i < items->n; i++) {
        TmplVal_ one;
        if (row ? !row->fn(s, &items->v[i], passed, &one)
                : !tmpl_attribute_(s, &items->v[i], arg[3], &one))
            return false;
        if (!row && one.kind == TMPL_UNDEFINED && arg[4]) one = *arg[4];
        if (!tmpl_work_(s, 32) || !tmpl_list_add_(s, list, one)) return false;
    }
    *out = tmpl_list_(list);
    return true;
}

/* "{} and {}".format(a, b), with nothing between the braces. */
static bool tmpl_fn_format_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg,
                            TmplVal_ *out) {
    Str f = tmpl_bytes_(v->s);
    size_t mark = tmpl_mark_(s), given = 0;
    for (size_t i = 0, end; i < f.n; i = end) {
        for (end = i; end < f.n && f.p[end] != '{' && f.p[end] != '}'; end++) {}
        if (!tmpl_put_(s, tmpl_cut_(v->s, i, end))) return false;
        if (end == f.n) break;
        bool twice = end + 1 < f.n && f.p[end + 1] == f.p[end];
        bool value = !twice && end + 1 < f.n && f.p[end] == '{' && f.p[end + 1] == '}';
        if (value && (given == TMPL_ROW_PARAMS_ || !arg[given]))
            return tmpl_fail_(s, "format() has fewer values than braces");
        if (!twice && !value)
            return tmpl_fail_(s, "format() with something between the braces is not supported");
        bool ok =
            value ? tmpl_put_value_(s, arg[given++]) : tmpl_put_(s, tmpl_cut_(v->s, end, end + 1));
        if (!ok) return false;
        end += 2;
    }
    return tmpl_cut_output_(s, mark, out);
}

static const TmplRow_ TMPL_STR_METHODS_[] = {
    {"capitalize", tmpl_fn_capitalize_, {0}},
    {"count", tmpl_fn_count_, {""}},
    {"endswith", tmpl_fn_endswith_, {""}},
    {"find", tmpl_fn_find_, {""}},
    {"format", tmpl_fn_format_, {"", "", "", "", ""}},
    {"index", tmpl_fn_index_, {""}},
    {"isalnum", tmpl_fn_isalnum_, {0}},
    {"isalpha", tmpl_fn_isalpha_, {0}},
    {"isdigit", tmpl_fn_isdigit_, {0}},
    {"isspace", tmpl_fn_isspace_, {0}},
    {"join", tmpl_fn_str_join_, {""}},
    {"lower", tmpl_fn_lower_, {0}},
    {"lstrip", tmpl_fn_lstrip_, {""}},
    {"removeprefix", tmpl_fn_removeprefix_, {""}},
    {"removesuffix", tmpl_fn_removesuffix_, {""}},
    {"replace", tmpl_fn_replace_, {"", "", ""}},
    {"rfind", tmpl_fn_rfind_, {""}},
    {"rsplit", tmpl_fn_rsplit_, {"sep", "maxsplit"}},
    {"rstrip", tmpl_fn_rstrip_, {""}},
    {"split", tmpl_fn_split_, {"sep", "maxsplit"}},
    {"splitlines", tmpl_fn_splitlines_, {"keepends"}},
    {"startswith", tmpl_fn_startswith_, {""}},
    {"strip", tmpl_fn_strip_, {""}},
    {"title", tmpl_fn_title_, {0}},
    {"upper", tmpl_fn_upper_, {0}},
};

static const TmplRow_ TMPL_DICT_METHODS_[] = {
    {"get", tmpl_fn_get_, {"", ""}},
    {"items", tmpl_fn_items_, {0}},
    {"keys", tmpl_fn_keys_, {0}},
    {"values", tmpl_fn_values_, {0}},
};

/* ---- functions that a template can call by name ---- */

static bool tmpl_fn_range_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg, TmplVal_ *out) {
    (void)v;
    i64 from = 0, to, step;
    TmplList_ *list = tmpl_list_new_(s, 0);
    if (!arg[0]) return tmpl_fail_(s, "range() wants a number");
    if (!list || !tmpl_arg_int_(s, arg[1] ? arg[1] : arg[0], 0, &to) ||
        !tmpl_arg_int_(s, arg[2], 1, &step))
        return false;
    if (arg[1] && !tmpl_arg_int_(s, arg[0], 0, &from)) return false;
    if (step == 0) return tmpl_fail_(s, "range() with a step of 0");
    for (i64 i = from; step > 0 ? i < to : i > to;) {
        if (!tmpl_list_add_(s, list, tmpl_int_(i))) return false;
        if (__builtin_add_overflow(i, step, &i)) break;
    }
    *out = tmpl_list_(list);
    return true;
}

/* A refusal of the template's author: the conversation is at fault, not the template. */
static bool tmpl_fn_raise_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg, TmplVal_ *out) {
    (void)v, (void)out;
    TmplStr_ why = {"", 0, NULL};
    if (arg[0] && !tmpl_to_str_(s, arg[0], &why)) return false;
    return err_set(s->e, ERR_USAGE, "the model's chat template refuses this conversation: %.*s",
                   STR_ARG(tmpl_bytes_(why)));
}

typedef struct {
    i64 year;
    int month, day, hour, minute, second, weekday,
        yearday; /* month, day, yearday from 1; Sunday is 0 */
} TmplDate_;

#define TMPL_DAYS_MAX_ 100000000 /* about 270,000 years from 1970 */

/* The proleptic Gregorian calendar, in UTC: years counted from March make the leap day the last. */
static TmplDate_ tmpl_date_(i64 unix_s) {
    TmplDate_ d;
    i64 days = unix_s / 86400, rest = unix_s % 86400;
    if (rest < 0) days--, rest += 86400;
    if (days > TMPL_DAYS_MAX_ || days < -TMPL_DAYS_MAX_) days = 0;
    d.hour = (int)(rest / 3600), d.minute = (int)(rest / 60 % 60), d.second = (int)(rest % 60);
    d.weekday = (int)(((days + 4) % 7 + 7) % 7);
    i64 z = days + 719468, era = (z >= 0 ? z : z - 146096) / 146097, doe = z - era * 146097;
    i64 yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365,
        doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    i64 mp = (5 * doy + 2) / 153;
    d.day = (int)(doy - (153 * mp + 2) / 5 + 1);
    d.month = (int)(mp < 10 ? mp + 3 : mp - 9);
    d.year = yoe + era * 400 + (d.month <= 2);
    bool leap = (d.year % 4 == 0 && d.year % 100 != 0) || d.year % 400 == 0;
    static const int before[] = {0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334};
    d.yearday = before[d.month - 1] + d.day + (leap && d.month > 2);
    return d;
}

/* One conversion of strftime; false: not one of ours. */
static bool tmpl_strftime_one_(const TmplDate_ *d, char c, bool pad, char out[32]) {
    static const char *const months[] = {"January",   "February", "March",    "April",
                                         "May",       "June",     "July",     "August",
                                         "September", "October",  "November", "December"};
    static const char *const days[] = {"Sunday",   "Monday", "Tuesday", "Wednesday",
                                       "Thursday", "Friday", "Saturday"};
    int number, width = pad ? 2 : 1, hour12 = d->hour % 12 ? d->hour % 12 : 12;
    switch (c) {
    case 'Y': snprintf(out, 32, "%lld", (long long)d->year); return true;
    case 'B': snprintf(out, 32, "%s", months[d->month - 1]); return true;
    case 'b':
    case 'h': snprintf(out, 32, "%.3s", months[d->month - 1]); return true;
    case 'A': snprintf(out, 32, "%s", days[d->weekday]); return true;
    case 'a': snprintf(out, 32, "%.3s", days[d->weekday]); return true;
    case 'p': snprintf(out, 32, "%s", d->hour < 12 ? "AM" : "PM"); return true;
    case 'Z': snprintf(out, 32, "UTC"); return true;
    case '%': snprintf(out, 32, "%%"); return true;
    case 'F':
        snprintf(out, 32, "%lld-%02d-%02d", (long long)d->year, d->month, d->day);
        return true;
    case 'T': snprintf(out, 32, "%02d:%02d:%02d", d->hour, d->minute, d->second); return true;
    case 'j': number = d->yearday, width = pad ? 3 : 1; break;
    case 'd': number = d->day; break;
    case 'm': number = d->month; break;
    case 'y': number = (int)(d->year % 100); break;
    case 'H': number = d->hour; break;
    case 'I': number = hour12; break;
    case 'M': number = d->minute; break;
    case 'S': number = d->second; break;
    default: return false;
    }
    snprintf(out, 32, "%0*d", width, number);
    return true;
}

static bool tmpl_fn_strftime_(Tmpl_ *s, const TmplVal_ *v, const TmplVal_ *const *arg,
                              TmplVal_ *out) {
    (void)v;
    if (!arg[0] || arg[0]->kind != TMPL_STR) return tmpl_fail_(s, "strftime_now() wants a format");
    TmplStr_ f = arg[0]->s;
    TmplDate_ d = tmpl_date_(s->vars_in->now_unix);
    size_t mark = tmpl_mark_(s);
    for (size_t i = 0; i < f.n; i++) {
        if (f.p[i] != '%') {
            if (!tmpl_put_(s, tmpl_cut_(f, i, i + 1))) return false;
            continue;
        }
        bool pad = !(i + 1 < f.n && f.p[i + 1] == '-');
        char z[32];
        i += pad ? 1 : 2;
        if (i >= f.n || !tmpl_strftime_one_(&d, f.p[i], pad, z))
            return tmpl_fail_(s, "strftime_now() with a conversion that dlm does not know");
        if (!tmpl_put_text_(s, str_of(z), tmpl_trusts_(f, i))) return false;
    }
    return tmpl_cut_output_(s, mark, out);
}

/* namespace(...) and dict(...) take any keywords: see tmpl_call_. */
static const TmplRow_ TMPL_FUNCS_[] = {
    {"namespace", NULL, {0}},
    {"dict", NULL, {0}},
    {"range", tmpl_fn_range_, {"", "", ""}},
    {"raise_exception", tmpl_fn_raise_, {"message"}},
    {"strftime_now", tmpl_fn_strftime_, {"format"}},
};

/* ---- the lexer: one token of the tag at the cursor ---- */

static bool tmpl_name_byte_(u8 c, bool first) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
           (!first && c >= '0' && c <= '9');
}

static u8 tmpl_byte_(const Tmpl_ *s, size_t at) {
    return at < s->src.n ? (u8)s->src.p[at] : 0;
}

/* Skips the white space after a tag that ends in a hyphen. */
static void tmpl_skip_space_(Tmpl_ *s) {
    for (size_t i = s->pos; i < s->src.n && tmpl_space_(utf8_next(s->src, &i));) s->pos = (u32)i;
}

/* The tag's end, if it is here: "}}", "-}}", "%}", "-%}" or "+%}". A block or comment swallows one
 * newline behind it (trim_blocks); a hyphen swallows all white space. */
static bool tmpl_tag_end_(Tmpl_ *s, Str close) {
    u8 sign = tmpl_byte_(s, s->pos);
    bool signs = sign == '-' || (sign == '+' && close.p[0] != '}');
    if (!str_starts(str_cut(s->src, s->pos + signs, s->src.n), close)) return false;
    s->pos += (u32)(signs + close.n);
    if (signs && sign == '-')
        tmpl_skip_space_(s);
    else if (!signs && close.p[0] != '}' && tmpl_byte_(s, s->pos) == '\n')
        s->pos++;
    s->line_start = s->src.p[s->pos - 1] == '\n';
    return true;
}

static bool tmpl_lex_string_(Tmpl_ *s, TmplTok_ *t) {
    u8 quote = tmpl_byte_(s, s->pos);
    u32 begin = s->pos + 1, i = begin;
    while (i < s->src.n && (u8)s->src.p[i] != quote) i += s->src.p[i] == '\\' ? 2 : 1;
    if (i >= s->src.n) return tmpl_fail_(s, "a string that does not end");
    t->kind = TOK_STR_;
    t->text = str_cut(s->src, begin, i);
    s->pos = i + 1;
    return true;
}

static u32 tmpl_digits_(const Tmpl_ *s, u32 at) {
    while (tmpl_byte_(s, at) >= '0' && tmpl_byte_(s, at) <= '9') at++;
    return at;
}

static void tmpl_lex_number_(Tmpl_ *s, TmplTok_ *t) {
    u32 i = tmpl_digits_(s, s->pos), next;
    t->kind = TOK_INT_;
    if (tmpl_byte_(s, i) == '.' && (next = tmpl_digits_(s, i + 1)) > i + 1) {
        t->kind = TOK_FLOAT_;
        i = next;
    }
    if ((tmpl_byte_(s, i) | 32) == 'e') {
        u32 sign = tmpl_byte_(s, i + 1) == '+' || tmpl_byte_(s, i + 1) == '-';
        if ((next = tmpl_digits_(s, i + 1 + sign)) > i + 1 + sign) {
            t->kind = TOK_FLOAT_;
            i = next;
        }
    }
    t->text = str_cut(s->src, s->pos, i);
    s->pos = i;
}

static bool tmpl_lex_(Tmpl_ *s, TmplTok_ *t) {
    static const Str ops[] = {STR("=="), STR("!="), STR(">="), STR("<="), STR("//"),
                              STR("**"), STR("+"),  STR("-"),  STR("/"),  STR("*"),
                              STR("%"),  STR("~"),  STR("["),  STR("]"),  STR("("),
                              STR(")"),  STR("{"),  STR("}"),  STR(">"),  STR("<"),
                              STR("="),  STR("."),  STR(":"),  STR("|"),  STR(",")};
    for (size_t i = s->pos; i < s->src.n && tmpl_space_(utf8_next(s->src, &i));) s->pos = (u32)i;
    *t = (TmplTok_){.kind = TOK_END_, .at = s->pos};
    s->at = s->pos;
    if (!tmpl_work_(s, 8)) return false;
    if (s->pos >= s->src.n) return tmpl_fail_(s, "the template ends inside a tag");
    if (!s->brackets && tmpl_tag_end_(s, s->in_variable ? STR("}}") : STR("%}"))) return true;
    u8 c = tmpl_byte_(s, s->pos);
    if (c == '"' || c == '\'') return tmpl_lex_string_(s, t);
    if (c >= '0' && c <= '9') {
        tmpl_lex_number_(s, t);
        return true;
    }
    if (tmpl_name_byte_(c, true)) {
        u32 i = s->pos;
        while (tmpl_name_byte_(tmpl_byte_(s, i), false)) i++;
        *t = (TmplTok_){TOK_NAME_, str_cut(s->src, s->pos, i), s->pos};
        s->pos = i;
        return true;
    }
    Str left = str_cut(s->src, s->pos, s->src.n);
    for (size_t i = 0; i < COUNT_OF(ops); i++) {
        if (!str_starts(left, ops[i])) continue;
        *t = (TmplTok_){TOK_OP_, ops[i], s->pos};
        s->pos += (u32)ops[i].n;
        if (c == '(' || c == '[' || c == '{') s->brackets++;
        if ((c == ')' || c == ']' || c == '}') && s->brackets) s->brackets--;
        return true;
    }
    return tmpl_fail_(s, "unexpected character '%c'", c >= 0x20 && c < 0x7f ? c : '?');
}

/* ---- the compiler: the token at hand is s->tok ---- */

static bool tmpl_next_(Tmpl_ *s) {
    return tmpl_lex_(s, &s->tok);
}

/* The token behind the one at hand, which is not the tag's end. */
static bool tmpl_peek_(Tmpl_ *s, TmplTok_ *t) {
    u32 pos = s->pos, brackets = s->brackets, at = s->at;
    bool line_start = s->line_start, ok = tmpl_lex_(s, t);
    s->pos = pos, s->brackets = brackets, s->line_start = line_start, s->at = at;
    return ok;
}

static bool tmpl_is_op_(const TmplTok_ *t, const char *text) {
    return t->kind == TOK_OP_ && str_eq(t->text, str_of(text));
}

static bool tmpl_is_name_(const TmplTok_ *t, const char *text) {
    return t->kind == TOK_NAME_ && str_eq(t->text, str_of(text));
}

static bool tmpl_expect_op_(Tmpl_ *s, const char *text) {
    if (!tmpl_is_op_(&s->tok, text)) return tmpl_fail_(s, "'%s' is wanted", text);
    return tmpl_next_(s);
}

static bool tmpl_emit_(Tmpl_ *s, TmplOp_ op, i32 a) {
    if (s->n_code >= TMPL_CODE_MAX) return tmpl_fail_(s, "the template is too long");
    if (!tmpl_grow_(s, &s->code, &s->cap_code, s->n_code, sizeof *s->code)) return false;
    s->code[s->n_code++] = (TmplIns_){.op = (u8)op, .a = a, .at = s->at};
    return true;
}

static bool tmpl_add_const_(Tmpl_ *s, TmplVal_ v, i32 *index) {
    if (!tmpl_grow_(s, &s->consts, &s->cap_consts, s->n_consts, sizeof v)) return false;
    s->consts[s->n_consts] = v;
    *index = (i32)s->n_consts++;
    return true;
}

static bool tmpl_emit_const_(Tmpl_ *s, TmplOp_ op, TmplVal_ v) {
    i32 index;
    return tmpl_add_const_(s, v, &index) && tmpl_emit_(s, op, index);
}

static bool tmpl_intern_(Tmpl_ *s, Str name, u32 *id) {
    for (*id = 0; *id < s->n_names; ++*id)
        if (str_eq(s->names[*id], name)) return tmpl_work_(s, *id);
    if (s->n_names == TMPL_NAMES_MAX) return tmpl_fail_(s, "more than %u names", TMPL_NAMES_MAX);
    if (!tmpl_grow_(s, &s->names, &s->cap_names, s->n_names, sizeof name)) return false;
    s->names[s->n_names++] = name;
    return tmpl_work_(s, *id);
}

static bool tmpl_emit_name_(Tmpl_ *s, TmplOp_ op, Str name) {
    u32 id;
    return tmpl_intern_(s, name, &id) && tmpl_emit_(s, op, (i32)id);
}

/* The jump at instruction `from` goes to the next one emitted. */
static void tmpl_land_(Tmpl_ *s, u32 from) {
    s->code[from].a = (i32)s->n_code - (i32)from - 1;
}

/* Emits a jump that joins a chain of jumps to a place not known yet. */
static bool tmpl_emit_chained_(Tmpl_ *s, TmplOp_ op, u32 *chain) {
    if (!tmpl_emit_(s, op, (i32)*chain)) return false;
    *chain = s->n_code - 1;
    return true;
}

static void tmpl_land_chain_(Tmpl_ *s, u32 *chain) {
    while (*chain != TMPL_NO_PATCH_) {
        u32 from = *chain;
        *chain = (u32)s->code[from].a;
        tmpl_land_(s, from);
    }
}

static bool tmpl_emit_unsupported_(Tmpl_ *s, const char *what, Str name) {
    char z[160];
    int n = snprintf(z, sizeof z, "%s '%.*s'", what, (int)MIN_OF(name.n, 80), name.p);
    char *p = tmpl_alloc_(s, (u64)n + 1);
    if (!p) return false;
    memcpy(p, z, (size_t)n);
    return tmpl_emit_const_(s, OP_UNSUPPORTED_, tmpl_text_((Str){p, (size_t)n}, true));
}

static bool tmpl_expr_(Tmpl_ *s);
static bool tmpl_binary_(Tmpl_ *s, int least);

/* expr, or expr, expr ... which is a tuple. `conditional`: an inline if is allowed at the top. */
static bool tmpl_expr_list_(Tmpl_ *s, bool conditional) {
    i32 n = 1;
    bool comma = false;
    if (!(conditional ? tmpl_expr_(s) : tmpl_binary_(s, 1))) return false;
    while (tmpl_is_op_(&s->tok, ",")) {
        comma = true;
        if (!tmpl_next_(s)) return false;
        if (s->tok.kind == TOK_END_ || tmpl_is_op_(&s->tok, ")") || tmpl_is_op_(&s->tok, "="))
            break;
        if (!(conditional ? tmpl_expr_(s) : tmpl_binary_(s, 1))) return false;
        n++;
    }
    return !comma || tmpl_emit_(s, OP_TUPLE_, n);
}

/* The code point of \xhh, \uhhhh and \Uhhhhhhhh, whose digits begin at `at`. */
static bool tmpl_hex_(Tmpl_ *s, Str t, size_t at, size_t digits, u32 *cp) {
    *cp = 0;
    if (digits > t.n - at) return tmpl_fail_(s, "an escape that is cut short");
    for (size_t i = at; i < at + digits; i++) {
        u8 c = (u8)t.p[i], low = c | 32;
        if (!(c >= '0' && c <= '9') && !(low >= 'a' && low <= 'f'))
            return tmpl_fail_(s, "an escape wants hex digits");
        *cp = *cp << 4 | (u32)(c <= '9' ? c - '0' : low - 'a' + 10);
    }
    return true;
}

/* A string's characters: Python's escapes, except octal ones and \N. */
static bool tmpl_unescape_(Tmpl_ *s, Str t, Str *out) {
    static const char from[] = "\n\\'\"abfnrtv0", to[] = "\0\\'\"\a\b\f\n\r\t\v\0";
    *out = t;
    if (!memchr(t.n ? t.p : "", '\\', t.n)) return true;
    char *p = tmpl_alloc_(s, t.n + UTF8_MAX); /* no escape is shorter than what it means */
    size_t n = 0;
    if (!p) return false;
    for (size_t i = 0; i < t.n; i++) {
        char c = i + 1 < t.n ? t.p[i + 1] : 0;
        const char *found = c ? strchr(from, c) : NULL;
        size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
        if (t.p[i] != '\\' || (!found && !digits)) {
            p[n++] = t.p[i];
            continue;
        }
        i++;
        if (digits) {
            u32 cp;
            if (!tmpl_hex_(s, t, i + 1, digits, &cp)) return false;
            n += utf8_put(cp, p + n);
            i += digits;
        } else if (c != '\n') {
            p[n++] = to[found - from];
        }
    }
    *out = (Str){p, n};
    return true;
}

/* Strings side by side are one string. */
static bool tmpl_strings_(Tmpl_ *s) {
    for (bool first = true; s->tok.kind == TOK_STR_; first = false) {
        Str text;
        if (!tmpl_unescape_(s, s->tok.text, &text) ||
            !tmpl_emit_const_(s, OP_CONST_, tmpl_text_(text, true)) ||
            (!first && !tmpl_emit_(s, OP_BINARY_, BIN_CONCAT_)) || !tmpl_next_(s))
            return false;
    }
    return true;
}

static bool tmpl_number_(Tmpl_ *s) {
    TmplVal_ v;
    if (!tmpl_read_number_(s, tmpl_text_(s->tok.text, true).s, s->tok.kind == TOK_INT_, &v))
        return tmpl_fail_(s, "a number that does not fit");
    return tmpl_emit_const_(s, OP_CONST_, v) && tmpl_next_(s);
}

/* [a, b] and {k: v}; the bracket is at hand. */
static bool tmpl_display_(Tmpl_ *s, bool dict) {
    const char *close = dict ? "}" : "]";
    i32 n = 0;
    if (!tmpl_next_(s)) return false;
    while (!tmpl_is_op_(&s->tok, close)) {
        if (n && !tmpl_expect_op_(s, ",")) return false;
        if (tmpl_is_op_(&s->tok, close)) break;
        if (!tmpl_expr_(s)) return false;
        if (dict && (!tmpl_expect_op_(s, ":") || !tmpl_expr_(s))) return false;
        n++;
    }
    return tmpl_next_(s) && tmpl_emit_(s, dict ? OP_DICT_ : OP_LIST_, n);
}

static bool tmpl_parenthesis_(Tmpl_ *s) {
    if (!tmpl_next_(s)) return false;
    if (tmpl_is_op_(&s->tok, ")")) return tmpl_next_(s) && tmpl_emit_(s, OP_TUPLE_, 0);
    return tmpl_expr_list_(s, true) && tmpl_expect_op_(s, ")");
}

static bool tmpl_primary_(Tmpl_ *s) {
    static const struct {
        const char *name;
        TmplKind_ kind;
        bool b;
    } words[] = {{"true", TMPL_BOOL, true},   {"True", TMPL_BOOL, true},
                 {"false", TMPL_BOOL, false}, {"False", TMPL_BOOL, false},
                 {"none", TMPL_NONE, false},  {"None", TMPL_NONE, false}};
    static const char *const reserved[] = {"and", "or", "not", "in", "is", "if", "else"};
    const TmplTok_ *t = &s->tok;
    if (t->kind == TOK_STR_) return tmpl_strings_(s);
    if (t->kind == TOK_INT_ || t->kind == TOK_FLOAT_) return tmpl_number_(s);
    if (tmpl_is_op_(t, "(")) return tmpl_parenthesis_(s);
    if (tmpl_is_op_(t, "[")) return tmpl_display_(s, false);
    if (tmpl_is_op_(t, "{")) return tmpl_display_(s, true);
    if (t->kind != TOK_NAME_) return tmpl_fail_(s, "an expression is wanted");
    for (size_t i = 0; i < COUNT_OF(words); i++)
        if (tmpl_is_name_(t, words[i].name))
            return tmpl_emit_const_(s, OP_CONST_,
                                    (TmplVal_){.kind = words[i].kind, .b = words[i].b}) &&
                   tmpl_next_(s);
    for (size_t i = 0; i < COUNT_OF(reserved); i++)
        if (tmpl_is_name_(t, reserved[i]))
            return tmpl_fail_(s, "an expression is wanted, not '%s'", reserved[i]);
    return tmpl_emit_name_(s, OP_NAME_, t->text) && tmpl_next_(s);
}

/* (a, b, name=c); the parenthesis is at hand. Keywords stand behind the others, as in Python. */
static bool tmpl_args_(Tmpl_ *s, u8 *n_pos, u8 *n_kw) {
    *n_pos = *n_kw = 0;
    if (!tmpl_next_(s)) return false;
    while (!tmpl_is_op_(&s->tok, ")")) {
        TmplTok_ behind = {.kind = TOK_END_};
        if (*n_pos + *n_kw > 0 && !tmpl_expect_op_(s, ",")) return false;
        if (tmpl_is_op_(&s->tok, ")")) break;
        if (*n_pos + *n_kw >= (int)TMPL_ARGS_MAX)
            return tmpl_fail_(s, "more than %u arguments", TMPL_ARGS_MAX);
        if (s->tok.kind == TOK_NAME_ && !tmpl_peek_(s, &behind)) return false;
        if (tmpl_is_op_(&behind, "=")) {
            TmplVal_ name = tmpl_text_(s->tok.text, true);
            if (!tmpl_emit_const_(s, OP_CONST_, name) || !tmpl_next_(s) || !tmpl_next_(s))
                return false;
            ++*n_kw;
        } else {
            if (*n_kw) return tmpl_fail_(s, "a plain argument behind a named one");
            ++*n_pos;
        }
        if (!tmpl_expr_(s)) return false;
    }
    return tmpl_next_(s);
}

static bool tmpl_emit_call_(Tmpl_ *s, TmplOp_ op, i32 a, u8 n_pos, u8 n_kw) {
    if (!tmpl_emit_(s, op, a)) return false;
    s->code[s->n_code - 1].n_pos = n_pos;
    s->code[s->n_code - 1].n_kw = n_kw;
    return true;
}

static bool tmpl_call_args_(Tmpl_ *s, TmplOp_ op, i32 a) {
    u8 n_pos = 0, n_kw = 0;
    u32 at = s->at;
    if (tmpl_is_op_(&s->tok, "(") && !tmpl_args_(s, &n_pos, &n_kw)) return false;
    u32 here = s->at;
    s->at = at;
    bool ok = tmpl_emit_call_(s, op, a, n_pos, n_kw);
    s->at = here;
    return ok;
}

/* One bound of a slice, or none. */
static bool tmpl_slice_part_(Tmpl_ *s) {
    if (tmpl_is_op_(&s->tok, ":") || tmpl_is_op_(&s->tok, "]"))
        return tmpl_emit_const_(s, OP_CONST_, tmpl_none_());
    return tmpl_expr_(s);
}

/* [key] and [from:to:step]; the bracket is at hand. */
static bool tmpl_subscript_(Tmpl_ *s) {
    if (!tmpl_next_(s) || !tmpl_slice_part_(s)) return false;
    if (tmpl_is_op_(&s->tok, "]")) return tmpl_next_(s) && tmpl_emit_(s, OP_ITEM_, 0);
    if (!tmpl_expect_op_(s, ":") || !tmpl_slice_part_(s)) return false;
    if (tmpl_is_op_(&s->tok, ":")) {
        if (!tmpl_next_(s) || !tmpl_slice_part_(s)) return false;
    } else if (!tmpl_emit_const_(s, OP_CONST_, tmpl_none_())) {
        return false;
    }
    return tmpl_expect_op_(s, "]") && tmpl_emit_(s, OP_SLICE_, 0);
}

/* .name, .0, .name(...); the dot is at hand. */
static bool tmpl_dot_(Tmpl_ *s) {
    u32 id;
    if (!tmpl_next_(s)) return false;
    if (s->tok.kind == TOK_INT_) return tmpl_number_(s) && tmpl_emit_(s, OP_ITEM_, 0);
    if (s->tok.kind != TOK_NAME_) return tmpl_fail_(s, "a name is wanted behind the dot");
    if (!tmpl_intern_(s, s->tok.text, &id) || !tmpl_next_(s)) return false;
    if (tmpl_is_op_(&s->tok, "(")) return tmpl_call_args_(s, OP_METHOD_, (i32)id);
    return tmpl_emit_(s, OP_ATTR_, (i32)id);
}

static bool tmpl_postfix_(Tmpl_ *s) {
    for (bool ok = true;;) {
        if (tmpl_is_op_(&s->tok, "."))
            ok = tmpl_dot_(s);
        else if (tmpl_is_op_(&s->tok, "["))
            ok = tmpl_subscript_(s);
        else if (tmpl_is_op_(&s->tok, "("))
            ok = tmpl_call_args_(s, OP_CALL_, 0);
        else
            return true;
        if (!ok) return false;
    }
}

/* |name(...); the bar is at hand. A filter that dlm lacks fails only if it is reached. */
static bool tmpl_filter_(Tmpl_ *s) {
    if (!tmpl_next_(s)) return false;
    if (s->tok.kind != TOK_NAME_) return tmpl_fail_(s, "a filter's name is wanted");
    const TmplRow_ *row = tmpl_row_find_(TMPL_FILTERS_, COUNT_OF(TMPL_FILTERS_), s->tok.text);
    if (!row && !tmpl_emit_unsupported_(s, "the filter", s->tok.text)) return false;
    return tmpl_next_(s) && tmpl_call_args_(s, OP_FILTER_, row ? (i32)(row - TMPL_FILTERS_) : 0);
}

/* Does the token at hand begin the argument of `x is name argument`? */
static bool tmpl_begins_test_arg_(const TmplTok_ *t) {
    static const char *const never[] = {"else", "or", "and", "if", "not", "in", "is"};
    for (size_t i = 0; i < COUNT_OF(never); i++)
        if (tmpl_is_name_(t, never[i])) return false;
    return t->kind == TOK_NAME_ || t->kind == TOK_STR_ || t->kind == TOK_INT_ ||
           t->kind == TOK_FLOAT_ || tmpl_is_op_(t, "[") || tmpl_is_op_(t, "{");
}

/* is [not] name; "is" is at hand. */
static bool tmpl_is_test_(Tmpl_ *s) {
    bool negated = false;
    if (!tmpl_next_(s)) return false;
    if (tmpl_is_name_(&s->tok, "not")) {
        negated = true;
        if (!tmpl_next_(s)) return false;
    }
    if (s->tok.kind != TOK_NAME_) return tmpl_fail_(s, "a test's name is wanted");
    i32 test = tmpl_test_find_(s->tok.text);
    if (test < 0 && !tmpl_emit_unsupported_(s, "the test", s->tok.text)) return false;
    if (!tmpl_next_(s)) return false;
    bool ok;
    if (tmpl_begins_test_arg_(&s->tok))
        ok = tmpl_primary_(s) && tmpl_postfix_(s) && tmpl_emit_call_(s, OP_TEST_, test, 1, 0);
    else
        ok = tmpl_call_args_(s, OP_TEST_, test);
    return ok && (!negated || tmpl_emit_(s, OP_NOT_, 0));
}

static bool tmpl_unary_(Tmpl_ *s, bool filters) {
    if (!tmpl_enter_(s)) return false;
    bool minus = tmpl_is_op_(&s->tok, "-"), plus = tmpl_is_op_(&s->tok, "+"), ok;
    if (minus || plus)
        ok = tmpl_next_(s) && tmpl_unary_(s, false) && tmpl_emit_(s, minus ? OP_NEG_ : OP_POS_, 0);
    else
        ok = tmpl_primary_(s);
    ok = ok && tmpl_postfix_(s);
    while (ok && filters) {
        if (tmpl_is_op_(&s->tok, "|"))
            ok = tmpl_filter_(s);
        else if (tmpl_is_name_(&s->tok, "is"))
            ok = tmpl_is_test_(s);
        else if (tmpl_is_op_(&s->tok, "("))
            ok = tmpl_call_args_(s, OP_CALL_, 0);
        else
            break;
    }
    s->depth--;
    return ok;
}

#define TMPL_PREC_NOT_ 3
#define TMPL_PREC_COMPARE_ 4

static const struct {
    const char *text;
    u8 prec; /* higher binds tighter */
    TmplBinary_ op;
} TMPL_BINARIES_[] = {
    {"or", 1, BIN_OR_},  {"and", 2, BIN_AND_}, {"==", 4, BIN_EQ_},       {"!=", 4, BIN_NE_},
    {"<", 4, BIN_LT_},   {"<=", 4, BIN_LE_},   {">", 4, BIN_GT_},        {">=", 4, BIN_GE_},
    {"in", 4, BIN_IN_},  {"+", 5, BIN_ADD_},   {"-", 5, BIN_SUB_},       {"~", 6, BIN_CONCAT_},
    {"*", 7, BIN_MUL_},  {"/", 7, BIN_DIV_},   {"//", 7, BIN_FLOORDIV_}, {"%", 7, BIN_MOD_},
    {"**", 8, BIN_POW_},
};

/* The operator at hand, and its tokens are read; *prec = 0: there is none that binds at least so. */
static bool tmpl_operator_(Tmpl_ *s, int least, int *prec, TmplBinary_ *op) {
    TmplTok_ behind;
    *prec = 0;
    if (s->tok.kind != TOK_OP_ && s->tok.kind != TOK_NAME_) return true;
    if (tmpl_is_name_(&s->tok, "not") && least <= TMPL_PREC_COMPARE_) {
        if (!tmpl_peek_(s, &behind)) return false;
        if (!tmpl_is_name_(&behind, "in")) return true;
        *prec = TMPL_PREC_COMPARE_, *op = BIN_NOT_IN_;
        return tmpl_next_(s) && tmpl_next_(s);
    }
    for (size_t i = 0; i < COUNT_OF(TMPL_BINARIES_); i++) {
        if (TMPL_BINARIES_[i].prec < least || !str_eq(s->tok.text, str_of(TMPL_BINARIES_[i].text)))
            continue;
        *prec = TMPL_BINARIES_[i].prec, *op = TMPL_BINARIES_[i].op;
        return tmpl_next_(s);
    }
    return true;
}

/* Operators that bind at least as tightly as `least`: precedence climbing. */
static bool tmpl_binary_(Tmpl_ *s, int least) {
    if (tmpl_is_name_(&s->tok, "not") && least <= TMPL_PREC_NOT_) {
        bool ok = tmpl_enter_(s) && tmpl_next_(s) && tmpl_binary_(s, TMPL_PREC_NOT_) &&
                  tmpl_emit_(s, OP_NOT_, 0);
        if (!ok) return false;
        s->depth--;
    } else if (!tmpl_unary_(s, true)) {
        return false;
    }
    for (bool compared = false;;) {
        int prec;
        TmplBinary_ op = BIN_OR_;
        if (!tmpl_operator_(s, least, &prec, &op)) return false;
        if (!prec) return true;
        if (prec == TMPL_PREC_COMPARE_) {
            if (compared) return tmpl_fail_(s, "a chain of comparisons is not supported");
            compared = true;
        }
        u32 jump = s->n_code;
        if (op == BIN_AND_ || op == BIN_OR_) {
            if (!tmpl_emit_(s, op == BIN_AND_ ? OP_AND_ : OP_OR_, 0) || !tmpl_binary_(s, prec + 1))
                return false;
            tmpl_land_(s, jump);
        } else if (!tmpl_binary_(s, prec + 1) || !tmpl_emit_(s, OP_BINARY_, (i32)op)) {
            return false;
        }
    }
}

static void tmpl_reverse_code_(TmplIns_ *p, u32 n) {
    for (u32 i = 0; i + 1 < n - i; i++) {
        TmplIns_ swap = p[i];
        p[i] = p[n - 1 - i];
        p[n - 1 - i] = swap;
    }
}

/* value if condition else other. The value's code was emitted before the condition was seen; jumps are
 * relative, so the two blocks just change places. */
static bool tmpl_expr_(Tmpl_ *s) {
    u32 begin = s->n_code;
    if (!tmpl_enter_(s) || !tmpl_binary_(s, 1)) return false;
    while (tmpl_is_name_(&s->tok, "if")) {
        u32 middle = s->n_code;
        if (!tmpl_next_(s) || !tmpl_binary_(s, 1) || !tmpl_emit_(s, OP_JUMP_FALSE_, 0))
            return false;
        u32 n_value = middle - begin, n_test = s->n_code - middle;
        tmpl_reverse_code_(s->code + begin, n_value);
        tmpl_reverse_code_(s->code + middle, n_test);
        tmpl_reverse_code_(s->code + begin, n_value + n_test);
        u32 skip = begin + n_test - 1, end = s->n_code;
        if (!tmpl_emit_(s, OP_JUMP_, 0)) return false;
        tmpl_land_(s, skip);
        if (tmpl_is_name_(&s->tok, "else")) {
            if (!tmpl_next_(s) || !tmpl_expr_(s)) return false;
        } else if (!tmpl_emit_const_(s, OP_CONST_, tmpl_undefined_(STR("the inline if")))) {
            return false;
        }
        tmpl_land_(s, end);
    }
    s->depth--;
    return true;
}

/* ---- statements: the tag's first name is at hand ---- */

/* The new innermost statement; NULL when too many are open. */
static TmplBlock_ *tmpl_open_(Tmpl_ *s, TmplBlockKind_ kind, u32 at) {
    if (s->n_blocks == TMPL_BLOCKS_MAX) {
        tmpl_fail_(s, "statements nested more than %u deep", TMPL_BLOCKS_MAX);
        return NULL;
    }
    TmplBlock_ *b = &s->blocks[s->n_blocks++];
    *b = (TmplBlock_){.kind = kind,
                      .at = at,
                      .skip = TMPL_NO_PATCH_,
                      .ends = TMPL_NO_PATCH_,
                      .nexts = TMPL_NO_PATCH_};
    return b;
}

/* The innermost open statement, if it is of this kind. */
static TmplBlock_ *tmpl_top_(Tmpl_ *s, TmplBlockKind_ kind) {
    TmplBlock_ *b = s->n_blocks ? &s->blocks[s->n_blocks - 1] : NULL;
    return b && b->kind == kind ? b : NULL;
}

static bool tmpl_condition_(Tmpl_ *s, TmplBlock_ *b) {
    if (!tmpl_next_(s) || !tmpl_expr_list_(s, false) || !tmpl_emit_(s, OP_JUMP_FALSE_, 0))
        return false;
    b->skip = s->n_code - 1;
    return true;
}

static bool tmpl_st_if_(Tmpl_ *s) {
    TmplBlock_ *b = tmpl_open_(s, BLOCK_IF_, s->at);
    return b && tmpl_condition_(s, b);
}

/* Ends a branch of an if: jumps to the end, and the false condition lands here. */
static bool tmpl_end_branch_(Tmpl_ *s, TmplBlock_ *b) {
    if (!tmpl_emit_chained_(s, OP_JUMP_, &b->ends)) return false;
    tmpl_land_(s, b->skip);
    b->skip = TMPL_NO_PATCH_;
    return true;
}

static bool tmpl_st_elif_(Tmpl_ *s) {
    TmplBlock_ *b = tmpl_top_(s, BLOCK_IF_);
    if (!b || b->in_else) return tmpl_fail_(s, "'elif' without 'if'");
    return tmpl_end_branch_(s, b) && tmpl_condition_(s, b);
}

/* Ends the body of a loop. */
static bool tmpl_end_loop_(Tmpl_ *s, TmplBlock_ *b) {
    tmpl_land_chain_(s, &b->nexts);
    return tmpl_emit_(s, OP_NEXT_, (i32)b->top - (i32)s->n_code - 1);
}

static bool tmpl_st_else_(Tmpl_ *s) {
    TmplBlock_ *b = tmpl_top_(s, BLOCK_IF_), *loop = tmpl_top_(s, BLOCK_FOR_);
    bool ok = b && !b->in_else && tmpl_end_branch_(s, b);
    if (loop && !loop->in_else) {
        b = loop;
        ok = tmpl_end_loop_(s, b) && tmpl_end_branch_(s, b);
    }
    if (!ok) return tmpl_fail_(s, "'else' without 'if' or 'for'");
    b->in_else = true;
    return tmpl_next_(s);
}

static bool tmpl_st_endif_(Tmpl_ *s) {
    TmplBlock_ *b = tmpl_top_(s, BLOCK_IF_);
    if (!b) return tmpl_fail_(s, "'endif' without 'if'");
    if (b->skip != TMPL_NO_PATCH_) tmpl_land_(s, b->skip);
    tmpl_land_chain_(s, &b->ends);
    s->n_blocks--;
    return tmpl_next_(s);
}

/* a or a, b or (a, b) */
static bool tmpl_targets_(Tmpl_ *s, u32 ids[TMPL_TARGETS_MAX], u32 *n) {
    bool parenthesis = tmpl_is_op_(&s->tok, "(");
    *n = 0;
    if (parenthesis && !tmpl_next_(s)) return false;
    for (;;) {
        if (s->tok.kind != TOK_NAME_) return tmpl_fail_(s, "a variable's name is wanted");
        if (*n == TMPL_TARGETS_MAX)
            return tmpl_fail_(s, "more than %u variables at once", TMPL_TARGETS_MAX);
        if (!tmpl_intern_(s, s->tok.text, &ids[(*n)++]) || !tmpl_next_(s)) return false;
        if (!tmpl_is_op_(&s->tok, ",")) break;
        if (!tmpl_next_(s)) return false;
    }
    return !parenthesis || tmpl_expect_op_(s, ")");
}

static bool tmpl_store_(Tmpl_ *s, const u32 *ids, u32 n) {
    if (n > 1 && !tmpl_emit_(s, OP_UNPACK_, (i32)n)) return false;
    for (u32 i = 0; i < n; i++)
        if (!tmpl_emit_(s, OP_STORE_, (i32)ids[i])) return false;
    return true;
}

/* The filter of `for x in xs if condition`; "if" is at hand, xs on the stack. */
static bool tmpl_loop_filter_(Tmpl_ *s, const u32 *ids, u32 n) {
    if (!tmpl_emit_(s, OP_PICK_, 0)) return false;
    u32 top = s->n_code;
    if (!tmpl_emit_(s, OP_PICK_STEP_, 0) || !tmpl_store_(s, ids, n) || !tmpl_next_(s) ||
        !tmpl_expr_(s) || !tmpl_emit_(s, OP_PICK_NEXT_, (i32)top - (i32)s->n_code - 1))
        return false;
    tmpl_land_(s, top);
    return true;
}

static bool tmpl_st_for_(Tmpl_ *s) {
    u32 ids[TMPL_TARGETS_MAX], n, at = s->at;
    if (!tmpl_next_(s) || !tmpl_targets_(s, ids, &n)) return false;
    if (!tmpl_is_name_(&s->tok, "in")) return tmpl_fail_(s, "'in' is wanted");
    if (!tmpl_next_(s) || !tmpl_expr_list_(s, false)) return false;
    if (tmpl_is_name_(&s->tok, "if") && !tmpl_loop_filter_(s, ids, n)) return false;
    if (tmpl_is_name_(&s->tok, "recursive"))
        return tmpl_fail_(s, "recursive loops are not supported");
    TmplBlock_ *b = tmpl_open_(s, BLOCK_FOR_, at);
    if (!b || !tmpl_emit_(s, OP_FOR_, 0)) return false;
    b->skip = s->n_code - 1;
    b->top = s->n_code;
    return tmpl_emit_(s, OP_STEP_, 0) && tmpl_store_(s, ids, n);
}

static bool tmpl_st_endfor_(Tmpl_ *s) {
    TmplBlock_ *b = tmpl_top_(s, BLOCK_FOR_);
    if (!b) return tmpl_fail_(s, "'endfor' without 'for'");
    if (!b->in_else) {
        if (!tmpl_end_loop_(s, b)) return false;
        tmpl_land_(s, b->skip);
    }
    tmpl_land_chain_(s, &b->ends);
    s->n_blocks--;
    return tmpl_next_(s);
}

/* break and continue: the innermost loop that this place is in the body of. */
static bool tmpl_leave_(Tmpl_ *s, bool stop) {
    for (u32 i = s->n_blocks; i-- > 0;) {
        TmplBlock_ *b = &s->blocks[i];
        if (b->kind == BLOCK_MACRO_ || b->kind == BLOCK_SET_) break;
        if (b->kind != BLOCK_FOR_ || b->in_else) continue;
        return tmpl_emit_chained_(s, stop ? OP_BREAK_ : OP_JUMP_, stop ? &b->ends : &b->nexts) &&
               tmpl_next_(s);
    }
    return tmpl_fail_(s, "'break' or 'continue' outside of a loop");
}

static bool tmpl_st_break_(Tmpl_ *s) {
    return tmpl_leave_(s, true);
}

static bool tmpl_st_continue_(Tmpl_ *s) {
    return tmpl_leave_(s, false);
}

/* set name.attribute = value; the name is at hand. */
static bool tmpl_set_attribute_(Tmpl_ *s) {
    u32 object, attribute;
    if (!tmpl_intern_(s, s->tok.text, &object) || !tmpl_next_(s) || !tmpl_next_(s)) return false;
    if (s->tok.kind != TOK_NAME_) return tmpl_fail_(s, "a name is wanted behind the dot");
    return tmpl_intern_(s, s->tok.text, &attribute) && tmpl_next_(s) && tmpl_expect_op_(s, "=") &&
           tmpl_expr_list_(s, true) && tmpl_emit_(s, OP_NAME_, (i32)object) &&
           tmpl_emit_(s, OP_STORE_NS_, (i32)attribute);
}

static bool tmpl_st_set_(Tmpl_ *s) {
    u32 ids[TMPL_TARGETS_MAX], n, at = s->at;
    TmplTok_ behind = {.kind = TOK_END_};
    if (!tmpl_next_(s)) return false;
    if (s->tok.kind == TOK_NAME_ && !tmpl_peek_(s, &behind)) return false;
    if (tmpl_is_op_(&behind, ".")) return tmpl_set_attribute_(s);
    if (!tmpl_targets_(s, ids, &n)) return false;
    if (tmpl_is_op_(&s->tok, "="))
        return tmpl_next_(s) && tmpl_expr_list_(s, true) && tmpl_store_(s, ids, n);
    if (s->tok.kind != TOK_END_ || n != 1) return tmpl_fail_(s, "'=' is wanted");
    TmplBlock_ *b = tmpl_open_(s, BLOCK_SET_, at);
    if (!b) return false;
    b->name = ids[0];
    return tmpl_emit_(s, OP_CAPTURE_, 0);
}

static bool tmpl_st_endset_(Tmpl_ *s) {
    TmplBlock_ *b = tmpl_top_(s, BLOCK_SET_);
    if (!b) return tmpl_fail_(s, "'endset' without 'set'");
    s->n_blocks--;
    return tmpl_emit_(s, OP_CAPTURED_, 0) && tmpl_emit_(s, OP_STORE_, (i32)b->name) &&
           tmpl_next_(s);
}

/* One parameter of a macro, with the code for its default. */
static bool tmpl_param_(Tmpl_ *s, TmplMacro_ *m) {
    if (s->tok.kind != TOK_NAME_) return tmpl_fail_(s, "a parameter's name is wanted");
    if (m->n_params == TMPL_PARAMS_MAX)
        return tmpl_fail_(s, "more than %u parameters", TMPL_PARAMS_MAX);
    u32 i = m->n_params++, jump;
    if (!tmpl_intern_(s, s->tok.text, &m->params[i]) || !tmpl_next_(s)) return false;
    if (!tmpl_is_op_(&s->tok, "=")) return true;
    jump = s->n_code;
    if (!tmpl_next_(s) || !tmpl_emit_call_(s, OP_DEFAULT_, 0, (u8)i, 0) || !tmpl_expr_(s) ||
        !tmpl_emit_(s, OP_STORE_, (i32)m->params[i]))
        return false;
    tmpl_land_(s, jump);
    return true;
}

static bool tmpl_st_macro_(Tmpl_ *s) {
    TmplMacro_ *m = tmpl_alloc_(s, sizeof *m);
    u32 at = s->at;
    if (!m) return false;
    for (u32 i = 0; i < s->n_blocks; i++)
        if (s->blocks[i].kind != BLOCK_IF_ && s->blocks[i].kind != BLOCK_GENERATION_)
            return tmpl_fail_(s, "a macro inside of a loop, a set or a macro is not supported");
    if (!tmpl_next_(s)) return false;
    if (s->tok.kind != TOK_NAME_) return tmpl_fail_(s, "a macro's name is wanted");
    m->name = s->tok.text;
    TmplBlock_ *b = tmpl_open_(s, BLOCK_MACRO_, at);
    if (!b || !tmpl_intern_(s, m->name, &b->name) || !tmpl_next_(s) ||
        !tmpl_emit_const_(s, OP_MACRO_, (TmplVal_){.kind = TMPL_MACRO, .macro = m}) ||
        !tmpl_emit_(s, OP_JUMP_, 0))
        return false;
    b->skip = s->n_code - 1;
    m->entry = s->n_code;
    if (!tmpl_expect_op_(s, "(")) return false;
    while (!tmpl_is_op_(&s->tok, ")")) {
        if (m->n_params && !tmpl_expect_op_(s, ",")) return false;
        if (tmpl_is_op_(&s->tok, ")")) break;
        if (!tmpl_param_(s, m)) return false;
    }
    return tmpl_next_(s);
}

static bool tmpl_st_endmacro_(Tmpl_ *s) {
    TmplBlock_ *b = tmpl_top_(s, BLOCK_MACRO_);
    if (!b) return tmpl_fail_(s, "'endmacro' without 'macro'");
    if (!tmpl_emit_(s, OP_RETURN_, 0)) return false;
    tmpl_land_(s, b->skip);
    s->n_blocks--;
    return tmpl_emit_(s, OP_STORE_, (i32)b->name) && tmpl_next_(s);
}

/* transformers' marks around what an assistant said: they print nothing. */
static bool tmpl_st_generation_(Tmpl_ *s) {
    return tmpl_open_(s, BLOCK_GENERATION_, s->at) && tmpl_next_(s);
}

static bool tmpl_st_endgeneration_(Tmpl_ *s) {
    if (!tmpl_top_(s, BLOCK_GENERATION_))
        return tmpl_fail_(s, "'endgeneration' without 'generation'");
    s->n_blocks--;
    return tmpl_next_(s);
}

static const struct {
    const char *name;
    bool (*fn)(Tmpl_ *s);
} TMPL_STATEMENTS_[] = {
    {"if", tmpl_st_if_},
    {"elif", tmpl_st_elif_},
    {"else", tmpl_st_else_},
    {"endif", tmpl_st_endif_},
    {"for", tmpl_st_for_},
    {"endfor", tmpl_st_endfor_},
    {"set", tmpl_st_set_},
    {"endset", tmpl_st_endset_},
    {"macro", tmpl_st_macro_},
    {"endmacro", tmpl_st_endmacro_},
    {"break", tmpl_st_break_},
    {"continue", tmpl_st_continue_},
    {"generation", tmpl_st_generation_},
    {"endgeneration", tmpl_st_endgeneration_},
};

static bool tmpl_statement_(Tmpl_ *s) {
    if (!tmpl_next_(s)) return false;
    if (s->tok.kind != TOK_NAME_) return tmpl_fail_(s, "a statement is wanted");
    for (size_t i = 0; i < COUNT_OF(TMPL_STATEMENTS_); i++)
        if (tmpl_is_name_(&s->tok, TMPL_STATEMENTS_[i].name)) return TMPL_STATEMENTS_[i].fn(s);
    return tmpl_fail_(s, "the statement '%.*s' is not supported", STR_ARG(s->tok.text));
}

/* The text before a tag, cut as the tag's sign and lstrip_blocks say. */
static Str tmpl_text_before_(Tmpl_ *s, Str text, u8 kind, u8 sign) {
    size_t line = text.n;
    if (sign == '-') return tmpl_bytes_(tmpl_strip_side_(s, tmpl_text_(text, true).s, NULL, false));
    if (sign == '+' || kind == '{') return text;
    while (line > 0 && text.p[line - 1] != '\n') line--;
    if (line == 0 && !s->line_start) return text;
    for (size_t i = line; i < text.n;)
        if (!tmpl_space_(utf8_next(text, &i))) return text;
    return str_cut(text, 0, line);
}

static bool tmpl_emit_text_(Tmpl_ *s, Str text) {
    return text.n == 0 || tmpl_emit_const_(s, OP_TEXT_, tmpl_text_(text, true));
}

/* The cursor is behind "{#" and its sign. */
static bool tmpl_comment_(Tmpl_ *s) {
    size_t end = str_find(s->src, STR("#}"), s->pos);
    if (end == SIZE_MAX) return tmpl_fail_(s, "a comment that does not end");
    u8 before = tmpl_byte_(s, end - 1);
    s->pos = (u32)end - (end > s->pos && (before == '-' || before == '+'));
    return tmpl_tag_end_(s, STR("#}"));
}

/* {% raw %} ... {% endraw %}. *found: the cursor, behind "{%" and its sign, was at one. */
static bool tmpl_raw_(Tmpl_ *s, bool *found) {
    u32 pos = s->pos;
    TmplTok_ word, end;
    *found = false;
    if (!tmpl_lex_(s, &word) || !tmpl_is_name_(&word, "raw")) {
        s->pos = pos;
        return s->e->code == ERR_NONE;
    }
    /* Unlike other blocks this one keeps the newline behind it: step over the end by hand. */
    tmpl_skip_space_(s);
    bool hyphen = tmpl_byte_(s, s->pos) == '-';
    if (!str_starts(str_cut(s->src, s->pos + hyphen, s->src.n), STR("%}")))
        return tmpl_fail_(s, "'%%}' is wanted");
    s->pos += 2 + hyphen;
    if (hyphen) tmpl_skip_space_(s);
    *found = true;
    for (size_t at = s->pos; (at = str_find(s->src, STR("{%"), at)) != SIZE_MAX; at += 2) {
        u8 sign = tmpl_byte_(s, at + 2);
        Str text = str_cut(s->src, s->pos, at);
        u32 begin = s->pos;
        bool line_start = s->line_start;
        s->pos = (u32)at + 2 + (sign == '-' || sign == '+');
        s->line_start = false;
        if (s->pos < s->src.n && tmpl_name_byte_(tmpl_byte_(s, s->pos), true) == false)
            tmpl_skip_space_(s);
        if (str_starts(str_cut(s->src, s->pos, s->src.n), STR("endraw"))) {
            s->pos += 6;
            if (!tmpl_lex_(s, &end)) return false;
            if (end.kind == TOK_END_)
                return tmpl_emit_text_(s, tmpl_text_before_(s, text, '%', sign));
        }
        s->pos = begin;
        s->line_start = line_start;
    }
    return tmpl_fail_(s, "'raw' without 'endraw'");
}

/* The tag at the cursor, which is behind its opening and sign. */
static bool tmpl_tag_(Tmpl_ *s, u8 kind) {
    bool raw = false;
    s->brackets = 0;
    s->in_variable = kind == '{';
    if (kind == '#') return tmpl_comment_(s);
    if (kind == '%') {
        if (!tmpl_raw_(s, &raw)) return false;
        if (!raw && !tmpl_statement_(s)) return false;
    } else if (!tmpl_next_(s) || !tmpl_expr_list_(s, true) || !tmpl_emit_(s, OP_EMIT_, 0)) {
        return false;
    }
    if (!raw && s->tok.kind != TOK_END_) return tmpl_fail_(s, "the end of the tag is wanted");
    return true;
}

static bool tmpl_compile_(Tmpl_ *s) {
    s->line_start = true;
    while (s->pos < s->src.n) {
        size_t open = s->pos;
        while (open < s->src.n && !(s->src.p[open] == '{' && open + 1 < s->src.n &&
                                    s->src.p[open + 1] && strchr("{%#", s->src.p[open + 1])))
            open++;
        Str text = str_cut(s->src, s->pos, open);
        s->at = (u32)open;
        if (open == s->src.n) {
            s->pos = (u32)open;
            return tmpl_emit_text_(s, text);
        }
        u8 kind = (u8)s->src.p[open + 1], sign = tmpl_byte_(s, open + 2);
        if (sign != '-' && sign != '+') sign = 0;
        if (!tmpl_emit_text_(s, tmpl_text_before_(s, text, kind, sign))) return false;
        s->pos = (u32)open + 2 + (sign != 0);
        if (!tmpl_tag_(s, kind)) return false;
    }
    return true;
}

/* ---- the machine ---- */

static bool tmpl_push_(Tmpl_ *s, TmplVal_ v) {
    if (s->n_stack == TMPL_STACK_MAX)
        return tmpl_fail_(s, "an expression with more than %u values", TMPL_STACK_MAX);
    if (!tmpl_grow_(s, &s->stack, &s->cap_stack, s->n_stack, sizeof v)) return false;
    s->stack[s->n_stack++] = v;
    return true;
}

static TmplVal_ tmpl_pop_(Tmpl_ *s) {
    ASSERT(s->n_stack > 0);
    return s->stack[--s->n_stack];
}

static bool tmpl_scope_open_(Tmpl_ *s) {
    if (s->n_scopes == TMPL_SCOPES_MAX)
        return tmpl_fail_(s, "scopes nested more than %u deep", TMPL_SCOPES_MAX);
    s->marks[s->n_scopes] = tmpl_mark_(s);
    s->scopes[s->n_scopes++] = s->n_vars;
    return true;
}

static void tmpl_scope_close_(Tmpl_ *s) {
    ASSERT(s->n_scopes > 0);
    s->n_vars = s->scopes[--s->n_scopes];
}

static TmplVar_ *tmpl_find_var_(Tmpl_ *s, u32 name, u32 from, u32 to) {
    while (to > from)
        if (s->vars[--to].name == name) return &s->vars[to];
    return NULL;
}

/* The innermost variable of this name: in this macro's or the template's scopes, then in the outermost
 * scope, then among the functions. */
static bool tmpl_load_(Tmpl_ *s, u32 name) {
    u32 base = s->n_frames ? s->frames[s->n_frames - 1].vars : 0;
    TmplVar_ *v = tmpl_find_var_(s, name, base, s->n_vars);
    if (!v && base) v = tmpl_find_var_(s, name, 0, s->scopes[0]);
    if (v) return tmpl_push_(s, v->v);
    const TmplRow_ *row = tmpl_row_find_(TMPL_FUNCS_, COUNT_OF(TMPL_FUNCS_), s->names[name]);
    if (row) return tmpl_push_(s, (TmplVal_){.kind = TMPL_FUNC, .func = (u32)(row - TMPL_FUNCS_)});
    return tmpl_push_(s, tmpl_undefined_(s->names[name]));
}

static bool tmpl_define_(Tmpl_ *s, u32 name, TmplVal_ v) {
    u32 base = s->n_scopes ? s->scopes[s->n_scopes - 1] : 0;
    TmplVar_ *old = tmpl_find_var_(s, name, base, s->n_vars);
    if (old) {
        old->v = v;
        return true;
    }
    if (s->n_vars == TMPL_VARS_MAX) return tmpl_fail_(s, "more than %u variables", TMPL_VARS_MAX);
    if (!tmpl_grow_(s, &s->vars, &s->cap_vars, s->n_vars, sizeof *s->vars)) return false;
    s->vars[s->n_vars++] = (TmplVar_){name, v};
    return true;
}

static bool tmpl_store_ns_(Tmpl_ *s, Str name) {
    TmplVal_ ns = tmpl_pop_(s), v = tmpl_pop_(s);
    if (ns.kind != TMPL_NAMESPACE)
        return tmpl_fail_(s, "cannot set an attribute of %s", TMPL_KINDS_[ns.kind]);
    return tmpl_dict_put_(s, ns.dict, tmpl_text_(name, true), v);
}

static bool tmpl_unpack_(Tmpl_ *s, u32 n) {
    TmplVal_ v = tmpl_pop_(s);
    TmplList_ *items;
    if (!tmpl_items_(s, &v, &items)) return false;
    if (items->n != n) return tmpl_fail_(s, "%u values for %u variables", items->n, n);
    for (u32 i = n; i-- > 0;)
        if (!tmpl_push_(s, items->v[i])) return false;
    return true;
}

/* n values of the stack become one list, tuple or (n pairs) dict. */
static bool tmpl_build_(Tmpl_ *s, TmplKind_ kind, u32 n) {
    TmplVal_ made = {.kind = kind};
    u32 n_values = kind == TMPL_DICT ? 2 * n : n;
    ASSERT(s->n_stack >= n_values);
    const TmplVal_ *v = &s->stack[s->n_stack - n_values];
    if (kind == TMPL_DICT)
        made.dict = tmpl_alloc_(s, sizeof *made.dict);
    else
        made.list = tmpl_list_new_(s, n);
    if (!made.dict) return false;
    for (u32 i = 0; i < n; i++)
        if (kind == TMPL_DICT ? !tmpl_dict_put_(s, made.dict, v[2 * i], v[2 * i + 1])
                              : !tmpl_list_add_(s, made.list, v[i]))
            return false;
    s->n_stack -= n_values;
    return tmpl_push_(s, made);
}

/* ---- arithmetic ---- */

static i64 tmpl_floor_mod_(i64 a, i64 b) {
    i64 r = b == -1 ? 0 : a % b;
    return r && (r < 0) != (b < 0) ? r + b : r;
}

static bool tmpl_int_math_(Tmpl_ *s, TmplBinary_ op, i64 a, i64 b, TmplVal_ *out) {
    bool over = false;
    *out = tmpl_int_(0);
    if ((op == BIN_FLOORDIV_ || op == BIN_MOD_) && b == 0) return tmpl_fail_(s, "division by zero");
    switch (op) {
    case BIN_ADD_: over = __builtin_add_overflow(a, b, &out->i); break;
    case BIN_SUB_: over = __builtin_sub_overflow(a, b, &out->i); break;
    case BIN_MUL_: over = __builtin_mul_overflow(a, b, &out->i); break;
    case BIN_MOD_: out->i = tmpl_floor_mod_(a, b); break;
    case BIN_FLOORDIV_:
        over = a == INT64_MIN && b == -1;
        if (!over) out->i = a / b - (a % b && (a < 0) != (b < 0));
        break;
    default: /* power */
        if (b < 0) return tmpl_fail_(s, "a negative power is not supported");
        out->i = a == -1 ? (b % 2 ? -1 : 1) : a == 0 || a == 1 ? (a || !b) : 1;
        if (a >= -1 && a <= 1) return true;
        while (b-- > 0 && !over) over = __builtin_mul_overflow(out->i, a, &out->i);
    }
    return !over || tmpl_fail_(s, "a number that does not fit 64 bits");
}

static bool tmpl_float_math_(Tmpl_ *s, TmplBinary_ op, f64 a, f64 b, TmplVal_ *out) {
    if (op == BIN_DIV_ && b == 0) return tmpl_fail_(s, "division by zero");
    switch (op) {
    case BIN_ADD_: *out = tmpl_float_(a + b); return true;
    case BIN_SUB_: *out = tmpl_float_(a - b); return true;
    case BIN_MUL_: *out = tmpl_float_(a * b); return true;
    case BIN_DIV_: *out = tmpl_float_(a / b); return true;
    default: return tmpl_fail_(s, "//, %% and ** of floats are not supported");
    }
}

/* "ab" * 3, and lists likewise. */
static bool tmpl_repeat_(Tmpl_ *s, const TmplVal_ *v, i64 n, TmplVal_ *out) {
    if (v->kind == TMPL_STR) {
        size_t mark = tmpl_mark_(s);
        if (!v->s.n) n = 0;
        for (; n > 0; n--)
            if (!tmpl_work_(s, 8) || !tmpl_put_(s, v->s)) return false;
        return tmpl_cut_output_(s, mark, out);
    }
    TmplList_ *list = tmpl_list_new_(s, 0);
    if (!list) return false;
    if (!v->list->n) n = 0;
    for (; n > 0; n--)
        for (u32 i = 0; i < v->list->n; i++)
            if (!tmpl_list_add_(s, list, v->list->v[i])) return false;
    *out = (TmplVal_){.kind = v->kind, .list = list};
    return true;
}

static bool tmpl_sum_lists_(Tmpl_ *s, const TmplVal_ *a, const TmplVal_ *b, TmplVal_ *out) {
    TmplList_ *list = tmpl_list_new_(s, 0);
    if (!list) return false;
    for (u32 i = 0; i < a->list->n + b->list->n; i++)
        if (!tmpl_list_add_(s, list, i < a->list->n ? a->list->v[i] : b->list->v[i - a->list->n]))
            return false;
    *out = (TmplVal_){.kind = a->kind, .list = list};
    return true;
}

static bool tmpl_concat_(Tmpl_ *s, const TmplVal_ *a, const TmplVal_ *b, TmplVal_ *out) {
    size_t mark = tmpl_mark_(s);
    return tmpl_put_value_(s, a) && tmpl_put_value_(s, b) && tmpl_cut_output_(s, mark, out);
}

static bool tmpl_math_(Tmpl_ *s, TmplBinary_ op, const TmplVal_ *a, const TmplVal_ *b,
                       TmplVal_ *out) {
    static const char *const signs[] = {"+", "-", "*", "/", "//", "%", "**"};
    bool lists = a->kind == TMPL_LIST || a->kind == TMPL_TUPLE;
    if (tmpl_is_number_(a) && tmpl_is_number_(b)) {
        bool floats = a->kind == TMPL_FLOAT || b->kind == TMPL_FLOAT || op == BIN_DIV_;
        bool ok = floats ? tmpl_float_math_(s, op, tmpl_as_float_(a), tmpl_as_float_(b), out)
                         : tmpl_int_math_(s, op, tmpl_as_int_(a), tmpl_as_int_(b), out);
        out->tainted = a->tainted || b->tainted;
        return ok;
    }
    if (op == BIN_ADD_ && a->kind == TMPL_STR && b->kind == TMPL_STR)
        return tmpl_concat_(s, a, b, out);
    if (op == BIN_ADD_ && lists && a->kind == b->kind) return tmpl_sum_lists_(s, a, b, out);
    if (op == BIN_MUL_ && (lists || a->kind == TMPL_STR) && b->kind == TMPL_INT)
        return tmpl_repeat_(s, a, b->i, out);
    const TmplVal_ *missing = a->kind == TMPL_UNDEFINED ? a : b->kind == TMPL_UNDEFINED ? b : NULL;
    if (missing) return tmpl_fail_(s, "'%.*s' is undefined", STR_ARG(tmpl_bytes_(missing->s)));
    return tmpl_fail_(s, "%s %s %s is not supported", TMPL_KINDS_[a->kind], signs[op],
                      TMPL_KINDS_[b->kind]);
}

static bool tmpl_binary_op_(Tmpl_ *s, TmplBinary_ op) {
    TmplVal_ b = tmpl_pop_(s), a = tmpl_pop_(s), out = tmpl_bool_(false);
    bool ok;
    switch (op) {
    case BIN_EQ_:
    case BIN_NE_:
        ok = tmpl_equal_(s, &a, &b, &out.b);
        if (op == BIN_NE_) out.b = !out.b;
        break;
    case BIN_LT_:
    case BIN_LE_:
    case BIN_GT_:
    case BIN_GE_: ok = tmpl_order_(s, op, &a, &b, &out.b); break;
    case BIN_IN_:
    case BIN_NOT_IN_:
        ok = tmpl_in_(s, &a, &b, &out.b);
        if (op == BIN_NOT_IN_) out.b = !out.b;
        break;
    case BIN_CONCAT_: ok = tmpl_concat_(s, &a, &b, &out); break;
    default: ok = tmpl_math_(s, op, &a, &b, &out);
    }
    return ok && tmpl_push_(s, out);
}

static bool tmpl_sign_(Tmpl_ *s, bool minus) {
    TmplVal_ v = tmpl_pop_(s), zero = tmpl_int_(0), out;
    if (!tmpl_is_number_(&v)) return tmpl_fail_(s, "the sign of %s", TMPL_KINDS_[v.kind]);
    if (v.kind == TMPL_FLOAT) {
        if (minus) v.f = -v.f;
        return tmpl_push_(s, v);
    }
    if (!tmpl_math_(s, minus ? BIN_SUB_ : BIN_ADD_, &zero, &v, &out)) return false;
    return tmpl_push_(s, out);
}

/* ---- calls ---- */

/* Binds the arguments on the stack to the row's parameters and calls it. */
static bool tmpl_call_row_(Tmpl_ *s, const TmplRow_ *row, const TmplVal_ *v, const TmplIns_ *ins) {
    const TmplVal_ *arg[TMPL_ROW_PARAMS_] = {0};
    const TmplVal_ *given = &s->stack[s->n_stack - ins->n_pos - 2u * ins->n_kw];
    u32 n_params = 0;
    while (n_params < TMPL_ROW_PARAMS_ && row->params[n_params]) n_params++;
    if (ins->n_pos > n_params)
        return tmpl_fail_(s, "%s takes at most %u arguments", row->name, n_params);
    for (u32 i = 0; i < ins->n_pos; i++) arg[i] = &given[i];
    for (u32 i = 0; i < ins->n_kw; i++) {
        Str name = tmpl_bytes_(given[ins->n_pos + 2 * i].s);
        u32 k = 0;
        while (k < n_params && !str_eq(name, str_of(row->params[k]))) k++;
        if (k == n_params || arg[k])
            return tmpl_fail_(s, "%s does not take the argument '%.*s'", row->name, STR_ARG(name));
        arg[k] = &given[ins->n_pos + 2 * i + 1];
    }
    TmplVal_ out;
    if (!row->fn(s, v, arg, &out)) return false;
    s->n_stack -= ins->n_pos + 2u * ins->n_kw;
    return tmpl_push_(s, out);
}

/* namespace(a=1), dict(a=1), and either with a dict to begin from. */
static bool tmpl_make_dict_(Tmpl_ *s, TmplKind_ kind, const TmplIns_ *ins) {
    const TmplVal_ *given = &s->stack[s->n_stack - ins->n_pos - 2u * ins->n_kw];
    TmplDict_ *d = tmpl_alloc_(s, sizeof *d);
    if (!d) return false;
    if (ins->n_pos > 1 || (ins->n_pos && given[0].kind != TMPL_DICT))
        return tmpl_fail_(s, "namespace() and dict() take a dict and named values");
    for (u32 i = 0; ins->n_pos && i < given[0].dict->n; i++)
        if (!tmpl_dict_put_(s, d, given[0].dict->v[i].key, given[0].dict->v[i].value)) return false;
    for (u32 i = 0; i < ins->n_kw; i++) {
        const TmplVal_ *pair = &given[ins->n_pos + 2 * i];
        if (!tmpl_dict_put_(s, d, pair[0], pair[1])) return false;
    }
    s->n_stack -= ins->n_pos + 2u * ins->n_kw;
    return tmpl_push_(s, (TmplVal_){.kind = kind, .dict = d});
}

/* Defines the macro's parameters in the scope just opened and notes which were given. */
static bool tmpl_bind_(Tmpl_ *s, const TmplMacro_ *m, const TmplIns_ *ins, u32 *bound) {
    const TmplVal_ *given = &s->stack[s->n_stack - ins->n_pos - 2u * ins->n_kw];
    *bound = 0;
    if (ins->n_pos > m->n_params)
        return tmpl_fail_(s, "macro '%.*s' takes at most %u arguments", STR_ARG(m->name),
                          m->n_params);
    for (u32 i = 0; i < m->n_params; i++)
        if (!tmpl_define_(s, m->params[i],
                          i < ins->n_pos ? given[i] : tmpl_undefined_(s->names[m->params[i]])))
            return false;
    *bound = (1u << ins->n_pos) - 1;
    for (u32 i = 0; i < ins->n_kw; i++) {
        const TmplVal_ *pair = &given[ins->n_pos + 2 * i];
        u32 k = 0;
        while (k < m->n_params && !str_eq(tmpl_bytes_(pair->s), s->names[m->params[k]])) k++;
        if (k == m->n_params || (*bound >> k & 1))
            return tmpl_fail_(s, "macro '%.*s' does not take the argument '%.*s'", STR_ARG(m->name),
                              STR_ARG(tmpl_bytes_(pair->s)));
        *bound |= 1u << k;
        if (!tmpl_define_(s, m->params[k], pair[1])) return false;
    }
    return true;
}

static bool tmpl_call_macro_(Tmpl_ *s, const TmplMacro_ *m, const TmplIns_ *ins) {
    if (s->n_frames == TMPL_FRAMES_MAX)
        return tmpl_fail_(s, "macros call macros more than %u deep", TMPL_FRAMES_MAX);
    TmplFrame_ f = {.ret = s->ip,
                    .vars = s->n_vars,
                    .scopes = s->n_scopes,
                    .loops = s->n_loops,
                    .mark = tmpl_mark_(s)};
    if (!tmpl_scope_open_(s) || !tmpl_bind_(s, m, ins, &f.given)) return false;
    s->n_stack -= ins->n_pos + 2u * ins->n_kw + 1;
    f.stack = s->n_stack;
    s->frames[s->n_frames++] = f;
    s->ip = m->entry;
    return true;
}

static bool tmpl_return_(Tmpl_ *s) {
    TmplVal_ text;
    ASSERT(s->n_frames > 0);
    TmplFrame_ f = s->frames[--s->n_frames];
    if (!tmpl_cut_output_(s, f.mark, &text)) return false;
    s->n_vars = f.vars;
    s->n_scopes = f.scopes;
    s->n_loops = f.loops;
    s->n_stack = f.stack;
    s->ip = f.ret;
    return tmpl_push_(s, text);
}

/* The callee is under its arguments. */
static bool tmpl_call_(Tmpl_ *s, const TmplIns_ *ins) {
    u32 at = s->n_stack - ins->n_pos - 2u * ins->n_kw - 1;
    TmplVal_ callee = s->stack[at];
    if (callee.kind == TMPL_MACRO) return tmpl_call_macro_(s, callee.macro, ins);
    if (callee.kind != TMPL_FUNC) {
        if (callee.kind == TMPL_UNDEFINED)
            return tmpl_fail_(s, "'%.*s' is undefined, or a function that dlm does not have",
                              STR_ARG(tmpl_bytes_(callee.s)));
        return tmpl_fail_(s, "%s cannot be called", TMPL_KINDS_[callee.kind]);
    }
    const TmplRow_ *row = &TMPL_FUNCS_[callee.func];
    bool ok = row->fn ? tmpl_call_row_(s, row, &callee, ins)
                      : tmpl_make_dict_(s, callee.func == 0 ? TMPL_NAMESPACE : TMPL_DICT, ins);
    if (!ok) return false;
    s->stack[at] = tmpl_pop_(s);
    return true;
}

/* loop.cycle(a, b) and loop.changed(a) */
static bool tmpl_loop_method_(Tmpl_ *s, TmplLoop_ *l, Str name, const TmplIns_ *ins) {
    const TmplVal_ *given = &s->stack[s->n_stack - ins->n_pos];
    TmplVal_ out = tmpl_bool_(true);
    bool same = false;
    if (ins->n_kw || !ins->n_pos) return tmpl_fail_(s, "loop.%.*s() wants values", STR_ARG(name));
    if (str_eq(name, STR("cycle"))) {
        out = given[l->i % ins->n_pos];
    } else if (str_eq(name, STR("changed")) && ins->n_pos == 1) {
        if (l->has_last && !tmpl_equal_(s, &l->last, given, &same)) return false;
        l->last = given[0];
        l->has_last = true;
        out.b = !same;
    } else {
        return tmpl_fail_(s, "loop.%.*s() is not supported", STR_ARG(name));
    }
    s->n_stack -= ins->n_pos;
    return tmpl_push_(s, out);
}

/* The object is under the arguments. */
static bool tmpl_method_(Tmpl_ *s, Str name, const TmplIns_ *ins) {
    u32 at = s->n_stack - ins->n_pos - 2u * ins->n_kw - 1;
    TmplVal_ obj = s->stack[at];
    const TmplRow_ *row = NULL;
    bool ok;
    if (obj.kind == TMPL_UNDEFINED)
        return tmpl_fail_(s, "'%.*s' is undefined", STR_ARG(tmpl_bytes_(obj.s)));
    if (obj.kind == TMPL_STR)
        row = tmpl_row_find_(TMPL_STR_METHODS_, COUNT_OF(TMPL_STR_METHODS_), name);
    if (obj.kind == TMPL_DICT)
        row = tmpl_row_find_(TMPL_DICT_METHODS_, COUNT_OF(TMPL_DICT_METHODS_), name);
    if (obj.kind == TMPL_LOOP)
        ok = tmpl_loop_method_(s, obj.loop, name, ins);
    else if (row)
        ok = tmpl_call_row_(s, row, &obj, ins);
    else
        return tmpl_fail_(s, "%s has no method '%.*s' in dlm", TMPL_KINDS_[obj.kind],
                          STR_ARG(name));
    if (!ok) return false;
    s->stack[at] = tmpl_pop_(s);
    return true;
}

static bool tmpl_filter_op_(Tmpl_ *s, const TmplIns_ *ins) {
    u32 at = s->n_stack - ins->n_pos - 2u * ins->n_kw - 1;
    TmplVal_ v = s->stack[at];
    if (!tmpl_call_row_(s, &TMPL_FILTERS_[ins->a], &v, ins)) return false;
    s->stack[at] = tmpl_pop_(s);
    return true;
}

static bool tmpl_test_op_(Tmpl_ *s, const TmplIns_ *ins) {
    bool out;
    if (ins->n_pos > 1 || ins->n_kw) return tmpl_fail_(s, "a test takes one argument");
    TmplVal_ arg = ins->n_pos ? tmpl_pop_(s) : tmpl_none_(), v = tmpl_pop_(s);
    if (!tmpl_test_(s, TMPL_TESTS_[ins->a].is, &v, ins->n_pos ? &arg : NULL, &out)) return false;
    return tmpl_push_(s, tmpl_bool_(out));
}

/* ---- loops ---- */

/* Begins to loop over the top of the stack; `pick`: to filter it. *empty: there is nothing there. */
static bool tmpl_loop_open_(Tmpl_ *s, bool pick, bool *empty) {
    TmplVal_ v = tmpl_pop_(s);
    TmplList_ *items;
    TmplLoop_ *l = tmpl_alloc_(s, sizeof *l);
    if (!l || !tmpl_items_(s, &v, &items)) return false;
    if (pick && !(l->kept = tmpl_list_new_(s, 0))) return false;
    *empty = !pick && items->n == 0;
    if (*empty) return true;
    if (s->n_loops == TMPL_LOOPS_MAX)
        return tmpl_fail_(s, "loops nested more than %u deep", TMPL_LOOPS_MAX);
    l->items = items;
    s->loops[s->n_loops++] = l;
    return true;
}

/* Opens the scope of one turn and pushes its item. */
static bool tmpl_loop_step_(Tmpl_ *s, u32 loop_name) {
    TmplLoop_ *l = s->loops[s->n_loops - 1];
    if (!tmpl_scope_open_(s)) return false;
    if (!l->kept && !tmpl_define_(s, loop_name, (TmplVal_){.kind = TMPL_LOOP, .loop = l}))
        return false;
    return tmpl_push_(s, l->items->v[l->i]);
}

/* Closes the scope of one turn; true when there is another. */
static bool tmpl_loop_next_(Tmpl_ *s) {
    TmplLoop_ *l = s->loops[s->n_loops - 1];
    tmpl_scope_close_(s);
    if (++l->i < l->items->n) return true;
    if (!l->kept) s->n_loops--;
    return false;
}

/* One turn of the filter of a loop: the next item, or the list of those kept. */
static bool tmpl_pick_step_(Tmpl_ *s, i32 jump) {
    TmplLoop_ *l = s->loops[s->n_loops - 1];
    if (l->i < l->items->n) return tmpl_loop_step_(s, 0);
    s->n_loops--;
    s->ip += (u32)jump;
    return tmpl_push_(s, tmpl_list_(l->kept));
}

static bool tmpl_pick_next_(Tmpl_ *s) {
    TmplLoop_ *l = s->loops[s->n_loops - 1];
    TmplVal_ condition = tmpl_pop_(s);
    if (tmpl_true_(&condition) && !tmpl_list_add_(s, l->kept, l->items->v[l->i])) return false;
    tmpl_loop_next_(s);
    return true;
}

/* long: the instructions of the machine, one line each. */
static bool tmpl_step_(Tmpl_ *s, const TmplIns_ *ins, u32 loop_name) {
    TmplVal_ v;
    bool flag;
    u32 a = (u32)ins->a;
    switch ((TmplOp_)ins->op) {
    case OP_TEXT_: return tmpl_put_(s, s->consts[a].s);
    case OP_EMIT_: v = tmpl_pop_(s); return tmpl_put_value_(s, &v);
    case OP_CONST_:
    case OP_MACRO_: return tmpl_push_(s, s->consts[a]);
    case OP_NAME_: return tmpl_load_(s, a);
    case OP_STORE_: return tmpl_define_(s, a, tmpl_pop_(s));
    case OP_STORE_NS_: return tmpl_store_ns_(s, s->names[a]);
    case OP_UNPACK_: return tmpl_unpack_(s, a);
    case OP_ATTR_: {
        TmplVal_ obj = tmpl_pop_(s);
        return tmpl_attr_(s, &obj, s->names[a], &v) && tmpl_push_(s, v);
    }
    case OP_ITEM_: {
        TmplVal_ key = tmpl_pop_(s), obj = tmpl_pop_(s);
        return tmpl_item_(s, &obj, &key, &v) && tmpl_push_(s, v);
    }
    case OP_SLICE_:
        ASSERT(s->n_stack >= 4);
        if (!tmpl_slice_(s, &s->stack[s->n_stack - 4], &v)) return false;
        s->n_stack -= 4;
        return tmpl_push_(s, v);
    case OP_LIST_: return tmpl_build_(s, TMPL_LIST, a);
    case OP_TUPLE_: return tmpl_build_(s, TMPL_TUPLE, a);
    case OP_DICT_: return tmpl_build_(s, TMPL_DICT, a);
    case OP_NOT_: v = tmpl_pop_(s); return tmpl_push_(s, tmpl_bool_(!tmpl_true_(&v)));
    case OP_NEG_: return tmpl_sign_(s, true);
    case OP_POS_: return tmpl_sign_(s, false);
    case OP_BINARY_: return tmpl_binary_op_(s, (TmplBinary_)a);
    case OP_JUMP_: s->ip += a; return true;
    case OP_JUMP_FALSE_:
        v = tmpl_pop_(s);
        s->ip += tmpl_true_(&v) ? 0 : a;
        return true;
    case OP_AND_:
    case OP_OR_:
        v = tmpl_pop_(s);
        if (tmpl_true_(&v) == (ins->op == OP_AND_)) return true;
        s->ip += a;
        return tmpl_push_(s, v);
    case OP_FILTER_: return tmpl_filter_op_(s, ins);
    case OP_TEST_: return tmpl_test_op_(s, ins);
    case OP_CALL_: return tmpl_call_(s, ins);
    case OP_METHOD_: return tmpl_method_(s, s->names[a], ins);
    case OP_FOR_:
        if (!tmpl_loop_open_(s, false, &flag)) return false;
        s->ip += flag ? a : 0;
        return true;
    case OP_STEP_: return tmpl_loop_step_(s, loop_name);
    case OP_NEXT_: s->ip += tmpl_loop_next_(s) ? a : 0; return true;
    case OP_BREAK_:
        tmpl_scope_close_(s);
        s->n_loops--;
        s->ip += a;
        return true;
    case OP_PICK_: return tmpl_loop_open_(s, true, &flag);
    case OP_PICK_STEP_: return tmpl_pick_step_(s, ins->a);
    case OP_PICK_NEXT_: s->ip += a; return tmpl_pick_next_(s);
    case OP_CAPTURE_: return tmpl_scope_open_(s);
    case OP_CAPTURED_:
        tmpl_scope_close_(s);
        return tmpl_cut_output_(s, s->marks[s->n_scopes], &v) && tmpl_push_(s, v);
    case OP_DEFAULT_:
        s->ip += s->frames[s->n_frames - 1].given >> ins->n_pos & 1 ? a : 0;
        return true;
    case OP_RETURN_: return tmpl_return_(s);
    case OP_UNSUPPORTED_:
        return tmpl_fail_(s, "%.*s is not supported", STR_ARG(tmpl_bytes_(s->consts[a].s)));
    }
    return false;
}

static bool tmpl_run_(Tmpl_ *s) {
    u32 loop_name;
    if (!tmpl_intern_(s, STR("loop"), &loop_name)) return false;
    s->depth = 0;
    while (s->ip < s->n_code) {
        const TmplIns_ *ins =
            &s->code[s->ip++]; /* a jump is relative to the instruction behind it */
        s->at = ins->at;
        if (!tmpl_work_(s, 32) || !tmpl_step_(s, ins, loop_name)) return false;
    }
    ASSERT(s->n_stack == 0 && s->n_scopes == 0 && s->n_loops == 0 && s->n_frames == 0);
    return true;
}

/* ---- rendering ---- */

/* The template with every line end as \n, and not one at its end, as Jinja reads it. */
static bool tmpl_normalize_(Tmpl_ *s, Str source) {
    char *p = tmpl_alloc_(s, source.n + 1);
    size_t n = 0;
    if (!p) return false;
    for (size_t i = 0; i < source.n; i++) {
        bool cr = source.p[i] == '\r';
        p[n++] = cr ? '\n' : source.p[i];
        if (cr && i + 1 < source.n && source.p[i + 1] == '\n') i++;
    }
    if (n && p[n - 1] == '\n') n--;
    s->src = (Str){p, n};
    return true;
}

/* Only these roles are the program's own words; any other came from outside. */
static bool tmpl_known_role_(Str role) {
    return str_eq(role, STR("system")) || str_eq(role, STR("user")) ||
           str_eq(role, STR("assistant")) || str_eq(role, STR("tool"));
}

static bool tmpl_define_text_(Tmpl_ *s, const char *name, TmplVal_ v) {
    u32 id;
    return tmpl_intern_(s, str_of(name), &id) && tmpl_define_(s, id, v);
}

/* The variables that the caller names. */
static bool tmpl_define_more_(Tmpl_ *s, TmplData more) {
    TmplVal_ v;
    if (!tmpl_from_data_(s, more, &v)) return false;
    for (u32 i = 0; v.kind == TMPL_DICT && i < v.dict->n; i++) {
        u32 id;
        if (!tmpl_intern_(s, tmpl_bytes_(v.dict->v[i].key.s), &id) ||
            !tmpl_define_(s, id, v.dict->v[i].value))
            return false;
    }
    return true;
}

/* A message as the template sees it: the role, the content, and what else it has. */
static bool tmpl_message_(Tmpl_ *s, const TmplMsg *m, TmplVal_ *out) {
    TmplVal_ more, content = tmpl_text_(m->content, false);
    *out = (TmplVal_){.kind = TMPL_DICT, .dict = tmpl_alloc_(s, sizeof *out->dict)};
    if (!out->dict || !tmpl_from_data_(s, m->more, &more) ||
        (m->content_data.doc && !tmpl_from_data_(s, m->content_data, &content)) ||
        !tmpl_dict_put_(s, out->dict, tmpl_text_(STR("role"), true),
                        tmpl_text_(m->role, tmpl_known_role_(m->role))) ||
        !tmpl_dict_put_(s, out->dict, tmpl_text_(STR("content"), true), content))
        return false;
    for (u32 i = 0; more.kind == TMPL_DICT && i < more.dict->n; i++) {
        const TmplPair_ *pair = &more.dict->v[i];
        Str key = tmpl_bytes_(pair->key.s);
        if (!str_eq(key, STR("role")) && !str_eq(key, STR("content")) &&
            !tmpl_dict_put_(s, out->dict, pair->key, pair->value))
            return false;
    }
    return true;
}

static bool tmpl_define_all_(Tmpl_ *s, const TmplMsg *msgs, size_t n_msgs) {
    const TmplVars *in = s->vars_in;
    if (n_msgs > TMPL_LIST_MAX)
        return err_set(s->e, ERR_USAGE, "more than %u messages", TMPL_LIST_MAX);
    TmplVal_ tools, list = tmpl_list_(tmpl_list_new_(s, (u32)n_msgs));
    if (!list.list || !tmpl_define_more_(s, in->more) || !tmpl_from_data_(s, in->tools, &tools))
        return false;
    for (size_t i = 0; i < n_msgs; i++) {
        TmplVal_ m;
        if (!tmpl_message_(s, &msgs[i], &m) || !tmpl_list_add_(s, list.list, m)) return false;
    }
    return tmpl_define_text_(s, "messages", list) &&
           tmpl_define_text_(s, "bos_token", tmpl_text_(in->bos_token, true)) &&
           tmpl_define_text_(s, "eos_token", tmpl_text_(in->eos_token, true)) &&
           tmpl_define_text_(s, "add_generation_prompt", tmpl_bool_(in->add_generation_prompt)) &&
           tmpl_define_text_(s, "tools", tools) && tmpl_define_text_(s, "documents", tmpl_none_());
}

static void tmpl_out_free(TmplOut *out) {
    buf_free(&out->text);
    buf_free(&out->trust);
}

/* The bytes that the template is given, about; what is in a document counts once. */
static u64 tmpl_input_(Str source, const TmplMsg *msgs, size_t n_msgs, const TmplVars *v) {
    u64 input = source.n;
    const JsonDoc *seen = v->tools.doc ? v->tools.doc : v->more.doc;
    if (seen) input += (u64)seen->n * TMPL_NODE_BYTES;
    for (size_t i = 0; i < n_msgs; i++) {
        const JsonDoc *doc = msgs[i].more.doc ? msgs[i].more.doc : msgs[i].content_data.doc;
        if (doc && doc != seen) input += (u64)doc->n * TMPL_NODE_BYTES;
        if (doc) seen = doc;
        if (!add_ok(input, msgs[i].role.n, &input) || !add_ok(input, msgs[i].content.n, &input))
            return UINT32_MAX;
    }
    return input;
}

/* Renders the template over the messages. `out` begins empty ({0}) and holds nothing after a failure. */
static bool tmpl_render(Str source, const TmplMsg *msgs, size_t n_msgs, const TmplVars *v,
                        TmplOut *out, Err *e) {
    Err local = {0};
    if (!e) e = &local;
    *out = (TmplOut){.text.max = TMPL_OUTPUT_MAX, .trust.max = TMPL_OUTPUT_MAX};
    if (source.n > TMPL_SOURCE_MAX)
        return err_set(e, ERR_MODEL, "the chat template is longer than %zu bytes", TMPL_SOURCE_MAX);
    u64 input = MIN_OF(tmpl_input_(source, msgs, n_msgs, v), UINT32_MAX);
    /* as a rule all that a rendering needs: what malloc maps for a moment, every processor has to forget */
    union {
        TmplChunk_ chunk;
        _Alignas(16) u8 bytes[TMPL_CHUNK_HEAD + TMPL_CHUNK];
    } first = {.bytes = {0}};
    first.chunk.cap = TMPL_CHUNK;
    Tmpl_ state = {.e = e,
                   .out = out,
                   .vars_in = v,
                   .work_left = TMPL_WORK_BASE + TMPL_PER_BYTE * input,
                   .memory_left = TMPL_MEMORY_BASE + TMPL_PER_BYTE * input,
                   .chunks = &first.chunk},
          *s = &state;
    bool ok = tmpl_normalize_(s, source) && tmpl_compile_(s);
    if (ok && s->n_blocks) {
        s->at = s->blocks[s->n_blocks - 1].at;
        ok = tmpl_fail_(s, "a statement that does not end");
    }
    ok = ok && tmpl_define_all_(s, msgs, n_msgs) && tmpl_run_(s);
    for (TmplChunk_ *c = s->chunks, *next; c != &first.chunk; c = next) {
        next = c->next;
        mem_free(c);
    }
    if (!ok) tmpl_out_free(out);
    return ok;
}

#endif
