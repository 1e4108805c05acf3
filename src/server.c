/* server.c - from connections to answers: accepting, limits, keys, routing, logs, reload, shutdown.
 *
 * Owns:      the listener, the workers and their connections, the keys, the queue before the engine.
 * Stands on: base mem os net json http tok model decode engine tls api batch
 * Promises:  every wait has a deadline; what one client does or fails to do holds no other up; nothing
 *            is generated for a client that has gone; prompts are not logged unless that was asked for.
 *
 * The main thread accepts and listens to signals. Each connection is given to a worker, a thread that was
 * started before the first byte of a stranger came. A worker reads a request, checks who asks, makes ids of
 * its prompt, queues it for the engine's thread (batch.c), and writes what comes back. */
#ifndef DLM_SERVER_C
#define DLM_SERVER_C

#include "api.c"
#include "base.c"
#include "batch.c"
#include "decode.c"
#include "engine.c"
#include "http.c"
#include "json.c"
#include "mem.c"
#include "model.c"
#include "net.c"
#include "os.c"
#include "tls.c"
#include "tok.c"

#define SERVER_WORKERS_MAX 4096
#define SERVER_KEYS_MAX 256
#define SERVER_KEY_MAX 256     /* bytes of a key */
#define SERVER_NAME_MAX 32     /* bytes of the name of a key */
#define SERVER_FILE_MAX 262144 /* bytes of a file of keys */
#define SERVER_INPUT 16384     /* bytes read at once */
#define SERVER_KEPT 65536      /* a larger output buffer is not kept for the next request */
#define SERVER_BEHIND 65536    /* bytes of events that are gathered before they are written */
#define SERVER_CHUNK 4096      /* bytes of text that come at once and become one event */

#define SERVER_HANDSHAKE_MS 10e3 /* TLS, in all */
#define SERVER_HEAD_MS 10e3      /* a request's head, in all, from its first byte */
#define SERVER_STALL_MS 10e3     /* a body or an answer: so long, and longer for its size at ... */
#define SERVER_RATE 16.0         /* ... this many bytes in a millisecond */
#define SERVER_GATHER_MS 16      /* events are written this often at most: once a frame of most screens */
#define SERVER_PING_MS 15e3      /* a stream that has nothing to say shows that it lives */
#define SERVER_GOODBYE_MS 1e3    /* for the other side to close as well */
#define SERVER_LAST_MS 1e3       /* when the server stops: for a request that is on its way */
#define SERVER_BREATH_MS 20      /* between two looks, when there is no free worker or descriptor */

typedef enum { SERVER_LOG_TEXT, SERVER_LOG_JSON } ServerLogFormat;

typedef struct {
    const char *host;            /* numeric address, localhost, or the path of a unix socket */
    i32 port;                    /* 0: a free one */
    const char *name;            /* what clients call the model; NULL: its file's name */
    const char *key_file, *keys; /* a file of keys, and keys separated by commas; or NULL */
    const char *hosts, *origins; /* lists separated by commas, or NULL */
    TlsOptions tls;              /* tls.cert NULL: plain HTTP */
    i32 tls_min;                 /* 12 or 13 */
    i32 log_format;              /* ServerLogFormat */
    bool insecure, log_prompts, page;
    i32 connections_max, per_address_max, per_key_max,
        queue_max; /* per_...: 0 is no limit of its own */
    i32 body_max_kib, timeout_s, idle_s, drain_s;
} ServerOptions;

static ServerOptions server_options_default(void) {
    return (ServerOptions){.host = "127.0.0.1",
                           .port = 8080,
                           .tls_min = 12,
                           .page = true,
                           .connections_max = 128,
                           .queue_max = 64,
                           .body_max_kib = 8192,
                           .timeout_s = 600,
                           .idle_s = 60,
                           .drain_s = 30};
}

typedef struct {
    char name[SERVER_NAME_MAX], value[SERVER_KEY_MAX];
    size_t n;      /* bytes of value */
    i32 n_answers; /* in progress */
} ServerKey_;

typedef struct {
    ServerKey_ *p; /* [n], or NULL: nobody is asked for a key */
    i32 n;
} ServerKeys_;

typedef enum {
    SERVER_FREE_,
    SERVER_BUSY_,
    SERVER_FRESH_, /* its connection has not said anything yet */
    SERVER_IDLE_   /* its connection has been answered, and may be given up */
} ServerPhase_;
typedef enum { SERVER_OPEN_, SERVER_DRAINING_, SERVER_CUTTING_ } ServerState_;

typedef struct Server Server;

/* What is told of one request when it is over. */
typedef struct {
    f64 from_ms; /* its first byte */
    ApiRoute route;
    i32 status;
    char id[40], key[SERVER_NAME_MAX];
    char error[ERR_MSG_MAX];
    ApiTotal_ total;
    i32 n_choices;
} ServerNote_;

typedef struct {
    Server *server;
    OsThread thread;
    OsGate gate;    /* counts what changed for this worker */
    NetWaker waker; /* for when it waits for its connection at the same time */
    _Atomic ServerPhase_ phase;
    _Atomic f64 idle_ms; /* since when it is SERVER_IDLE_ */
    NetConn conn;
    NetTransport transport;
    HttpRequest http;
    char input[SERVER_INPUT];
    size_t n_input, at_input; /* input[at_input .. n_input) is not yet parsed */
    Buf out;
    bool broken; /* nothing can be written to this connection any more */
    Str origin;  /* the request's Origin, when other origins may read the answer */
    ServerNote_ note;
} ServerWorker;

struct Server {
    ServerOptions o;
    NetListener listener;
    TlsServer tls;
    bool has_tls, has_tls_config;
    Batch batch;
    ApiModel model;
    const char *cpu_level;
    ApiMetrics metrics;
    ServerWorker *workers; /* [n_workers] */
    i32 n_workers, n_started;
    i32 signals, rss; /* descriptors */
    _Atomic ServerState_ state;
    atomic_bool leaving;
    OsLock lock; /* guards the keys */
    ServerKeys_ keys;
    i64 start_unix;
};

/* ---- logs: one line for each event, text or JSON, to standard error ---- */

static void server_write_log_(Buf *line) {
    buf_char(line, '\n');
    if (!line->failed)
        os_write_all(OS_STDERR, line->p, line->n, NULL); /* a full disk is no reason to stop */
    buf_free(line);
}

/* Every line of the program, as JSON. */
static void server_log_line_(LogLevel level, const char *text) {
    static const char *const names[] = {"error", "warning", "info", "debug"};
    char now[OS_TIME_MAX];
    Buf line = {0};
    buf_printf(&line, "{\"time\":\"%s\",\"level\":\"%s\"", os_time_text(os_now_unix(), now),
               names[level]);
    api_put_text_(&line, ",\"message\":", str_of(text));
    buf_char(&line, '}');
    server_write_log_(&line);
}

static void server_log_json_(Buf *line, const ServerWorker *w) {
    const ServerNote_ *n = &w->note;
    const ApiTotal_ *t = &n->total;
    char now[OS_TIME_MAX];
    buf_printf(line, "{\"time\":\"%s\",\"level\":\"info\"", os_time_text(os_now_unix(), now));
    api_put_text_(line, ",\"id\":", str_of(n->id));
    api_put_text_(line, ",\"client\":", str_of(w->conn.name));
    api_put_or_null_(line, ",\"key\":", n->key);
    api_put_text_(line, ",\"method\":", w->http.method);
    api_put_text_(line, ",\"path\":", str_cut(w->http.path, 0, 200));
    buf_printf(line, ",\"status\":%d", n->status);
    api_put_real_(line, ",\"ms\":", os_now_ms() - n->from_ms);
    if (n->n_choices) {
        buf_printf(line,
                   ",\"prompt_tokens\":%lld,\"cached_tokens\":%lld,\"completion_tokens\":%lld",
                   (long long)t->n_prompt, (long long)t->n_cached, (long long)t->n_out);
        buf_printf(line, ",\"forwards\":%lld",
                   (long long)(t->n_prefill + t->n_denoise + t->n_commit + t->n_ar));
        api_put_real_(line, ",\"queue_ms\":", t->ms_queue);
        api_put_real_(line, ",\"first_token_ms\":", t->ms_first);
    }
    if (n->error[0]) api_put_text_(line, ",\"error\":", str_of(n->error));
    if (w->server->o.log_prompts && w->http.body.n)
        api_put_text_(line, ",\"request\":", buf_view(&w->http.body));
    buf_char(line, '}');
}

static void server_log_text_(Buf *line, const ServerWorker *w) {
    const ServerNote_ *n = &w->note;
    const ApiTotal_ *t = &n->total;
    char now[OS_TIME_MAX];
    buf_printf(line, "%s %s %d %.*s %.*s %.1f ms", os_time_text(os_now_unix(), now), w->conn.name,
               n->status, STR_ARG(w->http.method), STR_ARG(w->http.path), os_now_ms() - n->from_ms);
    if (n->n_choices)
        buf_printf(
            line,
            ", %lld+%lld tokens (%lld cached), %lld forwards, queued %.1f ms, first token %.1f ms",
            (long long)t->n_prompt, (long long)t->n_out, (long long)t->n_cached,
            (long long)(t->n_prefill + t->n_denoise + t->n_commit + t->n_ar), t->ms_queue,
            t->ms_first);
    if (n->key[0]) buf_printf(line, ", key %s", n->key);
    buf_printf(line, ", %s", n->id);
    if (n->error[0]) buf_printf(line, ": %s", n->error);
    if (w->server->o.log_prompts && w->http.body.n) {
        buf_char(line, ' ');
        json_put_str(line, buf_view(&w->http.body)); /* one line, whatever it holds */
    }
}

/* The request is over: it is counted and logged. */
static void server_close_note_(ServerWorker *w) {
    const ServerNote_ *n = &w->note;
    api_count_request(&w->server->metrics, n->route, n->status, os_now_ms() - n->from_ms);
    if (base_log_level < LOG_INFO) return;
    Buf line = {0};
    if (w->server->o.log_format == SERVER_LOG_JSON)
        server_log_json_(&line, w);
    else
        server_log_text_(&line, w);
    server_write_log_(&line);
}

/* ---- keys ---- */

/* Adds one key; name may be empty. */
static bool server_add_key_(ServerKeys_ *keys, Str name, Str value, const char *from, Err *e) {
    if (keys->n == SERVER_KEYS_MAX)
        return err_set(e, ERR_USAGE, "%s holds more than %d keys", from, SERVER_KEYS_MAX);
    if (value.n < 8 || value.n > SERVER_KEY_MAX || name.n >= SERVER_NAME_MAX)
        return err_set(e, ERR_USAGE,
                       "%s: key %d has %zu bytes; keys have 8 to %d, their names up to %d", from,
                       keys->n + 1, value.n, SERVER_KEY_MAX, SERVER_NAME_MAX - 1);
    ServerKey_ *k = &keys->p[keys->n++];
    *k = (ServerKey_){.n = value.n};
    memcpy(k->value, value.p, value.n);
    if (name.n)
        memcpy(k->name, name.p, name.n);
    else
        snprintf(k->name, sizeof k->name, "key%d", keys->n);
    return true;
}

static Str server_word_(Str *line) {
    while (line->n && strchr(" \t\r", line->p[0])) *line = str_cut(*line, 1, line->n);
    size_t n = 0;
    while (n < line->n && !strchr(" \t\r", line->p[n])) n++;
    Str word = str_cut(*line, 0, n);
    *line = str_cut(*line, n, line->n);
    return word;
}

/* A key on each line, with a name before it or not; # begins a comment. */
static bool server_parse_keys_(ServerKeys_ *keys, Str text, const char *from, Err *e) {
    while (text.n) {
        size_t end = MIN_OF(str_find(text, STR("\n"), 0), text.n);
        Str line = str_cut(text, 0, end);
        text = str_cut(text, end + 1, text.n);
        line = str_cut(line, 0, str_find(line, STR("#"), 0));
        Str first = server_word_(&line), second = server_word_(&line);
        if (server_word_(&line).n)
            return err_set(e, ERR_USAGE, "%s: a line holds a key, or a name and a key", from);
        bool ok = !first.n || server_add_key_(keys, second.n ? first : (Str){0},
                                              second.n ? second : first, from, e);
        if (!ok) return false;
    }
    return true;
}

static bool server_read_keys_(const ServerOptions *o, ServerKeys_ *keys, Err *e) {
    *keys = (ServerKeys_){.p = mem_alloc_n(SERVER_KEYS_MAX, sizeof *keys->p, e)};
    if (!keys->p) return false;
    Buf text = {.max = SERVER_FILE_MAX};
    Str list = str_of(o->keys ? o->keys : ""), each;
    bool ok = true;
    if (o->key_file)
        ok = os_read_file(o->key_file, &text, e) &&
             server_parse_keys_(keys, buf_view(&text), o->key_file, e);
    if (ok && o->key_file && keys->n == 0)
        ok = err_set(e, ERR_USAGE, "'%s' holds no key; one line is one key", o->key_file);
    if (text.p) memset(text.p, 0, text.cap);
    buf_free(&text);
    while (ok && http_next_element(&list, &each))
        ok = server_add_key_(keys, (Str){0}, each, "DLM_API_KEY", e);
    if (ok && keys->n) return true;
    mem_free(keys->p);
    *keys = (ServerKeys_){0};
    return ok;
}

/* Equal? Takes as long for every key of the same length. */
static bool server_same_key_(const ServerKey_ *k, Str given) {
    size_t differ = k->n ^ given.n;
    for (size_t i = 0; i < given.n; i++)
        differ |= (size_t)((u8)given.p[i] ^ (u8)k->value[i % SERVER_KEY_MAX]);
    return differ == 0;
}

/* Under the lock. */
static ServerKey_ *server_find_key_(Server *s, Str given) {
    ServerKey_ *found = NULL;
    for (i32 i = 0; i < s->keys.n; i++)
        if (server_same_key_(&s->keys.p[i], given)) found = &s->keys.p[i];
    return found;
}

static ServerKey_ *server_named_key_(Server *s, const char *name) {
    for (i32 i = 0; i < s->keys.n; i++)
        if (strcmp(s->keys.p[i].name, name) == 0) return &s->keys.p[i];
    return NULL;
}

/* The key that the request shows, as "Authorization: Bearer KEY" or "X-Api-Key: KEY". */
static bool server_check_key_(ServerWorker *w, ApiError *x) {
    Server *s = w->server;
    Str given = http_field(&w->http, "Authorization");
    if (given.n > 7 && http_same(str_cut(given, 0, 7), STR("Bearer ")))
        given = str_cut(given, 7, given.n);
    else
        given = http_field(&w->http, "X-Api-Key");
    os_lock(&s->lock);
    ServerKey_ *key = server_find_key_(s, given);
    if (key) snprintf(w->note.key, sizeof w->note.key, "%s", key->name);
    bool ok = key || !s->keys.p;
    os_unlock(&s->lock);
    if (ok) return true;
    return api_fail(x, 401, "invalid_api_key",
                    given.n ? "this API key is not known here"
                            : "an API key is needed: send it as 'Authorization: Bearer KEY'");
}

/* Counts n answers for the worker's key; false when it would have more than it may. */
static bool server_enter_key_(ServerWorker *w, i32 n, ApiError *x) {
    Server *s = w->server;
    i32 max = s->o.per_key_max;
    if (!w->note.key[0]) return true;
    os_lock(&s->lock);
    ServerKey_ *key = server_named_key_(s, w->note.key);
    bool ok = !key || !max || key->n_answers + n <= max;
    if (ok && key) key->n_answers += n;
    os_unlock(&s->lock);
    return ok || api_fail(x, 429, "rate_limit_exceeded",
                          "this key may have %d answers in progress, no more", max);
}

static void server_leave_key_(ServerWorker *w, i32 n) {
    os_lock(&w->server->lock);
    ServerKey_ *key = w->note.key[0] ? server_named_key_(w->server, w->note.key) : NULL;
    if (key) key->n_answers -= MIN_OF(n, key->n_answers);
    os_unlock(&w->server->lock);
}

/* ---- writing ---- */

static bool server_send_(ServerWorker *w) {
    f64 deadline = os_now_ms() + SERVER_STALL_MS + (f64)w->out.n / SERVER_RATE;
    if (w->out.failed) w->broken = true;
    if (!w->broken && w->out.n)
        w->broken = w->transport.write(&w->transport, w->out.p, w->out.n, deadline) != NET_OK;
    if (w->out.cap > SERVER_KEPT) buf_free(&w->out);
    buf_clear(&w->out);
    return !w->broken;
}

static i32 server_retry_after_(Server *s) {
    i32 n_running, n_queued;
    return batch_look(&s->batch, &n_running, &n_queued);
}

/* The head of an answer, up to its framing. */
static void server_put_head_(ServerWorker *w, HttpReply *a, const char *type) {
    Server *s = w->server;
    Buf *out = &w->out;
    w->note.status = a->status;
    if (atomic_load(&s->state) != SERVER_OPEN_) a->keep_alive = false;
    if (!a->keep_alive) w->http.keep_alive = false;
    http_put_head(out, a, os_now_unix());
    http_put_field(out, "X-Request-Id", str_of(w->note.id));
    if (type) http_put_field(out, "Content-Type", str_of(type));
    if (w->origin.n) {
        http_put_field(out, "Access-Control-Allow-Origin", w->origin);
        http_put_field(out, "Access-Control-Expose-Headers", STR("X-Request-Id, Retry-After"));
        http_put_field(out, "Vary", STR("Origin"));
    }
    if (s->has_tls) http_put_field(out, "Strict-Transport-Security", STR("max-age=31536000"));
    if (a->status == 401) http_put_field(out, "WWW-Authenticate", STR("Bearer"));
    if (a->status == 405)
        http_put_field(out, "Allow",
                       str_eq(w->http.method, STR("POST")) ? STR("GET, HEAD") : STR("POST"));
    if (a->status == 429 || a->status == 503)
        buf_printf(out, "Retry-After: %d\r\n", server_retry_after_(s));
    if (a->status == 500 || a->status == 501) http_put_field(out, "X-Should-Retry", STR("false"));
}

static void server_reply_(ServerWorker *w, int status, const char *type, const Buf *body) {
    HttpReply a = http_reply(&w->http, status);
    server_put_head_(w, &a, type);
    http_put_length(&w->out, &a, body->n);
    http_put_body(&w->out, &a, buf_view(body));
    if (body->failed) w->broken = true;
    server_send_(w);
}

static void server_reply_json_(ServerWorker *w, int status, const Buf *body) {
    server_reply_(w, status, "application/json; charset=utf-8", body);
}

static void server_fail_(ServerWorker *w, const ApiError *x) {
    Buf body = {0};
    snprintf(w->note.error, sizeof w->note.error, "%s", x->err.msg);
    api_put_error(&body, w->note.route, x, str_of(w->note.id));
    server_reply_json_(w, x->status, &body);
    buf_free(&body);
}

/* ---- generating ---- */

typedef struct {
    TokIds prompt; /* of choice i: the i-th prompt, whichever choices it is for */
    ApiLogprobs logprobs;
    Buf logprobs_json;
    ApiHeld held;
} ServerChoice_;

typedef struct {
    ServerWorker *w;
    ApiRequest req;
    ApiReply reply;
    HttpReply http;
    ApiError x;
    BatchCall call;
    i32 n_choices;
    BatchJob *jobs;         /* [n_choices] */
    ServerChoice_ *choices; /* [n_choices] */
    ApiAnswer *answers;     /* [n_choices] */
    Buf mail, events;
    Buf text; /* of choice text_of: came, and is no event yet */
    i32 text_of;
    bool begun;  /* the head of the stream has been written */
    bool queued; /* its jobs are in the batch */
    bool gone;   /* the client is */
    f64 deadline_ms;
} ServerCall_;

static void server_free_call_(ServerCall_ *c) {
    batch_call_free(&c->call);
    for (i32 i = 0; c->choices && i < c->n_choices; i++) {
        tok_ids_free(&c->choices[i].prompt);
        api_logprobs_free(&c->choices[i].logprobs);
        buf_free(&c->choices[i].logprobs_json);
        buf_free(&c->choices[i].held.text);
    }
    mem_free(c->jobs);
    mem_free(c->choices);
    mem_free(c->answers);
    buf_free(&c->mail);
    buf_free(&c->events);
    buf_free(&c->text);
    api_request_free(&c->req);
    mem_free(c);
}

static bool server_alloc_choices_(ServerCall_ *c, Err *e) {
    u64 n = (u64)api_n_choices(&c->req);
    c->n_choices = (i32)n;
    c->jobs = mem_alloc_n(n, sizeof *c->jobs, e);
    c->choices = mem_alloc_n(n, sizeof *c->choices, e);
    c->answers = mem_alloc_n(n, sizeof *c->answers, e);
    return c->jobs && c->choices && c->answers;
}

/* The request's jobs, one for each choice. */
static bool server_prepare_(ServerCall_ *c) {
    const ApiModel *m = &c->w->server->model;
    u64 random[3];
    Err e = {0};
    if (!os_random(random, sizeof random, &e) || !server_alloc_choices_(c, &e))
        return api_take_err(&c->x, &e);
    i64 now = os_now_unix();
    for (i32 i = 0; i < c->req.n_prompts; i++)
        if (!api_prompt(&c->req, i, m, now, &c->choices[i].prompt, &c->x)) return false;
    c->reply = api_reply(&c->req, m, now, random);
    for (i32 i = 0; i < c->n_choices; i++) {
        const TokIds *prompt = &c->choices[i / c->req.n].prompt;
        c->jobs[i] = (BatchJob){.prompt = prompt->p,
                                .n_prompt = (i32)prompt->n,
                                .params = api_decode_params(&c->req, i, random[2] & UINT32_MAX)};
        c->answers[i].r = &c->jobs[i].result;
    }
    c->call = (BatchCall){.jobs = c->jobs, .n_jobs = c->n_choices, .waker = &c->w->waker};
    c->call.wants = (c->req.stream ? BATCH_WANT_TEXT : 0u) |
                    (c->req.logprobs ? BATCH_WANT_TOKENS : 0u) |
                    (c->req.stream && c->req.include_diffusion ? BATCH_WANT_STEPS : 0u);
    return true;
}

/* The head of a stream goes out with its first event: what fails before that has a status of its own. */
static void server_begin_stream_(ServerCall_ *c) {
    if (c->begun) return;
    c->begun = true;
    c->http = http_reply(&c->w->http, 200);
    http_stream(&c->http);
    server_put_head_(c->w, &c->http, "text/event-stream; charset=utf-8");
    http_put_field(&c->w->out, "X-Accel-Buffering", STR("no")); /* nginx passes events on at once */
    http_put_stream(&c->w->out, &c->http);
}

/* Writes the events that have been gathered. */
static void server_flush_(ServerCall_ *c) {
    if (c->events.n) {
        server_begin_stream_(c);
        http_put_body(&c->w->out, &c->http, buf_view(&c->events));
    }
    if (c->events.failed) c->w->broken = true;
    buf_clear(&c->events);
    if (!server_send_(c->w)) c->gone = true;
}

/* The log probabilities of choice i that have been collected, as JSON; empty when none are wanted. */
static Str server_logprobs_(ServerCall_ *c, i32 i) {
    ApiLogprobs *l = &c->choices[i].logprobs;
    Buf *json = &c->choices[i].logprobs_json;
    if (!c->req.logprobs || (c->req.stream && l->n == 0)) return (Str){0};
    buf_clear(json);
    api_put_logprobs(json, &c->reply, l);
    if (json->failed) c->w->broken = true;
    api_logprobs_clear(l);
    return buf_view(json);
}

/* Makes an event of the text that has come. */
static void server_put_text_(ServerCall_ *c) {
    i32 i = c->text_of;
    if (c->text.failed) c->w->broken = true;
    if (!c->text.n) return;
    ApiHeld *held = &c->choices[i].held;
    Str text = api_release(held, &c->reply, buf_view(&c->text));
    if (text.n) api_put_stream_text(&c->events, &c->reply, i, text, server_logprobs_(c, i));
    if (held->text.failed) c->w->broken = true;
    buf_clear(&c->text);
}

/* Pieces of text that follow each other become one event: a quick model writes many between two looks. */
static void server_take_text_(ServerCall_ *c, i32 i, Str text) {
    if (c->text_of != i || c->text.n + text.n > SERVER_CHUNK) server_put_text_(c);
    c->text_of = i;
    buf_str(&c->text, text);
}

static void server_take_event_(ServerCall_ *c, const BatchEvent *ev) {
    i32 i = ev->job;
    BatchJob *j = &c->jobs[i];
    bool stream = c->req.stream;
    if (ev->kind == BATCH_STEP || ev->kind == BATCH_DONE) server_put_text_(c);
    switch (ev->kind) {
    case BATCH_BEGIN:
        if (stream) api_put_stream_begin(&c->events, &c->reply, i, ev->n_prompt, ev->n_cached);
        break;
    case BATCH_TOKEN: api_logprobs_add(&c->choices[i].logprobs, &c->reply, &ev->token); break;
    case BATCH_TEXT: server_take_text_(c, i, ev->text); break;
    case BATCH_STEP: api_put_stream_step(&c->events, &c->reply, i, &ev->step); break;
    case BATCH_DONE:
        c->answers[i].ms_queue = j->ms_queue;
        c->answers[i].n_sent = c->choices[i].held.n_sent;
        if (j->err.code) {
            api_take_err(&c->x, &j->err);
            break;
        }
        api_count_answer(&c->w->server->metrics, &c->answers[i]);
        c->answers[i].logprobs = server_logprobs_(c, i);
        if (stream) api_put_stream_finish(&c->events, &c->reply, i, &c->answers[i]);
        break;
    }
}

/* Takes what the engine has written; false when nothing more will come. */
static bool server_take_mail_(ServerCall_ *c) {
    bool last = batch_take(&c->w->server->batch, &c->call, &c->mail);
    Str mail = buf_view(&c->mail);
    BatchEvent ev;
    while (!c->gone && !c->x.status && batch_next(&mail, &ev)) {
        server_take_event_(c, &ev);
        if (c->events.n > SERVER_BEHIND) server_flush_(c);
    }
    server_put_text_(c);
    if (atomic_load(&c->call.overflow)) c->gone = true;
    return !last;
}

/* Waits for mail. What comes soon after the last that was taken waits for more of its kind: a quick model
 * would have every token cost a wake-up and a packet. An end is told at once. */
static NetResult server_wait_mail_(ServerCall_ *c, f64 deadline_ms) {
    ServerWorker *w = c->w;
    f64 again_ms = c->mail.n ? os_now_ms() + SERVER_GATHER_MS : deadline_ms;
    NetResult r = net_wait(&w->conn, &w->waker, MIN_OF(again_ms, deadline_ms));
    if (r == NET_WOKEN) net_waker_clear(&w->waker);
    return r == NET_TIMEOUT && again_ms < deadline_ms ? NET_WOKEN : r;
}

/* Waits for the answers and passes them on until they are complete, the client has gone, the time is up,
 * or something failed. */
static void server_follow_(ServerCall_ *c) {
    ServerWorker *w = c->w;
    bool more = true;
    f64 ping_ms = os_now_ms() + SERVER_PING_MS;
    while (more && !c->gone && !c->x.status) {
        NetResult r =
            server_wait_mail_(c, c->req.stream ? MIN_OF(ping_ms, c->deadline_ms) : c->deadline_ms);
        if (r == NET_END) c->gone = true;
        if (r == NET_TIMEOUT && os_now_ms() >= c->deadline_ms)
            api_fail(&c->x, 504, "timeout",
                     "the answer took longer than %d s, which is the limit here",
                     w->server->o.timeout_s);
        else if (r == NET_TIMEOUT)
            api_put_stream_ping(&c->events, w->note.route);
        if (atomic_load(&w->server->state) == SERVER_CUTTING_)
            api_fail(&c->x, 503, "shutting_down", "the server is shutting down");
        if (r != NET_END) more = server_take_mail_(c); /* a wake in the same moment was cleared */
        if (c->events.n && !c->gone && more) {         /* the last go with the end */
            server_flush_(c);
            ping_ms = os_now_ms() + SERVER_PING_MS;
        }
    }
    if (more) batch_cancel(&w->server->batch, &c->call);
}

/* The answer's last bytes, or all of it where it is not streamed. */
static void server_conclude_(ServerCall_ *c) {
    ServerWorker *w = c->w;
    if (c->gone) {
        w->broken = true;
        w->note.status = 499; /* nginx's number for a client that left */
    } else if (c->x.status && !c->begun) {
        server_fail_(w, &c->x);
    } else if (c->req.stream) {
        if (c->x.status) {
            api_put_stream_error(&c->events, w->note.route, &c->x, str_of(w->note.id));
            snprintf(w->note.error, sizeof w->note.error, "%s", c->x.err.msg);
            w->note.status = c->x.status;
        } else {
            api_put_stream_end(&c->events, &c->reply, c->answers);
        }
        server_begin_stream_(c);
        http_put_body(&w->out, &c->http, buf_view(&c->events));
        http_put_end(&w->out, &c->http);
        if (c->events.failed) w->broken = true;
        server_send_(w);
    } else {
        Buf body = {.max = API_REPLY_MAX};
        api_put_answer(&body, &c->reply, c->answers);
        server_reply_json_(w, 200, &body);
        buf_free(&body);
    }
}

/* Answers a request that generates. */
static void server_generate_(ServerWorker *w, ServerCall_ *c) {
    Server *s = w->server;
    c->w = w;
    c->deadline_ms = w->note.from_ms + s->o.timeout_s * 1e3;
    bool ok = api_parse(&c->req, w->note.route, buf_view(&w->http.body), &s->model, &c->x) &&
              server_prepare_(c);
    if (ok && c->n_choices > s->o.queue_max + s->model.n_slots)
        ok =
            api_fail(&c->x, 400, NULL, "%d answers are more than can run and wait here at once: %d",
                     c->n_choices, s->o.queue_max + s->model.n_slots);
    if (ok && server_enter_key_(w, c->n_choices, &c->x)) {
        if (batch_submit(&s->batch, &c->call)) {
            server_follow_(c);
            w->note.n_choices = c->n_choices;
            w->note.total = api_total_(&c->reply, c->answers, c->n_choices);
        } else {
            api_fail(&c->x, 429, "rate_limit_exceeded",
                     "all slots are busy and the queue is full: try again in %d s",
                     server_retry_after_(s));
        }
        server_leave_key_(w, c->n_choices);
    }
    server_conclude_(c);
}

/* ---- the page: one file, put into the read-only data as it lies in the repository ---- */

#ifndef HIDDEN
#define HIDDEN __attribute__((visibility("hidden")))
#endif
__asm__(".pushsection .rodata.dlm_page, \"a\", %progbits\n"
        "server_page_begin:\n"
        ".incbin \"src/page.html\"\n"
        "server_page_end:\n"
        ".byte 0\n"
        ".popsection\n");
HIDDEN extern const char server_page_begin[], server_page_end[];

/* The page may run the script and use the style that stand in it, and talk to this server. Both are
 * marked with a number that is new each time, so that nothing else that got into it is run. */
static void server_show_page_(ServerWorker *w) {
    const Str mark = STR("@NONCE@");
    Str page = {server_page_begin, (size_t)(server_page_end - server_page_begin)};
    Buf body = {0};
    char nonce[40];
    u64 random[2];
    HttpReply a = http_reply(&w->http, 200);
    if (!os_random(random, sizeof random, NULL)) w->broken = true;
    snprintf(nonce, sizeof nonce, "%016llx%016llx", (unsigned long long)random[0],
             (unsigned long long)random[1]);
    for (size_t at = 0; at < page.n;) {
        size_t to = MIN_OF(str_find(page, mark, at), page.n);
        buf_str(&body, str_cut(page, at, to));
        if (to < page.n) buf_str(&body, str_of(nonce));
        at = to + mark.n;
    }
    server_put_head_(w, &a, "text/html; charset=utf-8");
    buf_printf(
        &w->out,
        "Content-Security-Policy: default-src 'none'; script-src 'nonce-%s'; style-src 'nonce-%s'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'\r\nReferrer-Policy: no-referrer\r\n"
        "Cross-Origin-Opener-Policy: same-origin\r\n",
        nonce, nonce);
    http_put_length(&w->out, &a, body.n);
    http_put_body(&w->out, &a, buf_view(&body));
    if (body.failed) w->broken = true;
    server_send_(w);
    buf_free(&body);
}

/* ---- the other routes ---- */

static void server_put_metrics_(Server *s, Buf *out) {
    ApiGauges g = {.n_slots = s->model.n_slots,
                   .rss_bytes = os_rss(s->rss),
                   .start_unix = (f64)s->start_unix,
                   .cpu_level = str_of(s->cpu_level)};
    batch_look(&s->batch, &g.n_busy, &g.n_queued);
    for (i32 i = 0; i < s->n_workers; i++)
        g.n_connections += atomic_load(&s->workers[i].phase) != SERVER_FREE_;
    api_put_metrics(out, &s->metrics, &g, &s->model);
}

/* Answers a request that needs no engine. id: of the model that was asked for. */
static void server_inform_(ServerWorker *w, Str id, ApiError *x) {
    Server *s = w->server;
    Buf body = {.max = API_REPLY_MAX};
    const char *type = "application/json; charset=utf-8";
    bool ok = true;
    ApiRequest *r = NULL;
    Err e = {0};
    switch (w->note.route) {
    case API_HEALTH:
    case API_READY:
        ok = atomic_load(&s->state) == SERVER_OPEN_ ||
             api_fail(x, 503, "shutting_down", "the server is shutting down");
        api_put_health(&body);
        break;
    case API_LIVE: api_put_health(&body); break;
    case API_MODELS: api_put_models(&body, &s->model); break;
    case API_MODEL: ok = api_put_one_model(&body, &s->model, id, x); break;
    case API_PROPS: api_put_props(&body, &s->model); break;
    case API_METRICS:
        type = "text/plain; version=0.0.4; charset=utf-8";
        server_put_metrics_(s, &body);
        break;
    default:
        r = mem_alloc(sizeof *r, &e);
        ok = r ? api_parse(r, w->note.route, buf_view(&w->http.body), &s->model, x) &&
                     api_put_text_answer(&body, r, &s->model, os_now_unix(), x)
               : api_take_err(x, &e);
        if (r) api_request_free(r);
        mem_free(r);
    }
    if (ok) server_reply_(w, 200, type, &body);
    buf_free(&body);
}

/* The browser asks whether a page of another origin may send what it wants to send. */
static void server_preflight_(ServerWorker *w) {
    HttpReply a = http_reply(&w->http, 204);
    server_put_head_(w, &a, NULL);
    http_put_field(&w->out, "Access-Control-Allow-Methods", STR("GET, POST, OPTIONS"));
    http_put_field(
        &w->out, "Access-Control-Allow-Headers",
        STR("Authorization, Content-Type, X-Api-Key, Anthropic-Version, OpenAI-Organization, "
            "OpenAI-Project, X-Stainless-Retry-Count, X-Stainless-Timeout"));
    http_put_field(&w->out, "Access-Control-Max-Age", STR("600"));
    http_put_length(&w->out, &a, 0);
    server_send_(w);
}

/* ---- who asks, and for what: all that can be told from the head ---- */

static bool server_is_listed_(const char *list, Str name) {
    Str rest = str_of(list ? list : ""), each;
    while (http_next_element(&rest, &each))
        if (str_eq(each, STR("*")) || http_same(each, name)) return true;
    return false;
}

static bool server_is_numeric_(Str host) {
    bool colon = false;
    for (size_t i = 0; i < host.n; i++) {
        if (host.p[i] == ':')
            colon = true;
        else if (!http_is_digit_(host.p[i]) && host.p[i] != '.' && http_hex_(host.p[i]) < 0)
            return false;
    }
    for (size_t i = 0; i < host.n && !colon; i++) /* letters are digits in IPv6 alone */
        if (!http_is_digit_(host.p[i]) && host.p[i] != '.') return false;
    return host.n > 0;
}

/* A page of a stranger can make its own name resolve to our address and so pass for one of ours (DNS
 * rebinding). It cannot make the browser send another name in Host. With TLS the certificate guards. */
static bool server_check_host_(ServerWorker *w, ApiError *x) {
    Server *s = w->server;
    Str name = http_host_name(w->http.host);
    bool guarded = (s->has_tls && !s->o.hosts) || net_is_unix(s->o.host);
    if (guarded || !w->http.host.n || server_is_numeric_(name) ||
        http_same(name, STR("localhost")) || server_is_listed_(s->o.hosts, name))
        return true;
    return api_fail(x, 421, "unknown_host",
                    "'%.*s' is no name of this server; --allowed-hosts %.*s makes it one",
                    STR_ARG(name), STR_ARG(name));
}

/* Pages of other origins may neither read nor ask, unless they are listed. */
static bool server_check_origin_(ServerWorker *w, ApiError *x) {
    Server *s = w->server;
    Str origin = http_field(&w->http, "Origin");
    if (!origin.p) return true;
    size_t slashes = str_find(origin, STR("://"), 0);
    if (slashes != SIZE_MAX && http_same(str_cut(origin, slashes + 3, origin.n), w->http.host))
        return true;
    if (server_is_listed_(s->o.origins, origin)) {
        w->origin = origin;
        return true;
    }
    return api_fail(x, 403, "origin_not_allowed",
                    "pages of %.*s may not use this server; --cors-origins lists those that may",
                    STR_ARG(origin));
}

static bool server_admit_(ServerWorker *w, Str *id, ApiError *x) {
    HttpRequest *r = &w->http;
    if (!server_check_host_(w, x) || !server_check_origin_(w, x)) return false;
    if (w->origin.n && str_eq(r->method, STR("OPTIONS"))) return true;
    bool found = api_find_route(r->method, r->path, &w->note.route, id, x);
    ApiError no_key = {0};
    if (api_is_public(w->note.route)) return found;
    if (!server_check_key_(w, &no_key)) { /* what is where is told to those who have a key */
        *x = no_key;
        return false;
    }
    return found;
}

/* ---- reading ---- */

/* Feeds the request until it needs a decision; false when the connection ended, failed or was late. */
static bool server_feed_(ServerWorker *w, f64 deadline_ms, bool rated) {
    HttpRequest *r = &w->http;
    HttpState begun = r->state;
    for (;;) {
        w->at_input += http_feed(r, w->input + w->at_input, w->n_input - w->at_input);
        if (r->state != begun) return true;
        w->at_input = w->n_input = 0;
        f64 limit = deadline_ms + (rated ? (f64)r->body.n / SERVER_RATE : 0);
        NetResult got =
            w->transport.read(&w->transport, w->input, sizeof w->input, &w->n_input, limit);
        if (got == NET_TIMEOUT) http_refuse(r, 408, "the request did not arrive in time");
        if (got != NET_OK) return got == NET_TIMEOUT;
    }
}

/* Waits for the first byte of the next request. An idle connection is given up when its time is over or
 * when its worker is needed; when the server stops, all that have nothing on its way. */
static bool server_wait_request_(ServerWorker *w, bool first) {
    Server *s = w->server;
    if (w->at_input < w->n_input) return true;
    w->at_input = w->n_input = 0;
    f64 now = os_now_ms();
    /* TLS may hold bytes that the socket no longer shows */
    NetResult got = w->transport.read(&w->transport, w->input, sizeof w->input, &w->n_input, now);
    if (got != NET_TIMEOUT) return got == NET_OK;
    net_waker_clear(&w->waker);
    atomic_store(&w->idle_ms, now);
    atomic_store(&w->phase, first ? SERVER_FRESH_ : SERVER_IDLE_);
    NetResult r = NET_WOKEN;
    if (atomic_load(&s->state) == SERVER_OPEN_)
        r = net_wait_input(&w->conn, &w->waker, now + (first ? SERVER_HEAD_MS : s->o.idle_s * 1e3));
    atomic_store(&w->phase, SERVER_BUSY_);
    if (r != NET_OK && r != NET_WOKEN) return false;
    f64 more_ms = r == NET_OK                                  ? SERVER_HEAD_MS
                  : atomic_load(&s->state) == SERVER_DRAINING_ ? SERVER_LAST_MS
                                                               : 0;
    return w->transport.read(&w->transport, w->input, sizeof w->input, &w->n_input,
                             os_now_ms() + more_ms) == NET_OK;
}

static void server_new_note_(ServerWorker *w) {
    u64 random[2] = {0};
    os_random(random, sizeof random, NULL);
    w->note = (ServerNote_){.from_ms = os_now_ms()};
    snprintf(w->note.id, sizeof w->note.id, "req_%016llx%016llx", (unsigned long long)random[0],
             (unsigned long long)random[1]);
    w->origin = (Str){0};
    http_reset(&w->http);
}

/* Reads the body of an admitted request. False: the client has gone. */
static bool server_read_body_(ServerWorker *w) {
    HttpRequest *r = &w->http;
    http_read_body(r, (u64)w->server->o.body_max_kib << 10);
    if (r->state != HTTP_IN_BODY) return true;
    if (r->expect_continue) {
        http_put_continue(&w->out);
        if (!server_send_(w)) return false;
    }
    return server_feed_(w, os_now_ms() + SERVER_STALL_MS, true);
}

static void server_answer_(ServerWorker *w, Str id, ApiError *x) {
    Err e = {0};
    if (str_eq(w->http.method, STR("OPTIONS"))) {
        server_preflight_(w);
    } else if (w->note.route == API_PAGE) {
        if (w->server->o.page)
            server_show_page_(w);
        else
            api_fail(x, 404, "not_found", "this server was started with --no-page");
    } else if (api_generates(w->note.route)) {
        ServerCall_ *c = mem_alloc(sizeof *c, &e);
        if (!c) {
            api_take_err(x, &e);
            return;
        }
        server_generate_(w, c);
        server_free_call_(c);
    } else {
        server_inform_(w, id, x);
    }
}

/* One request and its answer; false when it was the last of this connection. */
static bool server_handle_(ServerWorker *w) {
    HttpRequest *r = &w->http;
    ApiError x = {0};
    Str id = {0};
    server_new_note_(w);
    if (!server_feed_(w, w->note.from_ms + SERVER_HEAD_MS, false)) return false;
    bool admitted = r->state == HTTP_HEAD && server_admit_(w, &id, &x);
    if (r->state == HTTP_HEAD && !admitted && !r->chunked && r->length == 0 &&
        !str_eq(r->method, STR("POST")))
        http_read_body(r, 0); /* there is none: the connection can go on */
    if (admitted && !server_read_body_(w)) return false;
    if (r->state == HTTP_REFUSED) api_fail(&x, r->status, NULL, "%s", r->reason);
    if (!x.status) server_answer_(w, id, &x);
    if (x.status) server_fail_(w, &x);
    server_close_note_(w);
    return !w->broken && r->keep_alive && r->state == HTTP_DONE;
}

static void server_serve_(ServerWorker *w) {
    Server *s = w->server;
    Err e = {0};
    w->broken = false;
    w->at_input = w->n_input = 0;
    if (s->has_tls) {
        if (!tls_accept(&s->tls, &w->conn, &w->transport, os_now_ms() + SERVER_HANDSHAKE_MS, &e)) {
            log_line(LOG_DEBUG, "%s: %s", w->conn.name, e.msg);
            net_close(&w->conn);
            return;
        }
    } else {
        w->transport = net_plain(&w->conn);
    }
    for (bool first = true, more = true; more; first = false)
        more = server_wait_request_(w, first) && server_handle_(w);
    w->transport.close(&w->transport, os_now_ms() + (w->broken ? 0 : SERVER_GOODBYE_MS));
    http_free(&w->http);
    buf_free(&w->out);
}

static void server_worker_(void *arg) {
    ServerWorker *w = arg;
    for (;;) {
        u32 seen = atomic_load(&w->gate.word);
        if (atomic_load(&w->phase) != SERVER_FREE_) {
            server_serve_(w);
            atomic_store(&w->phase, SERVER_FREE_);
        } else if (atomic_load(&w->server->leaving)) {
            return;
        } else {
            os_gate_wait(&w->gate, seen);
        }
    }
}

static void server_poke_(ServerWorker *w) {
    atomic_fetch_add(&w->gate.word, 1);
    os_gate_wake_all(&w->gate);
}

/* ---- accepting ---- */

static ServerWorker *server_free_worker_(Server *s) {
    for (i32 i = 0; i < s->n_workers; i++)
        if (atomic_load(&s->workers[i].phase) == SERVER_FREE_) return &s->workers[i];
    return NULL;
}

/* The connection that has been idle longest makes room. */
static void server_drop_idle_(Server *s) {
    ServerWorker *oldest = NULL;
    for (i32 i = 0; i < s->n_workers; i++) {
        ServerWorker *w = &s->workers[i];
        if (atomic_load(&w->phase) == SERVER_IDLE_ &&
            (!oldest || atomic_load(&w->idle_ms) < atomic_load(&oldest->idle_ms)))
            oldest = w;
    }
    if (oldest) net_wake(&oldest->waker);
}

/* Has this address as many connections as it may? Without a limit of its own nobody takes more than a
 * quarter, but this machine, where proxies are. */
static bool server_is_crowded_(Server *s, const NetConn *c) {
    i32 max = s->o.per_address_max, n = 0;
    if (!max && c->loopback) return false;
    if (!max) max = MAX_OF(s->n_workers / 4, 1);
    for (i32 i = 0; i < s->n_workers; i++)
        n += atomic_load(&s->workers[i].phase) != SERVER_FREE_ &&
             s->workers[i].conn.address == c->address;
    return n >= max;
}

static void server_hand_over_(Server *s, ServerWorker *w, NetConn *c) {
    if (server_is_crowded_(s, c)) {
        log_line(LOG_DEBUG, "%s: too many connections of this address", c->name);
        net_close(c);
        return;
    }
    api_count_connection(&s->metrics);
    w->conn = *c;
    atomic_store(&w->phase, SERVER_BUSY_);
    server_poke_(w);
}

/* Certificates and keys, anew. What is bad leaves the old in place. */
static void server_reload_(Server *s) {
    Err e = {0};
    ServerKeys_ keys = {0};
    if (s->has_tls && !tls_reload(&s->tls, &e))
        log_line(LOG_WARN, "the certificate was not reloaded, the old one stays: %s", e.msg);
    else if (s->has_tls)
        log_line(LOG_INFO, "certificate reloaded");
    if (!s->o.key_file) return;
    err_clear(&e);
    if (!server_read_keys_(&s->o, &keys, &e)) {
        log_line(LOG_WARN, "the keys were not reloaded, the old ones stay: %s", e.msg);
        return;
    }
    os_lock(&s->lock);
    for (i32 i = 0; i < keys.n; i++) {
        ServerKey_ *same = server_named_key_(s, keys.p[i].name);
        if (same) keys.p[i].n_answers = same->n_answers;
    }
    ServerKeys_ old = s->keys;
    s->keys = keys;
    os_unlock(&s->lock);
    if (old.p) memset(old.p, 0, SERVER_KEYS_MAX * sizeof *old.p);
    mem_free(old.p);
    log_line(LOG_INFO, "%d keys reloaded", keys.n);
}

/* Takes connections until a signal says stop. */
static bool server_accept_(Server *s, Err *e) {
    const NetWaker signals = {s->signals};
    for (bool said = false;;) {
        OsSignal signal = os_next_signal(s->signals);
        if (signal == OS_STOP) return true;
        if (signal == OS_RELOAD) server_reload_(s);
        ServerWorker *w = server_free_worker_(s);
        NetConn c;
        NetResult r = w ? net_accept(&s->listener, &c, &signals, NET_NEVER) : NET_BUSY;
        if (r == NET_OK) server_hand_over_(s, w, &c);
        if (r == NET_END) return err_set(e, ERR_RUNTIME, "the listening socket broke");
        if (r != NET_BUSY) continue;
        if (w && !said) log_line(LOG_WARN, "out of file descriptors: new connections have to wait");
        said = said || w;
        server_drop_idle_(s);
        net_wait_waker(&signals, os_now_ms() + SERVER_BREATH_MS);
    }
}

/* ---- the end ---- */

static i32 server_count_busy_(Server *s) {
    i32 n = 0;
    for (i32 i = 0; i < s->n_workers; i++) n += atomic_load(&s->workers[i].phase) != SERVER_FREE_;
    return n;
}

/* Waits until no connection is left, at most until the deadline or another signal to stop. */
static bool server_wait_empty_(Server *s, f64 deadline_ms) {
    const NetWaker signals = {s->signals};
    while (server_count_busy_(s) > 0) {
        if (os_next_signal(s->signals) == OS_STOP || os_now_ms() >= deadline_ms) return false;
        bool cutting = atomic_load(&s->state) == SERVER_CUTTING_;
        for (i32 i = 0; i < s->n_workers; i++)
            if (cutting || atomic_load(&s->workers[i].phase) > SERVER_BUSY_)
                net_wake(&s->workers[i].waker);
        net_wait_waker(&signals, os_now_ms() + SERVER_BREATH_MS);
    }
    return true;
}

/* Whom the kernel let in before the signal is told that the server goes, not cut off. */
static void server_accept_waiting_(Server *s) {
    NetConn c;
    for (ServerWorker *w; (w = server_free_worker_(s));) {
        if (net_accept(&s->listener, &c, NULL, os_now_ms()) != NET_OK) return;
        server_hand_over_(s, w, &c);
    }
}

/* Lets what is being answered come to its end. False: somebody is still being served. */
static bool server_drain_(Server *s) {
    server_accept_waiting_(s);
    net_listener_close(&s->listener);
    atomic_store(&s->state, SERVER_DRAINING_);
    i32 n = server_count_busy_(s);
    log_line(LOG_INFO, "stopping: %d connection%s open, at most %d s to go", n, n == 1 ? "" : "s",
             s->o.drain_s);
    f64 deadline = os_now_ms() + s->o.drain_s * 1e3;
    if (server_wait_empty_(s, deadline)) return true;
    if (os_now_ms() < deadline) return false; /* a second signal */
    atomic_store(&s->state, SERVER_CUTTING_);
    return server_wait_empty_(s, os_now_ms() + 2 * SERVER_GOODBYE_MS);
}

/* Accepts and answers until a signal ends it. False without an error: threads are still at work, so that
 * nothing may be closed and the process should end. */
static bool server_run(Server *s, Err *e) {
    bool ok = server_accept_(s, e);
    bool drained = server_drain_(s);
    log_line(LOG_INFO, drained ? "stopped" : "stopped with connections open");
    return ok && drained;
}

/* ---- opening and closing ---- */

/* Beyond this machine there are strangers: a key says who may ask, TLS keeps the key secret. */
static bool server_check_exposure_(const Server *s, Err *e) {
    const ServerOptions *o = &s->o;
    const char *lacks = !s->keys.p && !s->has_tls ? "a key and TLS" : !s->keys.p ? "a key" : "TLS";
    if ((s->keys.p && s->has_tls) || o->insecure || net_is_unix(o->host) ||
        net_is_loopback(o->host))
        return true;
    return err_set(
        e, ERR_USAGE,
        "refusing to listen on %s, which other machines can reach, without %s: give --api-key-file FILE, "
        "--tls-cert FILE and --tls-key FILE (dlm cert makes a pair), or --insecure if something else "
        "guards this port",
        o->host, lacks);
}

static bool server_open_tls_(Server *s, Err *e) {
    if (!s->o.tls.cert != !s->o.tls.key)
        return err_set(e, ERR_USAGE,
                       "--tls-cert and --tls-key go together: a certificate and its key");
    if (!s->o.tls.cert)
        return !s->o.tls.client_ca ||
               err_set(e, ERR_USAGE, "--tls-client-ca needs --tls-cert and --tls-key");
    s->o.tls.only_13 = s->o.tls_min == 13;
    s->has_tls = tls_open(&s->tls, &s->o.tls, e);
    return s->has_tls;
}

static bool server_open_workers_(Server *s, Err *e) {
    u64 files = 2 * (u64)s->o.connections_max + 32; /* a connection and a waker each */
    u64 limit = os_want_files(files);
    if (limit < files)
        return err_set(e, ERR_RUNTIME,
                       "%d connections need %llu file descriptors and %llu are allowed: raise "
                       "ulimit -n or lower --max-connections",
                       s->o.connections_max, (unsigned long long)files, (unsigned long long)limit);
    s->workers = mem_alloc_n((u64)s->o.connections_max, sizeof *s->workers, e);
    if (!s->workers) return false;
    for (; s->n_workers < s->o.connections_max; s->n_workers++) {
        s->workers[s->n_workers].server = s;
        if (!net_waker_open(&s->workers[s->n_workers].waker, e)) return false;
    }
    return true;
}

/* After server_run returned true, or before it. */
static void server_close(Server *s) {
    if (!s) return;
    atomic_store(&s->leaving, true);
    for (i32 i = 0; i < s->n_started; i++) {
        server_poke_(&s->workers[i]);
        os_thread_join(&s->workers[i].thread);
    }
    if (s->batch.engine) batch_close(&s->batch);
    for (i32 i = 0; i < s->n_workers; i++) {
        net_waker_close(&s->workers[i].waker);
        http_free(&s->workers[i].http);
        buf_free(&s->workers[i].out);
    }
    mem_free(s->workers);
    mem_free(s->keys.p);
    if (s->has_tls) tls_close(&s->tls);
    net_listener_close(&s->listener);
    os_close(&s->signals);
    os_close(&s->rss);
    os_lock_close(&s->lock);
    mem_free(s);
}

static bool server_open_(Server *s, Err *e) {
    s->signals = os_open_signals(e);
    if (s->signals < 0) return false;
    s->rss = os_open_rss();
    if (!server_read_keys_(&s->o, &s->keys, e) || !server_open_tls_(s, e)) return false;
    if (s->o.key_file && os_is_shared_file(s->o.key_file))
        log_line(LOG_WARN, "others can read '%s'; chmod 600 keeps the keys secret", s->o.key_file);
    if (!server_open_workers_(s, e)) return false;
    if (!net_listen(&s->listener, s->o.host, (u16)s->o.port, e)) return false;
    return server_check_exposure_(s, e);
}

/* Opens all that needs the system's leave: sockets, keys, certificates. After this a sandbox may
 * close, and the model be loaded. */
static bool server_open(Server **out, const ServerOptions *o, Err *e) {
    *out = NULL;
    Server *s = mem_alloc(sizeof *s, e);
    if (!s) return false;
    s->o = *o;
    base_log_sink = o->log_format == SERVER_LOG_JSON ? server_log_line_ : NULL;
    s->signals = s->rss = s->listener.fd = -1;
    s->start_unix = os_now_unix();
    os_lock_open(&s->lock);
    if (!server_open_(s, e)) {
        server_close(s);
        return false;
    }
    *out = s;
    return true;
}

/* Starts the threads. model: what is served, whose engine it is; strings live until server_close. */
static bool server_start(Server *s, Engine *engine, const ApiModel *model, const char *cpu_level,
                         Err *e) {
    s->model = *model;
    s->cpu_level = cpu_level;
    if (!batch_open(&s->batch, engine, s->o.queue_max, e)) {
        s->batch.engine = NULL;
        return false;
    }
    for (; s->n_started < s->n_workers; s->n_started++)
        if (!os_thread_start(&s->workers[s->n_started].thread, server_worker_,
                             &s->workers[s->n_started], e))
            return false;
    return true;
}

/* Where clients find it. */
static const char *server_url(const Server *s, char *out, size_t n) {
    const char *scheme = s->has_tls ? "https" : "http";
    bool v6 = strchr(s->o.host, ':') && s->o.host[0] != '[';
    if (net_is_unix(s->o.host))
        snprintf(out, n, "%s on the socket %s", scheme, s->o.host);
    else
        snprintf(out, n, "%s://%s%s%s:%d", scheme, v6 ? "[" : "", s->o.host, v6 ? "]" : "",
                 s->listener.port);
    return out;
}

#endif
