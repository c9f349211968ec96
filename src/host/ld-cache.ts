/**
 * The cache of glibc's loader, /etc/ld.so.cache: which file to load for a name. Format and order are those of glibc's
 * `sysdeps/generic/dl-cache.h`, `elf/dl-cache.c` and `elf/cache.c`. All numbers are little-endian; offsets count from the
 * header's begin:
 *
 *     header      "glibc-ld.so.cache1.1", entries, bytes of strings, byte order (1 byte), 3 unused,
 *                 offset of the extensions or 0, 12 unused
 *     entries     24 bytes each: flags, offset of the name, offset of the path, 4 unused, hwcap (8 bytes)
 *     strings     each ends with a NUL; a name may be the end of a path
 *     extensions  0xEAA42174, number of sections, and for each: tag, flags, offset, size; then the sections. Tag 1 is
 *                 glibc-hwcaps, offsets of strings, to which an entry's hwcap may point
 *
 * Before glibc 2.32 ldconfig wrote it behind a cache of an older format, "ld.so-1.7.0", with entries of 12 bytes; the
 * extensions and their sections, nothing else, then have their offsets from the file's begin. The loader looks for a name by halving, so entries are sorted, and takes the first of those of one name that fits it.
 */

const MAGIC = "glibc-ld.so.cache1.1";
const OLD_MAGIC = "ld.so-1.7.0";
const HEADER = 48;
const ENTRY = 24;
const OLD_HEADER = 16;
const OLD_ENTRY = 12;
const EXTENSIONS_MAGIC = 0xeaa42174;
const SECTION = 16;
const HWCAPS = 1;
/** glibc has two kinds. */
const MAX_SECTIONS = 16;
/** Bytes of the section of hwcaps, of a name and of a path: more is in no cache that ldconfig wrote. */
const MAX_HWCAPS = 64 << 10;
const MAX_NAME = 256;
const MAX_PATH = 4096;
/** Bytes of a cache, so that offsets have three. One of 5000 libraries has some 400 KiB. */
const MAX_SIZE = 8 << 20;
/** Of the byte order in the header. Before glibc 2.33 it was not written, and 0. */
const LITTLE_ENDIAN = 2;

/** A library as the loader finds it. */
export interface CachedLibrary {
  readonly path: string;
  /** What it is for: kind of library and processor (`cacheFlags`). */
  readonly flags: number;
}

/** Of a library for glibc; `undefined` for a processor that Sluice does not know. `machine` is ELF's `e_machine`. */
export function cacheFlags(machine: number, bits: 32 | 64): number | undefined {
  if (machine === 62 && bits === 64) return 0x0303;
  if (machine === 3 && bits === 32) return 0x0003;
  return machine === 183 && bits === 64 ? 0x0a03 : undefined;
}

/** The libraries that a cache names, each with the name that it is asked for; `undefined` where it is none. */
export function parseLdCache(text: string): (CachedLibrary & { readonly name: string })[] | undefined {
  const cache = open(text);
  if (cache === undefined || rebased(cache, 0, cache.count, 0) === undefined) return undefined;
  return Array.from({ length: cache.count }, (_, i) => {
    const at = HEADER + ENTRY * i;
    const flags = u32(cache.bytes, at);
    return { name: nameAt(cache, i), path: stringAt(cache.bytes, at + 8, MAX_PATH), flags };
  });
}

/**
 * A cache with libraries put first among those of their names, each under its file's name; everything else in it stays.
 * Earlier ones of `libraries` come before later ones. One that has them already is given as it is.
 *
 * @param text of one character a byte, as the result; "" for an empty cache
 * @returns `undefined` where `text` is no cache that the loader would take
 */
export function addToLdCache(text: string, libraries: readonly CachedLibrary[]): string | undefined {
  const cache = open(text === "" ? emptyCache() : text);
  if (cache === undefined) return undefined;
  const groups: Group[] = [];
  let searched = 0;
  for (const { name, libraries: wanted } of byName(libraries)) {
    const from = firstOf(cache, name, searched);
    let to = from;
    while (to < cache.count && compareNames(keyAt(cache, to), name) === 0) to++;
    searched = to;
    if (!wanted.every((library, i) => from + i < to && isSame(cache, from + i, library))) {
      groups.push({ from, to, libraries: wanted });
    }
  }
  return groups.length === 0 ? text : insert(cache, groups);
}

/** Libraries of one name, and which entries have that name. */
interface Group {
  readonly from: number;
  readonly to: number;
  readonly libraries: readonly CachedLibrary[];
}

interface Cache {
  /** From the header on. */
  readonly bytes: string;
  readonly count: number;
  /** Bytes before the header. */
  readonly start: number;
  /** Offset of the extensions, or 0. */
  readonly extensions: number;
  /** Of the entries that were looked at. */
  readonly keys: Map<number, Name>;
}

function open(text: string): Cache | undefined {
  let start = 0;
  if (text.slice(0, OLD_MAGIC.length) === OLD_MAGIC) {
    start = Math.ceil((OLD_HEADER + OLD_ENTRY * u32(text, OLD_HEADER - 4)) / 8) * 8;
  }
  const bytes = start === 0 ? text : text.slice(start);
  const count = u32(bytes, MAGIC.length);
  const order = bytes.charCodeAt(28) & 3;
  const extensions = u32(bytes, 32) === 0 ? 0 : u32(bytes, 32) - start;
  const isCache =
    bytes.slice(0, MAGIC.length) === MAGIC &&
    text.length <= MAX_SIZE &&
    HEADER + ENTRY * count <= bytes.length &&
    (order === 0 || order === LITTLE_ENDIAN);
  return isCache ? { bytes, count, start, extensions, keys: new Map() } : undefined;
}

function emptyCache(): string {
  return `${MAGIC}${"\0".repeat(8)}${String.fromCharCode(LITTLE_ENDIAN)}${"\0".repeat(19)}`;
}

/** By the name of their files, in the cache's order. */
function byName(libraries: readonly CachedLibrary[]): { name: Name; libraries: readonly CachedLibrary[] }[] {
  const groups = new Map<string, CachedLibrary[]>();
  for (const library of libraries) {
    const name = library.path.slice(library.path.lastIndexOf("/") + 1);
    const group = groups.get(name);
    if (group === undefined) groups.set(name, [library]);
    else group.push(library);
  }
  for (const group of groups.values()) if (group.length > 1) group.sort((a, b) => b.flags - a.flags);
  const named = [...groups].map(([name, group]) => ({ name: keyOf(name), libraries: group }));
  return named.sort((a, b) => compareNames(b.name, a.name));
}

/**
 * The number of the first entry, from `start` on, whose name does not sort before this one. It looks near the start
 * first, where it mostly is: a driver's names stand together.
 */
function firstOf(cache: Cache, name: Name, start: number): number {
  let low = start;
  let high = start;
  for (let step = 1; high < cache.count && isBefore(cache, high, name); step *= 2) {
    low = high + 1;
    high += step;
  }
  if (high > cache.count) high = cache.count;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (isBefore(cache, middle, name)) low = middle + 1;
    else high = middle;
  }
  return low;
}

function isBefore(cache: Cache, entry: number, name: Name): boolean {
  return compareNames(keyAt(cache, entry), name) > 0;
}

function keyAt(cache: Cache, entry: number): Name {
  let key = cache.keys.get(entry);
  if (key === undefined) {
    key = keyOf(nameAt(cache, entry));
    cache.keys.set(entry, key);
  }
  return key;
}

function isSame(cache: Cache, entry: number, library: CachedLibrary): boolean {
  const { bytes } = cache;
  const at = HEADER + ENTRY * entry;
  const path = u32(bytes, at + 8);
  return (
    u32(bytes, at) === library.flags &&
    bytes.slice(at + 16, at + ENTRY) === NO_HWCAP &&
    bytes.slice(path, path + library.path.length + 1) === `${library.path}\0`
  );
}

const NO_HWCAP = "\0".repeat(8);

/** The cache with each group's libraries at its place, for those of them that stand in it there. */
function insert(cache: Cache, groups: readonly Group[]): string | undefined {
  const { bytes } = cache;
  const isOurs = (group: Group, entry: number): boolean =>
    group.libraries.some((library) => isSame(cache, entry, library));
  let count = cache.count;
  let strings = "";
  for (const group of groups) {
    for (let i = group.from; i < group.to; i++) if (isOurs(group, i)) count--;
    count += group.libraries.length;
    for (const { path } of group.libraries) strings += `${path}\0`;
  }
  // The extensions are aligned to four bytes.
  strings += "\0".repeat((4 - (strings.length % 4)) % 4);
  const stringsAt = HEADER + ENTRY * count;
  const oldStringsAt = HEADER + ENTRY * cache.count;
  const moved = stringsAt + strings.length - oldStringsAt;

  const rest = extended(cache, moved);
  const parts: (string | undefined)[] = [];
  let copied = 0;
  let string = stringsAt;
  for (const group of groups) {
    parts.push(rebased(cache, copied, group.from, moved));
    for (const { path, flags } of group.libraries) {
      const name = string + path.lastIndexOf("/") + 1;
      parts.push(le(flags) + le(name) + le(string) + UNUSED + NO_HWCAP);
      string += path.length + 1;
    }
    for (let i = group.from; i < group.to; i++) if (!isOurs(group, i)) parts.push(rebased(cache, i, i + 1, moved));
    copied = group.to;
  }
  parts.push(rebased(cache, copied, cache.count, moved));
  if (rest === undefined || parts.includes(undefined)) return undefined;
  const extensions = cache.extensions === 0 ? 0 : cache.extensions + moved;
  return (
    MAGIC +
    le(count) +
    le(u32(bytes, 24) + strings.length) +
    bytes.slice(28, 32) +
    le(extensions) +
    bytes.slice(36, HEADER) +
    parts.join("") +
    strings +
    rest
  );
}

const UNUSED = "\0".repeat(4);

/**
 * Some of the entries, for strings that have moved; `undefined` where one is not in the file. Most of the time goes here,
 * so numbers are taken apart in place: none has a fourth byte (`MAX_SIZE`).
 */
function rebased({ bytes, count }: Cache, from: number, to: number, moved: number): string | undefined {
  const strings = HEADER + ENTRY * count;
  const end = HEADER + ENTRY * to;
  const entries: string[] = []; // a text that grows would be copied again and again
  for (let at = HEADER + ENTRY * from; at < end; at += ENTRY) {
    const name = bytes.charCodeAt(at + 4) + (bytes.charCodeAt(at + 5) << 8) + (bytes.charCodeAt(at + 6) << 16);
    const path = bytes.charCodeAt(at + 8) + (bytes.charCodeAt(at + 9) << 8) + (bytes.charCodeAt(at + 10) << 16);
    if (bytes.charCodeAt(at + 7) !== 0 || bytes.charCodeAt(at + 11) !== 0) return undefined;
    if (name < strings || path < strings || name >= bytes.length || path >= bytes.length) return undefined;
    const n = name + moved;
    const p = path + moved;
    const numbers = String.fromCharCode(n & 0xff, (n >> 8) & 0xff, n >> 16, 0, p & 0xff, (p >> 8) & 0xff, p >> 16, 0);
    entries.push(bytes.slice(at, at + 4) + numbers + bytes.slice(at + 12, at + ENTRY));
  }
  return entries.join("");
}

/** What is behind the entries, for a place that has moved; `undefined` where the extensions are none. */
function extended({ bytes, count, start, extensions }: Cache, moved: number): string | undefined {
  const strings = HEADER + ENTRY * count;
  if (extensions === 0) return bytes.slice(strings);
  const sections = u32(bytes, extensions + 4);
  const isOne = extensions >= strings && u32(bytes, extensions) === EXTENSIONS_MAGIC && sections <= MAX_SECTIONS;
  if (!isOne || extensions + 8 + SECTION * sections > bytes.length) return undefined;
  let text = bytes;
  const replace = (at: number, by: string): void => {
    text = text.slice(0, at) + by + text.slice(at + by.length);
  };
  for (let at = extensions + 8; at < extensions + 8 + SECTION * sections; at += SECTION) {
    const offset = u32(bytes, at + 8) - start;
    const size = u32(bytes, at + 12);
    if (offset < strings || offset + size > bytes.length) return undefined;
    replace(at + 8, le(offset + moved));
    if (u32(bytes, at) !== HWCAPS) continue;
    if (size > MAX_HWCAPS) return undefined;
    let names = "";
    for (let i = offset; i + 4 <= offset + size; i += 4) names += le(u32(bytes, i) + moved);
    replace(offset, names);
  }
  return text.slice(strings);
}

function nameAt({ bytes }: Cache, entry: number): string {
  return stringAt(bytes, HEADER + ENTRY * entry + 4, MAX_NAME);
}

/** The string to which the number at a place points, as far as it is looked at. */
function stringAt(bytes: string, at: number, max: number): string {
  const start = u32(bytes, at);
  const text = bytes.slice(start, start + max);
  const end = text.indexOf("\0");
  return end < 0 ? text : text.slice(0, end);
}

/** NaN, which no comparison takes, where the text ends before. */
function u32(bytes: string, at: number): number {
  return (
    bytes.charCodeAt(at) +
    bytes.charCodeAt(at + 1) * 0x100 +
    bytes.charCodeAt(at + 2) * 0x10000 +
    bytes.charCodeAt(at + 3) * 0x1000000
  );
}

function le(value: number): string {
  return String.fromCharCode(value & 0xff, (value >>> 8) & 0xff, (value >>> 16) & 0xff, value >>> 24);
}

/** A name, ready to be compared. */
interface Name {
  /** What is before the first digit, and where there is one, a character that sorts behind all others. */
  readonly start: string;
  /** From the first digit on. */
  readonly rest: string;
}

function keyOf(name: string): Name {
  const end = name.length;
  for (let at = 0; at < end; at++) {
    const code = name.charCodeAt(at);
    if (code < 0x3a && code > 0x2f) return { start: `${name.slice(0, at)}\uffff`, rest: name.slice(at) };
  }
  return { start: name, rest: "" };
}

/**
 * The order of names in the cache (`_dl_cache_libcmp`), of which the greatest comes first: digits by their number and
 * behind everything else, the rest by its bytes.
 */
function compareNames(a: Name, b: Name): number {
  if (a.start !== b.start) return a.start < b.start ? -1 : 1;
  return a.rest === b.rest ? 0 : compareRests(a.rest, b.rest);
}

function compareRests(a: string, b: string): number {
  let i = 0;
  let j = 0;
  for (;;) {
    // Behind a text's end is NaN, which here is 0, as in C.
    const x = a.charCodeAt(i) || 0;
    const y = b.charCodeAt(j) || 0;
    if (isDigit(x) && isDigit(y)) {
      const p = digitsEnd(a, i);
      const q = digitsEnd(b, j);
      const m = Number(a.slice(i, p));
      const n = Number(b.slice(j, q));
      if (m !== n) return m < n ? -1 : 1;
      i = p;
      j = q;
    } else if (x !== y) {
      return isDigit(x) ? 1 : isDigit(y) ? -1 : x - y;
    } else if (x === 0) {
      return 0;
    } else {
      i++;
      j++;
    }
  }
}

function isDigit(code: number): boolean {
  return code >= 0x30 && code <= 0x39;
}

function digitsEnd(text: string, start: number): number {
  let at = start;
  while (isDigit(text.charCodeAt(at))) at++;
  return at;
}
