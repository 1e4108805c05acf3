/* tls.c - mbedTLS behind a transport: certificates, handshakes, and bytes both ways.
 *
 * Owns:      the loaded certificate and key; each session, until its transport is closed.
 * Stands on: base mem os net; the only room with mbedtls headers.
 * Promises:  no call outlasts its deadline; a reload that fails changes nothing, one that succeeds
 *            leaves open connections alone; no tickets, no renegotiation, nothing below TLS 1.2. */
#ifndef DLM_TLS_C
#define DLM_TLS_C

#include "base.c"
#include "mem.c"
#include "os.c"
#include "net.c"

typedef struct {
    const char *cert, *key; /* PEM files; cert holds the chain, the server's own first */
    const char *client_ca; /* NULL, or a PEM file: who must have signed the clients' certificates */
    bool only_13;          /* TLS 1.3 alone */
} TlsOptions;

/* What a client believes and shows: PEM files, or NULL. */
typedef struct {
    const char *ca;         /* who must have signed the server's certificate */
    const char *cert, *key; /* both or neither */
} TlsClient;

typedef struct {
    const char *const *names; /* [n_names] host names and numeric addresses */
    i32 n_names;
    i32 days;
} TlsCertOptions;

#define TLS_FILE_MAX ((size_t)1 << 20)
#define TLS_NAMES_MAX 64
#define TLS_NAME_MAX 253 /* a host name, RFC 1035 */

#ifdef DLM_TLS

#include <mbedtls/entropy.h>
#include <mbedtls/oid.h>
#include <mbedtls/pem.h>
#include <mbedtls/pk.h>
#include <mbedtls/platform.h>
#include <mbedtls/platform_util.h>
#include <mbedtls/psa_util.h>
#include <mbedtls/ssl.h>
#include <mbedtls/version.h>
#include <mbedtls/x509_crt.h>
#include <psa/crypto.h>

static const char *tls_library(void) {
    return "mbedTLS " MBEDTLS_VERSION_STRING;
}

/* ---- what the library asks of us ---- */

#ifdef MBEDTLS_PSA_CRYPTO_EXTERNAL_RNG
/* The library knows this one by name: the second global function of the program. */
psa_status_t mbedtls_psa_external_get_random(mbedtls_psa_external_random_context_t *context,
                                             uint8_t *out, size_t n, size_t *got) {
    (void)context;
    *got = os_random(out, n, NULL) ? n : 0;
    return *got == n ? PSA_SUCCESS : PSA_ERROR_INSUFFICIENT_ENTROPY;
}
#else
/* A library that was configured by somebody else (Alpine's) seeds its generator, again after each 10,000
 * numbers, from /dev/urandom, which a bare image does not have and the sandbox does not open. This
 * definition takes the place of the one in its archive. */
int mbedtls_platform_entropy_poll(void *context, unsigned char *out, size_t n, size_t *got);
int mbedtls_platform_entropy_poll(void *context, unsigned char *out, size_t n, size_t *got) {
    (void)context;
    *got = os_random(out, n, NULL) ? n : 0;
    return *got == n ? 0 : MBEDTLS_ERR_ENTROPY_SOURCE_FAILED;
}
#endif

#ifdef MBEDTLS_PLATFORM_MEMORY
static void *tls_calloc_(size_t n, size_t size) {
    return mem_alloc_n(n, size, NULL);
}
#endif

/* Once more is harmless. */
static bool tls_start_(Err *e) {
#ifdef MBEDTLS_PLATFORM_MEMORY
    mbedtls_platform_set_calloc_free(tls_calloc_, mem_free);
#endif
    return psa_crypto_init() == PSA_SUCCESS ||
           err_set(e, ERR_RUNTIME, "the TLS library does not start");
}

#define TLS_RANDOM_ mbedtls_psa_get_random, MBEDTLS_PSA_RANDOM_STATE

/* ---- what went wrong, in words ---- */

static const char *tls_words_(int code) {
    static const struct {
        int code;
        const char *words;
    } known[] = {
        {MBEDTLS_ERR_SSL_CONN_EOF, "the peer left"},
        {MBEDTLS_ERR_SSL_PEER_CLOSE_NOTIFY, "the peer left"},
        {MBEDTLS_ERR_SSL_TIMEOUT, "the peer was too slow"},
        {MBEDTLS_ERR_SSL_INVALID_RECORD, "the peer does not speak TLS"},
        {MBEDTLS_ERR_SSL_BAD_PROTOCOL_VERSION, "no common version of TLS"},
        {MBEDTLS_ERR_SSL_HANDSHAKE_FAILURE, "no common cipher, group or signature"},
        {MBEDTLS_ERR_SSL_NO_APPLICATION_PROTOCOL, "the peer wants another protocol than http/1.1"},
        {MBEDTLS_ERR_SSL_NO_CLIENT_CERTIFICATE, "the peer showed no certificate"},
        {MBEDTLS_ERR_SSL_FATAL_ALERT_MESSAGE,
         "the peer refused (it may not trust the certificate)"},
        {MBEDTLS_ERR_X509_CERT_VERIFY_FAILED, "the peer's certificate is not good"},
        {MBEDTLS_ERR_SSL_BAD_CERTIFICATE, "the peer's certificate is not good"},
        {MBEDTLS_ERR_SSL_DECODE_ERROR, "a malformed message"},
        {MBEDTLS_ERR_SSL_ILLEGAL_PARAMETER, "a malformed message"},
        {MBEDTLS_ERR_SSL_UNEXPECTED_MESSAGE, "a message out of order"},
        {MBEDTLS_ERR_SSL_INVALID_MAC, "a message that was altered"},
    };
    for (size_t i = 0; i < COUNT_OF(known); i++)
        if (known[i].code == code) return known[i].words;
    return "an error of the TLS library";
}

/* Why a certificate was not believed. */
static const char *tls_flaw_(u32 flags) {
    static const struct {
        u32 flag;
        const char *words;
    } known[] = {
        {MBEDTLS_X509_BADCERT_EXPIRED, "it has expired"},
        {MBEDTLS_X509_BADCERT_FUTURE, "it is not valid yet"},
        {MBEDTLS_X509_BADCERT_CN_MISMATCH, "it is for another host"},
        {MBEDTLS_X509_BADCERT_NOT_TRUSTED, "it is not signed by who was given as trusted"},
        {MBEDTLS_X509_BADCERT_MISSING, "there is none"},
    };
    for (size_t i = 0; i < COUNT_OF(known); i++)
        if (flags & known[i].flag) return known[i].words;
    return "it is too weak, or made for another purpose";
}

/* ---- files ---- */

/* The file's bytes and the NUL that the PEM reader wants to count. */
static bool tls_read_(const char *path, Buf *b, Err *e) {
    b->max = TLS_FILE_MAX;
    return os_read_file(path, b, e) && (buf_char(b, 0) || buf_ok(b, path, e));
}

/* Keys leave no copy in freed memory. */
static void tls_forget_(Buf *b) {
    if (b->p) mbedtls_platform_zeroize(b->p, b->cap);
    buf_free(b);
}

static bool tls_load_certs_(mbedtls_x509_crt *certs, const char *path, Err *e) {
    Buf b = {0};
    bool ok = tls_read_(path, &b, e);
    int rc = ok ? mbedtls_x509_crt_parse(certs, (const u8 *)b.p, b.n) : 0;
    buf_free(&b);
    if (!ok || rc == 0) return ok;
    if (rc == MBEDTLS_ERR_X509_ALLOC_FAILED)
        return err_set(e, ERR_MEMORY, "no memory to read '%s'", path);
    if (rc > 0) return err_set(e, ERR_RUNTIME, "%d certificates in '%s' cannot be read", rc, path);
    return err_set(e, ERR_RUNTIME,
                   "'%s' holds no certificate that can be read (PEM, -----BEGIN CERTIFICATE-----)",
                   path);
}

static bool tls_load_key_(mbedtls_pk_context *key, const char *path, Err *e) {
    Buf b = {0};
    if (os_is_shared_file(path))
        log_line(LOG_WARN, "others may read the key '%s': chmod 600 it", path);
    bool ok = tls_read_(path, &b, e);
    if (ok && str_find(buf_view(&b), STR("ENCRYPTED"), 0) != SIZE_MAX)
        ok = err_set(e, ERR_RUNTIME,
                     "the key '%s' is encrypted: openssl pkey -in '%s' -out plain.pem removes the "
                     "password",
                     path, path);
    int rc = ok ? mbedtls_pk_parse_key(key, (const u8 *)b.p, b.n, NULL, 0, TLS_RANDOM_) : 0;
    tls_forget_(&b);
    if (rc == 0) return ok;
    if (rc == MBEDTLS_ERR_PK_KEY_INVALID_FORMAT)
        return err_set(
            e, ERR_RUNTIME,
            "'%s' holds no private key that can be read (PEM, -----BEGIN PRIVATE KEY-----)", path);
    return err_set(e, ERR_RUNTIME,
                   "the key '%s' cannot be used (error -0x%04x): RSA, P-256 and P-384 can", path,
                   (unsigned)-rc);
}

static void tls_check_dates_(const mbedtls_x509_crt *cert, const char *path) {
    const mbedtls_x509_time *t = &cert->valid_to;
    if (mbedtls_x509_time_is_past(t))
        log_line(LOG_WARN, "the certificate '%s' expired on %04d-%02d-%02d: clients will refuse it",
                 path, t->year, t->mon, t->day);
    else if (mbedtls_x509_time_is_future(&cert->valid_from))
        log_line(LOG_WARN, "the certificate '%s' is not valid yet (is the clock right?)", path);
}

/* ---- a configuration: what one reading of the files gave. Sessions share it and keep it alive. ---- */

typedef struct {
    atomic_int users;
    mbedtls_x509_crt cert, ca;
    mbedtls_pk_context key;
    mbedtls_ssl_config conf;
} TlsConfig_;

static void tls_config_drop_(TlsConfig_ *c) {
    if (!c || atomic_fetch_sub(&c->users, 1) != 1) return;
    mbedtls_ssl_config_free(&c->conf);
    mbedtls_pk_free(&c->key);
    mbedtls_x509_crt_free(&c->ca);
    mbedtls_x509_crt_free(&c->cert);
    mem_free(c);
}

/* Mozilla's intermediate, without DHE: forward secrecy and authenticated ciphers only. */
static const int TLS_CIPHERS_[] = {MBEDTLS_TLS1_3_AES_128_GCM_SHA256,
                                   MBEDTLS_TLS1_3_AES_256_GCM_SHA384,
                                   MBEDTLS_TLS1_3_CHACHA20_POLY1305_SHA256,
                                   MBEDTLS_TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
                                   MBEDTLS_TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
                                   MBEDTLS_TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
                                   MBEDTLS_TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
                                   MBEDTLS_TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
                                   MBEDTLS_TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
                                   0};
static const u16 TLS_GROUPS_[] = {
    MBEDTLS_SSL_IANA_TLS_GROUP_X25519, MBEDTLS_SSL_IANA_TLS_GROUP_SECP256R1,
    MBEDTLS_SSL_IANA_TLS_GROUP_SECP384R1, MBEDTLS_SSL_IANA_TLS_GROUP_NONE};
static const char *const TLS_ALPN_[] = {"http/1.1", NULL};

static bool tls_config_common_(TlsConfig_ *c, int end, bool only_13, Err *e) {
    mbedtls_ssl_config *conf = &c->conf;
    if (mbedtls_ssl_config_defaults(conf, end, MBEDTLS_SSL_TRANSPORT_STREAM,
                                    MBEDTLS_SSL_PRESET_DEFAULT) != 0 ||
        mbedtls_ssl_conf_alpn_protocols(conf, (const char **)(uintptr_t)TLS_ALPN_) != 0)
        return err_set(e, ERR_MEMORY, "no memory for TLS");
    mbedtls_ssl_conf_rng(conf, TLS_RANDOM_);
    mbedtls_ssl_conf_min_tls_version(conf, only_13 ? MBEDTLS_SSL_VERSION_TLS1_3
                                                   : MBEDTLS_SSL_VERSION_TLS1_2);
    mbedtls_ssl_conf_ciphersuites(conf, TLS_CIPHERS_);
    mbedtls_ssl_conf_groups(conf, TLS_GROUPS_);
    /* A phone without AES instructions knows best that it prefers ChaCha20. */
    mbedtls_ssl_conf_preference_order(conf, MBEDTLS_SSL_SRV_CIPHERSUITE_ORDER_CLIENT);
#ifdef MBEDTLS_SSL_SESSION_TICKETS
    mbedtls_ssl_conf_session_tickets(conf, MBEDTLS_SSL_SESSION_TICKETS_DISABLED);
#endif
    return true;
}

static TlsConfig_ *tls_config_new_(Err *e) {
    TlsConfig_ *c = mem_alloc(sizeof *c, e);
    if (!c) return NULL;
    atomic_store(&c->users, 1);
    mbedtls_x509_crt_init(&c->cert);
    mbedtls_x509_crt_init(&c->ca);
    mbedtls_pk_init(&c->key);
    mbedtls_ssl_config_init(&c->conf);
    return c;
}

/* What this side shows to the other. */
static bool tls_config_own_(TlsConfig_ *c, const char *cert, const char *key, Err *e) {
    if (!tls_load_certs_(&c->cert, cert, e) || !tls_load_key_(&c->key, key, e)) return false;
    if (mbedtls_pk_check_pair(&c->cert.pk, &c->key, TLS_RANDOM_) != 0)
        return err_set(e, ERR_RUNTIME,
                       "the key '%s' does not belong to the certificate '%s' (its owner's must be "
                       "the first in its file)",
                       key, cert);
    return mbedtls_ssl_conf_own_cert(&c->conf, &c->cert, &c->key) == 0 ||
           err_set(e, ERR_MEMORY, "no memory for TLS");
}

static bool tls_config_fill_(TlsConfig_ *c, const TlsOptions *o, Err *e) {
    if (!tls_config_common_(c, MBEDTLS_SSL_IS_SERVER, o->only_13, e) ||
        !tls_config_own_(c, o->cert, o->key, e))
        return false;
    tls_check_dates_(&c->cert, o->cert);
    if (!o->client_ca) return true;
    if (!tls_load_certs_(&c->ca, o->client_ca, e)) return false;
    mbedtls_ssl_conf_ca_chain(&c->conf, &c->ca, NULL);
    mbedtls_ssl_conf_authmode(&c->conf, MBEDTLS_SSL_VERIFY_REQUIRED);
    return true;
}

/* ---- a server's side ---- */

typedef struct {
    TlsOptions options; /* the paths stay the caller's */
    OsLock lock;        /* for config */
    TlsConfig_ *config; /* the one for new connections */
} TlsServer;

/* The config that new connections use, for one of them to keep. */
static TlsConfig_ *tls_config_share_(TlsServer *s) {
    os_lock(&s->lock);
    TlsConfig_ *c = s->config;
    atomic_fetch_add(&c->users, 1);
    os_unlock(&s->lock);
    return c;
}

static TlsConfig_ *tls_config_load_(const TlsOptions *o, Err *e) {
    TlsConfig_ *c = tls_config_new_(e);
    if (!c || tls_config_fill_(c, o, e)) return c;
    tls_config_drop_(c);
    return NULL;
}

static bool tls_open(TlsServer *s, const TlsOptions *o, Err *e) {
    *s = (TlsServer){.options = *o};
    os_lock_open(&s->lock);
    if (tls_start_(e)) s->config = tls_config_load_(o, e);
    return s->config != NULL;
}

/* Reads the files again: new connections get what they hold now. On any failure the old pair stays. */
static bool tls_reload(TlsServer *s, Err *e) {
    TlsConfig_ *c = tls_config_load_(&s->options, e);
    if (!c) return false;
    os_lock(&s->lock);
    TlsConfig_ *before = s->config;
    s->config = c;
    os_unlock(&s->lock);
    tls_config_drop_(before);
    return true;
}

static void tls_close(TlsServer *s) {
    tls_config_drop_(s->config);
    s->config = NULL;
    os_lock_close(&s->lock);
}

/* ---- sessions ---- */

typedef struct {
    mbedtls_ssl_context ssl;
    TlsConfig_ *config;
    NetConn *conn;
    f64 deadline_ms; /* of the call that is under way */
    NetResult io;    /* what the socket said last */
    bool started;    /* a first byte came */
    bool plain;      /* and it was not TLS */
} TlsSession_;

static int tls_send_(void *p, const unsigned char *bytes, size_t n) {
    TlsSession_ *s = p;
    size_t put = 0;
    s->io = net_write_some(s->conn, bytes, n, &put, s->deadline_ms);
    if (s->io == NET_OK) return (int)put;
    return s->io == NET_TIMEOUT ? MBEDTLS_ERR_SSL_WANT_WRITE : MBEDTLS_ERR_SSL_CONN_EOF;
}

static int tls_receive_(void *p, unsigned char *bytes, size_t n) {
    TlsSession_ *s = p;
    size_t got = 0;
    s->io = net_read(s->conn, bytes, n, &got, s->deadline_ms);
    if (s->io == NET_OK) {
        if (!s->started) s->plain = bytes[0] != 0x16 && bytes[0] != 0x15; /* handshake, alert */
        s->started = true;
        return (int)got;
    }
    return s->io == NET_TIMEOUT ? MBEDTLS_ERR_SSL_WANT_READ : 0;
}

/* Interrupted by nothing but the deadline: other reasons to call again are the library's own. */
static bool tls_again_(const TlsSession_ *s, int rc) {
    return (rc == MBEDTLS_ERR_SSL_WANT_READ || rc == MBEDTLS_ERR_SSL_WANT_WRITE
#ifdef MBEDTLS_ERR_SSL_RECEIVED_NEW_SESSION_TICKET
            || rc == MBEDTLS_ERR_SSL_RECEIVED_NEW_SESSION_TICKET
#endif
            ) &&
           s->io == NET_OK;
}

static NetResult tls_read_some_(NetTransport *t, void *p, size_t n, size_t *got, f64 deadline_ms) {
    TlsSession_ *s = t->secret;
    int rc;
    s->deadline_ms = deadline_ms;
    do {
        s->io = NET_OK;
        rc = mbedtls_ssl_read(&s->ssl, p, n);
    } while (tls_again_(s, rc));
    *got = rc > 0 ? (size_t)rc : 0;
    return rc > 0 ? NET_OK : s->io == NET_TIMEOUT ? NET_TIMEOUT : NET_END;
}

static NetResult tls_write_(NetTransport *t, const void *p, size_t n, f64 deadline_ms) {
    TlsSession_ *s = t->secret;
    size_t done = 0;
    s->deadline_ms = deadline_ms;
    while (done < n) {
        s->io = NET_OK;
        int rc = mbedtls_ssl_write(&s->ssl, (const u8 *)p + done, n - done);
        if (rc > 0)
            done += (size_t)rc;
        else if (!tls_again_(s, rc))
            return s->io == NET_TIMEOUT ? NET_TIMEOUT : NET_END;
    }
    return NET_OK;
}

static void tls_session_free_(TlsSession_ *s) {
    if (!s) return;
    mbedtls_ssl_free(&s->ssl);
    tls_config_drop_(s->config);
    mbedtls_platform_zeroize(s, sizeof *s);
    mem_free(s);
}

static void tls_close_session_(NetTransport *t, f64 deadline_ms) {
    TlsSession_ *s = t->secret;
    if (s) {
        s->deadline_ms = deadline_ms;
        mbedtls_ssl_close_notify(&s->ssl);
        tls_session_free_(s);
        t->secret = NULL;
    }
    net_close_gently(t->conn, deadline_ms);
}

/* Takes over one use of the config. NULL with an Err, then the config is dropped as well. */
static TlsSession_ *tls_session_new_(TlsConfig_ *config, NetConn *c, f64 deadline_ms, Err *e) {
    TlsSession_ *s = mem_alloc(sizeof *s, e);
    if (!s) {
        tls_config_drop_(config);
        return NULL;
    }
    s->config = config;
    s->conn = c;
    s->deadline_ms = deadline_ms;
    mbedtls_ssl_init(&s->ssl);
    if (mbedtls_ssl_setup(&s->ssl, &config->conf) == 0) {
        mbedtls_ssl_set_bio(&s->ssl, s, tls_send_, tls_receive_, NULL);
        return s;
    }
    tls_session_free_(s);
    err_set(e, ERR_MEMORY, "no memory for a TLS connection");
    return NULL;
}

/* Shakes hands, and makes the transport. On failure the session is gone; the connection is not. */
static bool tls_handshake_(TlsSession_ *s, NetTransport *t, Err *e) {
    int rc;
    do {
        s->io = NET_OK;
        rc = mbedtls_ssl_handshake(&s->ssl);
    } while (tls_again_(s, rc));
    if (rc == 0) {
        *t = (NetTransport){.conn = s->conn,
                            .secret = s,
                            .read = tls_read_some_,
                            .write = tls_write_,
                            .close = tls_close_session_};
        return true;
    }
    const char *name = s->conn->name;
    u32 flaws = mbedtls_ssl_get_verify_result(&s->ssl);
    if (s->io == NET_TIMEOUT) rc = MBEDTLS_ERR_SSL_TIMEOUT;
    if (s->plain)
        err_set(e, ERR_RUNTIME,
                "%s speaks plain text where TLS is spoken: https:// reaches a TLS port", name);
    else if (rc == MBEDTLS_ERR_X509_CERT_VERIFY_FAILED)
        err_set(e, ERR_RUNTIME, "the certificate of %s is not good: %s", name, tls_flaw_(flaws));
    else
        err_set(e, ERR_RUNTIME, "no TLS with %s: %s (-0x%04x)", name, tls_words_(rc),
                (unsigned)-rc);
    tls_session_free_(s);
    return false;
}

/* The server's handshake with a connection, in all before the deadline. */
static bool tls_accept(TlsServer *server, NetConn *c, NetTransport *t, f64 deadline_ms, Err *e) {
    TlsSession_ *s = tls_session_new_(tls_config_share_(server), c, deadline_ms, e);
    return s && tls_handshake_(s, t, e);
}

/* The client's, for `dlm health`: checks the certificate for `host` where trusted certificates are given,
 * else only that there is TLS. */
static bool tls_connect(NetConn *c, const char *host, const TlsClient *o, NetTransport *t,
                        f64 deadline_ms, Err *e) {
    TlsConfig_ *config = tls_start_(e) ? tls_config_new_(e) : NULL;
    if (!config) return false;
    bool ok = tls_config_common_(config, MBEDTLS_SSL_IS_CLIENT, false, e) &&
              (!o->ca || tls_load_certs_(&config->ca, o->ca, e)) &&
              (!o->cert || tls_config_own_(config, o->cert, o->key, e));
    if (!ok) {
        tls_config_drop_(config);
        return false;
    }
    mbedtls_ssl_conf_ca_chain(&config->conf, &config->ca, NULL);
    mbedtls_ssl_conf_authmode(&config->conf,
                              o->ca ? MBEDTLS_SSL_VERIFY_REQUIRED : MBEDTLS_SSL_VERIFY_NONE);
    TlsSession_ *s = tls_session_new_(config, c, deadline_ms, e);
    if (!s) return false;
    if (mbedtls_ssl_set_hostname(&s->ssl, host) != 0) {
        tls_session_free_(s);
        return err_set(e, ERR_RUNTIME, "'%.80s' is not a host name", host);
    }
    return tls_handshake_(s, t, e);
}

/* ---- a certificate of our own making, for machines that have no authority to ask ---- */

typedef struct {
    mbedtls_x509_san_list list[TLS_NAMES_MAX];
    u8 addresses[TLS_NAMES_MAX][16];
} TlsNames_;

static bool tls_is_name_(Str s) {
    for (size_t i = 0; i < s.n; i++) {
        char c = s.p[i];
        bool letter = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        bool star = c == '*' && i == 0 && s.n > 2 && s.p[1] == '.';
        if (!letter && !star && c != '-' && c != '.' && c != '_') return false;
    }
    return s.n > 0 && s.n <= TLS_NAME_MAX;
}

static bool tls_take_name_(TlsNames_ *names, i32 i, const char *text, Err *e) {
    mbedtls_x509_san_list *to = &names->list[i];
    Str s = str_of(text);
    if (inet_pton(AF_INET, text, names->addresses[i]) == 1) {
        s = (Str){(const char *)names->addresses[i], 4};
    } else if (inet_pton(AF_INET6, text, names->addresses[i]) == 1) {
        s = (Str){(const char *)names->addresses[i], 16};
    } else if (!tls_is_name_(s)) {
        return err_set(e, ERR_USAGE, "'%.80s' is neither a host name nor a numeric address", text);
    }
    to->node.type = s.p == text ? MBEDTLS_X509_SAN_DNS_NAME : MBEDTLS_X509_SAN_IP_ADDRESS;
    to->node.san.unstructured_name.p =
        (unsigned char *)(uintptr_t)s.p; /* the library only reads it */
    to->node.san.unstructured_name.len = s.n;
    if (i > 0) names->list[i - 1].next = to;
    return true;
}

static void tls_date_(char out[16], i64 unix_time) {
    time_t t = (time_t)unix_time;
    struct tm tm;
    gmtime_r(&t, &tm);
    strftime(out, 16, "%Y%m%d%H%M%S", &tm);
}

/* Everything but the signature. CA:FALSE: browsers and rustls take no authority for a server, and all
 * take a certificate that is itself among the trusted. */
static int tls_describe_cert_(mbedtls_x509write_cert *w, mbedtls_pk_context *key,
                              const TlsCertOptions *o, const TlsNames_ *names) {
    char subject[16 + 64], from[16], to[16];
    u8 serial[16];
    i64 now = os_now_unix();
    mbedtls_asn1_sequence use = {.buf = {.tag = MBEDTLS_ASN1_OID,
                                         .len = MBEDTLS_OID_SIZE(MBEDTLS_OID_SERVER_AUTH),
                                         .p = (unsigned char *)(uintptr_t)MBEDTLS_OID_SERVER_AUTH}};
    /* a common name has 64 characters at most; who verifies looks at the list of names */
    bool fits = tls_is_name_(str_of(o->names[0])) && strlen(o->names[0]) <= 64;
    snprintf(subject, sizeof subject, "CN=%.64s", fits ? o->names[0] : "dlm");
    tls_date_(from, now - 86400); /* clocks differ */
    tls_date_(to, now + (i64)o->days * 86400);
    if (!os_random(serial, sizeof serial, NULL)) return MBEDTLS_ERR_X509_FATAL_ERROR;
    serial[0] = (u8)((serial[0] & 0x3f) | 0x40); /* positive, and of full length */
    mbedtls_x509write_crt_set_version(w, MBEDTLS_X509_CRT_VERSION_3);
    mbedtls_x509write_crt_set_md_alg(w, MBEDTLS_MD_SHA256);
    mbedtls_x509write_crt_set_subject_key(w, key);
    mbedtls_x509write_crt_set_issuer_key(w, key);
    int rc = mbedtls_x509write_crt_set_subject_name(w, subject);
    if (!rc) rc = mbedtls_x509write_crt_set_issuer_name(w, subject);
    if (!rc) rc = mbedtls_x509write_crt_set_serial_raw(w, serial, sizeof serial);
    if (!rc) rc = mbedtls_x509write_crt_set_validity(w, from, to);
    if (!rc) rc = mbedtls_x509write_crt_set_basic_constraints(w, 0, -1);
    if (!rc) rc = mbedtls_x509write_crt_set_key_usage(w, MBEDTLS_X509_KU_DIGITAL_SIGNATURE);
    if (!rc) rc = mbedtls_x509write_crt_set_ext_key_usage(w, &use);
    if (!rc) rc = mbedtls_x509write_crt_set_subject_alternative_name(w, names->list);
    return rc;
}

#define TLS_PEM_MAX_ 32768 /* 64 names of 253 bytes, in base64 */

static bool tls_write_cert_(const TlsCertOptions *o, const TlsNames_ *names, Buf *cert, Buf *key,
                            Err *e) {
    mbedtls_pk_context pk;
    mbedtls_x509write_cert w;
    u8 *pem = mem_alloc(TLS_PEM_MAX_, e);
    if (!pem) return false;
    mbedtls_pk_init(&pk);
    mbedtls_x509write_crt_init(&w);
    int rc = mbedtls_pk_setup(&pk, mbedtls_pk_info_from_type(MBEDTLS_PK_ECKEY));
    if (!rc) rc = mbedtls_ecp_gen_key(MBEDTLS_ECP_DP_SECP256R1, mbedtls_pk_ec(pk), TLS_RANDOM_);
    if (!rc) rc = tls_describe_cert_(&w, &pk, o, names);
    if (!rc) rc = mbedtls_x509write_crt_pem(&w, pem, TLS_PEM_MAX_, TLS_RANDOM_);
    if (!rc) buf_str(cert, str_of((char *)pem));
    if (!rc) rc = mbedtls_pk_write_key_pem(&pk, pem, TLS_PEM_MAX_);
    if (!rc) buf_str(key, str_of((char *)pem));
    mbedtls_x509write_crt_free(&w);
    mbedtls_pk_free(&pk);
    mbedtls_platform_zeroize(pem, TLS_PEM_MAX_);
    mem_free(pem);
    if (rc)
        return err_set(e, ERR_RUNTIME, "cannot make the certificate (error -0x%04x)",
                       (unsigned)-rc);
    return buf_ok(cert, "the certificate", e) && buf_ok(key, "the key", e);
}

/* Makes a self-signed certificate for the names, and its P-256 key, as PEM. */
static bool tls_make_cert(const TlsCertOptions *o, Buf *cert, Buf *key, Err *e) {
    if (o->n_names < 1 || o->n_names > TLS_NAMES_MAX)
        return err_set(e, ERR_USAGE, "a certificate is for 1 to %d names", TLS_NAMES_MAX);
    if (o->days < 1 || o->days > 3650)
        return err_set(e, ERR_USAGE, "a certificate is for 1 to 3650 days");
    if (!tls_start_(e)) return false;
    TlsNames_ *names = mem_alloc(sizeof *names, e);
    bool ok = names != NULL;
    for (i32 i = 0; ok && i < o->n_names; i++) ok = tls_take_name_(names, i, o->names[i], e);
    ok = ok && tls_write_cert_(o, names, cert, key, e);
    mem_free(names);
    return ok;
}

#else /* built with DLM_TLS=0 */

typedef struct {
    TlsOptions options;
} TlsServer;

static const char *tls_library(void) {
    return "none";
}

static bool tls_absent_(Err *e) {
    return err_set(e, ERR_USAGE, "this dlm was built without TLS");
}

static bool tls_open(TlsServer *s, const TlsOptions *o, Err *e) {
    *s = (TlsServer){*o};
    return tls_absent_(e);
}

static bool tls_reload(TlsServer *s, Err *e) {
    (void)s;
    return tls_absent_(e);
}

static void tls_close(TlsServer *s) {
    (void)s;
}

static bool tls_accept(TlsServer *s, NetConn *c, NetTransport *t, f64 deadline_ms, Err *e) {
    (void)s, (void)c, (void)t, (void)deadline_ms;
    return tls_absent_(e);
}

static bool tls_connect(NetConn *c, const char *host, const TlsClient *o, NetTransport *t,
                        f64 deadline_ms, Err *e) {
    (void)c, (void)host, (void)o, (void)t, (void)deadline_ms;
    return tls_absent_(e);
}

static bool tls_make_cert(const TlsCertOptions *o, Buf *cert, Buf *key, Err *e) {
    (void)o, (void)cert, (void)key;
    return tls_absent_(e);
}

#endif
#endif
