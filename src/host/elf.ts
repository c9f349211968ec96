import { OsError } from "../sys/error.ts";
import type { Files } from "../sys/sys.ts";

/** What an ELF shared object says of itself (System V ABI, chapters 4 and 5). */
export interface Elf {
  readonly bits: 32 | 64;
  /** `e_machine`: 62 is x86-64, 3 is i386, 183 is AArch64. */
  readonly machine: number;
  /** The name that programs ask the loader for. */
  readonly soname?: string;
}

/** Program headers, and bytes of the dynamic section and of a name: more is no library of anybody's. */
const MAX_HEADERS = 64;
const MAX_DYNAMIC = 16 << 10;
const MAX_NAME = 256;

const PT_LOAD = 1;
const PT_DYNAMIC = 2;
const DT_STRTAB = 5;
const DT_SONAME = 14;

/** What an ELF file's first bytes say; `undefined` where it is no little-endian one. */
export function readElfHeader(files: Files, path: string): Pick<Elf, "bits" | "machine"> | undefined {
  try {
    const header = files.readBytes(path, 0, 20);
    if (header.length < 20 || !header.startsWith("\x7fELF") || header.charCodeAt(5) !== 1) return undefined;
    return { bits: header.charCodeAt(4) === 2 ? 64 : 32, machine: number(header, 18, 2) };
  } catch (thrown) {
    if (thrown instanceof OsError) return undefined;
    throw thrown;
  }
}

/** Reads some hundred bytes of a file that may be anything. `undefined` where it is no little-endian ELF file. */
export function readElf(files: Files, path: string): Elf | undefined {
  try {
    return parse((offset, length) => files.readBytes(path, offset, length));
  } catch (thrown) {
    if (thrown instanceof OsError) return undefined;
    throw thrown;
  }
}

function parse(read: (offset: number, length: number) => string): Elf | undefined {
  const header = read(0, 64);
  const wide = header.charCodeAt(4) === 2;
  if (!header.startsWith("\x7fELF") || header.charCodeAt(5) !== 1 || header.length < (wide ? 64 : 52)) return undefined;
  const elf = { bits: wide ? 64 : 32, machine: number(header, 18, 2) } as const;
  /** Size of an address or offset. */
  const word = wide ? 8 : 4;

  const size = wide ? 56 : 32;
  const count = number(header, wide ? 56 : 44, 2);
  if (count > MAX_HEADERS || number(header, wide ? 54 : 42, 2) !== size) return elf;
  const headers = read(number(header, wide ? 32 : 28, word), count * size);
  const loaded: { offset: number; address: number; length: number }[] = [];
  let dynamic = "";
  for (let at = 0; at + size <= headers.length; at += size) {
    const type = number(headers, at, 4);
    const offset = number(headers, at + (wide ? 8 : 4), word);
    const address = number(headers, at + (wide ? 16 : 8), word);
    const length = number(headers, at + (wide ? 32 : 16), word);
    if (type === PT_LOAD) loaded.push({ offset, address, length });
    if (type === PT_DYNAMIC) dynamic = read(offset, Math.min(length, MAX_DYNAMIC));
  }

  const entries = new Map<number, number>();
  for (let at = 0; at + 2 * word <= dynamic.length; at += 2 * word) {
    const tag = number(dynamic, at, word);
    if (tag === 0) break;
    if (!entries.has(tag)) entries.set(tag, number(dynamic, at + word, word));
  }
  const [strings, name] = [entries.get(DT_STRTAB), entries.get(DT_SONAME)];
  const segment = loaded.find(
    ({ address, length }) => strings !== undefined && strings >= address && strings < address + length,
  );
  if (strings === undefined || name === undefined || segment === undefined) return elf;
  const text = read(strings - segment.address + segment.offset + name, MAX_NAME);
  const end = text.indexOf("\0");
  // A name with a slash would lead elsewhere.
  return end > 0 && /^[\w.+-]+$/.test(text.slice(0, end)) ? { ...elf, soname: text.slice(0, end) } : elf;
}

/** A little-endian number; one beyond 2^53 loses its last digits, which no file's offset has. */
function number(bytes: string, at: number, size: number): number {
  let value = 0;
  for (let i = size - 1; i >= 0; i--) value = value * 256 + (bytes.charCodeAt(at + i) || 0);
  return value;
}
