/* pre.c - pre-tokenizers: the published regular expressions that cut a text into words.
 *
 * Owns:      nothing.
 * Stands on: base utf8
 * Promises:  never allocates; immutable once compiled, so any number of threads may cut; the words add
 *            up to the text, whatever its bytes are; each code point is looked at a bounded number of
 *            times.
 *
 * The expressions stand here as the tokenizer.json files have them, and a small backtracking matcher
 * runs them as Oniguruma does, which is what the `tokenizers` package uses: alternatives in order,
 * greedy and possessive repetition, sets of categories, case-insensitive groups, one lookahead. */
#ifndef DLM_PRE_C
#define DLM_PRE_C

#include "base.c"
#include "utf8.c"

#define PRE_SPLITS_MAX 6 /* expressions of one pre-tokenizer */
#define PRE_OPS_MAX 96u  /* of all its expressions, compiled */
#define PRE_SETS_MAX 48u
#define PRE_RANGES_MAX 160u

/* ---- the published expressions ---- */

#define PRE_CONTRACTION "'s|'t|'re|'ve|'m|'ll|'d"
#define PRE_SPACES "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define PRE_SPACES_LITERAL "\\s*[\r\n]+|\\s+(?!\\S)|\\s+" /* newlines, not their escapes */
#define PRE_GPT2 PRE_CONTRACTION "| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
/* cl100k_base of tiktoken, but for the digits. */
#define PRE_CL100K(digits)                                           \
    "(?i:" PRE_CONTRACTION ")|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits \
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" PRE_SPACES
/* A word whose capitals come first, and one in capitals only; `end` is what may follow either. */
#define PRE_CASED(end)                                                                              \
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+" end \
    "|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*" end
#define PRE_CASED_REST "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" PRE_SPACES
/* DeepSeek's idea of CJK, as published: all from U+0800 on, and Hangul. */
#define PRE_DEEPSEEK_CJK "[\u4E00-\u9FA5\u0800-\u4E00\uAC00-\uD7FF]+"
#define PRE_DEEPSEEK_LETTERS                                                               \
    "A-Za-z\u00B5\u00C0-\u00D6\u00D8-\u00F6\u00F8-\u01BA\u01BC-\u01BF\u01C4-\u0293"        \
    "\u0295-\u02AF\u0370-\u0373\u0376\u0377\u037B-\u037D\u037F\u0386\u0388-\u038A\u038C"   \
    "\u038E-\u03A1\u03A3-\u03F5\u03F7-\u0481\u048A-\u052F\u0531-\u0556\u10A0-\u10C5"       \
    "\u13A0-\u13F5\u13F8-\u13FD\u1C90-\u1CBA\u1CBD-\u1CBF\u1D00-\u1D2B\u1D6B-\u1D77"       \
    "\u1D79-\u1D9A\u1E00-\u1F15\u1F18-\u1F1D\u1F20-\u1F45\u1F48-\u1F4D\u1F50-\u1F57\u1F59" \
    "\u1F5B\u1F5D\u1F5F-\u1F7D\u1F80-\u1FB4\u1FB6-\u1FBC\u1FBE\u1FC2-\u1FC4\u1FC6-\u1FCC"  \
    "\u1FD0-\u1FD3\u1FD6-\u1FDB\u1FE0-\u1FEC\u1FF2-\u1FF4\u1FF6-\u1FFC\u2102\u2107"        \
    "\u210A-\u2113\u2115\u2119-\u211D\u2124\u2126\u2128\u212A-\u212D\u212F-\u2134\u2139"   \
    "\u213C-\u213F\u2145-\u2149\u214E\u2183\u2184\u2C00-\u2C7B\u2C7E-\u2CE4\u2CEB-\u2CEE"  \
    "\u2CF2\u2CF3\uA640-\uA66D\uA680-\uA69B\uA722-\uA76F\uA771-\uA787\uA78B-\uA78E"        \
    "\uAB70-\uABBF\uFB00-\uFB06\uFB13-\uFB17\uFF21-\uFF3A\uFF41-\uFF5A"                    \
    "\U00010400-\U0001044F\U000104B0-\U000104D3\U000104D8-\U000104FB\U00010C80-\U00010CB2" \
    "\U00010CC0-\U00010CF2\U000118A0-\U000118DF\U0001E900-\U0001E943"
#define PRE_SENTENCES " ?[^(\\s|.,!?\u2026\u3002\uFF0C\u3001\u0964\u06D4\u060C)]+"

/* A pre-tokenizer. The expressions are applied one inside the other, outermost first: each cuts a
 * piece into its matches and what lies between them. */
typedef struct {
    const char *name;
    const char *regex[PRE_SPLITS_MAX]; /* NULL ends the list */
    bool ignore_merges; /* a word that is a token is that token, whatever its merges */
    bool add_bos;       /* when the file does not say */
} PreRow;

/* `\p{N}` also stands for the package's Digits(individual_digits), and the first of falcon's three for
 * its Punctuation(contiguous), whose own class is that of an older Unicode. */
static const PreRow PRE_ROWS[] = {
    {"gpt-2", {PRE_GPT2}, false, false},
    {"smollm", {"\\p{N}", PRE_GPT2}, false, false},
    {"qwen2", {PRE_CL100K("\\p{N}")}, false, false},
    {"qwen35",
     {"(?i:" PRE_CONTRACTION ")|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}"
      "| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|" PRE_SPACES},
     false,
     false},
    {"llama-bpe", {PRE_CL100K("\\p{N}{1,3}")}, true, true},
    {"dbrx", {PRE_CL100K("\\p{N}{1,3}")}, false, false},
    {"minicpm5", {"\\p{N}{1,3}", PRE_CL100K("\\p{N}+")}, true, false},
    {"tekken", {PRE_CASED("") "|\\p{N}" PRE_CASED_REST}, true, true},
    {"gpt-4o",
     {PRE_CASED("(?i:" PRE_CONTRACTION ")?") "|\\p{N}{1,3}" PRE_CASED_REST},
     false,
     false},
    {"bailingmoe",
     {"'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*"
      "|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+"},
     false,
     false},
    {"seed-coder",
     {"(?i:" PRE_CONTRACTION
      ")|[^\r\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\r\n]+|" PRE_SPACES_LITERAL},
     false,
     false},
    {"falcon", {"[\\p{P}\\$\\+<=>\\^~\\|`]+", PRE_GPT2, "[0-9][0-9][0-9]"}, false, false},
    {"deepseek-llm",
     {"[\r\n]", "\\s?[" PRE_DEEPSEEK_LETTERS "]+",
      "\\s?[!-/:-~\uFF01-\uFF0F\uFF1A-\uFF5E\u2018-\u201F\u3000-\u3002]+", "\\s+$",
      PRE_DEEPSEEK_CJK, "\\p{N}"},
     false,
     false},
    {"deepseek-coder",
     {"[\r\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", PRE_DEEPSEEK_CJK, "\\p{N}"},
     false,
     false},
    {"deepseek-v3",
     {"\\p{N}{1,3}", "[\u4E00-\u9FA5\u3040-\u309F\u30A0-\u30FF]+",
      "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?"
      "[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|" PRE_SPACES_LITERAL},
     false,
     false},
    {"bloom", {PRE_SENTENCES}, false, false},
    {"viking", {PRE_SENTENCES, "\\p{N}"}, false, false},
};

/* Values of tokenizer.ggml.pre, as llama.cpp's converter writes them, and the row of each. The text of
 * some is brought to Unicode's form NFC first, as their tokenizer.json says. */
typedef struct {
    const char *name, *row;
    bool nfc;
} PreName;

static const PreName PRE_NAMES[] = {
    {"gpt-2", "gpt-2", false},
    {"phi-2", "gpt-2", false},
    {"mpt", "gpt-2", true},
    {"olmo", "gpt-2", true},
    {"jais", "gpt-2", false},
    {"trillion", "gpt-2", false},
    {"exaone4", "gpt-2", false},
    {"modern-bert", "gpt-2", true},
    {"granite-docling", "gpt-2", false},
    {"gigachat", "gpt-2", false},
    {"a.x-4.0", "gpt-2", false},
    {"mellum", "gpt-2", false},
    {"smollm", "smollm", false},
    {"starcoder", "smollm", false},
    {"refact", "smollm", false},
    {"command-r", "smollm", true},
    {"codeshell", "smollm", false},
    {"exaone", "smollm", false},
    {"minerva-7b", "smollm", false},
    {"mellum2", "smollm", false},
    {"qwen2", "qwen2", true},
    {"deepseek-r1-qwen", "qwen2", false},
    {"stablelm2", "qwen2", false},
    {"megrez", "qwen2", true},
    {"hunyuan", "qwen2", false},
    {"solar-open", "qwen2", false},
    {"grok-2", "qwen2", false},
    {"kormo", "qwen2", false},
    {"qwen35", "qwen35", true},
    {"llama-bpe", "llama-bpe", false},
    {"llama3", "llama-bpe", false},
    {"llama-v3", "llama-bpe", false},
    {"falcon3", "llama-bpe", false},
    {"falcon-h1", "llama-bpe", false},
    {"pixtral", "llama-bpe", false},
    {"midm-2.0", "llama-bpe", false},
    {"lfm2", "llama-bpe", false},
    {"dbrx", "dbrx", false},
    {"smaug-bpe", "dbrx", false},
    {"chatglm-bpe", "dbrx", false},
    {"glm4", "dbrx", false},
    {"minicpm5", "minicpm5", false},
    {"tekken", "tekken", false},
    {"gpt-4o", "gpt-4o", false},
    {"llama4", "gpt-4o", false},
    {"kanana2", "gpt-4o", false},
    {"talkie", "gpt-4o", false},
    {"minimax-m2", "gpt-4o", false},
    {"bailingmoe", "bailingmoe", false},
    {"bailingmoe2", "bailingmoe", false},
    {"llada-moe", "bailingmoe", false},
    {"seed-coder", "seed-coder", false},
    {"falcon", "falcon", false},
    {"deepseek-llm", "deepseek-llm", false},
    {"deepseek-coder", "deepseek-coder", false},
    {"deepseek-v3", "deepseek-v3", false},
    {"hunyuan-dense", "deepseek-v3", false},
    {"joyai-llm", "deepseek-v3", false},
    {"bloom", "bloom", false},
    {"poro-chat", "bloom", false},
    {"gpt3-finnish", "bloom", false},
    {"viking", "viking", false},
};
/* The names of the rows, for messages. */
#define PRE_LIST                                                                            \
    "gpt-2, smollm, qwen2, qwen35, llama-bpe, dbrx, minicpm5, tekken, gpt-4o, bailingmoe, " \
    "seed-coder, falcon, deepseek-llm, deepseek-coder, deepseek-v3, bloom, viking"

/* ---- compiled expressions ---- */

typedef enum {
    PRE_RUN_,       /* min to max code points of a set, as many as there are */
    PRE_SPLIT_,     /* tries what follows, then at `to` */
    PRE_JUMP_,      /* goes on at `to` */
    PRE_NOT_AHEAD_, /* no code point of the set comes next */
    PRE_AT_END_,    /* the piece ends here */
    PRE_DONE_       /* matched */
} PreOpKind_;

typedef struct {
    u8 kind;         /* PreOpKind_ */
    bool possessive; /* a run that gives nothing back */
    u16 to;          /* a set, or an op */
    u32 min, max;
} PreOp_;

typedef struct {
    u32 ascii[4]; /* bit c: the set has the code point c */
    u32 classes;  /* of the others: UTF8_LETTER ... */
    u16 range, n_ranges;
    bool negated, fold; /* what `ascii` has is had already */
} PreSet_;

typedef struct {
    PreOp_ ops[PRE_OPS_MAX];
    PreSet_ sets[PRE_SETS_MAX];
    struct {
        u32 low, high;
    } ranges[PRE_RANGES_MAX];
    u16 n_ops, n_sets, n_ranges, n_splits;
    u16 start[PRE_SPLITS_MAX]; /* [n_splits] ops */
} Pre;

/* Reads one expression. All of them are ours: what is not understood is a bug. */
typedef struct {
    Pre *p;
    Str s; /* the expression */
    size_t i;
    bool fold; /* inside of (?i: ) */
} PreReader_;

static bool pre_take_(PreReader_ *r, const char *text) {
    bool is = str_starts(str_cut(r->s, r->i, r->s.n), str_of(text));
    if (is) r->i += strlen(text);
    return is;
}

static u16 pre_op_(PreReader_ *r, PreOp_ op) {
    ASSERT(r->p->n_ops < PRE_OPS_MAX);
    r->p->ops[r->p->n_ops] = op;
    return r->p->n_ops++;
}

/* The name of a general category, or of a group of them, after \p. */
static u32 pre_category_(PreReader_ *r) {
    static const struct {
        const char *name;
        u32 classes;
    } names[] = {
        {"{L}", UTF8_LETTER},      {"{M}", UTF8_MARK},      {"{N}", UTF8_NUMBER},
        {"{P}", UTF8_PUNCTUATION}, {"{S}", UTF8_SYMBOL},    {"{Lu}", 1u << UTF8_LU},
        {"{Ll}", 1u << UTF8_LL},   {"{Lt}", 1u << UTF8_LT}, {"{Lm}", 1u << UTF8_LM},
        {"{Lo}", 1u << UTF8_LO},
    };
    for (size_t i = 0; i < COUNT_OF(names); i++)
        if (pre_take_(r, names[i].name)) return names[i].classes;
    ASSERT(!"a category of the published expressions");
    return 0;
}

/* One code point, escaped or not. */
static u32 pre_literal_(PreReader_ *r) {
    bool escaped = pre_take_(r, "\\");
    u32 c = utf8_next(r->s, &r->i);
    return !escaped ? c : c == 'r' ? '\r' : c == 'n' ? '\n' : c;
}

static void pre_add_range_(PreReader_ *r, PreSet_ *set, u32 low, u32 high) {
    ASSERT(low <= high && (high < 128 || low >= 128));
    for (u32 c = low; c <= high && c < 128; c++) set->ascii[c / 32] |= 1u << c % 32;
    if (high < 128) return;
    ASSERT(r->p->n_ranges < PRE_RANGES_MAX);
    r->p->ranges[r->p->n_ranges].low = low;
    r->p->ranges[r->p->n_ranges++].high = high;
    set->n_ranges++;
}

/* What may stand alone or between brackets: a category, a white space, a code point or a range. */
static void pre_member_(PreReader_ *r, PreSet_ *set, bool range) {
    if (pre_take_(r, "\\p")) {
        set->classes |= pre_category_(r);
    } else if (pre_take_(r, "\\s")) {
        set->classes |= UTF8_SPACE;
    } else if (pre_take_(r, "\\S")) {
        set->classes |= ~UTF8_SPACE;
    } else {
        u32 low = pre_literal_(r);
        pre_add_range_(r, set, low, range && pre_take_(r, "-") ? pre_literal_(r) : low);
    }
}

/* A set, or one code point as a set: its number. Equal ones are one, but for those of ranges. */
static u16 pre_set_(PreReader_ *r) {
    PreSet_ set = {.range = r->p->n_ranges, .fold = r->fold};
    if (pre_take_(r, "[")) {
        set.negated = pre_take_(r, "^");
        while (!pre_take_(r, "]")) pre_member_(r, &set, true);
    } else {
        pre_member_(r, &set, false);
    }
    for (u32 c = 0; c < 128; c++)
        if (utf8_class(c) & set.classes) set.ascii[c / 32] |= 1u << c % 32;
    for (u32 i = 0; i < 4 && set.negated; i++) set.ascii[i] = ~set.ascii[i];
    if (!set.n_ranges) set.range = 0;
    for (u16 i = 0; i < r->p->n_sets && !set.n_ranges; i++) {
        const PreSet_ *old = &r->p->sets[i];
        if (!memcmp(old->ascii, set.ascii, sizeof set.ascii) && old->classes == set.classes &&
            old->negated == set.negated && old->fold == set.fold && !old->n_ranges)
            return i;
    }
    ASSERT(r->p->n_sets < PRE_SETS_MAX);
    r->p->sets[r->p->n_sets] = set;
    return r->p->n_sets++;
}

static u32 pre_number_(PreReader_ *r) {
    u32 n = 0;
    while (r->s.p[r->i] >= '0' && r->s.p[r->i] <= '9') n = n * 10 + (u32)(r->s.p[r->i++] - '0');
    return n;
}

static void pre_run_op_(PreReader_ *r) {
    PreOp_ op = {.kind = PRE_RUN_, .to = pre_set_(r), .min = 1, .max = 1};
    if (pre_take_(r, "{")) {
        op.min = pre_number_(r);
        op.max = pre_take_(r, ",") ? pre_number_(r) : op.min;
        ASSERT(pre_take_(r, "}"));
    } else if (pre_take_(r, "?")) {
        op.min = 0;
    } else if (pre_take_(r, "*")) {
        op.min = 0;
        op.max = UINT32_MAX;
    } else if (pre_take_(r, "+")) {
        op.max = UINT32_MAX;
    } else {
        pre_op_(r, op);
        return;
    }
    op.possessive = pre_take_(r, "+");
    pre_op_(r, op);
}

static void pre_alternatives_(PreReader_ *r);

static void pre_item_(PreReader_ *r) {
    bool fold = r->fold;
    if (pre_take_(r, "$")) {
        pre_op_(r, (PreOp_){.kind = PRE_AT_END_});
    } else if (pre_take_(r, "(?!")) {
        u16 set = pre_set_(r);
        pre_op_(r, (PreOp_){.kind = PRE_NOT_AHEAD_, .to = set});
        ASSERT(pre_take_(r, ")"));
    } else if ((r->fold = pre_take_(r, "(?i:")) || pre_take_(r, "(?:")) {
        u16 entry = pre_op_(r, (PreOp_){.kind = PRE_JUMP_, .to = (u16)(r->p->n_ops + 1)});
        pre_alternatives_(r);
        ASSERT(pre_take_(r, ")"));
        if (pre_take_(r, "?")) r->p->ops[entry] = (PreOp_){.kind = PRE_SPLIT_, .to = r->p->n_ops};
    } else {
        r->fold = fold;
        pre_run_op_(r);
    }
    r->fold = fold;
}

/* a|b|c: split, a, jump to the end, split, b, jump to the end, jump to c, c. */
static void pre_alternatives_(PreReader_ *r) {
    u16 ends = 0; /* the last of the jumps to the end; `to` leads to the one before, 0 to none */
    for (;;) {
        u16 split = pre_op_(r, (PreOp_){.kind = PRE_SPLIT_});
        while (r->i < r->s.n && r->s.p[r->i] != '|' && r->s.p[r->i] != ')') pre_item_(r);
        if (!pre_take_(r, "|")) {
            r->p->ops[split] = (PreOp_){.kind = PRE_JUMP_, .to = (u16)(split + 1)};
            break;
        }
        ends = pre_op_(r, (PreOp_){.kind = PRE_JUMP_, .to = ends});
        r->p->ops[split].to = r->p->n_ops;
    }
    while (ends) {
        u16 before = r->p->ops[ends].to;
        r->p->ops[ends].to = r->p->n_ops;
        ends = before;
    }
}

static void pre_compile(Pre *p, const PreRow *row) {
    *p = (Pre){0};
    while (p->n_splits < PRE_SPLITS_MAX && row->regex[p->n_splits]) {
        PreReader_ r = {.p = p, .s = str_of(row->regex[p->n_splits])};
        p->start[p->n_splits++] = p->n_ops;
        pre_alternatives_(&r);
        pre_op_(&r, (PreOp_){.kind = PRE_DONE_});
        ASSERT(r.i == r.s.n);
    }
}

static const PreRow *pre_row(const PreName *name) {
    for (size_t i = 0; i < COUNT_OF(PRE_ROWS); i++)
        if (!strcmp(PRE_ROWS[i].name, name->row)) return &PRE_ROWS[i];
    ASSERT(!"each name has its row");
    return NULL;
}

/* The entry of a value of tokenizer.ggml.pre, or NULL. */
static const PreName *pre_find(Str name) {
    for (size_t i = 0; i < COUNT_OF(PRE_NAMES); i++)
        if (str_eq(name, str_of(PRE_NAMES[i].name))) return &PRE_NAMES[i];
    return NULL;
}

/* ---- matching ----
 *
 * A match at one place looks at a code point a bounded number of times: nothing is repeated but one
 * set, and where a run gives back, what follows it in these expressions fails at its first code point. */

#define PRE_NONE SIZE_MAX

static bool pre_has_(const Pre *p, const PreSet_ *set, u32 cp) {
    if (set->fold) cp = utf8_fold_ascii(cp);
    if (cp < 128) return set->ascii[cp / 32] >> cp % 32 & 1;
    bool has = utf8_class(cp) & set->classes;
    for (u32 k = set->range; k < set->range + set->n_ranges; k++)
        has |= cp >= p->ranges[k].low && cp <= p->ranges[k].high;
    return has != set->negated;
}

/* The end of the run of at most *n code points of the set that begins at i; *n: how many they are. */
static size_t pre_run_(const Pre *p, const PreSet_ *set, Str s, size_t i, u32 *n) {
    u32 max = *n;
    for (*n = 0; *n < max && i < s.n; ++*n) {
        size_t next = i;
        if (!pre_has_(p, set, utf8_next(s, &next))) break;
        i = next;
    }
    return i;
}

/* Where the code point before i begins, as utf8_next counts them. */
static size_t pre_back_(Str s, size_t i) {
    for (size_t n = 2; n <= UTF8_MAX && n <= i && (u8)s.p[i - 1] >= 0x80; n++) {
        u32 cp;
        size_t len;
        if (utf8_read(str_cut(s, 0, i), i - n, &cp, &len) == UTF8_OK && len == n) return i - n;
    }
    return i - 1;
}

/* The end of the match at i of what op `at` begins, or PRE_NONE. Recurses once per op at most. */
static size_t pre_match_(const Pre *p, u32 at, Str s, size_t i) {
    for (;; at++) {
        const PreOp_ *op = &p->ops[at];
        u32 n = op->max;
        size_t end;
        switch ((PreOpKind_)op->kind) {
        case PRE_DONE_: return i;
        case PRE_JUMP_: at = op->to - 1u; break;
        case PRE_SPLIT_:
            end = pre_match_(p, at + 1, s, i);
            if (end != PRE_NONE) return end;
            at = op->to - 1u;
            break;
        case PRE_NOT_AHEAD_:
            n = 1;
            if (pre_run_(p, &p->sets[op->to], s, i, &n) > i) return PRE_NONE;
            break;
        case PRE_AT_END_:
            if (i < s.n) return PRE_NONE;
            break;
        case PRE_RUN_:
            i = pre_run_(p, &p->sets[op->to], s, i, &n);
            if (n < op->min) return PRE_NONE;
            for (; n > op->min && !op->possessive; n--, i = pre_back_(s, i)) {
                end = pre_match_(p, at + 1, s, i);
                if (end != PRE_NONE) return end;
            }
            break;
        }
    }
}

/* Where the part of the piece s.p[i .. s.n) ends that is a match, or that lies before the next one. */
static size_t pre_split_(const Pre *p, u32 start, Str s, size_t i) {
    size_t end = pre_match_(p, start, s, i);
    if (end != PRE_NONE) return end;
    /* Where SET+ and what follows failed, they fail in the rest of the run as well. */
    const PreOp_ *first = &p->ops[start + 1];
    bool skip = p->ops[start].kind == PRE_JUMP_ && first->kind == PRE_RUN_ && first->min == 1 &&
                first->max == UINT32_MAX;
    do {
        u32 n = UINT32_MAX;
        end = skip ? pre_run_(p, &p->sets[first->to], s, i, &n) : i;
        if (end == i) utf8_next(s, &end);
        i = end;
    } while (i < s.n && pre_match_(p, start, s, i) == PRE_NONE);
    return i;
}

/* Where the word that begins at i ends. end[k] is where the piece of expression k that holds i ends,
 * each piece inside that of the expression before; all zero for the first word. */
static size_t pre_word_end(const Pre *p, Str text, size_t i, size_t end[PRE_SPLITS_MAX]) {
    Str piece = text;
    for (u32 k = 0; k < p->n_splits; k++) {
        if (i >= end[k]) end[k] = pre_split_(p, p->start[k], piece, i);
        piece.n = end[k];
    }
    ASSERT(piece.n > i && piece.n <= text.n);
    return piece.n;
}

#endif
