#!/usr/bin/env python3
"""Writes src/utf8_tables.h: the general category of every code point, as a three-stage table, and what
Unicode's normalization form C needs.

    pip install unicodedata2==16.0.0 && python3 tools/mktables.py > src/utf8_tables.h

The version is that of the reference tokenizers: the regular expressions of the `tokenizers` package
0.23.3 (Oniguruma) classify every code point by Unicode 16.0.0, and so must we. Python's own
unicodedata lags behind, hence the backport package of the same interface.
"""
import sys

import unicodedata2 as ucd

UNICODE = "16.0.0"
N_CODE_POINTS = 0x110000

# The order is that of the enum in src/utf8.c. "Cw" is ours: the control characters that are White_Space;
# with it every class a pre-tokenizer asks for is a set of categories.
CATEGORIES = ("Cn Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So "
              "Zs Zl Zp Cc Cf Cs Co Cw").split()
WHITE_SPACE_CONTROLS = set(range(0x09, 0x0E)) | {0x85}


def category(cp):
    return CATEGORIES.index("Cw" if cp in WHITE_SPACE_CONTROLS else ucd.category(chr(cp)))


def stage(values, shift):
    """The distinct blocks of 2**shift values in order of appearance, and the block of each index."""
    blocks, index = {}, []
    for at in range(0, len(values), 1 << shift):
        block = tuple(values[at:at + (1 << shift)])
        index.append(blocks.setdefault(block, len(blocks)))
    return [v for block in blocks for v in block], index


def three_stages(values, low, middle):
    """Leaves of 2**low values, runs of 2**middle leaf numbers, and the run of each index; and the bytes."""
    leaves, numbers = stage(values, low)
    runs, top = stage(numbers, middle)
    return leaves, runs, top, len(leaves) + 2 * len(runs) + len(top)


# ---- normalization form C ----

def decomposition(cp):
    """The canonical decomposition: [], [one] or [first, second]. Hangul's is arithmetic, and not in here."""
    parts = ucd.decomposition(chr(cp)).split()
    return [int(p, 16) for p in parts] if parts and not parts[0].startswith("<") else []


def composes(cp):
    return ucd.normalize("NFC", chr(cp)) == chr(cp)


def pairs(plane):
    """The pairs of one plane, by second and first code point: those that compose, then the others."""
    rows = []
    for cp in range(plane << 16, (plane + 1) << 16):
        d = decomposition(cp)
        if len(d) == 2:
            far = plane << 16 if plane == 0 or d[1] > 0x1000 else 0  # plane 1 has seconds in plane 0 ...
            assert d[0] >> 16 == plane and d[1] >> 16 == far >> 16 and not decomposition(d[1])
            assert plane == 0 or d[1] < 0x1000 or d[1] & 0xFFFF >= 0x1000  # ... known by their low bits
            rows.append((not composes(cp), d[1], d[0], cp))
    return sorted(rows)


def pair_tables(plane):
    rows, name = pairs(plane), f"utf8_pair{plane}"
    groups = sorted({r[:2] for r in rows})
    start = [next(i for i, r in enumerate(rows) if r[:2] == g) for g in groups] + [len(rows)]
    low = [[c & 0xFFFF for c in (r[2], r[3])] for r in rows]
    by_whole = sorted(range(len(rows)), key=lambda i: low[i][1])
    n_composing = sum(not g[0] for g in groups)
    size = 6 * len(rows) + 4 * len(groups) + 2
    text = (f"#define UTF8_PAIR{plane}_COMPOSING {n_composing}u\n"
            + array(name + "_second", [g[1] & 0xFFFF for g in groups], "short")
            + array(name + "_start", start, "short")
            + array(name + "_first", [r[0] for r in low], "short")
            + array(name + "_whole", [r[1] for r in low], "short")
            + array(name + "_by_whole", by_whole, "short"))
    return text, size


def runs_of(rows):
    """[(first, n, ...)] of consecutive code points that agree in what follows them in their row."""
    out = []
    for cp, *rest in rows:
        if out and out[-1][0] + out[-1][1] == cp and out[-1][2:] == rest and out[-1][1] < 255:
            out[-1][1] += 1
        else:
            out.append([cp, 1, *rest])
    return out


def single_tables():
    """What becomes one other code point: runs of consecutive ones, and what each becomes."""
    rows = [(cp, d[0]) for cp in range(N_CODE_POINTS) for d in [decomposition(cp)] if len(d) == 1]
    assert {d >> 16 for _, d in rows} == {0, 2} and all(not decomposition(d) or len(decomposition(d)) == 2
                                                        for _, d in rows)
    found = runs_of([(cp,) for cp, _ in rows])
    bits = [sum((rows[i + k][1] >> 17 & 1) << k for k in range(8) if i + k < len(rows))
            for i in range(0, len(rows), 8)]
    text = (array("utf8_single_run", [r[0] for r in found], "int")
            + array("utf8_single_n", [r[1] for r in found])
            + array("utf8_single_to", [d & 0xFFFF for _, d in rows], "short")
            + array("utf8_single_far", bits))
    return text, 5 * len(found) + 2 * len(rows) + len(bits)


def class_tables(plane):
    """The canonical combining classes that are not 0."""
    found = runs_of([(cp & 0xFFFF, c) for cp in range(plane << 16, (plane + 1) << 16)
                     for c in [ucd.combining(chr(cp))] if c])
    name = f"utf8_ccc{plane}"
    text = (array(name + "_run", [r[0] for r in found], "short") + array(name + "_n", [r[1] for r in found])
            + array(name + "_class", [r[2] for r in found]))
    return text, 4 * len(found)


def normalization():
    assert not any(ucd.combining(chr(cp)) for cp in range(0x20000, N_CODE_POINTS))
    parts = [pair_tables(0), pair_tables(1), single_tables(), class_tables(0), class_tables(1)]
    size = sum(p[1] for p in parts)
    return f"""\
/* Normalization form C, {size} bytes. A pair is two code points and what they are as one, by second and
 * first; the seconds from ..._COMPOSING on belong to pairs that come apart and stay so. The tables of
 * plane 1 hold low 16 bits; a second below U+1000 is in plane 0. A single becomes one other code point,
 * in plane 2 where its bit in utf8_single_far says so. */
""" + "".join(p[0] for p in parts)


# ---- the header ----

def array(name, values, kind="char"):
    lines, line = [], "   "
    for v in values:
        if len(line) + len(str(v)) + 2 > 100:
            lines.append(line)
            line = "   "
        line += f" {v},"
    lines.append(line)
    body = "\n".join(lines)
    return f"static const unsigned {kind} {name}[{len(values)}] = {{\n{body}\n}};\n"


def main():
    if ucd.unidata_version != UNICODE:
        sys.exit(f"mktables: Unicode {ucd.unidata_version} found, {UNICODE} wanted")
    values = [category(cp) for cp in range(N_CODE_POINTS)]
    # The smallest table; runs are numbered by bytes, leaves by 16 bits.
    size, low, middle = min((t[3], lo, mid) for lo in range(3, 8) for mid in range(3, 8)
                            for t in [three_stages(values, lo, mid)] if max(t[2]) < 256)
    leaves, runs, top, _ = three_stages(values, low, middle)
    print(f"""\
/* utf8_tables.h - the general category of every code point, and normalization form C. Written by
 * tools/mktables.py; do not edit.
 * Unicode {UNICODE}. Categories: {size} bytes, in three stages: a leaf holds {1 << low} categories, a run {1 << middle} leaves. */
#ifndef DLM_UTF8_TABLES_H
#define DLM_UTF8_TABLES_H

#define UTF8_UNICODE_VERSION "{UNICODE}"
#define UTF8_LEAF_SHIFT {low}
#define UTF8_RUN_SHIFT {middle}

{array("utf8_table_top", top)}
{array("utf8_table_runs", runs, "short")}
{array("utf8_table_leaves", leaves)}
{normalization()}
#endif""")


if __name__ == "__main__":
    main()
