/**
 * Writing a changed JSON file without re-serialising it.
 *
 * A config.json is parsed only to be looked at. The changed tree shares every untouched part with the parsed one, and
 * the new file is the old text with the differences patched in. So whatever was not touched keeps its exact bytes:
 * white space, key order, the spelling of numbers (integers beyond 2^53 included), escapes and unknown fields.
 */

import { quote, SluiceError } from "../sys/error.ts";

/** New elements of an array, in the place of one: their JSON, parted by commas, written in one line as it stands. */
export class Elements {
  readonly text: string;

  constructor(text: string) {
    this.text = text;
  }
}

type Members = Record<string, unknown>;

/** Faster ways than ours to find places in a JSON text, of which only little changes (`Sys`). */
export interface JsonPlaces {
  /** Where the value that starts at `start` ends, behind its last character; below 0 where it cannot tell. */
  jsonEnd?(text: string, start: number): number;
  /** `partsOf`; `undefined` where it cannot tell. */
  jsonParts?(text: string, start: number): readonly number[] | undefined;
}

interface Patch {
  readonly text: string;
  readonly places: JsonPlaces | undefined;
  /** The new text so far: it stands for the old text up to `done`. */
  readonly pieces: string[];
  done: number;
}

/**
 * `text` with the differences between `before` and `after` applied. `before` is `JSON.parse(text)`; `after` shares
 * with it (`===`) all that is to stay. A member of `after` that is `undefined` is a member to remove; new members go to
 * the end of their object. An array element that is an element of `before` keeps its text wherever it moves to; one that
 * is added must be new, not built from parts of `before` whose numbers a double does not hold.
 *
 * @throws SluiceError `E_JSON_DUPLICATE_KEY` where an object that has to change holds a key twice (runtimes differ in
 * which one counts), `E_JSON_NUMBER` where a number cannot be written without changing its value: a new one beyond
 * 2^53, or one of several in an array that differ only beyond a double's precision, and the array was re-ordered.
 */
export function patchJson(text: string, before: unknown, after: unknown, places?: JsonPlaces): string {
  if (before === after) return text;
  const patch: Patch = { text, places, pieces: [], done: 0 };
  patchValue(patch, skipSpace(text, 0), text.length, before, after, "");
  return patch.pieces.join("") + text.slice(patch.done);
}

/** Replaces `text[start, end)`. Calls come in the order of the text. */
function replace(patch: Patch, start: number, end: number, replacement: string): void {
  patch.pieces.push(patch.text.slice(patch.done, start), replacement);
  patch.done = end;
}

/** Patches the value at `text[start, end)`; only of one that is no object or array, `end` must be right. */
function patchValue(patch: Patch, start: number, end: number, before: unknown, after: unknown, pointer: string): void {
  const objects = isObject(before) && isObject(after);
  if (!objects && !(Array.isArray(before) && Array.isArray(after))) {
    replace(patch, start, end, write(after, pointer));
    return;
  }
  if (patch.text.charCodeAt(start) !== (objects ? OPEN_OBJECT : OPEN_ARRAY)) refuseDuplicate(pointer);
  if (objects) patchObject(patch, start, before, after, pointer);
  else patchArray(patch, start, before as unknown[], after as unknown[], pointer);
}

function patchObject(patch: Patch, start: number, before: Members, after: Members, pointer: string): void {
  const { text } = patch;
  const parts = partsOf(patch, start, before);
  const seen = new Set<string>();
  /** Where the first member starts, if no member before the current one stays: what goes then is up to a kept one. */
  let cut = -1;
  let kept = false;
  /** The end of the previous member. */
  let last = start + 1;

  for (let i = 0; i + 3 < parts.length; i += 4) {
    const [at, keyEnd, valueStart, end] = [parts[i], parts[i + 1], parts[i + 2], parts[i + 3]] as Member;
    const key = unquote(text.slice(at, keyEnd));
    if (seen.has(key)) refuseDuplicate(`${pointer}/${escapePointer(key)}`);
    seen.add(key);
    // A member that `after` lacks must not be found in Object.prototype.
    const old = before[key];
    const value = Object.hasOwn(after, key) ? after[key] : undefined;
    if (value === undefined) {
      if (kept) replace(patch, last, end, "");
      else if (cut < 0) cut = at;
    } else {
      if (cut >= 0 && !kept) replace(patch, cut, at, "");
      kept = true;
      if (value !== old) patchValue(patch, valueStart, end, old, value, `${pointer}/${escapePointer(key)}`);
    }
    last = end;
  }

  // New members are laid out as the last one is: `{gap}"key"{colon}value`.
  const tail = parts.length - 5;
  const colon = tail < 0 ? ":" : text.slice(parts[tail + 1], parts[tail + 2]);
  const added = writeAdded(before, after, colon, pointer);
  if (added.length === 0 && !(cut >= 0 && !kept)) return;
  const gapStart = tail < 4 ? start + 1 : text.indexOf(",", parts[tail - 1]) + 1;
  const gap = tail < 0 ? "" : text.slice(gapStart, parts[tail]);
  if (cut >= 0 && !kept) replace(patch, cut, last, added.join(`,${gap}`));
  else replace(patch, last, last, (kept ? `,${gap}` : "") + added.join(`,${gap}`));
}

/** The members that only `after` has, as JSON. */
function writeAdded(before: Members, after: Members, colon: string, pointer: string): string[] {
  const added: string[] = [];
  for (const key of Object.keys(after)) {
    const value = after[key];
    if (value === undefined || Object.hasOwn(before, key)) continue;
    added.push(JSON.stringify(key) + colon + write(value, `${pointer}/${escapePointer(key)}`));
  }
  return added;
}

function patchArray(
  patch: Patch,
  start: number,
  before: readonly unknown[],
  after: readonly unknown[],
  pointer: string,
): void {
  const { text } = patch;
  const old = before.length;
  const parts = partsOf(patch, start, before);
  if (parts.length !== 2 * old + 1) refuseDuplicate(pointer);
  const startOf = (i: number) => parts[2 * i] as number;
  const endOf = (i: number) => parts[2 * i + 1] as number;
  const textOf = (i: number) => text.slice(startOf(i), endOf(i));
  const behind = `,${old > 0 ? text.slice(start + 1, startOf(0)) : ""}`;
  let same = 0;
  while (same < old && same < after.length && before[same] === after[same]) same++;

  // The common case, elements added at the end, needs no look at the old ones.
  if (same === old) {
    if (after.length === old) return;
    const last = old > 0 ? endOf(old - 1) : start + 1;
    replace(patch, last, last, (old > 0 ? behind : "") + writeElements(after.slice(old), behind));
    return;
  }

  const places = new Map<unknown, number>();
  /** Numbers that the text spells in more than one way: their elements look alike and need not be. */
  const ambiguous = new Set<unknown>();
  for (let i = 0; i < old; i++) {
    const value = before[i];
    if (typeof value === "number") {
      const twin = places.get(value);
      if (twin !== undefined && textOf(twin) !== textOf(i)) ambiguous.add(value);
    }
    places.set(value, i);
  }

  const staying = new Set(after);
  const added: string[] = [];
  /** New elements behind each other, not yet in `added`. */
  let run: unknown[] = [];
  for (let i = 0; i < after.length; i++) {
    const value = after[i];
    const current = before[i];
    if (i < old && value === current) continue;
    if (ambiguous.has(value) || ambiguous.has(current)) refuseNumber(`${pointer}/${i}`);
    const place = places.get(value);
    const moved = place === undefined ? undefined : textOf(place);
    if (i >= old) {
      if (moved === undefined) {
        run.push(value);
        continue;
      }
      if (run.length > 0) added.push(writeElements(run, behind));
      run = [];
      added.push(moved);
    } else if (moved === undefined && !(value instanceof Elements) && !staying.has(current)) {
      patchValue(patch, startOf(i), endOf(i), current, value, `${pointer}/${i}`);
    } else {
      const fresh = moved ?? (value instanceof Elements ? value.text : write(value, `${pointer}/${i}`));
      replace(patch, startOf(i), endOf(i), fresh);
    }
  }
  if (run.length > 0) added.push(writeElements(run, behind));
  const last = endOf(old - 1);
  if (after.length > old) {
    replace(patch, last, last, behind + added.join(behind));
  } else if (after.length < old) {
    for (let i = after.length; i < old; i++) {
      if (ambiguous.has(before[i])) refuseNumber(`${pointer}/${i}`);
    }
    replace(patch, after.length > 0 ? endOf(after.length - 1) : startOf(0), last, "");
  }
}

/**
 * The text of new elements behind each other. Between no white space it is one call for all of them, which saves a fifth
 * of the cost of writing a container's mounts.
 */
function writeElements(values: readonly unknown[], gap: string): string {
  if (gap === "," && !values.some((value) => value instanceof Elements)) return JSON.stringify(values).slice(1, -1);
  return values.map((value) => (value instanceof Elements ? value.text : (JSON.stringify(value) ?? "null"))).join(gap);
}

/** The text of a value that the old file does not have; undefined in an array is null, as JSON.stringify has it. */
function write(value: unknown, pointer: string): string {
  if (hasInexactNumber(value)) refuseNumber(pointer);
  return stringify(value);
}

function stringify(value: unknown): string {
  if (!hasElements(value)) return JSON.stringify(value) ?? "null";
  if (Array.isArray(value)) return `[${writeElements(value, ",")}]`;
  const members = Object.entries(value as Members).filter(([, member]) => member !== undefined);
  return `{${members.map(([key, member]) => `${JSON.stringify(key)}:${stringify(member)}`).join(",")}}`;
}

function hasElements(value: unknown): boolean {
  if (typeof value !== "object" || value === null) return false;
  return value instanceof Elements || Object.values(value).some(hasElements);
}

function hasInexactNumber(value: unknown): boolean {
  if (typeof value === "number") return !(Math.abs(value) <= Number.MAX_SAFE_INTEGER);
  if (typeof value !== "object" || value === null || value instanceof Elements) return false;
  return Object.values(value).some(hasInexactNumber);
}

/**
 * Of members with one key JSON.parse keeps the last, so an earlier one also shows as text that is not what was parsed.
 */
function refuseDuplicate(pointer: string): never {
  throw new SluiceError(
    "E_JSON_DUPLICATE_KEY",
    `${quote(pointer)} is there more than once, and runtimes differ in which one they take`,
    "remove all but one",
  );
}

function refuseNumber(pointer: string): never {
  throw new SluiceError(
    "E_JSON_NUMBER",
    `the change at ${quote(pointer)} holds a number that cannot be written without changing it`,
    "leave that value as the file has it, or give one that a double holds exactly",
  );
}

function isObject(value: unknown): value is Members {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** A JSON string as a value; almost no key has an escape. */
function unquote(raw: string): string {
  return raw.includes("\\") ? (JSON.parse(raw) as string) : raw.slice(1, -1);
}

/** A key as a part of a JSON pointer (RFC 6901, section 3). */
export function escapePointer(key: string): string {
  return key.includes("~") || key.includes("/") ? key.replaceAll("~", "~0").replaceAll("/", "~1") : key;
}

/*
 * Finding where things end. The text is known to be JSON (it was parsed), so only structure is looked at. No pattern
 * has an unbounded repetition: QuickJS keeps a backtrack entry for each character of one, and the text may be hostile.
 */

const QUOTE = 0x22;
const COMMA = 0x2c;
const BACKSLASH = 0x5c;
const OPEN_ARRAY = 0x5b;
const CLOSE_ARRAY = 0x5d;
const OPEN_OBJECT = 0x7b;
const CLOSE_OBJECT = 0x7d;

const STRUCTURE = /["[\]{}]/g;
const NOT_SPACE = /[^ \t\n\r]/g;
const SCALAR_END = /[,\]} \t\n\r]/g;

function skipSpace(text: string, at: number): number {
  if (text.charCodeAt(at) > 0x20) return at;
  NOT_SPACE.lastIndex = at;
  return NOT_SPACE.test(text) ? NOT_SPACE.lastIndex - 1 : text.length;
}

/** From the opening quote to behind the closing one: the first quote behind an even number of backslashes. */
function skipString(text: string, start: number): number {
  let at = start;
  for (;;) {
    at = text.indexOf('"', at + 1);
    if (at < 0) throw new Error("patchJson: the text is not that of the value");
    let slashes = at;
    while (text.charCodeAt(slashes - 1) === BACKSLASH) slashes--;
    if ((at - slashes) % 2 === 0) return at + 1;
  }
}

/** Start and end of a member's key and of its value. */
type Member = [at: number, keyEnd: number, valueStart: number, end: number];

/**
 * Where the parts of the object or array that starts at `start` are: start and end of each member's key and value, or of
 * each element; and last, where it ends itself.
 * @param value as it was parsed
 */
function partsOf(patch: Patch, start: number, value: object): readonly number[] {
  const { text, places } = patch;
  const found = places?.jsonParts?.(text, start);
  if (found !== undefined) return found;
  const parts: number[] = [];
  const isMember = text.charCodeAt(start) === OPEN_OBJECT;
  let at = skipSpace(text, start + 1);
  for (let i = 0; ; i++) {
    const code = text.charCodeAt(at);
    if (i === 0 && (code === CLOSE_OBJECT || code === CLOSE_ARRAY)) break;
    let key: string | number = i;
    if (isMember) {
      const keyEnd = skipString(text, at);
      key = unquote(text.slice(at, keyEnd));
      parts.push(at, keyEnd);
      at = skipSpace(text, skipSpace(text, keyEnd) + 1);
    }
    const end = skipValue(patch, at, (value as Members)[key]);
    parts.push(at, end);
    at = skipSpace(text, end);
    if (text.charCodeAt(at) !== COMMA) break;
    at = skipSpace(text, at + 1);
  }
  parts.push(at + 1);
  return parts;
}

function skipValue(patch: Patch, start: number, value: unknown): number {
  const { text } = patch;
  const code = text.charCodeAt(start);
  if (code === QUOTE) return skipString(text, start);
  if (code === OPEN_OBJECT || code === OPEN_ARRAY) return skipNested(patch, start, value as object);
  SCALAR_END.lastIndex = start;
  return SCALAR_END.test(text) ? SCALAR_END.lastIndex - 1 : text.length;
}

/** From an opening brace or bracket to behind the closing one, however deep (no recursion). */
function skipNested(patch: Patch, start: number, value: object): number {
  const { text, places } = patch;
  const found = places?.jsonEnd?.(text, start) ?? -1;
  if (found >= 0) return found;
  // Engines write compact JSON, and then a value's own serialisation is mostly its text. Where it is, to the byte, the
  // value ends where the serialisation does. This is far cheaper than a loop of ours: a seccomp profile is one step.
  if (text.charCodeAt(start + 1) > 0x20) {
    const compact = compactOf(value);
    if (compact !== undefined) {
      const end = start + compact.length;
      // Not startsWith, which QuickJS does character by character.
      if (text.slice(start, end) === compact) return end;
    }
  }
  let at = start;
  let depth = 0;
  do {
    STRUCTURE.lastIndex = at;
    if (!STRUCTURE.test(text)) throw new Error("patchJson: the text is not that of the value");
    at = STRUCTURE.lastIndex;
    const code = text.charCodeAt(at - 1);
    if (code === QUOTE) at = skipString(text, at - 1);
    else if (code === OPEN_OBJECT || code === OPEN_ARRAY) depth++;
    else depth--;
  } while (depth > 0);
  return at;
}

function compactOf(value: object): string | undefined {
  try {
    return JSON.stringify(value);
  } catch {
    // Nested deeper than the engine's stack.
    return undefined;
  }
}
