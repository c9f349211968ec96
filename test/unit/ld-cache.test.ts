import assert from "node:assert/strict";
import { test } from "node:test";
import { addToLdCache as add, type CachedLibrary, cacheFlags, parseLdCache } from "../../src/host/ld-cache.ts";
import { sys } from "../../src/sys/node.ts";
import { ldCache } from "../fixtures/hosts/elf.ts";
import { random } from "../support/random.ts";

const X86_64 = 0x0303;
const I386 = 0x0003;
const LIB = "/usr/lib/x86_64-linux-gnu";
const ours = (...names: string[]) => names.map((name) => ({ path: `${LIB}/${name}`, flags: X86_64 }));

function le(...values: number[]): string {
  return values.map((v) => String.fromCharCode(v & 255, (v >> 8) & 255, (v >> 16) & 255, v >>> 24)).join("");
}

/** What is tested; in the executable's engine also with the faster ways of its C module, which must give the same. */
function addToLdCache(text: string, libraries: readonly CachedLibrary[]): string | undefined {
  const added = add(text, libraries);
  assert.equal(add(text, libraries, sys.addCached), added);
  return added;
}

/** The names and paths of a cache, in its order. */
function listed(cache: string | undefined): string[] {
  return (parseLdCache(cache ?? "") ?? []).map(({ name, path }) => `${name} ${path}`);
}

const IMAGE = ldCache([
  { name: "libc.so.6", path: "/lib/x86_64-linux-gnu/libc.so.6", machine: "x86_64" },
  { name: "libcuda.so.1", path: "/opt/stubs/libcuda.so.1", machine: "x86_64" },
  { name: "libm.so.6", path: "/lib/x86_64-linux-gnu/libm.so.6", machine: "x86_64" },
  { name: "libz.so.1", path: "/lib/x86_64-linux-gnu/libz.so.1", machine: "x86_64" },
  { name: "libz.so.1", path: "/lib/i386-linux-gnu/libz.so.1", machine: "i386" },
]);

/** The same cache with an extension section: a generator, and two glibc-hwcaps of which the first library has one. */
function withExtensions(cache: string): string {
  const generator = "ldconfig (test)";
  const names = `${cache}hw-v3\0hw-v2\0`.padEnd(Math.ceil((cache.length + 12) / 4) * 4, "\0");
  const at = names.length;
  const sections = [
    [0, 0, at + 40 + 8, generator.length],
    [1, 0, at + 40, 8],
  ].map((section) => le(...section));
  const hwcaps = le(cache.length, cache.length + 6);
  const text = names + le(0xeaa42174, 2) + sections.join("") + hwcaps + generator;
  const entry = 48;
  const hwcap = le(1, 1 << 30); // the second name, as bit 62 says
  return text.slice(0, 32) + le(at) + text.slice(36, entry + 16) + hwcap + text.slice(entry + 24);
}

test("libraries come first among those of their names, and everything else stays in its order", () => {
  const cache = addToLdCache(IMAGE, ours("libcuda.so.1", "libnvidia-ml.so.1", "libaaa.so.1", "libzz.so.1"));
  assert.deepEqual(listed(cache), [
    `libzz.so.1 ${LIB}/libzz.so.1`,
    "libz.so.1 /lib/x86_64-linux-gnu/libz.so.1",
    "libz.so.1 /lib/i386-linux-gnu/libz.so.1",
    `libnvidia-ml.so.1 ${LIB}/libnvidia-ml.so.1`,
    "libm.so.6 /lib/x86_64-linux-gnu/libm.so.6",
    `libcuda.so.1 ${LIB}/libcuda.so.1`,
    "libcuda.so.1 /opt/stubs/libcuda.so.1",
    "libc.so.6 /lib/x86_64-linux-gnu/libc.so.6",
    `libaaa.so.1 ${LIB}/libaaa.so.1`,
  ]);
});

test("a cache that has the libraries where they belong is given as it is", () => {
  const libraries = [...ours("libcuda.so.1", "libm.so.6", "libb.so"), { path: "/lib32/libcuda.so.1", flags: I386 }];
  const once = addToLdCache(IMAGE, libraries) ?? "";
  assert.notEqual(once, IMAGE);
  assert.equal(addToLdCache(once, libraries), once);
  assert.equal(addToLdCache(IMAGE, []), IMAGE);
});

test("a library that stands behind another one of its name moves to the front, and stands there once", () => {
  const [cuda] = ours("libcuda.so.1");
  const compat = { path: "/usr/local/cuda/compat/libcuda.so.1", flags: X86_64 };
  const first = addToLdCache(IMAGE, cuda === undefined ? [] : [cuda]);
  const both = addToLdCache(first ?? "", cuda === undefined ? [] : [compat, cuda]);
  const cudas = listed(both).filter((line) => line.startsWith("libcuda"));
  assert.deepEqual(cudas, [
    `libcuda.so.1 ${compat.path}`,
    `libcuda.so.1 ${LIB}/libcuda.so.1`,
    "libcuda.so.1 /opt/stubs/libcuda.so.1",
  ]);
  assert.equal(listed(both).length, listed(IMAGE).length + 2);
});

test("of one name the 64-bit library comes before the 32-bit one, and each processor has its flags", () => {
  const libraries = [{ path: "/usr/lib/i386-linux-gnu/libcuda.so.1", flags: I386 }, ...ours("libcuda.so.1")];
  assert.deepEqual(
    (parseLdCache(addToLdCache("", libraries) ?? "") ?? []).map(({ path, flags }) => [path, flags]),
    [
      [`${LIB}/libcuda.so.1`, X86_64],
      ["/usr/lib/i386-linux-gnu/libcuda.so.1", I386],
    ],
  );
  assert.deepEqual(
    [cacheFlags(62, 64), cacheFlags(3, 32), cacheFlags(183, 64), cacheFlags(62, 32), cacheFlags(243, 64)],
    [0x303, 3, 0xa03, undefined, undefined],
  );
});

test("names are sorted as glibc sorts them: numbers by their value, digits behind letters, the greatest first", () => {
  const sorted = [
    "libx.so.10",
    "libx.so.9",
    "libx.so.2.10",
    "libx.so.2.9",
    "libx.so.2",
    "libx.so.",
    "libx.so",
    "libx-a.so",
  ];
  const more = ["lib10.so", "lib9.so", "lib1a.so", "lib1.so", "liba.so", "libA.so", "lib_.so"];
  const names = [...more.slice(0, 4), ...sorted, ...more.slice(4)];
  const order = ["lib10.so", "lib9.so", "lib1a.so", "lib1.so", ...sorted, "liba.so", "lib_.so", "libA.so"];
  for (const rotated of [names, [...names].reverse(), [...names.slice(5), ...names.slice(0, 5)]]) {
    assert.deepEqual(
      (parseLdCache(addToLdCache("", ours(...rotated)) ?? "") ?? []).map(({ name }) => name),
      order,
    );
  }
});

test("a number sorts by all its digits, however many, and zeros before it do not count", () => {
  const names = [
    "lib.so.9007199254740993",
    "lib.so.9007199254740992",
    "lib.so.010",
    "lib.so.9",
    "lib.so.0",
    "lib.so.x",
  ];
  const cache = addToLdCache(addToLdCache("", ours(...names)) ?? "", ours("lib.so.10")) ?? "";
  assert.deepEqual(
    (parseLdCache(cache) ?? []).map(({ name }) => name),
    [...names.slice(0, 2), "lib.so.10", ...names.slice(2)],
  );
});

test("the extensions stay, with their strings and the hwcap of an entry", () => {
  const image = withExtensions(IMAGE);
  const cache = addToLdCache(image, ours("libcuda.so.1", "libnvidia-ml.so.1")) ?? "";
  const u32 = (at: number) => [0, 1, 2, 3].reduce((sum, i) => sum + cache.charCodeAt(at + i) * 2 ** (8 * i), 0);
  const at = u32(32);
  assert.equal(at % 4, 0);
  assert.deepEqual([u32(at), u32(at + 4), u32(at + 8), u32(at + 24)], [0xeaa42174, 2, 0, 1]);
  assert.equal(cache.slice(u32(at + 16), u32(at + 16) + u32(at + 20)), "ldconfig (test)");
  const hwcaps = u32(at + 32);
  assert.deepEqual(
    [0, 4].map((i) => cache.slice(u32(hwcaps + i), u32(hwcaps + i) + 6)),
    ["hw-v3\0", "hw-v2\0"],
  );
  const first = parseLdCache(image)?.[0];
  const place = (parseLdCache(cache) ?? []).findIndex(({ name, path }) => name === first?.name && path === first.path);
  assert.equal(cache.slice(48 + 24 * place + 16, 48 + 24 * place + 24), le(1, 1 << 30));
});

test("a cache behind one of the older format is read, and written without that", () => {
  const old = `ld.so-1.7.0\0${le(3)}${"\0".repeat(36)}`.padEnd(56, "\0");
  assert.deepEqual(listed(old + IMAGE), listed(IMAGE));
  assert.equal(addToLdCache(old + IMAGE, ours("libcuda.so.1")), addToLdCache(IMAGE, ours("libcuda.so.1")));
  const image = withExtensions(IMAGE);
  const at = image.length - 15 - 8 - 40;
  // There the places of the extensions and of their sections count from the file's begin.
  const moved = [32, at + 16, at + 32].reduce((text, place) => {
    const value = text.charCodeAt(place) + (text.charCodeAt(place + 1) << 8) + old.length;
    return text.slice(0, place) + le(value) + text.slice(place + 4);
  }, image);
  assert.equal(addToLdCache(old + moved, ours("libcuda.so.1")), addToLdCache(image, ours("libcuda.so.1")));
});

test("what is no cache is not taken for one", () => {
  const patched = (at: number, bytes: string) => IMAGE.slice(0, at) + bytes + IMAGE.slice(at + bytes.length);
  const extended = withExtensions(IMAGE);
  const extensions = extended.length - 15 - 8 - 40;
  const damaged: [what: string, text: string][] = [
    ["text", "not a cache"],
    ["cut in its header", IMAGE.slice(0, 40)],
    ["cut in its entries", IMAGE.slice(0, 100)],
    ["of another version", patched(17, "1.0")],
    ["big-endian", patched(28, "\x03")],
    ["with more entries than bytes", patched(20, le(0x7fffffff))],
    ["with a name beyond its end", patched(52, le(1 << 20))],
    ["with a path beyond 2^31", patched(56, le(-1))],
    ["with a name in its entries", patched(52, le(50))],
    ["with extensions beyond its end", patched(32, le(1 << 20))],
    ["with extensions that are none", patched(32, le(48 + 24 * 5))],
    [
      "with a section beyond its end",
      extended.slice(0, extensions + 16) + le(1 << 20) + extended.slice(extensions + 20),
    ],
    ["with too many sections", extended.slice(0, extensions + 4) + le(1000) + extended.slice(extensions + 8)],
    ["of the older format alone", `ld.so-1.7.0\0${le(1)}${"\0".repeat(12)}`],
    ["with an older one without end", `ld.so-1.7.0\0${le(-1)}${IMAGE}`],
  ];
  for (const [what, text] of damaged) assert.equal(addToLdCache(text, ours("libcuda.so.1")), undefined, what);
});

test("whatever is in a damaged cache, adding to it ends, and gives a cache or nothing", () => {
  const seed = 20_261_124;
  const chance = random(seed);
  const next = (below: number): number => Math.floor(chance() * below);
  const base = withExtensions(IMAGE);
  const libraries = ours("libcuda.so.1", "libnvidia-ml.so.1", "libz.so.1");
  for (let i = 0; i < 2000; i++) {
    let text = base;
    for (let k = next(4); k >= 0; k--) {
      const at = next(text.length);
      text = text.slice(0, at) + String.fromCharCode(next(3) === 0 ? 255 : next(256)) + text.slice(at + 1);
    }
    const cache = addToLdCache(text, libraries);
    if (cache !== undefined) assert.ok(parseLdCache(cache) !== undefined, `seed ${seed}, round ${i}`);
  }
});
