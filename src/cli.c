/* cli.c - the command line: one table of options drives parsing, help, the manual and completions.
 *
 * Owns:      the process: what is printed where, and the exit status.
 * Stands on: base mem os pool net gguf json http utf8 tok tmpl quant kern model graph decode engine
 *            bench plan convert verify tls api server sandbox
 * Promises:  the answer and nothing else on stdout, everything else on stderr; every failure is one
 *            clear line; the only room that decides how the program ends. */
#ifndef DLM_CLI_C
#define DLM_CLI_C

#include "api.c"
#include "base.c"
#include "bench.c"
#include "convert.c"
#include "decode.c"
#include "engine.c"
#include "gguf.c"
#include "graph.c"
#include "http.c"
#include "json.c"
#include "kern.c"
#include "mem.c"
#include "model.c"
#include "net.c"
#include "os.c"
#include "plan.c"
#include "pool.c"
#include "quant.c"
#include "sandbox.c"
#include "server.c"
#include "tls.c"
#include "tmpl.c"
#include "tok.c"
#include "utf8.c"
#include "verify.c"

#ifndef DLM_VERSION
#define DLM_VERSION "0.1.0"
#endif

#define CLI_ARGS_MAX 65536 /* token ids on a command line */
#define CLI_PROMPT_MAX ((size_t)16 << 20)
#define CLI_TURNS_MAX 1024
#define CLI_COLUMNS 98 /* of help */

/* ---- what a command line says ---- */

enum { CLI_COLOR_AUTO, CLI_COLOR_ALWAYS, CLI_COLOR_NEVER };

typedef struct {
    EngineOptions engine;
    DecodeParams decode;
    BenchOptions bench;
    PlanOptions convert;
    const char *bench_questions, *bench_plot;
    const char *prompt, *file, *suffix, *system, *system_file, *template_file, *trace;
    i32 watch_ms;
    bool raw, json, watch, stats, quiet, verbose, help, version;
    bool pieces, parse_special, add_special, validate;
    i32 color;
    u64 seed;
    bool seed_given;
    Str stops[DECODE_STOPS_MAX];
    i32 n_stops;
    ServerOptions server;
    i32 parallel;     /* slots; 0: as memory allows */
    i32 sandbox;      /* SandboxMode */
    i32 days;         /* of a certificate */
    TlsClient client; /* dlm health */
    bool named;       /* the command was named */
    char **args;      /* [n_args] what is not an option */
    i32 n_args;
} Cli;

/* ---- the tables: commands, groups, words, options ---- */

enum {
    CLI_RUN = 1,
    CLI_CHAT = 2,
    CLI_INFO = 4,
    CLI_TOKENIZE = 8,
    CLI_DETOKENIZE = 16,
    CLI_VERSION = 32,
    CLI_HELP = 64,
    CLI_COMPLETION = 128,
    CLI_BENCH = 256,
    CLI_SERVE = 512,
    CLI_HEALTH = 1024,
    CLI_CERT = 2048,
    CLI_CONVERT = 4096,
    CLI_DIFF = 8192,
    CLI_ANSWER = CLI_RUN | CLI_CHAT,
    CLI_FILES = CLI_ANSWER | CLI_INFO | CLI_TOKENIZE | CLI_DETOKENIZE | CLI_BENCH | CLI_SERVE,
    CLI_ENGINE = CLI_ANSWER | CLI_SERVE, /* loads the model to answer with it */
    CLI_ALL = 16383
};

typedef enum {
    CLI_G_PROMPT,
    CLI_G_LENGTH,
    CLI_G_DIFFUSION,
    CLI_G_SAMPLING,
    CLI_G_MODEL,
    CLI_G_SERVER,
    CLI_G_SECURITY,
    CLI_G_OUTPUT,
    CLI_G_TEXT,
    CLI_G_CONVERT,
    CLI_G_COUNT
} CliGroup;

static const char *const CLI_GROUPS[CLI_G_COUNT] = {
    "Prompt", "Length",   "Diffusion", "Sampling", "Model and machine",
    "Server", "Security", "Output",    "Tokens",   "Conversion",
};

typedef struct {
    const char *name;
    i32 value;
} CliWord;

static const CliWord CLI_MODES[] = {{"greedy", DECODE_GREEDY},     {"iterative", DECODE_ITERATIVE},
                                    {"adaptive", DECODE_ADAPTIVE}, {"ar", DECODE_AR},
                                    {"auto", DECODE_AUTO},         {NULL, 0}};
static const CliWord CLI_RULES[] = {{"model", RULE_MODEL},
                                    {"threshold", RULE_THRESHOLD},
                                    {"low_confidence_dynamic", RULE_LOW_CONFIDENCE_DYNAMIC},
                                    {"low_confidence", RULE_LOW_CONFIDENCE},
                                    {"sequential", RULE_SEQUENTIAL},
                                    {"random", RULE_RANDOM},
                                    {"entropy_bound", RULE_ENTROPY_BOUND},
                                    {"origin", RULE_ORIGIN},
                                    {"maskgit_plus", RULE_MASKGIT_PLUS},
                                    {"topk_margin", RULE_TOPK_MARGIN},
                                    {"entropy", RULE_ENTROPY},
                                    {NULL, 0}};
static const CliWord CLI_CACHES[] = {{"model", CACHE_MODEL},
                                     {"none", CACHE_NONE},
                                     {"dual", CACHE_DUAL},
                                     {"masked", CACHE_MASKED},
                                     {NULL, 0}};
static const CliWord CLI_COLORS[] = {
    {"auto", CLI_COLOR_AUTO}, {"always", CLI_COLOR_ALWAYS}, {"never", CLI_COLOR_NEVER}, {NULL, 0}};
static const CliWord CLI_FORMATS[] = {
    {"md", BENCH_MD}, {"csv", BENCH_CSV}, {"json", BENCH_JSON}, {NULL, 0}};
static const CliWord CLI_LAYOUTS[] = {{"128", DLM_I2S_128},
                                      {"64", DLM_I2S_64},
                                      {"row4", DLM_I2S_ROW4},
                                      {"seq", DLM_I2S_SEQ},
                                      {NULL, 0}};
static const CliWord CLI_SANDBOXES[] = {
    {"auto", SANDBOX_AUTO}, {"strict", SANDBOX_STRICT}, {"off", SANDBOX_OFF}, {NULL, 0}};
static const CliWord CLI_TLS_MINS[] = {{"1.2", 12}, {"1.3", 13}, {NULL, 0}};
static const CliWord CLI_LOG_FORMATS[] = {
    {"text", SERVER_LOG_TEXT}, {"json", SERVER_LOG_JSON}, {NULL, 0}};
#define CLI_TERNARY_TYPES 4 /* at the beginning; the others are for any matrix */
static const CliWord CLI_MAKE_TYPES[] = {{"tq1_0", DLM_TQ1_0}, {"tq2_0", DLM_TQ2_0},
                                         {"q2_0", DLM_Q2_0},   {"i2_s", DLM_I2_S},
                                         {"f32", DLM_F32},     {"f16", DLM_F16},
                                         {"bf16", DLM_BF16},   {"q8_0", DLM_Q8_0},
                                         {"q4_0", DLM_Q4_0},   {"q2_K", DLM_Q2_K},
                                         {"q4_K", DLM_Q4_K},   {"q5_K", DLM_Q5_K},
                                         {"q6_K", DLM_Q6_K},   {NULL, 0}};
static const CliWord CLI_TERNARIES[] = {
    {"auto", PLAN_AUTO}, {"yes", PLAN_TERNARY}, {"no", PLAN_DENSE}, {NULL, 0}};
static const CliWord CLI_SCALES[] = {{"tensor", false}, {"block", true}, {NULL, 0}};
static const CliWord CLI_DEVICES[] = {{"auto", ENGINE_DEVICE_AUTO},
                                      {"cpu", ENGINE_DEVICE_CPU},
                                      {"cuda", ENGINE_DEVICE_CUDA},
                                      {NULL, 0}};
static const CliWord CLI_KV_TYPES[] = {
    {"f16", DLM_F16}, {"q8_0", DLM_Q8_0}, {"f32", DLM_F32}, {NULL, 0}};

typedef enum {
    CLI_SWITCH, /* bool; also spelled --no-NAME */
    CLI_EITHER, /* i32: max, or min where it is spelled --no-NAME */
    CLI_TEXT,   /* const char * */
    CLI_INT,    /* i32 */
    CLI_REAL,   /* f32 */
    CLI_WORD,   /* i32, one of words */
    CLI_SEED,   /* u64, or -1 for a random one */
    CLI_STOP    /* adds to Cli.stops */
} CliKind;

typedef struct {
    char letter;       /* -x, or 0 */
    const char *name;  /* --name */
    const char *alias; /* other spellings, whole, separated by one space */
    CliKind kind;
    const char *arg; /* what the value is called in help; NULL for a switch */
    size_t at;       /* offset of the field in Cli */
    f64 min, max;    /* of CLI_INT and CLI_REAL */
    const CliWord *words;
    u32 verbs; /* commands that take it */
    CliGroup group;
    const char *env;   /* variable that gives the value when the option does not */
    const char *unset; /* how help names the default when the number does not tell */
    const char *help;
} CliOpt;

#define CLI_AT(field) .at = offsetof(Cli, field)

static const CliOpt CLI_OPTS[] = {
    {'p', "prompt", NULL, CLI_TEXT, "TEXT", CLI_AT(prompt),
     .verbs = CLI_RUN | CLI_TOKENIZE | CLI_DETOKENIZE, .group = CLI_G_PROMPT,
     .help =
         "The prompt; - reads it from standard input. Text that is piped in is added below it."},
    {'f', "file", NULL, CLI_TEXT, "FILE", CLI_AT(file),
     .verbs = CLI_RUN | CLI_TOKENIZE | CLI_DETOKENIZE, .group = CLI_G_PROMPT,
     .help = "Read the prompt from a file; with -p the file comes after that text."},
    {0, "system", "-sys --system-prompt", CLI_TEXT, "TEXT", CLI_AT(system), .verbs = CLI_ANSWER,
     .group = CLI_G_PROMPT, .help = "System message: how to answer."},
    {0, "system-file", "-sysf --system-prompt-file", CLI_TEXT, "FILE", CLI_AT(system_file),
     .verbs = CLI_ANSWER, .group = CLI_G_PROMPT, .help = "Read the system message from a file."},
    {0, "raw", "-no-cnv --no-conversation", CLI_SWITCH, NULL, CLI_AT(raw), .verbs = CLI_RUN,
     .group = CLI_G_PROMPT, .help = "Continue the prompt as it is, without the chat template."},
    {0, "suffix", NULL, CLI_TEXT, "TEXT", CLI_AT(suffix), .verbs = CLI_RUN, .group = CLI_G_PROMPT,
     .unset = "none",
     .help = "Fill in --max-tokens tokens before this text; for models with full attention."},
    {0, "chat-template", "--chat-template-file", CLI_TEXT, "FILE", CLI_AT(template_file),
     .verbs = CLI_ENGINE, .group = CLI_G_PROMPT,
     .help = "Use the chat template (Jinja) in this file instead of the model's."},

    {'n', "max-tokens", "--predict --n-predict", CLI_INT, "N", CLI_AT(decode.max_tokens), .min = -1,
     .max = 1048576, .verbs = CLI_ENGINE, .group = CLI_G_LENGTH,
     .help = "Tokens to generate at most; -1 goes on until the context is full."},
    {'c', "ctx-size", NULL, CLI_INT, "N", CLI_AT(engine.n_ctx), .min = 0, .max = 16777216,
     .verbs = CLI_ENGINE | CLI_INFO | CLI_BENCH, .group = CLI_G_LENGTH,
     .unset = "the model's, up to 4096",
     .help = "Context: how many tokens prompt and answer may have together."},
    {0, "stop", "-r --reverse-prompt", CLI_STOP, "TEXT", .verbs = CLI_ANSWER, .group = CLI_G_LENGTH,
     .help = "End the answer before this text; may be given up to 16 times."},

    {0, "decode-mode", NULL, CLI_WORD, "MODE", CLI_AT(decode.mode), .words = CLI_MODES,
     .verbs = CLI_ENGINE, .group = CLI_G_DIFFUSION,
     .help = "How blocks are revealed (dlm help modes)."},
    {0, "threshold", NULL, CLI_REAL, "P", CLI_AT(decode.threshold), .min = 0, .max = 2,
     .verbs = CLI_ENGINE | CLI_CONVERT, .group = CLI_G_DIFFUSION, .unset = "the model's",
     .help = "Reveal tokens whose probability is above P; above 1 reveals one at a time."},
    {0, "block-size", "--diffusion-block-length", CLI_INT, "N", CLI_AT(decode.block_size), .min = 0,
     .max = MODEL_BLOCK_MAX, .verbs = CLI_ENGINE | CLI_CONVERT, .group = CLI_G_DIFFUSION,
     .unset = "the model's", .help = "Tokens in a block."},
    {0, "sub-block-size", "--small-block-size", CLI_INT, "N", CLI_AT(decode.sub_block_size),
     .min = 0, .max = MODEL_BLOCK_MAX, .verbs = CLI_ENGINE | CLI_CONVERT, .group = CLI_G_DIFFUSION,
     .unset = "the model's",
     .help = "Tokens in the part of a block that is revealed before the next part begins."},
    {0, "convention", NULL, CLI_TEXT, "NAME", CLI_AT(engine.convention),
     .verbs = CLI_ENGINE | CLI_INFO | CLI_BENCH, .group = CLI_G_DIFFUSION, .unset = "the model's",
     .help = "Decode as published for a line of models, where the file does not say how "
             "(dlm help rules)."},
    {0, "rule", "--diffusion-algorithm", CLI_WORD, "RULE", CLI_AT(decode.rule), .words = CLI_RULES,
     .verbs = CLI_ENGINE, .group = CLI_G_DIFFUSION,
     .help = "Which tokens a pass reveals (dlm help rules)."},
    {0, "steps", "--diffusion-steps", CLI_INT, "N", CLI_AT(decode.steps), .min = 0,
     .max = MODEL_STEPS_MAX, .verbs = CLI_ENGINE, .group = CLI_G_DIFFUSION,
     .unset = "the model's, else one for each token",
     .help = "Passes for a sub-block, by rules that have a schedule."},
    {0, "cache", NULL, CLI_WORD, "KIND", CLI_AT(decode.cache), .words = CLI_CACHES,
     .verbs = CLI_ENGINE, .group = CLI_G_DIFFUSION,
     .help = "What a pass computes again: none, the whole block; dual, the sub-block at hand; "
             "masked, of that only the rows that still tell something."},
    {0, "dual-cache", NULL, CLI_EITHER, NULL, CLI_AT(decode.cache), .min = CACHE_NONE,
     .max = CACHE_DUAL, .verbs = CLI_ENGINE, .group = CLI_G_DIFFUSION, .unset = "the model's",
     .help = "Keep the keys and values of the whole block and recompute one sub-block of it: "
             "--cache dual; --no-dual-cache is --cache none."},
    {0, "cfg-scale", "--diffusion-cfg-scale", CLI_REAL, "X", CLI_AT(decode.cfg_scale), .min = 0,
     .max = DECODE_CFG_MAX, .verbs = CLI_ENGINE, .group = CLI_G_DIFFUSION, .unset = "off",
     .help =
         "Classifier-free guidance: take the difference that the prompt makes X times more; for "
         "models with full attention, at twice the work."},
    {0, "early-stop", NULL, CLI_SWITCH, NULL, CLI_AT(decode.early_stop), .verbs = CLI_ENGINE,
     .group = CLI_G_DIFFUSION,
     .help = "End a block where its text ends instead of finishing the rest of it."},
    {0, "mask-token-id", NULL, CLI_INT, "ID", CLI_AT(engine.mask_token_id), .min = -1,
     .max = 2147483647, .verbs = CLI_ENGINE | CLI_INFO | CLI_CONVERT, .group = CLI_G_DIFFUSION,
     .unset = "the model's", .help = "The mask token, where the file does not name it."},

    {0, "temp", "--temperature", CLI_REAL, "T", CLI_AT(decode.sample.temperature), .min = 0,
     .max = 10, .verbs = CLI_ENGINE, .group = CLI_G_SAMPLING,
     .help = "Temperature; 0 takes the most probable token (dlm help sampling)."},
    {0, "top-k", NULL, CLI_INT, "N", CLI_AT(decode.sample.top_k), .min = 0, .max = 1048576,
     .verbs = CLI_ENGINE, .group = CLI_G_SAMPLING, .unset = "off",
     .help = "Sample among the N most probable tokens; 0 is off."},
    {0, "top-p", NULL, CLI_REAL, "P", CLI_AT(decode.sample.top_p), .min = 0, .max = 1,
     .verbs = CLI_ENGINE, .group = CLI_G_SAMPLING,
     .help = "Sample among the fewest tokens that hold P of the probability; 1 is off."},
    {0, "min-p", NULL, CLI_REAL, "P", CLI_AT(decode.sample.min_p), .min = 0, .max = 1,
     .verbs = CLI_ENGINE, .group = CLI_G_SAMPLING, .unset = "off",
     .help = "Drop tokens below P times the most probable one's probability; 0 is off."},
    {0, "repeat-penalty", "--repetition-penalty", CLI_REAL, "R", CLI_AT(decode.repetition_penalty),
     .min = 0.01, .max = 10, .verbs = CLI_ENGINE, .group = CLI_G_SAMPLING,
     .help = "Make tokens of the answer R times less likely; 1 is off."},
    {0, "presence-penalty", NULL, CLI_REAL, "A", CLI_AT(decode.presence_penalty), .min = -10,
     .max = 10, .verbs = CLI_ENGINE, .group = CLI_G_SAMPLING, .unset = "off",
     .help = "Take A from the logit of tokens that the answer has."},
    {0, "frequency-penalty", NULL, CLI_REAL, "A", CLI_AT(decode.frequency_penalty), .min = -10,
     .max = 10, .verbs = CLI_ENGINE, .group = CLI_G_SAMPLING, .unset = "off",
     .help = "Take A from the logit for each time that the answer has the token."},
    {'s', "seed", NULL, CLI_SEED, "N", CLI_AT(seed), .verbs = CLI_ANSWER, .group = CLI_G_SAMPLING,
     .unset = "random",
     .help = "Seed of the random numbers; the same seed gives the same text. -1 is random."},

    {'m', "model", NULL, CLI_TEXT, "FILE", CLI_AT(engine.path), .verbs = CLI_FILES,
     .group = CLI_G_MODEL, .env = "DLM_MODEL", .unset = "the built-in demo model",
     .help = "The model, a GGUF file (dlm help formats)."},
    {'t', "threads", NULL, CLI_INT, "N", CLI_AT(engine.n_threads), .min = 0,
     .max = POOL_THREADS_MAX, .verbs = CLI_ENGINE | CLI_BENCH | CLI_CONVERT, .group = CLI_G_MODEL,
     .env = "DLM_THREADS", .unset = "all processors",
     .help = "Threads; the answer does not depend on how many."},
    {0, "cpu", NULL, CLI_TEXT, "LEVEL", CLI_AT(engine.cpu_level),
     .verbs = CLI_ENGINE | CLI_INFO | CLI_VERSION | CLI_BENCH, .group = CLI_G_MODEL,
     .env = "DLM_CPU", .unset = "the best there is",
     .help = "Instruction set to use, one of those that dlm version lists."},
    {0, "device", NULL, CLI_WORD, "DEVICE", CLI_AT(engine.device), .words = CLI_DEVICES,
     .verbs = CLI_ENGINE | CLI_BENCH, .group = CLI_G_MODEL,
     .help = "Where the model runs. auto: in dlm-cuda on the first GPU, as many of its layers as "
             "fit there, else on the CPU."},
    {0, "gpu-layers", "-ngl --n-gpu-layers", CLI_INT, "N", CLI_AT(engine.gpu_layers), .min = -1,
     .max = 100000, .verbs = CLI_ENGINE | CLI_BENCH, .group = CLI_G_MODEL,
     .unset = "as many as fit",
     .help =
         "How many layers the GPU has, the last ones; the CPU multiplies by the others' matrices. "
         "0: the CPU has all."},
    {0, "i2s-layout", NULL, CLI_WORD, "LAYOUT", CLI_AT(engine.i2s_layout), .words = CLI_LAYOUTS,
     .verbs = CLI_ENGINE | CLI_INFO | CLI_CONVERT, .group = CLI_G_MODEL,
     .help = "How the codes of I2_S tensors lie, which their files do not say."},
    {0, "tl-config", NULL, CLI_TEXT, "FILE", CLI_AT(engine.tl_config),
     .verbs = CLI_ENGINE | CLI_INFO | CLI_CONVERT, .group = CLI_G_MODEL,
     .unset = "BitNet.cpp's presets",
     .help = "BitNet.cpp's kernel_config.ini, for TL1 and TL2 tensors (dlm help formats)."},
    {0, "kv-type", "-ctk -ctv --cache-type-k --cache-type-v", CLI_WORD, "TYPE",
     CLI_AT(engine.kv_type), .words = CLI_KV_TYPES, .verbs = CLI_ENGINE | CLI_INFO | CLI_BENCH,
     .group = CLI_G_MODEL,
     .help = "Number type of the cache of keys and values: q8_0 takes half the memory of f16, f32 "
             "takes twice as much."},
    {0, "pre", NULL, CLI_TEXT, "NAME", CLI_AT(engine.pre), .verbs = CLI_FILES | CLI_CONVERT,
     .group = CLI_G_MODEL, .unset = "the file's",
     .help = "Pre-tokenizer, where the file's is wrong."},

    {0, "host", NULL, CLI_TEXT, "ADDRESS", CLI_AT(server.host), .verbs = CLI_SERVE,
     .group = CLI_G_SERVER, .env = "DLM_HOST", .unset = "127.0.0.1",
     .help = "Listen on this numeric address, or on a unix socket: a path."},
    {0, "port", NULL, CLI_INT, "N", CLI_AT(server.port), .min = 0, .max = 65535, .verbs = CLI_SERVE,
     .group = CLI_G_SERVER, .env = "DLM_PORT", .help = "Listen on this port; 0 takes a free one."},
    {0, "parallel", "-np", CLI_INT, "N", CLI_AT(parallel), .min = 0, .max = ENGINE_SLOTS_MAX,
     .verbs = CLI_SERVE, .group = CLI_G_SERVER, .unset = "as memory allows, up to 8",
     .help = "Slots: answers that are generated at the same time, each with a context of its own."},
    {0, "queue", NULL, CLI_INT, "N", CLI_AT(server.queue_max), .min = 0, .max = 65536,
     .verbs = CLI_SERVE, .group = CLI_G_SERVER,
     .help = "Answers that may wait for a slot; more are refused (429)."},
    {'a', "alias", NULL, CLI_TEXT, "NAME", CLI_AT(server.name), .verbs = CLI_SERVE,
     .group = CLI_G_SERVER, .unset = "its file's", .help = "What clients call the model."},
    {0, "timeout", NULL, CLI_INT, "SECONDS", CLI_AT(server.timeout_s), .min = 1, .max = 86400,
     .verbs = CLI_SERVE, .group = CLI_G_SERVER,
     .help = "A request may take so long, queue included."},
    {0, "drain", NULL, CLI_INT, "SECONDS", CLI_AT(server.drain_s), .min = 0, .max = 86400,
     .verbs = CLI_SERVE, .group = CLI_G_SERVER,
     .help = "After SIGTERM answers may go on so long; a second SIGTERM ends at once."},
    {0, "page", NULL, CLI_SWITCH, NULL, CLI_AT(server.page), .verbs = CLI_SERVE,
     .group = CLI_G_SERVER, .help = "Serve the page that shows answers as they denoise."},
    {0, "log-format", NULL, CLI_WORD, "FORMAT", CLI_AT(server.log_format), .words = CLI_LOG_FORMATS,
     .verbs = CLI_SERVE, .group = CLI_G_SERVER, .help = "How each request is logged."},
    {0, "log-prompts", NULL, CLI_SWITCH, NULL, CLI_AT(server.log_prompts), .verbs = CLI_SERVE,
     .group = CLI_G_SERVER, .help = "Log what is asked as well."},

    {0, "api-key-file", NULL, CLI_TEXT, "FILE", CLI_AT(server.key_file), .verbs = CLI_SERVE,
     .group = CLI_G_SECURITY, .env = "DLM_API_KEY_FILE", .unset = "nobody is asked for a key",
     .help =
         "Keys that clients must show, one a line, each with a name before it or not. The variable "
         "DLM_API_KEY holds keys as well, separated by commas."},
    {0, "tls-cert", "--ssl-cert-file", CLI_TEXT, "FILE", CLI_AT(server.tls.cert),
     .verbs = CLI_SERVE | CLI_CERT, .group = CLI_G_SECURITY, .unset = "plain HTTP",
     .help = "Certificate and its chain (PEM); read again on SIGHUP, as keys are."},
    {0, "tls-key", "--ssl-key-file", CLI_TEXT, "FILE", CLI_AT(server.tls.key),
     .verbs = CLI_SERVE | CLI_CERT, .group = CLI_G_SECURITY, .unset = "none",
     .help = "The certificate's private key (PEM)."},
    {0, "tls-client-ca", NULL, CLI_TEXT, "FILE", CLI_AT(server.tls.client_ca), .verbs = CLI_SERVE,
     .group = CLI_G_SECURITY, .unset = "clients need no certificate",
     .help = "Clients must have a certificate that one of these (PEM) has signed."},
    {0, "tls-min", NULL, CLI_WORD, "VERSION", CLI_AT(server.tls_min), .words = CLI_TLS_MINS,
     .verbs = CLI_SERVE, .group = CLI_G_SECURITY, .help = "The oldest TLS that is spoken."},
    {0, "insecure", NULL, CLI_SWITCH, NULL, CLI_AT(server.insecure), .verbs = CLI_SERVE,
     .group = CLI_G_SECURITY,
     .help =
         "Listen beyond this machine without a key or without TLS: something else guards the port."},
    {0, "allowed-hosts", NULL, CLI_TEXT, "NAMES", CLI_AT(server.hosts), .verbs = CLI_SERVE,
     .group = CLI_G_SECURITY, .unset = "localhost and numeric addresses",
     .help =
         "Names under which clients reach a server without TLS, separated by commas; * is any."},
    {0, "cors-origins", NULL, CLI_TEXT, "ORIGINS", CLI_AT(server.origins), .verbs = CLI_SERVE,
     .group = CLI_G_SECURITY, .unset = "none",
     .help = "Pages of other origins that may use the server, separated by commas; * is any."},
    {0, "max-connections", NULL, CLI_INT, "N", CLI_AT(server.connections_max), .min = 1,
     .max = SERVER_WORKERS_MAX, .verbs = CLI_SERVE, .group = CLI_G_SECURITY,
     .help = "Connections at the same time."},
    {0, "max-per-address", NULL, CLI_INT, "N", CLI_AT(server.per_address_max), .min = 0,
     .max = SERVER_WORKERS_MAX, .verbs = CLI_SERVE, .group = CLI_G_SECURITY,
     .unset = "a quarter of all, but any number from this machine",
     .help = "Connections of one address at the same time."},
    {0, "max-per-key", NULL, CLI_INT, "N", CLI_AT(server.per_key_max), .min = 0, .max = 65536,
     .verbs = CLI_SERVE, .group = CLI_G_SECURITY, .unset = "any number",
     .help = "Answers of one key at the same time; more are refused (429)."},
    {0, "max-body", NULL, CLI_INT, "KIB", CLI_AT(server.body_max_kib), .min = 1, .max = 262144,
     .verbs = CLI_SERVE, .group = CLI_G_SECURITY, .help = "The largest request."},
    {0, "idle", NULL, CLI_INT, "SECONDS", CLI_AT(server.idle_s), .min = 1, .max = 86400,
     .verbs = CLI_SERVE, .group = CLI_G_SECURITY,
     .help = "A connection may wait so long for its next request."},
    {0, "sandbox", NULL, CLI_WORD, "MODE", CLI_AT(sandbox), .words = CLI_SANDBOXES,
     .verbs = CLI_ENGINE, .group = CLI_G_SECURITY,
     .help =
         "What the kernel takes away before the first byte of a stranger is read; strict goes on "
         "only with all of it (dlm help sandbox)."},
    {0, "ca", "--cacert", CLI_TEXT, "FILE", CLI_AT(client.ca), .verbs = CLI_HEALTH,
     .group = CLI_G_SECURITY, .unset = "any certificate is taken",
     .help = "The server's certificate must be one of these (PEM), or signed by one."},
    {0, "cert", NULL, CLI_TEXT, "FILE", CLI_AT(client.cert), .verbs = CLI_HEALTH,
     .group = CLI_G_SECURITY, .unset = "none",
     .help = "The certificate (PEM) to show to a server with --tls-client-ca."},
    {0, "key", NULL, CLI_TEXT, "FILE", CLI_AT(client.key), .verbs = CLI_HEALTH,
     .group = CLI_G_SECURITY, .unset = "none", .help = "That certificate's private key (PEM)."},
    {0, "days", NULL, CLI_INT, "N", CLI_AT(days), .min = 1, .max = 3650, .verbs = CLI_CERT,
     .group = CLI_G_SECURITY, .help = "How long the certificate is good."},

    {0, "json", NULL, CLI_SWITCH, NULL, CLI_AT(json),
     .verbs = CLI_RUN | CLI_INFO | CLI_TOKENIZE | CLI_DETOKENIZE, .group = CLI_G_OUTPUT,
     .help = "Print one JSON object instead of text."},
    {0, "watch", "--diffusion-visual", CLI_SWITCH, NULL, CLI_AT(watch), .verbs = CLI_ANSWER,
     .group = CLI_G_OUTPUT,
     .help = "Show the block as it denoises, on standard error; colour tells the confidence."},
    {0, "watch-ms", NULL, CLI_INT, "MS", CLI_AT(watch_ms), .min = 0, .max = 10000,
     .verbs = CLI_ANSWER, .group = CLI_G_OUTPUT,
     .help = "Show each picture of --watch at least this long on a terminal; not counted as work."},
    {0, "trace", NULL, CLI_TEXT, "FILE", CLI_AT(trace), .verbs = CLI_ANSWER, .group = CLI_G_OUTPUT,
     .help = "Write one JSON line for each forward pass."},
    {0, "stats", NULL, CLI_SWITCH, NULL, CLI_AT(stats), .verbs = CLI_ANSWER, .group = CLI_G_OUTPUT,
     .help = "Close with a line of what the answer cost, on standard error."},
    {0, "color", NULL, CLI_WORD, "WHEN", CLI_AT(color), .words = CLI_COLORS, .verbs = CLI_ANSWER,
     .group = CLI_G_OUTPUT, .help = "Colour on standard error."},
    {'v', "verbose", NULL, CLI_SWITCH, NULL, CLI_AT(verbose), .verbs = CLI_FILES | CLI_CONVERT,
     .group = CLI_G_OUTPUT, .help = "Say more on standard error."},
    {'q', "quiet", NULL, CLI_SWITCH, NULL, CLI_AT(quiet), .verbs = CLI_FILES | CLI_CONVERT,
     .group = CLI_G_OUTPUT, .help = "Say nothing on standard error but errors."},
    {'h', "help", NULL, CLI_SWITCH, NULL, CLI_AT(help), .verbs = CLI_ALL, .group = CLI_G_OUTPUT,
     .help = "Print this help."},
    {'V', "version", NULL, CLI_SWITCH, NULL, CLI_AT(version), .verbs = CLI_RUN,
     .group = CLI_G_OUTPUT, .help = "Print the version."},

    {'p', "n-prompt", NULL, CLI_INT, "N", CLI_AT(bench.n_prompt), .min = 1, .max = 1048576,
     .verbs = CLI_BENCH, .group = CLI_G_OUTPUT, .help = "Tokens of the prefill that is measured."},
    {'n', "n-gen", NULL, CLI_INT, "N", CLI_AT(bench.n_gen), .min = 1, .max = 1048576,
     .verbs = CLI_BENCH, .group = CLI_G_OUTPUT,
     .help = "Tokens of the ar decoding that is measured."},
    {'d', "depth", "--n-depth", CLI_INT, "N", CLI_AT(bench.depth), .min = 0, .max = 16777216,
     .verbs = CLI_BENCH, .group = CLI_G_OUTPUT,
     .help = "Positions that the forwards of the curve find in the cache."},
    {'r', "reps", "--repetitions", CLI_INT, "N", CLI_AT(bench.reps), .min = 1,
     .max = BENCH_REPS_MAX, .verbs = CLI_BENCH, .group = CLI_G_OUTPUT,
     .help = "Repetitions; medians are printed."},
    {0, "questions", NULL, CLI_TEXT, "FILE", CLI_AT(bench_questions), .verbs = CLI_BENCH,
     .group = CLI_G_OUTPUT, .unset = "none",
     .help = "Answer these in every decode mode: a JSON array of objects with question and answer "
             "(null: any)."},
    {0, "plot", NULL, CLI_TEXT, "FILE", CLI_AT(bench_plot), .verbs = CLI_BENCH,
     .group = CLI_G_OUTPUT, .unset = "none", .help = "Draw the curve beside its bounds, as SVG."},
    {'o', "format", "--output", CLI_WORD, "FORMAT", CLI_AT(bench.format), .words = CLI_FORMATS,
     .verbs = CLI_BENCH, .group = CLI_G_OUTPUT, .help = "How the tables are printed."},

    {0, "pieces", NULL, CLI_SWITCH, NULL, CLI_AT(pieces), .verbs = CLI_TOKENIZE,
     .group = CLI_G_TEXT, .help = "Print a line for each token: its id and its text."},
    {0, "parse-special", NULL, CLI_SWITCH, NULL, CLI_AT(parse_special), .verbs = CLI_TOKENIZE,
     .group = CLI_G_TEXT, .help = "Read the spellings of special tokens as special tokens."},
    {0, "add-special", NULL, CLI_SWITCH, NULL, CLI_AT(add_special), .verbs = CLI_TOKENIZE,
     .group = CLI_G_TEXT, .help = "Add the tokens that the model puts around a prompt."},

    {'o', "output", NULL, CLI_TEXT, "FILE", CLI_AT(convert.to), .verbs = CLI_CONVERT,
     .group = CLI_G_CONVERT, .help = "The GGUF file to make."},
    {0, "type", "--outtype", CLI_WORD, "TYPE", CLI_AT(convert.type), .words = CLI_MAKE_TYPES,
     .verbs = CLI_CONVERT, .group = CLI_G_CONVERT, .unset = "tq2_0 if ternary, else as they are",
     .help = "Type of the linear weights."},
    {0, "embed-type", "--token-embedding-type", CLI_WORD, "TYPE", CLI_AT(convert.embed_type),
     .words = CLI_MAKE_TYPES + CLI_TERNARY_TYPES, .verbs = CLI_CONVERT, .group = CLI_G_CONVERT,
     .unset = "as it is", .help = "Type of the embedding."},
    {0, "output-type", "--output-tensor-type", CLI_WORD, "TYPE", CLI_AT(convert.output_type),
     .words = CLI_MAKE_TYPES + CLI_TERNARY_TYPES, .verbs = CLI_CONVERT, .group = CLI_G_CONVERT,
     .unset = "as it is", .help = "Type of the output matrix, where it is not the embedding."},
    {0, "ternary", NULL, CLI_WORD, "WHEN", CLI_AT(convert.ternary), .words = CLI_TERNARIES,
     .verbs = CLI_CONVERT, .group = CLI_G_CONVERT,
     .help =
         "Round float weights to -1, 0 and +1; auto does so where the checkpoint says that it was "
         "trained for it."},
    {0, "scale", NULL, CLI_WORD, "WHERE", CLI_AT(convert.block_scale), .words = CLI_SCALES,
     .verbs = CLI_CONVERT, .group = CLI_G_CONVERT,
     .help =
         "Scales of ternary weights: exact, in a tensor beside each, or in 16 bits in its blocks, "
         "which programs read that do not know the former."},
    {0, "validate", NULL, CLI_SWITCH, NULL, CLI_AT(validate), .verbs = CLI_CONVERT,
     .group = CLI_G_CONVERT,
     .help =
         "Compare every weight of the new file with its source and one forward pass with that of "
         "plain floats, and show how many weights are -1, 0 and +1."},
};

typedef struct {
    const char *name;
    u32 bit;
    i32 args_max; /* words that are not options */
    const char *usage, *help;
} CliVerb;

static const CliVerb CLI_VERBS[] = {
    {"run", CLI_RUN, 0, "[run] [-m FILE] -p TEXT [OPTIONS]",
     "Answer one prompt. The word run may be left out."},
    {"chat", CLI_CHAT, 0, "chat [-m FILE] [OPTIONS]",
     "Hold a conversation; /help lists what can be typed, Ctrl-C stops an answer."},
    {"serve", CLI_SERVE, 0, "serve [-m FILE] [OPTIONS]",
     "Answer over HTTP, as OpenAI's, Anthropic's and llama.cpp's clients ask."},
    {"health", CLI_HEALTH, 1, "health [URL]",
     "Ask a server whether it is well; the exit status tells (dlm help health)."},
    {"cert", CLI_CERT, CLI_ARGS_MAX, "cert NAME... [--days N]",
     "Make a self-signed certificate for these names, and its key."},
    {"info", CLI_INFO, 1, "info [FILE] [--json]",
     "What a model file holds, how it decodes, what memory it needs."},
    {"bench", CLI_BENCH, 0, "bench [-m FILE] [OPTIONS]",
     "Measure what a forward of 1 to 512 rows costs, next to what this machine could do at best."},
    {"convert", CLI_CONVERT, 1, "convert FROM -o FILE [OPTIONS]",
     "Make a GGUF file of a checkpoint folder, or of another GGUF file (dlm help conversion)."},
    {"diff", CLI_DIFF, 2, "diff FILE FILE",
     "Compare two GGUF files: keys, tensors, the largest difference of their weights."},
    {"tokenize", CLI_TOKENIZE, 1, "tokenize [-m FILE] [TEXT]",
     "Print the token ids of a text, or of standard input."},
    {"detokenize", CLI_DETOKENIZE, CLI_ARGS_MAX, "detokenize [-m FILE] [ID...]",
     "Print the text of token ids, or of those on standard input."},
    {"version", CLI_VERSION, 0, "version", "Print the version and what this build can do."},
    {"help", CLI_HELP, 1, "help [COMMAND|TOPIC]", "Explain a command or a topic."},
    {"completion", CLI_COMPLETION, 1, "completion bash|zsh|fish",
     "Print a completion script for a shell."},
};

typedef struct {
    const char *name, *title, *text;
} CliTopic;

static const CliTopic CLI_TOPICS[] = {
    {"modes", "How a block is revealed",
     "The answer is made block by block. A block begins as masks; each forward pass proposes a token\n"
     "and a probability for every mask of the sub-block at hand.\n"
     "\n"
     "  iterative  Reveal what the model's rule says (dlm help rules), which for most is what is above\n"
     "             --threshold, and always the best one; go on with the next sub-block when this one\n"
     "             is done. The default.\n"
     "  adaptive   The same with a threshold that is lenient in the first passes of a block and\n"
     "             strict later.\n"
     "  greedy     Reveal everything after one pass: the fastest and the roughest.\n"
     "  ar         No diffusion: one token at a time, left to right, causal. What serves models\n"
     "             that were not trained to diffuse.\n"
     "  auto       What is fastest on this machine: ar, or iterative with or without dual cache, in\n"
     "             sub-blocks or whole blocks. It times forwards of a few sizes for at most 0.3 s,\n"
     "             counts tokens per forward as it goes, says in a line what it chose, and keeps\n"
     "             both for the next run in $XDG_CACHE_HOME/dlm (or ~/.cache/dlm), if it can. The\n"
     "             text is that of the way it chose, so another machine may give another text.\n"
     "\n"
     "A finished block is committed: its final tokens are run once more. That happens in the first\n"
     "pass of the next block, or alone where that block must begin with a token already. The closing\n"
     "line counts the passes that made the answer: denoising, committing, those of ar, and the reading\n"
     "of the prompt where that gave the first token. Tokens per forward is tokens / these passes.\n"},
    {"rules", "Which tokens a pass reveals",
     "A rule gives each masked place of the sub-block a score. A pass reveals the places with the best\n"
     "scores, as many as a schedule says, and every other one whose score is above a limit.\n"
     "\n"
     "  threshold               probability; the best one, and all above --threshold\n"
     "  low_confidence_dynamic  probability; an even share of the sub-block, or all above --threshold\n"
     "                          if these are more\n"
     "  low_confidence          probability; an even share\n"
     "  sequential, random      from the left, or anywhere; an even share\n"
     "  entropy_bound           entropy, and 0.02 for each place after the first mask; the lowest one,\n"
     "                          and all below --threshold\n"
     "  maskgit_plus, topk_margin, entropy\n"
     "                          probability, its distance from the second best, or entropy; as many\n"
     "                          as the timestep says\n"
     "  origin                  each with the share of the timestep as its chance\n"
     "\n"
     "An even share is a sub-block divided by --steps; timesteps run through --steps of equal length.\n"
     "\n"
     "How a model wants to be decoded stands in its file, or follows from its family: dlm info FILE\n"
     "says each part and where it is from. --convention replaces all of it by what was published:\n"
     "\n"
     "  unified       causal, shifted logits, blocks from the prompt's end; threshold\n"
     "  fast-dllm-v2  blocks of 32 in eights, shifted, first token by the commit; threshold\n"
     "  sdar          blocks of 4 (--block-size says another); low_confidence_dynamic\n"
     "  llada         full attention, blocks of 32; low_confidence\n"
     "  llada-block   the same with threshold and dual cache (Fast-dLLM)\n"
     "  dream         full attention, shifted, the whole answer as one block; entropy\n"
     "  dream-block   the same in blocks of 32 with threshold and dual cache (Fast-dLLM)\n"
     "  wedlm         causal, a window of 16 with what is revealed first; entropy_bound\n"},
    {"formats", "What can be read",
     "GGUF files of version 2 and 3, little-endian, mapped and used in place.\n"
     "\n"
     "  tensors    F32 F16 BF16; Q4_0 Q4_1 Q5_0 Q5_1 Q8_0; Q2_K Q3_K Q4_K Q5_K Q6_K;\n"
     "             IQ4_NL IQ4_XS MXFP4; ternary TQ1_0 TQ2_0 Q2_0, and I2_S, TL1 and TL2 of BitNet.cpp\n"
     "  families   bitnet, bitnet-b1.58, bitnet-25; llama (Mistral and SmolLM2 too), mistral3, smollm3,\n"
     "             qwen2, qwen3, phi3; dream, llada, fast-dllm, sdar, wedlm\n"
     "  tokenizer  byte-level BPE (tokenizer.ggml.model = gpt2) with the pre-tokenizers gpt-2, smollm,\n"
     "             qwen2, qwen35, llama-bpe, dbrx, minicpm5, tekken, gpt-4o, bailingmoe, seed-coder,\n"
     "             falcon, deepseek-llm, deepseek-coder, deepseek-v3, bloom, viking and the names that\n"
     "             mean the same; SentencePiece's BPE (llama)\n"
     "\n"
     "I2_S does not record the order of its codes: --i2s-layout 128 is that of files made on x86 and\n"
     "of the official ones, 64 that of the ARM tools, row4 and seq are rarer.\n"
     "How TL1 and TL2 lie depends on how BitNet.cpp was compiled. Its presets for bitnet_b1_58-large,\n"
     "bitnet_b1_58-3B and (TL2) Llama3-8B-1.58 are known here; --tl-config FILE reads its\n"
     "kernel_config.ini for any other model.\n"
     "\n"
     "A model can diffuse when it was trained to and its mask token is known: from --mask-token-id,\n"
     "then tokenizer.ggml.mask_token_id, then the vocabulary. dlm info FILE says which it was.\n"},
    {"conversion", "Making a GGUF file",
     "dlm convert FOLDER -o FILE reads a checkpoint in Hugging Face's layout: config.json, safetensors\n"
     "(one file, or those of an index), tokenizer.json or tokenizer.model, and the chat template.\n"
     "dlm convert A.gguf -o B.gguf --type TYPE changes the type of the weights of a GGUF file.\n"
     "\n"
     "  ternary     BitNet checkpoints as floats (rounded by their mean magnitude, as in training) or\n"
     "              packed become tq2_0, exactly; tq1_0, q2_0 and i2_s hold the same values\n"
     "  others      keep their type, or become f32 f16 bf16 q8_0 q4_0 q4_K q5_K q6_K q2_K\n"
     "  diffusion   the mask token, blocks and attention are written as diffusion.* keys, from\n"
     "              config.json, generation_config.json and the options above\n"
     "\n"
     "What was decided is said on standard error. The new file appears when it is complete; what fails or\n"
     "is interrupted leaves nothing behind. Nothing of the input is changed, and nothing is dropped\n"
     "unsaid.\n"},
    {"sampling", "How a token is chosen",
     "At --temp 0, the default, every token is the most probable one: diffusion models are trained\n"
     "and measured that way, and the answer is then the same every time. Above 0, in this order:\n"
     "--top-k, --top-p and --min-p thin the choice out, then the temperature is applied and a token\n"
     "is drawn. The probability that decides what is revealed is always the plain one, at\n"
     "temperature 1 and before thinning.\n"
     "\n"
     "The penalties come before all of this, so they change that probability too. They count the\n"
     "tokens of the answer that earlier passes revealed, on both sides of the place in question.\n"
     "\n"
     "The same file, options and --seed give the same text, for any number of threads.\n"},
    {"exit-codes", "What the exit status means",
     "  0    the answer was given, or the reader of standard output had enough\n"
     "  1    something failed while running: input or output, or a limit\n"
     "  2    the command line is wrong\n"
     "  3    the model file is unusable, or cannot do what was asked\n"
     "  4    out of memory\n"
     "  130  interrupted with Ctrl-C\n"},
    {"sandbox", "What dlm takes away from itself",
     "On Linux, before a byte of a prompt or of the network is worked on:\n"
     "\n"
     "  seccomp    no exec, no new process, no file is written; run and chat make no socket, and a\n"
     "             server only accepts from those that it listens on already\n"
     "  Landlock   no file can be opened but the model, and what SIGHUP reads again\n"
     "\n"
     "--sandbox auto does what the kernel can and says what it cannot; strict ends instead; off does\n"
     "nothing. grep Seccomp /proc/PID/status prints 2 when filters are in force.\n"},
    {"health", "Asking a server whether it is well",
     "dlm health URL exits with 0 when the server answers 200, with 1 when it does not, within 5\n"
     "seconds. URL is http://HOST:PORT/PATH, https://..., or the path of a unix socket; HOST is\n"
     "localhost or numeric, for names are never looked up. Without a URL it asks the server that\n"
     "dlm serve starts with the same DLM_HOST and DLM_PORT: port 8080 of this machine where they are\n"
     "not set, by HTTP, or by HTTPS if that is spoken there; with --ca or --cert by HTTPS alone.\n"
     "\n"
     "  /health, /readyz   200 while requests are taken, 503 while the server shuts down\n"
     "  /livez             200 as long as there is somebody to answer\n"},
    {"env", "Variables of the environment",
     "  DLM_MODEL    the model, where -m is not given\n"
     "  DLM_CPU      the instruction set, where --cpu is not given\n"
     "  DLM_THREADS  the number of threads, where -t is not given\n"
     "  DLM_HOST     where to listen, where --host is not given; dlm health asks there as well\n"
     "  DLM_PORT     the port, where --port is not given, for both\n"
     "  DLM_API_KEY  keys that clients must show, separated by commas; DLM_API_KEY_FILE names a file\n"
     "               of them, where --api-key-file is not given\n"
     "  NO_COLOR     when set and not empty: no colour, unless --color always\n"
     "  TERM         dumb: no colour and no redrawing\n"},
};

/* ---- did you mean ---- */

#define CLI_NAME_MAX 32

/* How many letters must be added, dropped, changed or swapped with their neighbour (the restricted
 * Damerau-Levenshtein distance). A long name is far from everything. */
static u32 cli_distance_(Str a, Str b) {
    u8 d[CLI_NAME_MAX + 1][CLI_NAME_MAX + 1];
    if (a.n > CLI_NAME_MAX || b.n > CLI_NAME_MAX) return UINT32_MAX;
    for (size_t i = 0; i <= a.n; i++)
        for (size_t j = 0; j <= b.n; j++) {
            u32 best = (u32)(i + j); /* right where one of the two is empty */
            bool same = i && j && a.p[i - 1] == b.p[j - 1];
            if (i && j) best = MIN_OF(d[i - 1][j], d[i][j - 1]) + 1u;
            if (i && j) best = MIN_OF(best, d[i - 1][j - 1] + (same ? 0u : 1u));
            if (i > 1 && j > 1 && a.p[i - 1] == b.p[j - 2] && a.p[i - 2] == b.p[j - 1])
                best = MIN_OF(best, d[i - 2][j - 2] + 1u);
            d[i][j] = (u8)best;
        }
    return d[a.n][b.n];
}

/* The candidate nearest to what was typed; near means a third of the letters, or a beginning. */
typedef struct {
    Str typed, best;
    u32 distance;
} CliGuess;

static void cli_guess_(CliGuess *g, Str candidate) {
    u32 d = cli_distance_(g->typed, candidate), limit = (u32)MAX_OF(g->typed.n, candidate.n) / 3;
    if (g->typed.n >= 2 && str_starts(candidate, g->typed)) d = MIN_OF(d, 1u);
    if (d > MAX_OF(limit, 1u) || (g->best.n && d >= g->distance)) return;
    g->best = candidate;
    g->distance = d;
}

/* ---- parsing ---- */

/* The whole text as a decimal integer. */
static bool cli_integer_(Str s, i64 *out) {
    bool minus = s.n && s.p[0] == '-';
    i64 v = 0;
    if (s.n == minus || s.n > 20) return false;
    for (size_t i = minus; i < s.n; i++) {
        if (s.p[i] < '0' || s.p[i] > '9') return false;
        if (__builtin_mul_overflow(v, 10, &v) || __builtin_add_overflow(v, s.p[i] - '0', &v))
            return false;
    }
    *out = minus ? -v : v;
    return true;
}

/* The whole text as a decimal number: no hexadecimal, no "inf", no blanks. */
static bool cli_real_(const char *z, f64 *out) {
    Str s = str_of(z);
    size_t digits = 0;
    for (size_t i = 0; i < s.n; i++) {
        if (s.p[i] >= '0' && s.p[i] <= '9')
            digits++;
        else if (!strchr("+-.eE", s.p[i]))
            return false;
    }
    char *end = NULL;
    *out = strtod(z, &end);
    return digits > 0 && *end == 0 && *out >= -1e300 && *out <= 1e300;
}

/* Is `arg` one of the space-separated spellings in `list`? */
static bool cli_listed_(const char *list, Str arg) {
    for (const char *p = list; p && *p;) {
        const char *end = strchr(p, ' ');
        size_t n = end ? (size_t)(end - p) : strlen(p);
        if (str_eq((Str){p, n}, arg)) return true;
        p += n + (end != NULL);
    }
    return false;
}

/* An argument taken apart: which option, the value that came attached, and whether it said "no". */
typedef struct {
    const CliOpt *opt;
    const char *value;
    bool negated;
} CliArg;

/* Finds arg among the options of the verbs in `verbs`: a letter may mean one thing here and another
 * there. */
static bool cli_match_(const char *arg, u32 verbs, CliArg *out) {
    const char *eq = strchr(arg, '=');
    Str whole = str_of(arg), name = eq ? (Str){arg, (size_t)(eq - arg)} : whole;
    bool is_long = str_starts(whole, STR("--"));
    for (size_t i = 0; i < COUNT_OF(CLI_OPTS); i++) {
        const CliOpt *o = &CLI_OPTS[i];
        Str own = str_of(o->name);
        if (!(o->verbs & verbs)) continue;
        *out = (CliArg){.opt = o, .value = eq ? eq + 1 : NULL};
        if (is_long && str_eq(str_cut(name, 2, name.n), own)) return true;
        if (cli_listed_(o->alias, name)) return true;
        out->negated = true;
        if (!o->arg && str_starts(name, STR("--no-")) && str_eq(str_cut(name, 5, name.n), own))
            return true;
    }
    for (size_t i = 0; i < COUNT_OF(CLI_OPTS) && !is_long; i++) {
        const CliOpt *o = &CLI_OPTS[i];
        if (!(o->verbs & verbs) || !o->letter || o->letter != arg[1]) continue;
        *out = (CliArg){.opt = o, .value = arg[2] ? arg + 2 + (arg[2] == '=') : NULL};
        return !out->value || o->arg; /* -n5 is -n 5; -vq is nothing */
    }
    return false;
}

static bool cli_set_(Cli *c, const CliOpt *o, const char *name, const char *value, Err *e) {
    void *field = (char *)c + o->at;
    i64 i = 0;
    f64 r = 0;
    switch (o->kind) {
    case CLI_SWITCH:
    case CLI_EITHER: break;
    case CLI_TEXT: *(const char **)field = value; return true;
    case CLI_INT:
        if (!cli_integer_(str_of(value), &i) || (f64)i < o->min || (f64)i > o->max)
            return err_set(e, ERR_USAGE, "%s takes a whole number from %.0f to %.0f, not '%s'",
                           name, o->min, o->max, value);
        *(i32 *)field = (i32)i;
        return true;
    case CLI_REAL:
        if (!cli_real_(value, &r) || r < o->min || r > o->max)
            return err_set(e, ERR_USAGE, "%s takes a number from %g to %g, not '%s'", name, o->min,
                           o->max, value);
        *(f32 *)field = (f32)r;
        return true;
    case CLI_WORD: {
        char have[256] = "";
        for (const CliWord *w = o->words; w->name; w++) {
            size_t n = strlen(have);
            snprintf(have + n, sizeof have - n, "%s%s", n ? ", " : "", w->name);
            if (strcmp(w->name, value) != 0) continue;
            *(i32 *)field = w->value;
            return true;
        }
        return err_set(e, ERR_USAGE, "%s takes one of %s, not '%s'", name, have, value);
    }
    case CLI_SEED:
        if (!cli_integer_(str_of(value), &i) || i < -1)
            return err_set(e, ERR_USAGE, "%s takes a whole number from 0 to %lld, or -1, not '%s'",
                           name, (long long)INT64_MAX, value);
        c->seed = (u64)i;
        c->seed_given = i >= 0;
        return true;
    case CLI_STOP:
        if (c->n_stops == DECODE_STOPS_MAX || !*value)
            return err_set(e, ERR_USAGE, "%s takes a text that is not empty, at most %d times",
                           name, DECODE_STOPS_MAX);
        c->stops[c->n_stops++] = str_of(value);
        return true;
    }
    ASSERT(false);
}

static void cli_switch_(Cli *c, const CliOpt *o, bool on) {
    void *field = (char *)c + o->at;
    if (o->kind == CLI_EITHER)
        *(i32 *)field = (i32)(on ? o->max : o->min);
    else
        *(bool *)field = on;
}

static bool cli_unknown_(const char *arg, const CliVerb *verb, Err *e) {
    const char *eq = strchr(arg, '=');
    CliGuess g = {.typed = eq ? (Str){arg, (size_t)(eq - arg)} : str_of(arg)};
    bool no = str_starts(g.typed, STR("--no-"));
    g.typed = str_cut(g.typed, no ? 5 : strspn(arg, "-"), g.typed.n);
    for (size_t i = 0; i < COUNT_OF(CLI_OPTS); i++) {
        const CliOpt *o = &CLI_OPTS[i];
        if (!(o->verbs & verb->bit) || (no && o->arg)) continue;
        cli_guess_(&g, str_of(o->name));
        for (const char *a = o->alias; a && *a; a += strspn(a, " ")) {
            Str alias = {a, strcspn(a, " ")};
            if (str_starts(alias, STR("--"))) cli_guess_(&g, str_cut(alias, 2, alias.n));
            a += alias.n;
        }
    }
    if (g.best.n)
        return err_set(e, ERR_USAGE, "unknown option '%s'; did you mean --%s%.*s?", arg,
                       no ? "no-" : "", STR_ARG(g.best));
    return err_set(e, ERR_USAGE, "unknown option '%s'; 'dlm help %s' lists them", arg, verb->name);
}

static bool cli_parse_option_(Cli *c, const CliVerb *verb, char **argv, int argc, int *i, Err *e) {
    const char *arg = argv[(*i)++];
    CliArg a;
    if (!cli_match_(arg, verb->bit, &a) && !cli_match_(arg, CLI_ALL, &a))
        return cli_unknown_(arg, verb, e);
    char name[CLI_NAME_MAX * 2];
    bool attached = a.value && arg[1] != '-' && a.value == arg + 2; /* -n5 */
    snprintf(name, sizeof name, "%.*s", attached ? 2 : (int)strcspn(arg, "="), arg);
    if (!(a.opt->verbs & verb->bit))
        return err_set(e, ERR_USAGE, "%s does not apply to 'dlm %s'", name, verb->name);
    if (!a.opt->arg) {
        if (a.value) return err_set(e, ERR_USAGE, "%s takes no value", name);
        cli_switch_(c, a.opt, !a.negated);
        return true;
    }
    if (!a.value) {
        if (*i == argc) return err_set(e, ERR_USAGE, "%s needs a value: %s", name, a.opt->arg);
        a.value = argv[(*i)++];
    }
    return cli_set_(c, a.opt, name, a.value, e);
}

static const CliVerb *cli_verb_(const char *name) {
    for (size_t i = 0; i < COUNT_OF(CLI_VERBS); i++)
        if (strcmp(CLI_VERBS[i].name, name) == 0) return &CLI_VERBS[i];
    return NULL;
}

static bool cli_unknown_verb_(const char *name, Err *e) {
    CliGuess g = {.typed = str_of(name)};
    for (size_t i = 0; i < COUNT_OF(CLI_VERBS); i++) cli_guess_(&g, str_of(CLI_VERBS[i].name));
    if (g.best.n)
        return err_set(e, ERR_USAGE, "unknown command '%s'; did you mean 'dlm %.*s'?", name,
                       STR_ARG(g.best));
    if (str_ends(g.typed, STR(".gguf")))
        return err_set(e, ERR_USAGE, "'%s' is no command; did you mean 'dlm -m %s'?", name, name);
    return err_set(e, ERR_USAGE, "unknown command '%s'; a prompt goes after -p", name);
}

static Cli cli_defaults_(void) {
    return (Cli){
        .engine = engine_options_default(),
        .decode = decode_params_default(),
        .server = server_options_default(),
        .days = 365,
        .bench = {.n_prompt = 512, .n_gen = 32, .reps = 5},
        .convert = {.type = PLAN_AS_IS, .embed_type = PLAN_AS_IS, .output_type = PLAN_AS_IS},
        .stats = true,
        .watch_ms = 50};
}

/* A server's answers are as long as the context allows, unless a request says otherwise. */
static void cli_defaults_of_(Cli *c, u32 verb) {
    if (verb == CLI_SERVE) c->decode.max_tokens = -1;
}

static bool cli_env_(Cli *c, const CliVerb *verb, Err *e) {
    for (size_t i = 0; i < COUNT_OF(CLI_OPTS); i++) {
        const CliOpt *o = &CLI_OPTS[i];
        const char *value = o->env && (o->verbs & verb->bit) ? getenv(o->env) : NULL;
        if (value && *value && !cli_set_(c, o, o->env, value, e)) return false;
    }
    return true;
}

/* Reads the command line over the environment over the defaults. *verb is set even on failure. */
static bool cli_parse_(Cli *c, const CliVerb **verb, int argc, char **argv, Err *e) {
    int i = 1;
    *verb = &CLI_VERBS[0];
    if (argc > 1 && argv[1][0] != '-') {
        const CliVerb *named = cli_verb_(argv[i++]);
        if (!named) return cli_unknown_verb_(argv[1], e);
        *verb = named;
        c->named = true;
    }
    c->args = argv + i; /* words are moved to the front of what is left, over what was read */
    cli_defaults_of_(c, (*verb)->bit);
    if (!cli_env_(c, *verb, e)) return false;
    for (bool options = true; i < argc;) {
        if (options && strcmp(argv[i], "--") == 0) {
            options = false;
            i++;
        } else if (options && argv[i][0] == '-' && argv[i][1]) {
            if (!cli_parse_option_(c, *verb, argv, argc, &i, e)) return false;
        } else if (c->n_args == (*verb)->args_max) {
            return err_set(e, ERR_USAGE, "unexpected argument '%s'%s", argv[i],
                           (*verb)->bit == CLI_RUN ? "; a prompt goes after -p, in quotes" : "");
        } else {
            c->args[c->n_args++] = argv[i++];
        }
    }
    if (c->decode.max_tokens == 0)
        return err_set(e, ERR_USAGE, "-n 0 asks for nothing; give 1 or more, or -1");
    return true;
}

/* ---- help ---- */

/* Appends text, broken between words; lines after the first begin at column `indent`. */
static void cli_wrap_(Buf *out, size_t indent, const char *text) {
    size_t column = indent;
    for (const char *p = text; *p;) {
        size_t n = strcspn(p, " ");
        if (column + n > CLI_COLUMNS) {
            buf_printf(out, "\n%*s", (int)indent, "");
            column = indent;
        } else if (p != text) {
            buf_char(out, ' ');
            column++;
        }
        buf_put(out, p, n);
        column += n;
        p += n;
        while (*p == ' ') p++;
    }
    buf_char(out, '\n');
}

/* "[default: 0.9]", or nothing where the option is simply off. */
static void cli_put_default_(Buf *out, const CliOpt *o, const Cli *c) {
    const void *field = (const char *)c + o->at;
    if (o->unset) {
        buf_printf(out, " [default: %s]", o->unset);
    } else if (o->kind == CLI_INT) {
        buf_printf(out, " [default: %d]", *(const i32 *)field);
    } else if (o->kind == CLI_REAL) {
        buf_printf(out, " [default: %g]", (f64) * (const f32 *)field);
    } else if (o->kind == CLI_SWITCH && *(const bool *)field) {
        buf_printf(out, " [default: on]");
    }
    for (const CliWord *w = o->kind == CLI_WORD ? o->words : NULL; w && w->name; w++)
        if (w->value == *(const i32 *)field) buf_printf(out, " [default: %s]", w->name);
}

/* The option's whole description as one paragraph. */
static void cli_put_about_(Buf *out, const CliOpt *o, const Cli *defaults) {
    buf_printf(out, "%s", o->help);
    for (const CliWord *w = o->words; w && w->name; w++)
        buf_printf(out, "%s%s", w == o->words ? " One of: " : ", ", w->name);
    if (o->words) buf_char(out, '.');
    cli_put_default_(out, o, defaults);
    if (o->env) buf_printf(out, " [env: %s]", o->env);
    if (o->alias) buf_printf(out, " [also: %s]", o->alias);
}

static void cli_put_label_(Buf *out, const CliOpt *o, const Cli *defaults) {
    bool on = o->kind == CLI_EITHER ||
              (o->kind == CLI_SWITCH && *(const bool *)((const char *)defaults + o->at));
    if (o->letter) buf_printf(out, "-%c, ", o->letter);
    buf_printf(out, "--%s%s", on ? "[no-]" : "", o->name);
    if (o->arg) buf_printf(out, " %s", o->arg);
}

#define CLI_HELP_INDENT 28

static void cli_put_options_(Buf *out, u32 verb) {
    Cli defaults = cli_defaults_();
    cli_defaults_of_(&defaults, verb);
    for (int group = 0; group < CLI_G_COUNT; group++) {
        bool titled = false;
        for (size_t i = 0; i < COUNT_OF(CLI_OPTS); i++) {
            const CliOpt *o = &CLI_OPTS[i];
            if ((int)o->group != group || !(o->verbs & verb)) continue;
            if (!titled) buf_printf(out, "\n%s:\n", CLI_GROUPS[group]);
            titled = true;
            size_t from = out->n;
            buf_printf(out, "  %s", o->letter ? "" : "    ");
            cli_put_label_(out, o, &defaults);
            size_t used = out->n - from;
            if (used >= CLI_HELP_INDENT) buf_char(out, '\n'), used = 0;
            buf_printf(out, "%*s", (int)(CLI_HELP_INDENT - used), "");
            Buf about = {0};
            cli_put_about_(&about, o, &defaults);
            cli_wrap_(out, CLI_HELP_INDENT, about.p ? about.p : "");
            buf_free(&about);
        }
    }
}

static void cli_put_verbs_(Buf *out) {
    for (size_t i = 0; i < COUNT_OF(CLI_VERBS); i++) {
        buf_printf(out, "  dlm %-36s", CLI_VERBS[i].usage);
        cli_wrap_(out, 42, CLI_VERBS[i].help);
    }
}

static void cli_help_general_(Buf *out) {
    buf_printf(out, "dlm runs block-diffusion language models (and others) from one GGUF file.\n\n"
                    "Usage:\n");
    cli_put_verbs_(out);
    buf_printf(out, "\nOptions of dlm run ('dlm help COMMAND' for those of another command):\n");
    cli_put_options_(out, CLI_RUN);
    buf_printf(out, "\nTopics ('dlm help TOPIC'):\n");
    for (size_t i = 0; i < COUNT_OF(CLI_TOPICS); i++)
        buf_printf(out, "  %-12s  %s\n", CLI_TOPICS[i].name, CLI_TOPICS[i].title);
    buf_printf(out, "  %-12s  %s\n", "man", "This help as a manual page: dlm help man | man -l -");
}

static void cli_help_verb_(Buf *out, const CliVerb *v) {
    buf_printf(out, "Usage: dlm %s\n\n%s\n", v->usage, v->help);
    cli_put_options_(out, v->bit);
}

/* Text for roff: a backslash, a dash and a leading dot mean something to it. */
static void cli_put_roff_(Buf *out, const char *text) {
    for (const char *p = text; *p; p++) {
        if ((*p == '.' || *p == '\'') && (p == text || p[-1] == '\n')) buf_printf(out, "\\&");
        if (*p == '\\')
            buf_printf(out, "\\e");
        else if (*p == '-')
            buf_printf(out, "\\-");
        else
            buf_char(out, *p);
    }
}

static void cli_help_man_(Buf *out) {
    Cli defaults = cli_defaults_();
    buf_printf(out,
               ".TH DLM 1 \"\" \"dlm " DLM_VERSION "\"\n.SH NAME\ndlm \\- run block\\-diffusion "
               "language models\n.SH SYNOPSIS\n");
    for (size_t i = 0; i < COUNT_OF(CLI_VERBS); i++) {
        buf_printf(out, "%s.B dlm\n", i ? ".br\n" : "");
        cli_put_roff_(out, CLI_VERBS[i].usage);
        buf_char(out, '\n');
    }
    buf_printf(out, ".SH COMMANDS\n");
    for (size_t i = 0; i < COUNT_OF(CLI_VERBS); i++) {
        buf_printf(out, ".TP\n.B %s\n", CLI_VERBS[i].name);
        cli_put_roff_(out, CLI_VERBS[i].help);
        buf_char(out, '\n');
    }
    buf_printf(out, ".SH OPTIONS\n");
    for (size_t i = 0; i < COUNT_OF(CLI_OPTS); i++) {
        Buf text = {0};
        cli_put_label_(&text, &CLI_OPTS[i], &defaults);
        buf_printf(out, ".TP\n.B ");
        cli_put_roff_(out, text.p ? text.p : "");
        buf_clear(&text);
        cli_put_about_(&text, &CLI_OPTS[i], &defaults);
        buf_char(out, '\n');
        cli_put_roff_(out, text.p ? text.p : "");
        buf_char(out, '\n');
        buf_free(&text);
    }
    for (size_t i = 0; i < COUNT_OF(CLI_TOPICS); i++) {
        buf_printf(out, ".SH \"%s\"\n.nf\n", CLI_TOPICS[i].title);
        cli_put_roff_(out, CLI_TOPICS[i].text);
        buf_printf(out, ".fi\n");
    }
}

static bool cli_help_(Buf *out, const char *name, Err *e) {
    const CliVerb *verb = name ? cli_verb_(name) : NULL;
    if (!name)
        cli_help_general_(out);
    else if (verb)
        cli_help_verb_(out, verb);
    else if (strcmp(name, "man") == 0)
        cli_help_man_(out);
    if (out->n) return true;
    CliGuess g = {.typed = str_of(name)};
    cli_guess_(&g, STR("man"));
    for (size_t i = 0; i < COUNT_OF(CLI_VERBS); i++) cli_guess_(&g, str_of(CLI_VERBS[i].name));
    for (size_t i = 0; i < COUNT_OF(CLI_TOPICS); i++) {
        const CliTopic *t = &CLI_TOPICS[i];
        cli_guess_(&g, str_of(t->name));
        if (strcmp(t->name, name) == 0) return buf_printf(out, "%s\n\n%s", t->title, t->text);
    }
    if (g.best.n)
        return err_set(e, ERR_USAGE, "no help on '%s'; did you mean '%.*s'?", name,
                       STR_ARG(g.best));
    return err_set(e, ERR_USAGE, "no help on '%s'; 'dlm help' lists commands and topics", name);
}

/* ---- completions ---- */

/* The words that may follow on a command line of this verb: its options, long spellings. */
static void cli_put_option_words_(Buf *out, u32 verb) {
    for (size_t i = 0; i < COUNT_OF(CLI_OPTS); i++)
        if (CLI_OPTS[i].verbs & verb) buf_printf(out, " --%s", CLI_OPTS[i].name);
}

static void cli_completion_bash_(Buf *out) {
    buf_printf(out,
               "_dlm() {\n    local words prev=${COMP_WORDS[COMP_CWORD-1]} verb=${COMP_WORDS[1]}\n"
               "    case $prev in\n");
    for (size_t i = 0; i < COUNT_OF(CLI_OPTS); i++) {
        const CliOpt *o = &CLI_OPTS[i];
        if (!o->words) continue;
        buf_printf(out, "    --%s) words='", o->name);
        for (const CliWord *w = o->words; w->name; w++) buf_printf(out, "%s ", w->name);
        buf_printf(out, "' ;;\n");
    }
    buf_printf(out, "    *) case $verb in\n");
    for (size_t i = 0; i < COUNT_OF(CLI_VERBS); i++) {
        buf_printf(out, "        %s) words='", i ? CLI_VERBS[i].name : "run | -*");
        cli_put_option_words_(out, CLI_VERBS[i].bit);
        buf_printf(out, "' ;;\n");
    }
    buf_printf(out, "        esac ;;\n    esac\n    [ \"$COMP_CWORD\" = 1 ] && words=\"$words");
    for (size_t i = 0; i < COUNT_OF(CLI_VERBS); i++) buf_printf(out, " %s", CLI_VERBS[i].name);
    buf_printf(out,
               "\"\n    COMPREPLY=($(compgen -W \"$words\" -- \"${COMP_WORDS[COMP_CWORD]}\"))\n}\n"
               "complete -o default -F _dlm dlm\n");
}

static void cli_completion_fish_(Buf *out) {
    for (size_t i = 0; i < COUNT_OF(CLI_VERBS); i++)
        buf_printf(out, "complete -c dlm -n __fish_use_subcommand -a %s -d \"%s\"\n",
                   CLI_VERBS[i].name, CLI_VERBS[i].help);
    for (size_t i = 0; i < COUNT_OF(CLI_OPTS); i++) {
        const CliOpt *o = &CLI_OPTS[i];
        buf_printf(out, "complete -c dlm -l %s", o->name);
        if (o->letter) buf_printf(out, " -s %c", o->letter);
        if (o->arg) buf_printf(out, " -r");
        if (o->words) buf_printf(out, " -f -a \"");
        for (const CliWord *w = o->words; w && w->name; w++) buf_printf(out, "%s ", w->name);
        buf_printf(out, "%s -d \"%s\"\n", o->words ? "\"" : "", o->help);
    }
}

static bool cli_completion_(Buf *out, const char *shell, Err *e) {
    if (shell && strcmp(shell, "zsh") == 0) {
        buf_printf(out, "#compdef dlm\nautoload -U +X bashcompinit && bashcompinit\n");
        cli_completion_bash_(out);
    } else if (shell && strcmp(shell, "bash") == 0) {
        cli_completion_bash_(out);
    } else if (shell && strcmp(shell, "fish") == 0) {
        cli_completion_fish_(out);
    } else {
        return err_set(e, ERR_USAGE, "completion is for bash, zsh or fish; name one of them");
    }
    return true;
}

/* ---- output ---- */

/* Writes to standard output. False with a clean *e when its reader has gone. */
static bool cli_out_(Str s, Err *e) {
    return os_write_all(OS_STDOUT, s.p, s.n, e);
}

static bool cli_out_buf_(const Buf *b, Err *e) {
    return buf_ok(b, "the output", e) && cli_out_(buf_view(b), e);
}

static bool cli_env_set_(const char *name) {
    const char *v = getenv(name);
    return v && *v;
}

static bool cli_smart_terminal_(int fd) {
    const char *term = getenv("TERM");
    return os_isatty(fd) && !(term && strcmp(term, "dumb") == 0);
}

static bool cli_color_(const Cli *c, int fd) {
    if (c->color != CLI_COLOR_AUTO) return c->color == CLI_COLOR_ALWAYS;
    return cli_smart_terminal_(fd) && !cli_env_set_("NO_COLOR");
}

/* Appends valid UTF-8 with its control characters made visible, so that a model cannot drive the
 * terminal: ^[ for ESC, and U+FFFD for the C1 controls. Newlines and tabs stay. */
static void cli_put_visible_(Buf *out, Str s) {
    for (size_t i = 0; i < s.n; i++) {
        u8 b = (u8)s.p[i], next = i + 1 < s.n ? (u8)s.p[i + 1] : 0;
        if (b == '\n' || b == '\t') {
            buf_char(out, (char)b);
        } else if (b < 0x20 || b == 0x7f) {
            buf_char(out, '^');
            buf_char(out, (char)(b ^ 0x40));
        } else if (b == 0xc2 && next >= 0x80 && next < 0xa0) {
            buf_printf(out, "\xef\xbf\xbd");
            i++;
        } else {
            buf_char(out, (char)b);
        }
    }
}

static void cli_put_ids_(Buf *out, const i32 *ids, size_t n) {
    buf_char(out, '[');
    for (size_t i = 0; i < n; i++) buf_printf(out, "%s%d", i ? "," : "", ids[i]);
    buf_char(out, ']');
}

static void cli_put_number_(Buf *out, const char *before, f64 v) {
    buf_printf(out, "%s", before);
    json_put_f64(out, v);
}

static void cli_put_string_(Buf *out, const char *before, Str s) {
    buf_printf(out, "%s", before);
    json_put_str(out, s);
}

static void cli_put_string_or_null_(Buf *out, const char *before, Str s) {
    buf_printf(out, "%s", before);
    if (s.n)
        json_put_str(out, s);
    else
        buf_printf(out, "null");
}

/* Which model file, the first two members of an object that is open. */
static void cli_put_path_(Buf *out, const Cli *c) {
    const char *path = c->engine.path;
    cli_put_string_or_null_(out, "\"path\":", path ? str_of(path) : (Str){0});
    buf_printf(out, ",\"builtin\":%s", path ? "false" : "true");
}

/* ---- the prompt ---- */

/* Files and pipes end with a newline that nobody means as part of the prompt. */
static void cli_trim_newline_(Buf *b) {
    if (b->n && b->p[b->n - 1] == '\n') b->n--;
    if (b->n && b->p[b->n - 1] == '\r') b->n--;
    if (b->p) b->p[b->n] = 0;
}

static bool cli_read_stdin_(Buf *out, Err *e) {
    if (os_wait_input(OS_STDIN, 2000, 0) == OS_INPUT_NOT_YET)
        log_line(LOG_INFO,
                 "reading standard input; end it with Ctrl-D, or start dlm with </dev/null");
    if (!os_read_stdin(out, e)) return false;
    cli_trim_newline_(out);
    return true;
}

/* Appends the next part of the prompt, on a line of its own. */
static bool cli_add_part_(Buf *text, Str part, Err *e) {
    if (text->n && part.n) buf_char(text, '\n');
    buf_str(text, part);
    return buf_ok(text, "the prompt", e);
}

/* The text of -p, then of -f, then of what is piped in, each on its own line. */
static bool cli_prompt_(const Cli *c, Buf *text, Err *e) {
    bool dash_p = c->prompt && strcmp(c->prompt, "-") == 0;
    bool dash_f = c->file && strcmp(c->file, "-") == 0;
    Buf part = {.max = CLI_PROMPT_MAX};
    bool ok = true;
    text->max = CLI_PROMPT_MAX;
    if (c->prompt && !dash_p) ok = cli_add_part_(text, str_of(c->prompt), e);
    if (ok && c->file && !dash_f) {
        ok = os_read_file(c->file, &part, e);
        cli_trim_newline_(&part);
        ok = ok && cli_add_part_(text, buf_view(&part), e);
    }
    buf_clear(&part);
    if (ok && (dash_p || dash_f || os_stdin_is_piped()))
        ok = cli_read_stdin_(&part, e) && cli_add_part_(text, buf_view(&part), e);
    buf_free(&part);
    if (!ok || text->n) return ok;
    return err_set(e, ERR_USAGE,
                   "no prompt: give one with -p TEXT, with -f FILE or through a pipe; "
                   "'dlm help' explains");
}

/* The system message, or an empty text. */
static bool cli_system_(const Cli *c, Buf *text, Err *e) {
    text->max = CLI_PROMPT_MAX;
    if (c->system) buf_str(text, str_of(c->system));
    if (!c->system_file) return buf_ok(text, "the system message", e);
    if (c->system) return err_set(e, ERR_USAGE, "give --system or --system-file, not both");
    bool ok = os_read_file(c->system_file, text, e);
    cli_trim_newline_(text);
    return ok;
}

/* ---- the engine, as the options want it ---- */

typedef struct {
    Engine *engine;
    const Tok *tok;
    const Model *model;
    Buf chat_template; /* of --chat-template */
    f64 ms_load;
    DecodeParams params;
    TokIds suffix; /* that params points to */
    int trace_fd;  /* of --trace; -1: none */
} CliEngine;

static void cli_engine_close_(CliEngine *x) {
    if (x->engine) engine_close(x->engine);
    buf_free(&x->chat_template);
    tok_ids_free(&x->suffix);
    *x = (CliEngine){0};
}

/* A random seed is short enough to be typed again. */
static bool cli_params_(const Cli *c, DecodeParams *p, Err *e) {
    u32 random = 0;
    *p = c->decode;
    p->sample.seed = c->seed;
    if (!c->seed_given && p->sample.temperature > 0) {
        if (!os_random(&random, sizeof random, e)) return false;
        p->sample.seed = random;
    }
    if (p->max_tokens < 0) p->max_tokens = INT32_MAX;
    p->stops = c->stops;
    p->n_stops = c->n_stops;
    return true;
}

static bool cli_engine_open_(CliEngine *x, const Cli *c, Err *e) {
    *x = (CliEngine){.chat_template = {.max = CLI_PROMPT_MAX}, .trace_fd = -1};
    EngineOptions options = c->engine;
    options.block_size_max = c->decode.block_size;
    options.automatic = c->decode.mode == DECODE_AUTO;
    f64 from = os_now_ms();
    bool ok = cli_params_(c, &x->params, e) &&
              (!c->template_file || os_read_file(c->template_file, &x->chat_template, e)) &&
              engine_open(&x->engine, &options, e) &&
              decode_can_guide(&x->engine->model.decode, &x->params, e) &&
              (c->decode.mode == DECODE_AR || c->decode.mode == DECODE_AUTO ||
               engine_can_diffuse(x->engine, e));
    if (ok && c->suffix)
        ok = tok_encode(engine_tok(x->engine), str_of(c->suffix), NULL, &x->suffix, e);
    x->params.suffix = x->suffix.p, x->params.n_suffix = (i32)x->suffix.n;
    if (!ok) {
        cli_engine_close_(x);
        return false;
    }
    x->ms_load = os_now_ms() - from;
    x->tok = engine_tok(x->engine);
    x->model = engine_model(x->engine);
    log_line(LOG_DEBUG, "ready after %.0f ms", x->ms_load);
    return true;
}

/* A GPU's driver makes threads, opens devices and talks to them, at any time: beside it there is no
 * sandbox. False when that is not good enough. */
static bool cli_sandbox_mode_(const Cli *c, SandboxMode *mode, Err *e) {
    *mode = (SandboxMode)c->sandbox;
#ifdef DLM_CUDA
    DlmCudaDevice gpu;
    int n = 0;
    if (!engine_wants_gpu(&c->engine) || *mode == SANDBOX_OFF) return true;
    if (dlm_cuda_devices(&gpu, 1, &n)) return true; /* there is none to talk to */
    if (*mode == SANDBOX_STRICT)
        return err_set(
            e, ERR_USAGE,
            "--sandbox strict leaves no way to the GPU; add --device cpu, or leave it out");
    log_line(LOG_DEBUG, "there is no sandbox beside a GPU's driver; --device cpu has one");
    *mode = SANDBOX_OFF;
#else
    (void)e;
#endif
    return true;
}

/* The engine of run and chat, in a sandbox that knows no network and no file but the model. What is
 * written is opened before. */
static bool cli_engine_open_alone_(CliEngine *x, const Cli *c, Err *e) {
    const SandboxPath paths[] = {
        {c->engine.path, false}, {c->engine.tl_config, false}, {c->template_file, false}};
    SandboxOptions options = {.kind = SANDBOX_RUN, .paths = paths, .n_paths = COUNT_OF(paths)};
    Sandbox box;
    *x = (CliEngine){.trace_fd = -1};
    if (!cli_sandbox_mode_(c, &options.mode, e)) return false;
    int trace = c->trace ? os_create_file(c->trace, e) : -1;
    if (c->trace && trace < 0) return false;
    if (!sandbox_enter(&box, &options, e) || !cli_engine_open_(x, c, e) || !sandbox_seal(&box, e)) {
        os_close(&trace);
        return false;
    }
    x->trace_fd = trace;
    return true;
}

/* Said once, when nothing stands in the way of an answer any more. */
static void cli_say_demo_(const Cli *c) {
    if (!c->engine.path)
        log_line(LOG_INFO, "answering with the built-in demo model (-m names another)");
}

static bool cli_has_template_(const CliEngine *x) {
    return x->chat_template.n > 0 || x->tok->chat_template.n > 0;
}

/* Messages to ids, through --chat-template or the model's own. */
static bool cli_render_(const CliEngine *x, const TmplMsg *msgs, size_t n, TokIds *out, Err *e) {
    Str own = buf_view(&x->chat_template);
    if (own.n) return engine_render_with(x->engine, own, msgs, n, out, e);
    return engine_render(x->engine, msgs, n, out, e);
}

/* ---- watching a block denoise ---- */

typedef enum { CLI_CELL_NONE, CLI_CELL_MASK, CLI_CELL_OLD, CLI_CELL_NEW } CliCellState;

typedef struct {
    i32 token;
    f32 prob;
    CliCellState state;
} CliCell;

#define CLI_WATCH_ROWS 12       /* lines of text that are redrawn */
#define CLI_MASK "\xe2\x96\x92" /* U+2592, medium shade */

typedef struct {
    Buf cells; /* [n] CliCell: the answer so far, masks and all */
    i32 rows;  /* lines on the screen that the next picture replaces */
    bool redraw, color;
    f64 drawn_ms;  /* when the last picture was shown */
    f64 paused_ms; /* time given to the eye */
} CliWatch;

static bool cli_watch_update_(CliWatch *w, const DecodeStep *s) {
    i32 n = MAX_OF(s->block_end - s->n_prompt, 0);
    size_t want = (size_t)n * sizeof(CliCell);
    if (want > w->cells.n) {
        size_t more = want - w->cells.n;
        if (!buf_reserve(&w->cells, more)) return false;
        memset(w->cells.p + w->cells.n, 0, more);
        w->cells.n = want;
    }
    CliCell *cells = (CliCell *)(void *)w->cells.p;
    for (i32 i = MAX_OF(s->block_begin, s->n_prompt); i < s->block_end; i++) {
        i32 at = i - s->block_begin;
        bool masked = s->masked[at];
        cells[i - s->n_prompt] =
            (CliCell){s->tokens[at], s->probs[at], masked ? CLI_CELL_MASK : CLI_CELL_OLD};
    }
    for (i32 i = 0; i < s->n_reveals; i++) {
        i32 at = s->reveals[i].pos - s->n_prompt;
        if (at < 0 || at >= n) continue;
        cells[at] = (CliCell){s->reveals[i].token, s->reveals[i].prob, CLI_CELL_NEW};
    }
    return true;
}

/* Green is sure, yellow less so, red a guess; bold was revealed by this pass. */
static const char *cli_cell_color_(const CliCell *c) {
    static const char *const colors[2][3] = {{"\x1b[32m", "\x1b[33m", "\x1b[31m"},
                                             {"\x1b[1;32m", "\x1b[1;33m", "\x1b[1;31m"}};
    if (c->state == CLI_CELL_MASK) return "\x1b[2m";
    return colors[c->state == CLI_CELL_NEW][c->prob >= 0.9f ? 0 : c->prob >= 0.7f ? 1 : 2];
}

/* Appends one cell's text to a picture of `width` columns, its lines broken and its colour
 * closed on every line. Code points from U+1100 count two columns: too many at worst, never too
 * few. */
static void cli_put_cell_(Buf *out, Str text, const char *color, i32 width, i32 *column) {
    buf_printf(out, "%s", color);
    for (size_t i = 0; i < text.n;) {
        size_t from = i;
        u32 cp = utf8_next(text, &i);
        i32 columns = cp >= 0x1100 && cp != 0x2592 ? 2 : 1;
        if (cp == '\n' || *column + columns > width) {
            buf_printf(out, "%s\n%s", *color ? "\x1b[0m" : "", color);
            *column = 0;
        }
        if (cp == '\n') continue;
        buf_str(out, cp == '\t' ? STR(" ") : str_cut(text, from, i));
        *column += columns;
    }
    if (*color) buf_printf(out, "\x1b[0m");
}

/* The answer as it stands. `line`: everything on one line, for what is not a terminal. */
static void cli_put_picture_(Buf *out, const CliWatch *w, const Tok *tok, i32 width, bool line) {
    const CliCell *cells = (const CliCell *)(const void *)w->cells.p;
    Buf bytes = {0}, text = {0}, shown = {0};
    TokUtf8 utf8 = {0};
    i32 column = 0;
    for (size_t i = 0; i < w->cells.n / sizeof *cells; i++) {
        const CliCell *c = &cells[i];
        if (c->state == CLI_CELL_NONE) continue;
        buf_clear(&bytes), buf_clear(&text), buf_clear(&shown);
        if (c->state == CLI_CELL_MASK) {
            tok_utf8_end(&utf8, &text);
            buf_printf(&text, CLI_MASK);
        } else {
            tok_bytes(tok, c->token, false, &bytes);
            tok_utf8_put(&utf8, buf_view(&bytes), &text);
        }
        cli_put_visible_(&shown, buf_view(&text));
        for (size_t j = 0; line && j < shown.n; j++)
            if (shown.p[j] == '\n') shown.p[j] = ' ';
        cli_put_cell_(out, buf_view(&shown), w->color ? cli_cell_color_(c) : "", width, &column);
    }
    buf_free(&bytes), buf_free(&text), buf_free(&shown);
}

/* Where the last `rows` lines of a text begin. */
static size_t cli_last_lines_(Str s, i32 rows) {
    size_t at = s.n;
    while (at > 0 && (s.p[at - 1] != '\n' || --rows > 0)) at--;
    return at;
}

static void cli_watch_erase_(CliWatch *w, Buf *out) {
    if (w->rows) buf_printf(out, "\x1b[%dA\r\x1b[J", w->rows);
    w->rows = 0;
}

/* A small model is done before anyone has seen a picture: each stays a moment. */
static void cli_watch_pause_(CliWatch *w, i32 ms) {
    f64 from = os_now_ms();
    if (w->redraw && w->drawn_ms > 0) os_sleep_ms(w->drawn_ms + ms - from);
    w->drawn_ms = os_now_ms();
    w->paused_ms += w->drawn_ms - from;
}

static void cli_watch_draw_(CliWatch *w, const Tok *tok, const DecodeStep *s) {
    Buf out = {0}, picture = {0};
    i32 n_masked = 0;
    if (!cli_watch_update_(w, s)) return;
    for (i32 i = 0; i < s->block_end - s->block_begin; i++) n_masked += s->masked[i];
    cli_put_picture_(&picture, w, tok, w->redraw ? os_tty_width(OS_STDERR) - 1 : INT32_MAX,
                     !w->redraw);
    if (w->redraw) cli_watch_erase_(w, &out);
    buf_printf(&out, "block %d, %s %d: +%d, %d masked, %.1f ms%s", s->block, s->kind, s->step,
               s->n_reveals, n_masked, s->ms, w->redraw ? "\n" : "  ");
    Str lines = buf_view(&picture);
    lines = str_cut(lines, cli_last_lines_(lines, CLI_WATCH_ROWS), lines.n);
    buf_str(&out, lines);
    buf_char(&out, '\n');
    if (w->redraw) {
        w->rows = 2;
        for (size_t i = 0; i < lines.n; i++) w->rows += lines.p[i] == '\n';
    }
    if (!out.failed) os_write_all(OS_STDERR, out.p, out.n, NULL);
    buf_free(&out);
    buf_free(&picture);
}

/* ---- showing an answer while it is made ---- */

typedef struct {
    const Cli *cli;
    const Tok *tok;
    bool hold;   /* the text is printed at the end: --json, or --watch draws on the same terminal */
    bool escape; /* standard output is a terminal */
    bool stop;   /* output failed, or its reader has gone: end the answer */
    bool at_newline; /* what was printed ends with one */
    Err err;         /* why output failed; clean when the reader has gone */
    int trace_fd;    /* -1: none */
    CliWatch watch;
} CliShow;

static void cli_show_open_(CliShow *v, const Cli *c, const CliEngine *x) {
    bool terminal = os_isatty(OS_STDOUT), redraw = cli_smart_terminal_(OS_STDERR);
    *v = (CliShow){.cli = c, .tok = x->tok, .trace_fd = x->trace_fd, .escape = terminal};
    v->hold = c->json || (c->watch && terminal && redraw);
    v->watch.redraw = redraw;
    v->watch.color = cli_color_(c, OS_STDERR);
}

static bool cli_show_close_(CliShow *v, Err *e) {
    buf_free(&v->watch.cells);
    int fd = v->trace_fd;
    v->trace_fd = -1;
    return fd < 0 || os_close_file(fd, v->cli->trace, e);
}

static void cli_print_(CliShow *v, Str s) {
    if (v->stop || s.n == 0) return;
    Buf visible = {0};
    if (v->escape) cli_put_visible_(&visible, s);
    v->stop = !(v->escape ? cli_out_buf_(&visible, &v->err) : cli_out_(s, &v->err));
    v->at_newline = s.p[s.n - 1] == '\n';
    buf_free(&visible);
}

static void cli_on_text_(void *arg, Str s) {
    CliShow *v = arg;
    if (!v->hold) cli_print_(v, s);
}

static void cli_trace_(CliShow *v, const DecodeStep *s) {
    Buf line = {0};
    buf_printf(&line,
               "{\"kind\":\"%s\",\"block\":%d,\"step\":%d,\"rows\":%d,"
               "\"commit_rows\":%d,\"pos\":[",
               s->kind, s->block, s->step, s->n_rows, s->n_commit);
    for (i32 i = 0; i < s->n_reveals; i++)
        buf_printf(&line, "%s%d", i ? "," : "", s->reveals[i].pos);
    buf_printf(&line, "],\"ids\":[");
    for (i32 i = 0; i < s->n_reveals; i++)
        buf_printf(&line, "%s%d", i ? "," : "", s->reveals[i].token);
    buf_printf(&line, "],\"probs\":[");
    for (i32 i = 0; i < s->n_reveals; i++)
        cli_put_number_(&line, i ? "," : "", (f64)s->reveals[i].prob);
    cli_put_number_(&line, "],\"ms\":", s->ms);
    buf_printf(&line, "}\n");
    bool ok = buf_ok(&line, "a trace line", &v->err) &&
              os_write_all(v->trace_fd, line.p, line.n, &v->err);
    if (!ok) v->stop = true;
    buf_free(&line);
}

static void cli_on_step_(void *arg, const DecodeStep *s) {
    CliShow *v = arg;
    if (v->trace_fd >= 0 && !v->stop) cli_trace_(v, s);
    if (!v->cli->watch) return;
    cli_watch_pause_(&v->watch, v->cli->watch_ms);
    cli_watch_draw_(&v->watch, v->tok, s);
}

static bool cli_on_cancelled_(void *arg) {
    const CliShow *v = arg;
    return v->stop || os_interrupts() > 0;
}

/* Generates one answer and prints it. An interrupt is not a failure here: r->finish tells. */
static bool cli_answer_(const CliEngine *x, CliShow *v, const TokIds *prompt, DecodeResult *r,
                        Err *e) {
    const DecodeEvents events = {
        .arg = v, .text = cli_on_text_, .step = cli_on_step_, .cancelled = cli_on_cancelled_};
    v->watch.cells.n = 0;
    v->watch.drawn_ms = v->watch.paused_ms = 0;
    bool ok = engine_generate(x->engine, 0, prompt->p, (i32)prompt->n, &x->params, &events, r, e);
    r->ms_decode -= MIN_OF(v->watch.paused_ms, r->ms_decode);
    if (v->watch.rows) {
        Buf out = {0};
        os_sleep_ms(v->cli->watch_ms);
        cli_watch_erase_(&v->watch, &out);
        if (!out.failed) os_write_all(OS_STDERR, out.p, out.n, NULL);
        buf_free(&out);
    }
    if (!ok) return false;
    if (v->hold && !v->cli->json) cli_print_(v, buf_view(&r->text));
    if (!v->cli->json && !v->at_newline) cli_print_(v, STR("\n"));
    v->at_newline = false;
    if (v->stop && v->err.code) *e = v->err;
    return !v->stop;
}

/* ---- what an answer cost ---- */

static f64 cli_ratio_(f64 a, f64 b) {
    return b > 0 ? a / b : 0;
}

/* Tokens per second of decoding, which has not begun while the prompt is read. */
static f64 cli_rate_(const DecodeResult *r) {
    return cli_ratio_(((f64)r->ids.n - r->n_from_prefill) * 1e3, r->ms_decode);
}

static void cli_put_bytes_(Buf *out, u64 bytes) {
    f64 kib = (f64)bytes / 1024;
    if (kib < 1024)
        buf_printf(out, "%.1f KiB", kib);
    else if (kib < 1048576)
        buf_printf(out, "%.1f MiB", kib / 1024);
    else
        buf_printf(out, "%.2f GiB", kib / 1048576);
}

#define CLI_DOT " \xc2\xb7 "

static void cli_put_stats_(Buf *out, const DecodeResult *r) {
    f64 n = (f64)r->ids.n, rate = cli_rate_(r);
    i32 forwards = decode_forwards(r);
    buf_printf(out, "%zu token%s" CLI_DOT "%d forward%s", r->ids.n, r->ids.n == 1 ? "" : "s",
               forwards, forwards == 1 ? "" : "s");
    if (r->n_forwards_denoise && r->n_joined)
        buf_printf(out, " (%d denoise, %d of them with a commit)", r->n_forwards_denoise,
                   r->n_joined);
    else if (r->n_forwards_denoise)
        buf_printf(out, " (%d denoise + %d commit)", r->n_forwards_denoise, r->n_forwards_commit);
    buf_printf(out, CLI_DOT "%.1f tokens/forward", cli_ratio_(n, forwards));
    if (r->n_forwards_denoise)
        buf_printf(out, " (%.1f per denoise)", cli_ratio_(n, r->n_forwards_denoise));
    buf_printf(out, CLI_DOT "%.*f tok/s" CLI_DOT "first token ", rate < 100, rate);
    if (r->ms_first_token < 1000)
        buf_printf(out, "%.1f ms", r->ms_first_token);
    else
        buf_printf(out, "%.2f s", r->ms_first_token / 1e3);
    buf_printf(out, CLI_DOT "peak ");
    cli_put_bytes_(out, os_peak_rss());
}

static void cli_print_stats_(const CliShow *v, const DecodeResult *r) {
    Buf line = {0};
    if (!v->cli->stats || base_log_level == LOG_QUIET) return;
    cli_put_stats_(&line, r);
    buf_char(&line, '\n');
    if (!line.failed) os_write_all(OS_STDERR, line.p, line.n, NULL);
    buf_free(&line);
}

static void cli_put_model_json_(Buf *out, const Cli *c, const CliEngine *x) {
    buf_printf(out, "\"model\":{");
    cli_put_path_(out, c);
    cli_put_string_(out, ",\"name\":", x->model->name);
    cli_put_string_(out, ",\"arch\":", str_of(x->model->family->arch));
    buf_printf(out, ",\"n_vocab\":%d,\"n_ctx_train\":%d}", x->model->n_vocab,
               x->model->n_ctx_train);
}

static void cli_put_decode_json_(Buf *out, const CliEngine *x, DecodeMode mode) {
    const DecodeParams p = decode_resolved(&x->model->decode, &x->params);
    cli_put_string_(out, "\"decode\":{\"mode\":", str_of(DECODE_MODE_NAMES[mode]));
    buf_printf(out, ",\"rule\":\"%s\",\"steps\":%d", MODEL_RULE_NAMES[p.rule], p.steps);
    cli_put_number_(out, ",\"threshold\":", (f64)p.threshold);
    buf_printf(out, ",\"block_size\":%d,\"sub_block_size\":%d,\"cache\":\"%s\",\"dual_cache\":%s",
               p.block_size, p.sub_block_size, MODEL_CACHE_NAMES[p.cache],
               p.cache != CACHE_NONE ? "true" : "false");
    cli_put_number_(out, ",\"cfg_scale\":", (f64)p.cfg_scale);
    buf_printf(out, ",\"early_stop\":%s", p.early_stop ? "true" : "false");
    cli_put_number_(out, ",\"temperature\":", (f64)p.sample.temperature);
    buf_printf(out, ",\"top_k\":%d", p.sample.top_k);
    cli_put_number_(out, ",\"top_p\":", (f64)p.sample.top_p);
    cli_put_number_(out, ",\"min_p\":", (f64)p.sample.min_p);
    buf_char(out, '}');
}

static void cli_put_answer_json_(Buf *out, const CliShow *v, const CliEngine *x,
                                 const TokIds *prompt, const DecodeResult *r) {
    cli_put_string_(out, "{\"text\":", buf_view(&r->text));
    buf_printf(out, ",\"ids\":");
    cli_put_ids_(out, r->ids.p, r->ids.n);
    buf_printf(out, ",\"prompt_ids\":");
    cli_put_ids_(out, prompt->p, prompt->n);
    buf_printf(
        out,
        ",\"finish_reason\":\"%s\",\"usage\":{\"prompt_tokens\":%d,\"completion_tokens\":%zu,"
        "\"total_tokens\":%zu,\"cached_tokens\":%d}",
        r->finish, r->n_prompt, r->ids.n, (size_t)r->n_prompt + r->ids.n, r->n_cached);
    cli_put_number_(out, ",\"timings\":{\"load_ms\":", x->ms_load);
    cli_put_number_(out, ",\"prefill_ms\":", r->ms_prefill);
    cli_put_number_(out, ",\"decode_ms\":", r->ms_decode);
    cli_put_number_(out, ",\"first_token_ms\":", r->ms_first_token);
    cli_put_number_(out, ",\"tokens_per_second\":", cli_rate_(r));
    buf_printf(out, "},\"forwards\":{\"prefill\":%d,\"denoise\":%d,\"commit\":%d,\"ar\":%d}",
               r->n_forwards_prefill, r->n_forwards_denoise, r->n_forwards_commit,
               r->n_forwards_ar);
    cli_put_number_(out, ",\"tokens_per_forward\":", cli_ratio_((f64)r->ids.n, decode_forwards(r)));
    buf_char(out, ',');
    cli_put_model_json_(out, v->cli, x);
    buf_char(out, ',');
    cli_put_decode_json_(out, x, r->mode);
    buf_printf(out, ",\"seed\":%llu,\"peak_rss_bytes\":%llu}\n",
               (unsigned long long)x->params.sample.seed, (unsigned long long)os_peak_rss());
}

/* ---- dlm run ---- */

static bool cli_run_ids_(const Cli *c, const CliEngine *x, Str system, Str text, TokIds *ids,
                         Err *e) {
    if (!c->raw && cli_has_template_(x)) {
        const TmplMsg msgs[] = {tmpl_msg(STR("system"), system), tmpl_msg(STR("user"), text)};
        return cli_render_(x, msgs + !system.n, 2 - !system.n, ids, e);
    }
    if (system.n)
        return err_set(e, ERR_USAGE, "a system message needs a chat template, and %s",
                       c->raw ? "--raw leaves it out" : "this model has none; see --chat-template");
    if (!c->raw) log_line(LOG_INFO, "this model has no chat template: continuing the text (--raw)");
    return tok_encode_prompt(x->tok, text, NULL, ids, e);
}

static bool cli_run_prompt_(const Cli *c, const CliEngine *x, Str system, Str text, Err *e) {
    TokIds ids = {0};
    DecodeResult r = {0};
    CliShow show = {.trace_fd = -1};
    bool ok = cli_run_ids_(c, x, system, text, &ids, e);
    if (ok) {
        cli_show_open_(&show, c, x);
        cli_say_demo_(c);
        ok = cli_answer_(x, &show, &ids, &r, e);
    }
    bool closed = cli_show_close_(&show, ok ? e : NULL);
    if (ok && c->json) {
        Buf out = {0};
        cli_put_answer_json_(&out, &show, x, &ids, &r);
        ok = cli_out_buf_(&out, e);
        buf_free(&out);
    }
    if (ok) cli_print_stats_(&show, &r);
    if (ok && strcmp(r.finish, "cancelled") == 0) ok = err_set(e, ERR_INTERRUPTED, "interrupted");
    decode_result_free(&r);
    tok_ids_free(&ids);
    return ok && closed;
}

static bool cli_run_(const Cli *c, Err *e) {
    Buf text = {0}, system = {0};
    CliEngine x;
    bool ok =
        cli_prompt_(c, &text, e) && cli_system_(c, &system, e) && cli_engine_open_alone_(&x, c, e);
    if (ok) {
        ok = cli_run_prompt_(c, &x, buf_view(&system), buf_view(&text), e);
        cli_engine_close_(&x);
    }
    buf_free(&text);
    buf_free(&system);
    return ok;
}

/* ---- dlm chat ---- */

typedef struct {
    const Cli *cli;
    CliEngine x;
    CliShow show;
    Buf system;
    Buf texts[CLI_TURNS_MAX]; /* user and assistant in turn, after the system message */
    size_t n_texts;
    Buf stats; /* the closing line of the last answer */
    OsLines lines;
    bool terminal; /* someone types */
} CliChat;

static const char CLI_CHAT_HELP[] = "  /help   this list\n"
                                    "  /clear  forget the conversation\n"
                                    "  /stats  what the last answer cost\n"
                                    "  /quit   leave (so does Ctrl-D)\n"
                                    "Ctrl-C stops an answer; a second one leaves.\n";

static void cli_chat_forget_(CliChat *t, size_t keep) {
    while (t->n_texts > keep) buf_free(&t->texts[--t->n_texts]);
}

static bool cli_chat_render_(const CliChat *t, TokIds *ids, Err *e) {
    TmplMsg *msgs = mem_alloc_n(t->n_texts + 1, sizeof *msgs, e);
    if (!msgs) return false;
    size_t n = 0;
    if (t->system.n) msgs[n++] = tmpl_msg(STR("system"), buf_view(&t->system));
    for (size_t i = 0; i < t->n_texts; i++)
        msgs[n++] = tmpl_msg(i % 2 ? STR("assistant") : STR("user"), buf_view(&t->texts[i]));
    bool ok = cli_render_(&t->x, msgs, n, ids, e);
    mem_free(msgs);
    return ok;
}

/* One question and its answer. What was said before an interrupt is kept; a failed turn is taken
 * back. */
static bool cli_chat_turn_(CliChat *t, Str line, Err *e) {
    size_t before = t->n_texts;
    if (before + 2 > CLI_TURNS_MAX)
        return err_set(e, ERR_RUNTIME,
                       "the conversation is over %d messages long; /clear begins anew",
                       CLI_TURNS_MAX);
    TokIds ids = {0};
    DecodeResult r = {0};
    Buf *user = &t->texts[t->n_texts++];
    bool ok = buf_str(user, line);
    if (!ok) buf_ok(user, "the message", e);
    ok = ok && cli_chat_render_(t, &ids, e) && cli_answer_(&t->x, &t->show, &ids, &r, e);
    if (ok) {
        t->texts[t->n_texts++] = r.text; /* the turn takes the text over */
        r.text = (Buf){0};
        buf_clear(&t->stats);
        cli_put_stats_(&t->stats, &r);
        if (t->cli->verbose) cli_print_stats_(&t->show, &r);
    } else {
        cli_chat_forget_(t, before);
    }
    bool stopped = ok && strcmp(r.finish, "cancelled") == 0;
    if (stopped) log_line(LOG_INFO, "stopped; Ctrl-C again leaves");
    decode_result_free(&r);
    tok_ids_free(&ids);
    return ok;
}

/* A line that begins with a slash. False: leave. */
static bool cli_chat_command_(CliChat *t, Str line) {
    static const char *const names[] = {"/help", "/clear", "/stats", "/quit", "/exit", "/bye"};
    char name[CLI_NAME_MAX];
    snprintf(name, sizeof name, "%.*s", STR_ARG(line));
    if (strcmp(name, "/help") == 0) {
        fputs(CLI_CHAT_HELP, stderr);
    } else if (strcmp(name, "/clear") == 0) {
        cli_chat_forget_(t, 0);
        log_line(LOG_INFO, "the conversation is forgotten");
    } else if (strcmp(name, "/stats") == 0) {
        fprintf(stderr, "%s\n", t->stats.n ? t->stats.p : "no answer yet");
    } else if (cli_listed_("/quit /exit /bye", line)) {
        return false;
    } else {
        CliGuess g = {.typed = str_of(name)};
        for (size_t i = 0; i < COUNT_OF(names); i++) cli_guess_(&g, str_of(names[i]));
        fprintf(stderr, "dlm: unknown command '%s'; %s%.*s\n", name,
                g.best.n ? "perhaps " : "/help lists them", STR_ARG(g.best));
    }
    return true;
}

/* Reads and answers lines until there are no more. */
static bool cli_chat_loop_(CliChat *t, Err *e) {
    Buf line = {.max = CLI_PROMPT_MAX};
    bool go = true;
    while (go) {
        int seen = os_interrupts(); /* one, after an answer was stopped */
        if (t->terminal) fputs("> ", stderr);
        OsLineResult got = os_read_line(&t->lines, &line, seen, e);
        cli_trim_newline_(&line);
        if (got == OS_LINE_INTERRUPTED) {
            fputs("\n", stderr);
            log_line(LOG_INFO, "Ctrl-C again leaves; so does Ctrl-D");
            continue;
        }
        if (got != OS_LINE) break;
        os_interrupts_clear();
        Err failed = {0};
        if (line.n == 0) continue;
        if (line.p[0] == '/') {
            go = cli_chat_command_(t, buf_view(&line));
        } else if (!cli_chat_turn_(t, buf_view(&line), &failed)) {
            go = failed.code != ERR_NONE && !t->show.stop; /* output that has gone ends it */
            if (go)
                fprintf(stderr, "dlm: %s\n", failed.msg);
            else
                *e = failed;
        }
    }
    if (t->terminal && go) fputs("\n", stderr);
    buf_free(&line);
    return e->code == ERR_NONE;
}

static bool cli_chat_open_(CliChat *t, const Cli *c, Err *e) {
    t->cli = c;
    t->show.trace_fd = -1;
    t->terminal = os_isatty(OS_STDIN);
    if (!cli_system_(c, &t->system, e) || !cli_engine_open_alone_(&t->x, c, e)) return false;
    if (!cli_has_template_(&t->x))
        return err_set(e, ERR_MODEL,
                       "this model has no chat template, so it cannot hold a conversation; "
                       "give --chat-template FILE, or use dlm run");
    cli_say_demo_(c);
    if (t->terminal) log_line(LOG_INFO, "type a message; /help lists commands, Ctrl-D leaves");
    cli_show_open_(&t->show, c, &t->x);
    return true;
}

static bool cli_chat_(const Cli *c, Err *e) {
    CliChat *t = mem_alloc(sizeof *t, e);
    if (!t) return false;
    bool ok = cli_chat_open_(t, c, e) && cli_chat_loop_(t, e);
    if (!cli_show_close_(&t->show, e)) ok = false;
    cli_chat_forget_(t, 0);
    buf_free(&t->system);
    buf_free(&t->stats);
    cli_engine_close_(&t->x);
    mem_free(t);
    return ok;
}

/* ---- a model file looked at, not loaded: info, tokenize, detokenize ---- */

typedef struct {
    OsMap map;
    Gguf gguf;
    Tok tok;
    bool has_tok;
} CliFile;

static void cli_file_close_(CliFile *f) {
    if (f->has_tok) tok_close(&f->tok);
    gguf_close(&f->gguf);
    os_unmap(&f->map);
    *f = (CliFile){0};
}

/* Opens the directory of the model file, or of the built-in model. */
static bool cli_file_open_(CliFile *f, const Cli *c, Err *e) {
    *f = (CliFile){0};
    const char *path = c->engine.path;
    Str demo = engine_demo();
    if (!path && demo.n == 0)
        return err_set(e, ERR_USAGE,
                       "no model: this build has no built-in one; name a GGUF file with -m");
    if (path && !os_map_file(&f->map, path, e)) return false;
    if (gguf_open(&f->gguf, path ? f->map.p : (const u8 *)demo.p, path ? f->map.n : demo.n,
                  path ? path : ENGINE_DEMO_LABEL, e))
        return true;
    os_unmap(&f->map);
    return false;
}

static bool cli_file_tok_(CliFile *f, const Cli *c, Err *e) {
    f->has_tok = tok_open(&f->tok, &f->gguf, c->engine.pre, e);
    return f->has_tok;
}

/* ---- dlm info ---- */

static const struct {
    const char *name;
    const char *part; /* of the names of the tensors in this group */
} CLI_TENSOR_GROUPS[] = {
    {"norms, biases", NULL}, /* every vector */ {"embedding", "token_embd"},
    {"attention", "attn"},   {"feed-forward", "ffn"},
    {"output", "output"},    {"other", ""},
};

typedef struct {
    u32 n_tensors;
    u64 n_weights, n_bytes;
    u64 codes[4]; /* ternary: how many are -1, 0, +1, +2 */
} CliTensors;

#define CLI_TYPES COUNT_OF(DLM_TYPES)

typedef struct {
    const Cli *cli;
    CliFile file;
    ModelOptions options;
    Model model;
    Err why;     /* why the file cannot be run, when it cannot */
    Err why_not; /* why it cannot diffuse, when it cannot */
    CliTensors groups[COUNT_OF(CLI_TENSOR_GROUPS)][CLI_TYPES];
    u64 n_weights, weight_bytes, kv_bytes;
    i32 n_ctx;
} CliInfo;

static size_t cli_tensor_group_(const GgufTensor *t) {
    size_t i = 0;
    if (t->ne[1] * t->ne[2] * t->ne[3] == 1) return i;
    while (str_find(t->name, str_of(CLI_TENSOR_GROUPS[++i].part), 0) == SIZE_MAX) {}
    return i;
}

/* Bytes of a tensor once it is loaded: ternary ones are laid out anew, the others stay in the
 * file. */
static u64 cli_tensor_memory_(const GgufTensor *t) {
    if (!quant_is_ternary(t->type)) return t->n_bytes;
    return (t->ne[0] + DLM_TILE_IN - 1) / DLM_TILE_IN *
           ((t->ne[1] + DLM_TILE_OUT - 1) / DLM_TILE_OUT) * DLM_TILE_BYTES;
}

static bool cli_info_tensors_(CliInfo *f, Err *e) {
    const Gguf *g = &f->file.gguf;
    for (u32 i = 0; i < g->n_tensors; i++) {
        const GgufTensor *t = &g->tensors[i];
        size_t type = 0;
        while (type + 1 < CLI_TYPES && DLM_TYPES[type].type != t->type) type++;
        CliTensors *group = &f->groups[cli_tensor_group_(t)][type];
        u64 counts[4] = {0}, n = t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3];
        if (quant_is_ternary(t->type) && t->n_dims == 2 &&
            !model_count_codes(g, t, &f->options, counts, e))
            return false;
        group->n_tensors++;
        group->n_weights += n;
        group->n_bytes += t->n_bytes;
        for (int k = 0; k < 4; k++) group->codes[k] += counts[k];
        f->n_weights += n;
        f->weight_bytes += cli_tensor_memory_(t);
    }
    return true;
}

static bool cli_info_open_(CliInfo *f, const Cli *c, Err *e) {
    f->cli = c;
    if (!engine_model_options(&c->engine, &f->options, e) || !cli_file_open_(&f->file, c, e) ||
        !cli_info_tensors_(f, e))
        return false;
    if (!cli_file_tok_(&f->file, c, &f->why) ||
        !model_read(&f->model, &f->file.gguf, &f->file.tok, &f->options, &f->why))
        return true;
    f->n_ctx = c->engine.n_ctx ? c->engine.n_ctx : MIN_OF(f->model.n_ctx_train, ENGINE_CTX_DEFAULT);
    const GraphOptions graph = {.n_slots = 1, .n_ctx = f->n_ctx, .kv_type = c->engine.kv_type};
    f->kv_bytes = graph_kv_bytes(&f->model, &graph);
    model_can_diffuse(&f->model, &f->why_not);
    return true;
}

/* The value of a field of the decode record, as text. */
static void cli_put_field_(Buf *out, const DecodeRecord *d, const ModelField *f) {
    const void *at = (const u8 *)d + f->at;
    switch (f->kind) {
    case FIELD_WORD: buf_printf(out, "%s", f->names[*(const i32 *)at]); break;
    case FIELD_BOOL: buf_printf(out, "%s", *(const bool *)at ? "true" : "false"); break;
    case FIELD_INT: buf_printf(out, "%d", *(const i32 *)at); break;
    case FIELD_REAL: buf_printf(out, "%g", (f64) * (const f32 *)at); break;
    }
}

/* The levels of this CPU, best first: "avx2, ref". */
static void cli_put_levels_(Buf *out) {
    for (int i = 0; kern_level(i); i++) buf_printf(out, "%s%s", i ? ", " : "", kern_level(i)->name);
}

/* A label in the left column of info. */
static void cli_put_row_(Buf *out, const char *label) {
    buf_printf(out, "%-18s", label);
}

static void cli_info_tensors_text_(Buf *out, const CliInfo *f) {
    for (size_t i = 0; i < COUNT_OF(CLI_TENSOR_GROUPS); i++)
        for (size_t j = 0; j < CLI_TYPES; j++) {
            const CliTensors *g = &f->groups[i][j];
            if (!g->n_tensors) continue;
            buf_printf(out, "  %-16s%-6s %4u tensor%s  %12llu weights  ", CLI_TENSOR_GROUPS[i].name,
                       DLM_TYPES[j].name, g->n_tensors, g->n_tensors == 1 ? " " : "s",
                       (unsigned long long)g->n_weights);
            cli_put_bytes_(out, g->n_bytes);
            f64 n = (f64)(g->codes[0] + g->codes[1] + g->codes[2] + g->codes[3]) / 100;
            if (n > 0)
                buf_printf(out, "  -1 %.1f%%, 0 %.1f%%, +1 %.1f%%", (f64)g->codes[0] / n,
                           (f64)g->codes[1] / n, (f64)g->codes[2] / n);
            if (g->codes[3]) buf_printf(out, ", +2 %.1f%%", (f64)g->codes[3] / n);
            buf_char(out, '\n');
        }
}

static void cli_put_token_(Buf *out, const char *label, const Tok *tok, i32 id) {
    if (id < 0) return;
    buf_printf(out, "%s %d ", label, id);
    cli_put_visible_(out, tok_text(tok, id));
}

static void cli_info_tokenizer_text_(Buf *out, const Tok *t) {
    cli_put_row_(out, "tokenizer");
    buf_printf(out, "%s%s, %u tokens", t->spm ? "SentencePiece BPE" : "byte-level BPE, ",
               t->spm ? "" : t->pre_name, t->n_vocab);
    cli_put_token_(out, t->add_bos ? "; begins with" : "; bos", t, t->bos);
    cli_put_token_(out, t->add_eos ? "; ends with" : "; eos", t, t->eos);
    buf_char(out, '\n');
    cli_put_row_(out, "chat template");
    Str first = str_cut(t->chat_template, 0, str_find(t->chat_template, STR("\n"), 0));
    if (t->chat_template.n == 0)
        buf_printf(out, "none: dlm run continues the text as it is\n");
    else {
        buf_printf(out, "%zu bytes: ", t->chat_template.n);
        cli_put_visible_(out, str_cut(first, 0, 60));
        buf_printf(out, "%s\n", t->chat_template.n > MIN_OF(first.n, 60u) ? " ..." : "");
    }
}

static void cli_info_diffusion_text_(Buf *out, const CliInfo *f) {
    const DecodeRecord *d = &f->model.decode;
    cli_put_row_(out, "diffusion");
    buf_printf(out, "%s%s\n", f->why_not.code ? "no, autoregressive only: " : "yes",
               f->why_not.msg);
    if (d->mask_id >= 0) {
        buf_printf(out, "  %-16s%d ", "mask token", d->mask_id);
        cli_put_visible_(out, tok_text(&f->file.tok, d->mask_id));
        buf_printf(out, " (%s)\n", MODEL_SOURCE_NAMES[d->from_mask]);
    }
    for (i32 i = 0; i < RECORD_FIELDS; i++) {
        buf_printf(out, "  %-16s", MODEL_FIELDS[i].name);
        cli_put_field_(out, d, &MODEL_FIELDS[i]);
        buf_printf(out, " (%s)\n", MODEL_SOURCE_NAMES[d->from[i]]);
    }
}

static void cli_info_text_(Buf *out, const CliInfo *f) {
    const Gguf *g = &f->file.gguf;
    const Model *m = &f->model;
    cli_put_row_(out, "file");
    buf_printf(out, "%s, GGUF version %u, ", g->label, g->version);
    cli_put_bytes_(out, g->n);
    buf_printf(out, ", %u tensors\n", g->n_tensors);
    cli_put_row_(out, "weights");
    buf_printf(out, "%.2f million\n", (f64)f->n_weights / 1e6);
    cli_info_tensors_text_(out, f);
    if (f->file.has_tok) cli_info_tokenizer_text_(out, &f->file.tok);
    if (f->why.code) {
        cli_put_row_(out, "runs");
        buf_printf(out, "no: %s\n", f->why.msg);
        return;
    }
    cli_put_row_(out, "model");
    cli_put_visible_(out, m->name);
    buf_printf(out, "%s%s\n", m->name.n ? ", " : "", m->family->arch);
    cli_put_row_(out, "shape");
    buf_printf(out,
               "%d layers, width %d, %d heads of %d (%d for keys and values), feed-forward %d\n",
               m->n_layer, m->n_embd, m->n_head, m->head_dim, m->n_head_kv, m->n_ff);
    cli_put_row_(out, "rotation");
    model_put_rotation(out, m);
    buf_char(out, '\n');
    cli_put_row_(out, "layers");
    model_put_parts(out, m);
    buf_char(out, '\n');
    cli_put_row_(out, "context");
    buf_printf(out, "%d tokens trained, %d in use\n", m->n_ctx_train, f->n_ctx);
    cli_info_diffusion_text_(out, f);
    cli_put_row_(out, "memory");
    cli_put_bytes_(out, f->weight_bytes);
    buf_printf(out, " of weights and ");
    cli_put_bytes_(out, f->kv_bytes);
    buf_printf(out, " of keys and values; ");
    cli_put_bytes_(out, os_memory_total());
    buf_printf(out, " are free\n");
}

static void cli_info_tensors_json_(Buf *out, const CliInfo *f) {
    bool first = true;
    buf_printf(out, "\"tensors\":[");
    for (size_t i = 0; i < COUNT_OF(CLI_TENSOR_GROUPS); i++)
        for (size_t j = 0; j < CLI_TYPES; j++) {
            const CliTensors *g = &f->groups[i][j];
            if (!g->n_tensors) continue;
            buf_printf(
                out,
                "%s{\"group\":\"%s\",\"type\":\"%s\",\"tensors\":%u,\"weights\":%llu,\"bytes\":%llu",
                first ? "" : ",", CLI_TENSOR_GROUPS[i].name, DLM_TYPES[j].name, g->n_tensors,
                (unsigned long long)g->n_weights, (unsigned long long)g->n_bytes);
            first = false;
            if (quant_is_ternary(DLM_TYPES[j].type))
                buf_printf(out, ",\"ternary\":{\"-1\":%llu,\"0\":%llu,\"+1\":%llu,\"+2\":%llu}",
                           (unsigned long long)g->codes[0], (unsigned long long)g->codes[1],
                           (unsigned long long)g->codes[2], (unsigned long long)g->codes[3]);
            buf_char(out, '}');
        }
    buf_char(out, ']');
}

static void cli_info_model_json_(Buf *out, const CliInfo *f) {
    const Model *m = &f->model;
    const DecodeRecord *d = &m->decode;
    cli_put_string_(out, ",\"model\":{\"name\":", m->name);
    buf_printf(out,
               ",\"arch\":\"%s\",\"n_layer\":%d,\"n_embd\":%d,\"n_head\":%d,\"n_head_kv\":%d,"
               "\"head_dim\":%d,\"n_ff\":%d,\"n_vocab\":%d,\"n_ctx_train\":%d,\"rotation\":\"",
               m->family->arch, m->n_layer, m->n_embd, m->n_head, m->n_head_kv, m->head_dim,
               m->n_ff, m->n_vocab, m->n_ctx_train);
    model_put_rotation(out, m);
    buf_printf(out, "\",\"layers\":\"");
    model_put_parts(out, m);
    buf_printf(out, "\"}");
    buf_printf(out, ",\"diffusion\":{\"can\":%s", f->why_not.code ? "false" : "true");
    cli_put_string_or_null_(out, ",\"why_not\":", str_of(f->why_not.msg));
    buf_printf(out, ",\"mask_token\":");
    if (d->mask_id >= 0) {
        buf_printf(out, "{\"value\":%d,\"source\":\"%s\",\"text\":", d->mask_id,
                   MODEL_SOURCE_NAMES[d->from_mask]);
        json_put_str(out, tok_text(&f->file.tok, d->mask_id));
        buf_char(out, '}');
    } else {
        buf_printf(out, "null");
    }
    for (i32 i = 0; i < RECORD_FIELDS; i++) {
        const ModelField *field = &MODEL_FIELDS[i];
        const char *quote = field->kind == FIELD_WORD ? "\"" : "";
        buf_printf(out, ",\"%s\":{\"value\":%s", field->name, quote);
        cli_put_field_(out, d, field);
        buf_printf(out, "%s,\"source\":\"%s\"}", quote, MODEL_SOURCE_NAMES[d->from[i]]);
    }
    buf_printf(out, "},\"memory\":{\"weights\":%llu,\"kv\":%llu,\"n_ctx\":%d,\"available\":%llu}",
               (unsigned long long)f->weight_bytes, (unsigned long long)f->kv_bytes, f->n_ctx,
               (unsigned long long)os_memory_total());
}

static void cli_info_json_(Buf *out, const CliInfo *f) {
    const Gguf *g = &f->file.gguf;
    const Tok *t = &f->file.tok;
    buf_char(out, '{');
    cli_put_path_(out, f->cli);
    buf_printf(out, ",\"gguf_version\":%u,\"bytes\":%llu,\"weights\":%llu,", g->version,
               (unsigned long long)g->n, (unsigned long long)f->n_weights);
    cli_info_tensors_json_(out, f);
    buf_printf(out, ",\"runs\":%s", f->why.code ? "false" : "true");
    cli_put_string_or_null_(out, ",\"why_not\":", str_of(f->why.msg));
    if (f->file.has_tok) {
        cli_put_string_(out, ",\"tokenizer\":{\"pre\":", str_of(t->pre_name));
        buf_printf(
            out, ",\"n_vocab\":%u,\"bos\":%d,\"eos\":%d,\"eot\":%d,\"add_bos\":%s,\"add_eos\":%s}",
            t->n_vocab, t->bos, t->eos, t->eot, t->add_bos ? "true" : "false",
            t->add_eos ? "true" : "false");
        cli_put_string_or_null_(out, ",\"chat_template\":", t->chat_template);
    }
    if (!f->why.code) cli_info_model_json_(out, f);
}

/* The GPUs of this machine, in the flavour that can use them. */
static void cli_put_gpus_(Buf *out, bool json) {
#ifdef DLM_CUDA
    DlmCudaDevice gpus[16];
    int n = 0;
    const char *why = dlm_cuda_devices(gpus, COUNT_OF(gpus), &n);
    if (json)
        buf_printf(out, ",\"gpus\":[");
    else if (why)
        cli_put_row_(out, "GPU"), buf_printf(out, "%s\n", why);
    for (int i = 0; !why && i < n; i++) {
        const DlmCudaDevice *d = &gpus[i];
        if (json) {
            buf_printf(out, "%s{\"name\":", i ? "," : "");
            json_put_str(out, str_of(d->name));
            buf_printf(out, ",\"capability\":\"%d.%d\",\"bytes\":%llu,\"free\":%llu}", d->major,
                       d->minor, (unsigned long long)d->memory, (unsigned long long)d->memory_free);
        } else {
            cli_put_row_(out, "GPU");
            buf_printf(out, "%s, compute capability %d.%d, ", d->name, d->major, d->minor);
            cli_put_bytes_(out, d->memory_free);
            buf_printf(out, " free of ");
            cli_put_bytes_(out, d->memory);
            buf_char(out, '\n');
        }
    }
    if (json) buf_char(out, ']');
#else
    (void)out, (void)json;
#endif
}

static bool cli_info_(const Cli *c, Err *e) {
    CliInfo *f = mem_alloc(sizeof *f, e);
    if (!f) return false;
    const DlmKernels *level = kern_choose(c->engine.cpu_level, e);
    Buf out = {0};
    bool ok = level && cli_info_open_(f, c, e);
    if (ok && c->json) {
        cli_info_json_(&out, f);
        buf_printf(&out, ",\"cpu\":{\"level\":\"%s\",\"processors\":%d}", level->name,
                   os_cpu_count());
        cli_put_gpus_(&out, true);
        buf_printf(&out, "}\n");
    } else if (ok) {
        cli_info_text_(&out, f);
        cli_put_row_(&out, "processor");
        buf_printf(&out, "level %s of: ", level->name);
        cli_put_levels_(&out);
        buf_printf(&out, "; %d to run on\n", os_cpu_count());
        cli_put_gpus_(&out, false);
    }
    ok = ok && cli_out_buf_(&out, e);
    buf_free(&out);
    cli_file_close_(&f->file);
    mem_free(f);
    return ok;
}

/* ---- dlm tokenize, detokenize ---- */

static void cli_put_pieces_(Buf *out, const Tok *t, const TokIds *ids, bool json) {
    for (size_t i = 0; i < ids->n; i++) {
        Buf bytes = {0};
        tok_bytes(t, ids->p[i], true, &bytes);
        if (json) {
            if (i) buf_char(out, ',');
            json_put_str(out, buf_view(&bytes));
        } else {
            buf_printf(out, "%d\t", ids->p[i]);
            json_put_str(out, buf_view(&bytes)); /* quoted: blanks and newlines are seen */
            buf_char(out, '\n');
        }
        buf_free(&bytes);
    }
}

static void cli_put_tokens_(Buf *out, const Cli *c, const Tok *t, const TokIds *ids) {
    if (c->json) {
        buf_printf(out, "{\"ids\":");
        cli_put_ids_(out, ids->p, ids->n);
        buf_printf(out, ",\"pieces\":[");
        cli_put_pieces_(out, t, ids, true);
        buf_printf(out, "]}\n");
    } else if (c->pieces) {
        cli_put_pieces_(out, t, ids, false);
    } else {
        for (size_t i = 0; i < ids->n; i++) buf_printf(out, "%s%d", i ? " " : "", ids->p[i]);
        buf_char(out, '\n');
    }
}

static bool cli_encode_(const Cli *c, const Tok *t, Str text, TokIds *ids, Err *e) {
    u8 *trusted = NULL;
    if (c->parse_special) {
        trusted = mem_alloc(text.n, e);
        if (!trusted) return false;
        memset(trusted, 1, text.n);
    }
    bool ok = c->add_special ? tok_encode_prompt(t, text, trusted, ids, e)
                             : tok_encode(t, text, trusted, ids, e);
    mem_free(trusted);
    return ok;
}

static bool cli_tokenize_(const Cli *c, Err *e) {
    Buf text = {0}, out = {0};
    TokIds ids = {0};
    CliFile f = {0};
    Cli source = *c;
    if (c->n_args && c->prompt)
        return err_set(e, ERR_USAGE, "give the text once, with or without -p");
    if (c->n_args) source.prompt = c->args[0];
    bool ok = cli_prompt_(&source, &text, e) && cli_file_open_(&f, c, e) &&
              cli_file_tok_(&f, c, e) && cli_encode_(c, &f.tok, buf_view(&text), &ids, e);
    if (ok) cli_put_tokens_(&out, c, &f.tok, &ids);
    ok = ok && cli_out_buf_(&out, e);
    tok_ids_free(&ids);
    buf_free(&text);
    buf_free(&out);
    cli_file_close_(&f);
    return ok;
}

/* Reads token ids: numbers between blanks, commas and brackets. */
static bool cli_read_ids_(Str text, u32 n_vocab, TokIds *ids, Err *e) {
    for (size_t i = 0; i < text.n;) {
        size_t from = i;
        while (i < text.n && !(text.p[i] && strchr(" \t\r\n,[]", text.p[i]))) i++;
        Str word = str_cut(text, from, i);
        i += i == from;
        i64 id = 0;
        if (word.n == 0) continue;
        if (!cli_integer_(word, &id))
            return err_set(e, ERR_USAGE, "'%.*s' is not a token id", STR_ARG(word));
        if (id < 0 || id >= n_vocab)
            return err_set(e, ERR_USAGE, "token id %lld is outside the vocabulary of %u tokens",
                           (long long)id, n_vocab);
        if (!tok_ids_push(ids, (i32)id, e)) return false;
    }
    return true;
}

static bool cli_detokenize_(const Cli *c, Err *e) {
    Buf text = {.max = CLI_PROMPT_MAX}, out = {0}, bytes = {0};
    TokIds ids = {0};
    TokUtf8 utf8 = {0};
    CliFile f = {0};
    for (i32 i = 0; i < c->n_args; i++) buf_printf(&text, "%s ", c->args[i]);
    bool ok = (c->n_args ? buf_ok(&text, "the list of ids", e) : cli_prompt_(c, &text, e)) &&
              cli_file_open_(&f, c, e) && cli_file_tok_(&f, c, e) &&
              cli_read_ids_(buf_view(&text), f.tok.n_vocab, &ids, e);
    for (size_t i = 0; ok && i < ids.n; i++) tok_bytes(&f.tok, ids.p[i], true, &bytes);
    ok = ok && buf_ok(&bytes, "the text", e);
    Str decoded = ok ? tok_without_blank(&f.tok, buf_view(&bytes)) : (Str){"", 0};
    if (ok && c->json) {
        cli_put_string_(&out, "{\"text\":", decoded);
        buf_printf(&out, "}\n");
    } else if (ok) {
        Buf whole = {0};
        tok_utf8_put(&utf8, decoded, &whole);
        tok_utf8_end(&utf8, &whole);
        if (os_isatty(OS_STDOUT))
            cli_put_visible_(&out, buf_view(&whole));
        else
            buf_str(&out, buf_view(&whole));
        buf_char(&out, '\n');
        if (whole.failed) out.failed = true;
        buf_free(&whole);
    }
    ok = ok && cli_out_buf_(&out, e);
    tok_ids_free(&ids);
    buf_free(&text);
    buf_free(&out);
    buf_free(&bytes);
    cli_file_close_(&f);
    return ok;
}

/* ---- dlm serve ---- */

#define CLI_PARALLEL_MAX 8 /* slots that are opened unasked */

/* As many slots as half of the memory that the weights leave free has room for. */
static bool cli_parallel_(const Cli *c, i32 *n, Err *e) {
    *n = c->parallel;
    if (*n) return true;
    CliInfo *f = mem_alloc(sizeof *f, e);
    if (!f) return false;
    bool ok = cli_info_open_(f, c, e);
    u64 all = os_memory_total(), left = all > f->file.gguf.n ? all - f->file.gguf.n : 0;
    if (ok && f->kv_bytes) *n = (i32)MIN_OF(left / 2 / f->kv_bytes, (u64)CLI_PARALLEL_MAX);
    *n = MAX_OF(*n, 1);
    cli_file_close_(&f->file);
    mem_free(f);
    return ok;
}

/* The name of a file without folders and ending. */
static Str cli_stem_(const char *path) {
    Str s = str_of(path);
    for (size_t i = s.n; i-- > 0;)
        if (s.p[i] == '/') {
            s = str_cut(s, i + 1, s.n);
            break;
        }
    return str_ends(s, STR(".gguf")) ? str_cut(s, 0, s.n - 5) : s;
}

static ApiModel cli_served_(const Cli *c, const CliEngine *x) {
    const char *path = c->engine.path ? c->engine.path : "dlm-demo.gguf";
    Str stem = cli_stem_(path);
    ApiModel m = {.model = x->model,
                  .name = c->server.name ? str_of(c->server.name) : stem,
                  .file = {stem.p, strlen(stem.p)},
                  .chat_template =
                      x->chat_template.n ? buf_view(&x->chat_template) : x->tok->chat_template,
                  .version = STR(DLM_VERSION),
                  .created_unix = os_now_unix(),
                  .n_ctx = x->engine->graph_options.n_ctx,
                  .n_slots = x->engine->n_slots,
                  .block_max = x->engine->block_size_max,
                  .decode = x->params};
    m.decode.stops = NULL;
    m.decode.n_stops = 0;
    return m;
}

/* What a server may still open: the model, and what SIGHUP reads again. */
static bool cli_confine_(const Cli *c, Sandbox *box, Err *e) {
    const ServerOptions *o = &c->server;
    const SandboxPath paths[] = {{c->engine.path, false},   {c->engine.tl_config, false},
                                 {c->template_file, false}, {o->key_file, true},
                                 {o->tls.cert, true},       {o->tls.key, true},
                                 {o->tls.client_ca, true}};
    SandboxOptions options = {.kind = SANDBOX_SERVE, .paths = paths, .n_paths = COUNT_OF(paths)};
    return cli_sandbox_mode_(c, &options.mode, e) && sandbox_enter(box, &options, e);
}

static void cli_announce_(const Cli *c, const Server *s, const ApiModel *m, const Sandbox *box) {
    char url[256];
    log_line(LOG_INFO, "serving %.*s at %s: %d slot%s of %d tokens, queue of %d, %s%s",
             STR_ARG(m->name), server_url(s, url, sizeof url), m->n_slots,
             m->n_slots == 1 ? "" : "s", m->n_ctx, c->server.queue_max,
             !box->seccomp   ? "no sandbox"
             : box->landlock ? "seccomp and Landlock"
                             : "seccomp",
             c->engine.path ? "" : "; the built-in demo model (-m names another)");
}

/* server_open before the sandbox, which forbids to make sockets; the sandbox before the model, whose
 * threads it binds, and whose file is not ours. */
static bool cli_serve_(Cli *c, Err *e) {
    Server *s = NULL;
    Sandbox box;
    CliEngine x = {0};
    const DlmKernels *level = kern_choose(c->engine.cpu_level, e);
    c->server.keys = getenv("DLM_API_KEY");
    bool ok = level && cli_parallel_(c, &c->engine.n_slots, e) && server_open(&s, &c->server, e) &&
              cli_confine_(c, &box, e) && cli_engine_open_(&x, c, e);
    if (ok) {
        const ApiModel m = cli_served_(c, &x);
        ok = server_start(s, x.engine, &m, level->name, e) && sandbox_seal(&box, e);
        if (ok) {
            cli_announce_(c, s, &m, &box);
            ok = server_run(s, e);
            if (!ok) return false; /* its threads are at work: the process ends as it is */
        }
    }
    server_close(s);
    cli_engine_close_(&x);
    return ok;
}

/* ---- dlm cert, dlm health ---- */

/* Two new files; what is there is never overwritten. */
static bool cli_cert_(const Cli *c, Err *e) {
    const char *cert_path = c->server.tls.cert ? c->server.tls.cert : "cert.pem";
    const char *key_path = c->server.tls.key ? c->server.tls.key : "key.pem";
    const TlsCertOptions options = {
        .names = (const char *const *)c->args, .n_names = c->n_args, .days = c->days};
    Buf cert = {0}, key = {0};
    if (c->n_args == 0)
        return err_set(e, ERR_USAGE,
                       "for which names? dlm cert localhost 127.0.0.1 is for this machine");
    bool ok = tls_make_cert(&options, &cert, &key, e) &&
              os_write_new_file(key_path, buf_view(&key), true, e) &&
              os_write_new_file(cert_path, buf_view(&cert), false, e);
    if (ok)
        log_line(LOG_INFO,
                 "wrote %s and %s: good for %d days; dlm serve --tls-cert %s --tls-key %s",
                 cert_path, key_path, c->days, cert_path, key_path);
    if (key.p) memset(key.p, 0, key.cap);
    buf_free(&cert);
    buf_free(&key);
    return ok;
}

typedef struct {
    bool tls;
    char host[256]; /* or the path of a socket */
    u16 port;
    Str path;
} CliUrl;

/* http[s]://HOST[:PORT][/PATH], or the path of a unix socket. */
static bool cli_url_(const char *text, CliUrl *u, Err *e) {
    Str s = str_of(text);
    bool http = str_starts(s, STR("http://")), https = str_starts(s, STR("https://"));
    *u = (CliUrl){.tls = https, .port = https ? 443 : 80, .path = STR("/health")};
    if (!http && !https) {
        if (str_find(s, STR("://"), 0) != SIZE_MAX || !net_is_unix(text) || s.n >= sizeof u->host)
            return err_set(e, ERR_USAGE, "'%s' is neither http://HOST:PORT nor a socket's path",
                           text);
        memcpy(u->host, s.p, s.n + 1);
        return true;
    }
    s = str_cut(s, https ? 8 : 7, s.n);
    size_t slash = MIN_OF(str_find(s, STR("/"), 0), s.n);
    if (s.n - slash > 1) u->path = str_cut(s, slash, s.n);
    s = str_cut(s, 0, slash);
    Str name = http_host_name(s);
    size_t after = (size_t)(name.p - s.p) + name.n + (s.n && s.p[0] == '[');
    i64 port = u->port;
    bool ok = name.n > 0 && name.n < sizeof u->host;
    if (ok && after < s.n)
        ok = s.p[after] == ':' && cli_integer_(str_cut(s, after + 1, s.n), &port);
    if (!ok || port < 1 || port > 65535)
        return err_set(e, ERR_USAGE, "'%s' is no URL of the form http://HOST:PORT/PATH", text);
    memcpy(u->host, name.p, name.n);
    u->port = (u16)port;
    return true;
}

#define CLI_HEALTH_MS 5000

static bool cli_ask_(const CliUrl *u, NetTransport *t, f64 deadline_ms, int *status, Err *e) {
    Buf ask = {0};
    char reply[64] = "";
    size_t n = 0, got = 0;
    buf_printf(&ask, "GET %.*s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", STR_ARG(u->path),
               net_is_unix(u->host) ? "localhost" : u->host);
    bool ok = buf_ok(&ask, "the request", e) && t->write(t, ask.p, ask.n, deadline_ms) == NET_OK;
    while (ok && n < 16 && t->read(t, reply + n, sizeof reply - n, &got, deadline_ms) == NET_OK)
        n += got;
    *status = http_read_status((Str){reply, n});
    buf_free(&ask);
    t->close(t, os_now_ms());
    return *status || err_set(e, ERR_RUNTIME, "no HTTP answer came");
}

/* Is what answers there well? *other: something is there that does not speak this protocol. */
static bool cli_probe_(const Cli *c, const char *url, f64 deadline, bool *other, Err *e) {
    CliUrl u;
    NetConn conn;
    int status = 0;
    *other = false;
    if (!cli_url_(url, &u, e) || !net_connect(&conn, u.host, u.port, deadline, e)) return false;
    NetTransport t = net_plain(&conn);
    bool ok = !u.tls || tls_connect(&conn, u.host, &c->client, &t, deadline, e);
    if (!ok) net_close(&conn);
    ok = ok && cli_ask_(&u, &t, deadline, &status, e);
    *other = !ok;
    if (ok && status == 200) return true;
    return ok && err_set(e, ERR_RUNTIME, "%s answers %d %s", url, status, http_status_text(status));
}

/* Where `dlm serve` listens by itself, or by what the environment says. */
static const char *cli_own_url_(bool tls, char *out, size_t n) {
    const char *host = getenv("DLM_HOST"), *port = getenv("DLM_PORT");
    if (host && net_is_unix(host)) return host;
    if (!host || !*host || strcmp(host, "0.0.0.0") == 0 || strcmp(host, "::") == 0)
        host = "127.0.0.1"; /* all addresses: this one, too */
    bool v6 = strchr(host, ':') && host[0] != '[';
    snprintf(out, n, "http%s://%s%s%s:%s/health", tls ? "s" : "", v6 ? "[" : "", host,
             v6 ? "]" : "", port && *port ? port : "8080");
    return out;
}

static bool cli_health_(const Cli *c, Err *e) {
    char own[512];
    bool other, tls = c->client.ca || c->client.cert;
    f64 deadline = os_now_ms() + CLI_HEALTH_MS;
    if (!c->client.cert != !c->client.key)
        return err_set(e, ERR_USAGE, "--cert and --key go together: a certificate and its key");
    if (c->n_args) return cli_probe_(c, c->args[0], deadline, &other, e);
    const char *url = cli_own_url_(tls, own, sizeof own);
    if (cli_probe_(c, url, deadline, &other, e)) return true;
    if (!other || tls || url != own) return false;
    err_clear(e);
    return cli_probe_(c, cli_own_url_(true, own, sizeof own), deadline, &other, e);
}

/* ---- the small commands, and the way in ---- */

static bool cli_print_buf_(Buf *out, bool ok, Err *e) {
    ok = ok && cli_out_buf_(out, e);
    buf_free(out);
    return ok;
}

static bool cli_version_(const Cli *c, Err *e) {
    Buf out = {0};
    const DlmKernels *level = kern_choose(c->engine.cpu_level, e);
    if (!level) return false;
    buf_printf(&out, "dlm %s\n", DLM_VERSION);
#ifdef __VERSION__
    buf_printf(&out, "compiler    %s\n", __VERSION__);
#endif
    buf_printf(&out, "processor   level %s of: ", level->name);
    cli_put_levels_(&out);
    buf_printf(&out, "\nTLS         %s", tls_library());
    buf_printf(&out, "\ndemo model  %s (%zu bytes)\n", engine_demo().n ? "built in" : "none",
               engine_demo().n);
    return cli_print_buf_(&out, true, e);
}

/* Writes out to a file, from its beginning. Frees out. */
static bool cli_write_file_(const char *path, Buf *out, Err *e) {
    int fd = buf_ok(out, path, e) ? os_create_file(path, e) : -1;
    bool ok = fd >= 0 && os_write_all(fd, out->p, out->n, e);
    if (fd >= 0) ok = os_close_file(fd, path, e) && ok;
    buf_free(out);
    return ok;
}

static bool cli_bench_(const Cli *c, Err *e) {
    EngineOptions o = c->engine;
    Engine *g = NULL;
    BenchResult r;
    Buf out = {0}, text = {0};
    i32 most = BENCH_ROWS[COUNT_OF(BENCH_ROWS) - 1];
    o.n_rows_max = MAX_OF(c->bench.n_prompt, most);
    if (!o.n_ctx && c->bench.depth) o.n_ctx = c->bench.depth + most;
    const char *file = c->bench_questions;
    JsonDoc questions = {0};
    bool ok = (!file || (os_read_file(file, &text, e) &&
                         bench_read_questions(&questions, file, buf_view(&text), e))) &&
              engine_open(&g, &o, e) && bench_run(g, &c->bench, &r, e) &&
              (!file || bench_ask(g, &c->bench, file, &questions, &r, e));
    if (ok) bench_print(g, &c->bench, &r, &out);
    ok = cli_print_buf_(&out, ok, e);
    if (ok && c->bench_plot) {
        bench_plot(g, &r, &out);
        ok = cli_write_file_(c->bench_plot, &out, e);
    }
    json_free(&questions);
    buf_free(&text);
    engine_close(g);
    return ok;
}

/* Where --decode-mode auto remembers what it measured; opened before a sandbox closes the way. */
static int cli_open_notes_(const Cli *c) {
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    char dir[512];
    if (c->decode.mode != DECODE_AUTO || c->help) return -1;
    int n = cache && *cache ? snprintf(dir, sizeof dir, "%s", cache)
            : home && *home ? snprintf(dir, sizeof dir, "%s/.cache", home)
                            : -1;
    return n > 0 && n < (int)sizeof dir ? os_open_notes(dir, "tempo", TEMPO_NOTES_MAX) : -1;
}

/* ---- dlm convert ---- */

#define CLI_PROGRESS_MS 100

typedef struct {
    f64 from_ms, shown_ms;
    bool terminal; /* a line of progress is redrawn on standard error */
    u64 total;
} CliProgress;

static void cli_erase_progress_(CliProgress *p) {
    if (p->terminal && p->shown_ms > 0) os_write_all(OS_STDERR, "\r\x1b[K", 4, NULL);
    p->shown_ms = 0;
}

static void cli_on_note_(void *arg, bool warning, const char *line) {
    cli_erase_progress_(arg);
    log_line(warning ? LOG_WARN : LOG_INFO, "%s", line);
}

static void cli_on_progress_(void *arg, u64 done, u64 total) {
    CliProgress *p = arg;
    f64 now = os_now_ms(), seconds = (now - p->from_ms) / 1000;
    char line[128];
    p->total = total;
    if (!p->terminal || now - p->shown_ms < CLI_PROGRESS_MS) return;
    f64 rate = (f64)done / MAX_OF(seconds, 1e-3), left = (f64)(total - done) / MAX_OF(rate, 1);
    int n = snprintf(line, sizeof line, "\r%3.0f%% of %.1f MB, %.0f MB/s, %.0f s to go\x1b[K",
                     100 * (f64)done / (f64)MAX_OF(total, 1), (f64)total / 1e6, rate / 1e6, left);
    os_write_all(OS_STDERR, line, (size_t)n, NULL);
    p->shown_ms = now;
}

static bool cli_on_convert_cancelled_(void *arg) {
    (void)arg;
    return os_interrupts() > 0;
}

static bool cli_convert_(const Cli *c, Err *e) {
    PlanOptions o = c->convert;
    CliProgress p = {.from_ms = os_now_ms(),
                     .terminal = base_log_level >= LOG_INFO && cli_smart_terminal_(OS_STDERR)};
    const PlanEvents events = {&p, cli_on_note_, cli_on_progress_, cli_on_convert_cancelled_};
    if (c->n_args == 0 || !o.to)
        return err_set(e, ERR_USAGE,
                       "what to convert, and to which file? dlm convert FOLDER -o FILE");
    o.from = c->args[0];
    o.pre = c->engine.pre;
    o.n_threads = c->engine.n_threads;
    ModelOptions read;
    if (!engine_model_options(&c->engine, &read, e)) return false;
    o.i2s_layout = read.i2s_layout;
    o.tl = read.tl;
    o.decode = (HfDecode){.mask_id = c->engine.mask_token_id,
                          .block_size = c->decode.block_size,
                          .sub_block_size = c->decode.sub_block_size,
                          .threshold = c->decode.threshold};
    bool ok = c->validate ? verify_convert(&o, &events, e) : convert_run(&o, &events, NULL, e);
    cli_erase_progress_(&p);
    if (!ok) return false;
    f64 seconds = (os_now_ms() - p.from_ms) / 1000;
    log_line(LOG_INFO, "wrote %s: %.1f MB read in %.1f s (%.0f MB/s), peak %.1f MiB", o.to,
             (f64)p.total / 1e6, seconds, (f64)p.total / 1e6 / MAX_OF(seconds, 1e-3),
             (f64)os_peak_rss() / 1048576);
    return true;
}

/* Says what differs; like diff, exits with 1 when anything does. */
static bool cli_diff_(const Cli *c, Err *e) {
    Buf out = {0};
    u32 n_keys = 0, n_tensors = 0;
    if (c->n_args != 2) return err_set(e, ERR_USAGE, "which two files? dlm diff A.gguf B.gguf");
    bool ok = verify_diff(c->args[0], c->args[1], &out, &n_keys, &n_tensors, e);
    ok = cli_print_buf_(&out, ok, e);
    if (!ok || n_keys + n_tensors == 0) return ok;
    return err_set(e, ERR_RUNTIME, "%u keys and %u tensors differ", n_keys, n_tensors);
}

static bool cli_dispatch_(Cli *c, const CliVerb *verb, Err *e) {
    Buf out = {0};
    if (c->quiet)
        base_log_level = LOG_QUIET;
    else if (c->verbose)
        base_log_level = LOG_DEBUG;
    if (c->help) return cli_print_buf_(&out, cli_help_(&out, c->named ? verb->name : NULL, e), e);
    if (c->version) return cli_version_(c, e);
    switch (verb->bit) {
    case CLI_RUN: return cli_run_(c, e);
    case CLI_CHAT: return cli_chat_(c, e);
    case CLI_INFO:
        if (c->n_args) c->engine.path = c->args[0];
        return cli_info_(c, e);
    case CLI_BENCH: return cli_bench_(c, e);
    case CLI_SERVE: return cli_serve_(c, e);
    case CLI_HEALTH: return cli_health_(c, e);
    case CLI_CERT: return cli_cert_(c, e);
    case CLI_CONVERT: return cli_convert_(c, e);
    case CLI_DIFF: return cli_diff_(c, e);
    case CLI_TOKENIZE: return cli_tokenize_(c, e);
    case CLI_DETOKENIZE: return cli_detokenize_(c, e);
    case CLI_VERSION: return cli_version_(c, e);
    case CLI_HELP:
        return cli_print_buf_(&out, cli_help_(&out, c->n_args ? c->args[0] : NULL, e), e);
    case CLI_COMPLETION:
        return cli_print_buf_(&out, cli_completion_(&out, c->n_args ? c->args[0] : NULL, e), e);
    }
    ASSERT(false);
}

/* The whole program; returns its exit status. A reader of standard output that has gone leaves
 * *e clean: that is no failure. */
static int cli_main(int argc, char **argv) {
    Err e = {0};
    Cli c = cli_defaults_();
    const CliVerb *verb;
    os_hold_standard_files();
    os_catch_signals();
    if (cli_parse_(&c, &verb, argc, argv, &e)) {
        c.engine.notes = cli_open_notes_(&c);
        cli_dispatch_(&c, verb, &e);
        os_close(&c.engine.notes);
    }
    if (e.code != ERR_NONE && e.code != ERR_INTERRUPTED) fprintf(stderr, "dlm: %s\n", e.msg);
    return (int)e.code;
}

#endif
