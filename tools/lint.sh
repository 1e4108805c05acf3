#!/bin/sh
# lint.sh - the rules of the house that a machine can check. Prints each breach as file:line: words.
#
# Needs gcc and nm; uses shellcheck and python3 where they are. Run from anywhere; takes seconds.
# shellcheck disable=SC2086 # lists of flags and files are split on purpose
set -eu
cd -- "$(dirname -- "$0")/.."
export LC_ALL=C

# The rooms from the ground up: a room may include only rooms that stand before it in this list.
ROOMS='base mem os pool net
    gguf utf8 pre json http tok safet spm tmpl
    quant tl kern_ref kern_tile kern_x86 kern_arm kern
    model graph
    sample decode tempo engine bench hf vocab plan convert verify
    tls calls api batch server sandbox cli'
LINES=110 # columns, the limit that no line may pass; the style asks for 100
FUNCTION=70
# The log's level and sink, the count of SIGINTs: what may change and belongs to no object.
GLOBALS=' base_log_level base_log_sink os_interrupts_ '

found=$(mktemp)
object=$(mktemp)
trap 'rm -f "$found" "$object"' EXIT
checks=0
CFLAGS='-std=c11 -D_GNU_SOURCE -Wall -Wextra -Wvla -Wstrict-prototypes -Wno-unused-function -Werror
    -ffp-contract=off -fno-diagnostics-show-caret'
# tls.c in full, where the headers of its library are (build.sh puts them there)
[ ! -e build/mbedtls-host/made ] || CFLAGS="$CFLAGS -DDLM_TLS -isystem build/mbedtls-host/include"
C_FILES=$(ls dlm.c dlm_kernels.h src/*.[ch] tests/*.[ch] tests/fuzz/*.c 2>/dev/null || :)
SH_FILES=$(ls build.sh .ci/run tools/*.sh tests/*.sh tests/e2e/*.sh 2>/dev/null || :)
PY_FILES=$(ls tools/*.py tests/py/*.py tests/e2e/*.py 2>/dev/null || :)

# ---- each room, and the whole house, compiles without a warning ----

for c in src/*.c; do
    gcc $CFLAGS -fsyntax-only "$c" >>"$found" 2>&1 || :
    checks=$((checks + 1))
done
if [ -e dlm.c ]; then
    if gcc $CFLAGS -O0 -fno-pie -c dlm.c -o "$object" >>"$found" 2>&1; then
        nm --defined-only "$object" | awk -v globals="$GLOBALS" '
            $3 == "mbedtls_psa_external_get_random" { next } # mbedTLS calls it by this name
            $2 ~ /[A-Z]/ && $3 != "main" { print "dlm.c:1: global symbol " $3 ": only main may be global" }
            $2 ~ /[bdBD]/ && !index(globals, " " $3 " ") { print "dlm.c:1: mutable global " $3 }' >>"$found"
    fi
    checks=$((checks + 1))
fi

# ---- includes: floors, foreign headers, and what the room says that it stands on ----

awk -v rooms="$ROOMS" '
function say(text) { print FILENAME ":" FNR ": " text }
function may(header) { # the one room of each foreign header; standard C is for everyone
    if (header ~ /^(limits|stdarg|stdbool|stddef|stdint|stdio|stdlib|string|inttypes|stdatomic|stdalign|float)\.h$/) return 1
    if (header ~ /^(immintrin|cpuid)\.h$/) return room == "kern_x86"
    if (header ~ /^(arm_neon|sys\/auxv|asm\/hwcap)\.h$/) return room == "kern_arm"
    if (header ~ /^(sys\/socket|sys\/un|netinet\/.*|arpa\/.*|netdb|sys\/epoll)\.h$/) return room == "net"
    if (header ~ /^(sys\/prctl|sys\/syscall|linux\/.*)\.h$/) return room == "sandbox" || room == "os"
    if (header ~ /^(mbedtls|psa)\//) return room == "tls"
    if (header ~ /^(unistd|fcntl|poll|pthread|signal|time|termios|errno|sched|sys\/.*)\.h$/) return room == "os" || room == "net"
    return 0
}
BEGIN { n = split(rooms, list, /[ \n]+/); for (i = 1; i <= n; i++) floor[list[i]] = i }
FNR == 1 {
    room = FILENAME; sub(/.*\//, "", room); sub(/\.c$/, "", room); stands = ""; lines = 0
    if (!(room in floor)) say("room " room " is not on the floor plan of tools/lint.sh")
    if (index($0, "/* " room ".c - ") != 1) say("a room opens with /* " room ".c - what it is for")
}
FNR > 1 && FNR < 20 && /^ \* Owns: +[^ ]/ { lines++ }
FNR < 20 && /^ \* Stands on: +[^ ]/ { lines++; listing = 1 }
FNR < 20 && /^ \* Promises: +[^ ]/ { lines++; listing = 0 }
listing { stands = stands " " $0 " " }
FNR == 20 && lines != 3 { say("the head of a room says Owns, Stands on and Promises") }
/^[ \t]*#[ \t]*include/ {
    name = $0; sub(/^[^<"]*[<"]/, "", name); sub(/[>"].*/, "", name)
    if ($0 ~ /</) { if (!may(name)) say("<" name "> does not belong in this room") }
    else if (name ~ /\.c$/) {
        sub(/\.c$/, "", name)
        if (!(name in floor)) say("includes " name ".c, which is not a room")
        else if (floor[name] >= floor[room]) say("reaches up to " name)
        gsub(/[,.;]/, " ", stands)
        if (index(stands, " " name " ") == 0) say("includes " name " but does not say that it stands on it")
    } else if (name !~ /^(\.\.\/)?dlm_kernels\.h$/ && name != room "_tables.h") say("includes \"" name "\"")
}' src/*.c >>"$found"
checks=$((checks + 1))

# ---- text: what may not be called or written, and the length of lines and functions ----

awk -v columns=$LINES -v longest=$FUNCTION '
function say(line, text) { print FILENAME ":" line ": " text }
function code_of(text,   out, c, i, n) { # the line without comments, strings and character constants
    out = ""; n = length(text)
    for (i = 1; i <= n; i++) {
        c = substr(text, i, 1)
        if (comment) { if (c == "*" && substr(text, i + 1, 1) == "/") { comment = 0; i++ } }
        else if (quote != "") { if (c == "\\") i++; else if (c == quote) quote = "" }
        else if (c == "/" && substr(text, i + 1, 1) == "*") { comment = 1; i++; out = out " " }
        else if (c == "/" && substr(text, i + 1, 1) == "/") break
        else if (c == "\"" || c == "\047") { quote = c; out = out "0" }
        else out = out c
    }
    quote = ""
    return out
}
function calls(code, names) { return code ~ ("(^|[^A-Za-z0-9_.>])(" names ")[ ]*\\(") }
FNR == 1 {
    cplusplus = comment = 0; quote = ""; depth = 0; begin = 0; excused = 0; said = 0
    room = FILENAME; product = room ~ /^(src\/|dlm)/; sub(/.*\//, "", room); sub(/\.[ch]$/, "", room)
}
{
    width = $0; gsub(/[\200-\277]/, "", width)
    if (length(width) > columns) say(FNR, "longer than " columns " columns")
    if ($0 ~ /[ \t]$/) say(FNR, "blank at the end of the line")
    if ($0 ~ /\t/) say(FNR, "tab")
    if ($0 ~ /(^|[^A-Za-z])(TO[D]O|FIX[M]E)/) say(FNR, "unfinished: do it or leave it out")
    if ($0 ~ /\/\* long: /) excused = 1
    if ($0 ~ /^#if.*__cplusplus/) cplusplus = 1
    if ($0 ~ /^#(else|endif)/) cplusplus = 0
    code = cplusplus ? "" : code_of($0)
    if (product) {
        if (calls(code, "strcpy|strcat|sprintf|vsprintf|gets|atoi|atol|atoll|atof|strtok|alloca|strncpy|strncat|sscanf|rand|setjmp|longjmp"))
            say(FNR, "banned call")
        if (room != "mem" && calls(code, "malloc|calloc|realloc|free|aligned_alloc|posix_memalign|strdup|strndup"))
            say(FNR, "memory comes from mem.c")
        if (room != "cli" && room != "os" && calls(code, "exit|_exit|_Exit|quick_exit")) say(FNR, "only cli.c exits")
        if (room != "base" && calls(code, "abort|assert")) say(FNR, "use ASSERT")
    }
    if (depth == 0 && begin == 0 && code ~ /^[A-Za-z_]/ && code !~ /;[ ]*$/) begin = FNR
    before = depth
    opens = gsub(/\{/, "{", code); closes = gsub(/\}/, "}", code); depth += opens - closes
    if (depth == 0 && before + opens > 0) {
        if (product && begin && FNR - begin + 1 > longest && code !~ /;[ ]*$/ && !excused)
            say(begin, "function of " FNR - begin + 1 " lines: over " longest " it carries /* long: why */")
        begin = 0; excused = 0
    } else if (depth == 0 && code ~ /;[ ]*$/) begin = 0
}' $C_FILES >>"$found"
checks=$((checks + 1))

awk '/TO[D]O|FIX[M]E/ { print FILENAME ":" FNR ": unfinished: do it or leave it out" }
    /[ \t]$/ { print FILENAME ":" FNR ": blank at the end of the line" }' $SH_FILES $PY_FILES >>"$found"

for room in gguf json http utf8 tok safet spm tmpl; do
    [ ! -e src/$room.c ] || [ -e tests/fuzz/fuzz_$room.c ] ||
        echo "src/$room.c:1: reads bytes from outside, and has no tests/fuzz/fuzz_$room.c" >>"$found"
done

# ---- scripts ----

for sh in $SH_FILES; do
    sh -n "$sh" 2>>"$found" || :
    checks=$((checks + 1))
done
if command -v shellcheck >/dev/null 2>&1; then
    shellcheck -x -f gcc $SH_FILES >>"$found" || :
fi
if [ -n "$PY_FILES" ] && command -v python3 >/dev/null 2>&1; then
    python3 - $PY_FILES >>"$found" <<'X' || :
import sys
for path in sys.argv[1:]:
    try:
        compile(open(path, encoding="utf-8").read(), path, "exec", dont_inherit=True)
    except SyntaxError as e:
        print(f"{path}:{e.lineno}: {e.msg}")
X
    checks=$((checks + 1))
fi

bad=$(wc -l <"$found")
cat "$found"
[ "$bad" = 0 ] || { echo "lint: $checks passed, $bad failed" && exit 1; }
echo "lint: $checks passed, 0 failed"
