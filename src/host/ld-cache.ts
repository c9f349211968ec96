import type { Added, Sys } from "../sys/sys.ts";

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
/** Bytes of a cache. One of 5000 libraries has some 400 KiB. */
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
  if (cache === undefined || movedEntries(cache.bytes, cache.count, 0) === undefined) return undefined;
  return Array.from({ length: cache.count }, (_, i) => {
    const at = HEADER + ENTRY * i;
    const flags = u32(cache.bytes, at);
    return { name: nameAt(cache.bytes, i), path: stringAt(cache.bytes, at + 8, MAX_PATH), flags };
  });
}

/**
 * A cache with libraries put first among those of their names, each under its file's name; everything else in it stays.
 * Earlier ones of `libraries` come before later ones. One that has them already is given as it is.
 *
 * @param text of one character a byte, as the result; "" for an empty cache
 * @param add a faster way than ours to do what would take most of the time
 * @returns `undefined` where `text` is no cache that the loader would take
 */
export function addToLdCache(
  text: string,
  libraries: readonly CachedLibrary[],
  add: Required<Sys>["addCached"] = addCached,
): string | undefined {
  const cache = open(text === "" ? emptyCache() : text);
  const added = cache && add(cache.bytes, cache.count, libraries);
  if (cache === undefined || added === undefined || added.strings === 0) return added && text;
  const { bytes } = cache;
  const moved = ENTRY * (added.count - cache.count) + added.strings;
  const rest = extended(cache, moved);
  if (rest === undefined) return undefined;
  const extensions = cache.extensions === 0 ? 0 : cache.extensions + moved;
  // In one step, since each would copy all.
  return [
    MAGIC,
    le(added.count),
    le(u32(bytes, 24) + added.strings),
    bytes.slice(28, 32),
    le(extensions),
    bytes.slice(36, HEADER),
    added.text,
    rest,
  ].join("");
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
  if (!isCache) return undefined;
  return { bytes, count, start, extensions };
}

function emptyCache(): string {
  return `${MAGIC}${"\0".repeat(8)}${String.fromCharCode(LITTLE_ENDIAN)}${"\0".repeat(19)}`;
}

/** `Sys.addCached`. */
function addCached(bytes: string, count: number, libraries: readonly CachedLibrary[]): Added | undefined {
  const keys = new Map<number, string>(); // of the entries that were looked at
  const keyAt = (entry: number): string => {
    const key = keys.get(entry) ?? cacheKey(nameAt(bytes, entry));
    keys.set(entry, key);
    return key;
  };
  const groups: Group[] = [];
  let searched = 0;
  for (const [key, wanted] of byName(libraries)) {
    const from = firstOf(keyAt, count, key, searched);
    let to = from;
    while (to < count && keyAt(to) === key) to++;
    searched = to;
    if (!wanted.every((library, i) => from + i < to && isSame(bytes, from + i, library))) {
      groups.push({ from, to, libraries: wanted });
    }
  }
  return groups.length === 0 ? { count, strings: 0, text: "" } : insert(bytes, count, groups);
}

/** By the name of their files, in the cache's order. */
function byName(libraries: readonly CachedLibrary[]): Map<string, readonly CachedLibrary[]> {
  const groups = new Map<string, CachedLibrary[]>();
  for (const library of libraries) {
    const key = cacheKey(library.path.slice(library.path.lastIndexOf("/") + 1));
    groups.set(key, [...(groups.get(key) ?? []), library]);
  }
  for (const group of groups.values()) group.sort((a, b) => b.flags - a.flags);
  const keys = [...groups.keys()].sort().reverse();
  return new Map(keys.map((key) => [key, groups.get(key) ?? []]));
}

/**
 * The number of the first entry, from `start` on, whose name does not sort before this one. It looks near the start
 * first, where it mostly is: a driver's names stand together.
 */
function firstOf(keyAt: (entry: number) => string, count: number, key: string, start: number): number {
  let low = start;
  let high = start;
  for (let step = 1; high < count && keyAt(high) > key; step *= 2) {
    low = high + 1;
    high += step;
  }
  if (high > count) high = count;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (keyAt(middle) > key) low = middle + 1;
    else high = middle;
  }
  return low;
}

function isSame(bytes: string, entry: number, library: CachedLibrary): boolean {
  const at = HEADER + ENTRY * entry;
  const path = u32(bytes, at + 8);
  return (
    u32(bytes, at) === library.flags &&
    bytes.slice(at + 16, at + ENTRY) === NO_HWCAP &&
    bytes.slice(path, path + library.path.length + 1) === `${library.path}\0`
  );
}

const NO_HWCAP = "\0".repeat(8);

/** The entries with each group's libraries at its place, for those of them that stand in it there. */
function insert(bytes: string, oldCount: number, groups: readonly Group[]): Added | undefined {
  const isOurs = (libraries: Group["libraries"], entry: number): boolean =>
    libraries.some((library) => isSame(bytes, entry, library));
  let count = oldCount;
  const paths: string[] = [];
  for (const { from, to, libraries } of groups) {
    for (let i = from; i < to; i++) if (isOurs(libraries, i)) count--;
    count += libraries.length;
    for (const { path } of libraries) paths.push(path);
  }
  let strings = `${paths.join("\0")}\0`;
  // The extensions are aligned to four bytes.
  strings += "\0".repeat((4 - (strings.length % 4)) % 4);
  const entries = movedEntries(bytes, oldCount, ENTRY * (count - oldCount) + strings.length);
  if (entries === undefined) return undefined;
  const parts: string[] = [];
  let copied = 0;
  let string = HEADER + ENTRY * count;
  for (const group of groups) {
    parts.push(entries.slice(ENTRY * copied, ENTRY * group.from));
    for (const { path, flags } of group.libraries) {
      parts.push(le(flags), le(string + path.lastIndexOf("/") + 1), le(string), "\0".repeat(4), NO_HWCAP);
      string += path.length + 1;
    }
    for (let i = group.from; i < group.to; i++) {
      if (!isOurs(group.libraries, i)) parts.push(entries.slice(ENTRY * i, ENTRY * (i + 1)));
    }
    copied = group.to;
  }
  parts.push(entries.slice(ENTRY * copied));
  return { count, strings: strings.length, text: parts.join("") + strings };
}

/** The entries, for strings that have moved; `undefined` where one's are not behind all entries. */
function movedEntries(bytes: string, count: number, moved: number): string | undefined {
  const [low, high] = [HEADER + ENTRY * count, bytes.length];
  const parts: string[] = [];
  for (let at = HEADER; at < low; at += ENTRY) {
    const [name, path] = [u32(bytes, at + 4), u32(bytes, at + 8)];
    if (name < low || path < low || name >= high || path >= high) return undefined;
    parts.push(bytes.slice(at, at + 4) + le(name + moved) + le(path + moved) + bytes.slice(at + 12, at + ENTRY));
  }
  return parts.join("");
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

function nameAt(bytes: string, entry: number): string {
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

/**
 * A text that sorts by its characters as a name does in the cache (`_dl_cache_libcmp`), where the greatest comes first:
 * digits by their number and behind everything else, the rest by its bytes. So a number is one character, behind all
 * bytes and greater for more digits, and then its digits.
 */
function cacheKey(name: string): string {
  let key = "";
  let copied = 0;
  for (let at = 0; at < name.length; at++) {
    if (!isDigit(name.charCodeAt(at))) continue;
    let first = at;
    while (isDigit(name.charCodeAt(at))) at++;
    key += name.slice(copied, first);
    while (first < at && name.charCodeAt(first) === 0x30) first++;
    key += String.fromCharCode(0x8000 + Math.min(at - first, MAX_DIGITS));
    copied = first;
  }
  return key === "" ? name : key + name.slice(copied);
}

/** More would need another form of the first character; no name of a file has so many. */
const MAX_DIGITS = 0xfff;

function isDigit(code: number): boolean {
  return code < 0x3a && code > 0x2f;
}
