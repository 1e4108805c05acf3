/* dlm.c - block-diffusion language models in one static binary: the front door.
 *
 * A diffusion language model does not write left to right. It is shown a block of masked places and
 * says, for every place at once, which token it believes in and how strongly. The tokens it is sure
 * of are revealed, the model looks again, and a few looks later the block is text. dlm runs such
 * models: ternary (BitNet) or not, from one GGUF file, on the CPU, with nothing installed.
 *
 * One block of an answer, as `dlm --watch` shows it (a mask is a dot):
 *
 *     look 1    The capital of .... is .....
 *     look 2    The capital of Spain is ...r..
 *     look 3    The capital of Spain is Madrid.
 *     commit    the finished block enters the cache, and the next one begins
 *
 * This file is the floor plan and one translation unit: it includes every room of src/ from the
 * ground up, and one compile command makes the program:
 *
 *     cc -std=c11 -D_GNU_SOURCE -O2 -ffp-contract=off dlm.c -o dlm -lpthread
 *
 * A room is a .c file whose functions are all static and carry the room's name. It includes the
 * rooms it stands on and no other, so a call that reaches upward does not compile. What goes up
 * goes as return values, or through callbacks that were handed down.
 *
 *     roof            tls  api  batch  server  sandbox  cli  doors to the outside; only cli exits
 *     fourth floor    sample  decode  tempo  engine  bench   diffusion: why the house exists
 *                     hf  vocab  plan  convert  verify       checkpoints into model files
 *     third floor     model  graph                           what a model is; one forward pass
 *     second floor    quant  tl  kern_{ref,tile,x86,arm}  kern   numbers
 *     first floor     gguf  utf8  json  http  pre  tok  tmpl pure functions on bytes, all fuzzed
 *                     safet  spm
 *     ground          base  mem  os  pool  net               knows no models and no formats
 *
 * The way of one answer, from the door up and down again:
 *
 *     cli      reads the options and the prompt, opens an engine, hands it callbacks
 *     engine   maps the file; gguf says where everything lies, tok and tmpl turn messages to ids
 *     model    finds the family's row in the architecture table, binds and checks the tensors
 *     decode   lays out blocks, asks for forwards, reveals what is certain, commits what is done
 *     graph    one forward pass over a batch of rows, against the op table of dlm_kernels.h
 *     kern     runs those ops on all threads at the best level this CPU has
 *     sample   turns a row of logits into a token and its probability
 *     cli      prints the text as its blocks settle, then what it cost
 *
 * When the door is a socket, server reads a request, api makes a prompt of it, batch puts it beside
 * the answers that are being made, and one forward serves them all.
 *
 * To read the house, start at decode.c; graph.c is the forward pass; model.c knows the families.
 *
 * What holds in every room:
 *
 *     errors     Our own bug stops the program: ASSERT. The world's faults are values: a function
 *                that can meet one returns bool and takes an Err, whose first sentence wins.
 *     bytes      What comes from outside is measured before it is used, and every size from a file
 *                goes through checked arithmetic. No recursion on outside data, no unbounded loop.
 *     memory     mem.c is the only door, and whoever takes gives back, in the same room. While an
 *                answer is being decoded nothing is allocated for the model.
 *     numbers    kern_ref.c is the law. The levels of kern_x86.c give its bits; threads split rows
 *                and never a sum. So one seed is one text, whatever the machine is doing.
 *     state      Two things change that belong to no object: the log level and the count of Ctrl-C.
 *
 * tools/lint.sh checks the floors, the headers, the names and the sizes of functions; the
 * rooms' tests are tests/t_ROOM.c, and what reads bytes from outside has tests/fuzz/fuzz_ROOM.c. */

/* The model that answers when none is named is built in, unless asked otherwise; see the end. */
#ifndef DLM_NO_DEMO
#define DLM_DEMO
#endif

/* Rooms that read and print text are compiled for size: a seventh of the program less, and no time that
 * anybody could measure. */
#if defined(__GNUC__) && !defined(__clang__) && defined(__OPTIMIZE__)
#define SMALL_ROOMS _Pragma("GCC push_options") _Pragma("GCC optimize(\"Os\")")
#define FAST_ROOMS _Pragma("GCC pop_options")
#else
#define SMALL_ROOMS
#define FAST_ROOMS
#endif

/* ---- the ground: stone. It knows no models and no formats. ---- */

/* Integer names, string slices, the error type, assertions, checked arithmetic. */
#include "src/base.c"
/* The one allocator; arenas with a lid; bounded buffers. */
#include "src/mem.c"
/* Files, clock, random, processors, threads, signals: the only room with POSIX headers. */
#include "src/os.c"
/* Worker threads that share a range of rows. */
#include "src/pool.c"
/* Sockets, and waiting with deadlines: the only room with socket headers. */
#include "src/net.c"

/* ---- the first floor: papers. Nothing here trusts a byte it reads. ---- */

/* Model files: metadata and tensor directory, read in place. */
#include "src/gguf.c"
/* Code points and their classes, from a generated table. */
#include "src/utf8.c"
/* How a text is cut into words before it is tokenized: the published expressions and their matcher. */
#include "src/pre.c"
/* Text to token ids and back. */
#include "src/tok.c"
SMALL_ROOMS
/* A bounded JSON reader and an escaping writer. */
#include "src/json.c"
/* HTTP/1.1 as a server reads it, strictly; replies and events. */
#include "src/http.c"
/* Chat templates: the subset of Jinja that published models use. */
#include "src/tmpl.c"
/* Checkpoints: the directory of a safetensors file, and SentencePiece's vocabulary. */
#include "src/safet.c"
#include "src/spm.c"
FAST_ROOMS

/* ---- the second floor: the engine room ---- */

/* Block layouts, matrices in memory, and the two tables of functions everything above is written
 * against: the kernels of a CPU level, and the operations of a backend. Types and no code. */
#include "dlm_kernels.h"
/* Every block format: rows in and out. */
#include "src/quant.c"
/* How BitNet.cpp cut up matrices of its types TL1 and TL2. */
#include "src/tl.c"
/* The scalar kernels: the law that the other levels are checked against. */
#include "src/kern_ref.c"
/* The loops around a register tile of ternary weights, which the levels have in common. */
#include "src/kern_tile.c"
/* The x86 and aarch64 levels; each is empty on other machines. */
#include "src/kern_x86.c"
#include "src/kern_arm.c"
/* Which level this CPU has, weights laid out for it, and the CPU's table of operations. */
#include "src/kern.c"

/* ---- the third floor: the model ---- */

/* Families as rows of a table; tensors bound by name and checked by shape; the decode record. */
#include "src/model.c"
/* One forward pass, written once; the KV cache. */
#include "src/graph.c"

/* ---- the fourth floor: diffusion ---- */

/* Logits to a token and its probability; temperature, top-k, top-p, min-p, the seed. */
#include "src/sample.c"
/* Blocks, sub-blocks, thresholds, commits, stops. */
#include "src/decode.c"
/* Which way of decoding is the fastest on this machine. */
#include "src/tempo.c"
/* A loaded model and its slots: prompts in, text and events out. */
#include "src/engine.c"
/* The cost of a forward by its rows, beside the machine's ceilings. */
#include "src/bench.c"
SMALL_ROOMS
/* A checkpoint's settings and tokenizer as keys of a model file; its tensors, row by row. */
#include "src/hf.c"
#include "src/vocab.c"
#include "src/plan.c"
FAST_ROOMS
#include "src/convert.c"
SMALL_ROOMS
/* A new file against its source; one file against another. */
#include "src/verify.c"
FAST_ROOMS

/* ---- the roof: doors to the outside ---- */

SMALL_ROOMS
/* TLS 1.2 and 1.3 as a transport; certificates of our own making. */
#include "src/tls.c"
/* Calls of tools in what a model wrote. */
#include "src/calls.c"
/* The shapes of OpenAI's, Anthropic's and llama.cpp's APIs: bytes in, bytes out. */
#include "src/api.c"
/* Many askers, one engine: a bounded queue and the thread that steps all answers at once. */
#include "src/batch.c"
/* Connections, limits, keys, logs; how a server starts, reloads and stops. */
#include "src/server.c"
/* What the kernel takes away before the first byte of a stranger is read. */
#include "src/sandbox.c"
/* The command line: one table of options drives parsing, help, manual and completions. */
#include "src/cli.c"
FAST_ROOMS

/* ---- the cellar: the model that answers when none is named ----
 *
 * A trained block-diffusion model of 2.6 million ternary weights, put into the read-only data as it
 * lies in the repository, so that the program is useful the moment it is built. The labels stay
 * local to this object: `nm` shows one global function, main. Built with -DDLM_NO_DEMO the program
 * is smaller and needs -m. */
#ifdef DLM_DEMO
#ifndef DLM_DEMO_FILE
#define DLM_DEMO_FILE "tests/golden/tiny-dlm.gguf"
#endif
__asm__(".pushsection .rodata.dlm_demo, \"a\", %progbits\n"
        ".balign 64\n"
        "dlm_demo_begin:\n"
        ".incbin \"" DLM_DEMO_FILE "\"\n"
        "dlm_demo_end:\n"
        ".byte 0\n" /* so that the end is an address inside the section */
        ".popsection\n");
#endif

int main(int argc, char **argv) {
    return cli_main(argc, argv);
}
