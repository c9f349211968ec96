import { OsError } from "../sys/error.ts";
import type { Files, Stat } from "../sys/sys.ts";

/** Something that is there and could not be read. */
export interface Unseen {
  readonly path: string;
  /** The errno's name, or what is wrong with the content. */
  readonly reason: string;
}

/** Bytes. What procfs and sysfs tell of one thing has some hundred. */
const LIMIT = 256 << 10;

/**
 * Looking at a machine. What is not there is `undefined` or empty; what is there and cannot be read is that too, and is
 * noted in `unseen`, so that whoever looks without the right to can be told what is missing. Nothing here throws.
 */
export class Look {
  readonly files: Files;
  readonly unseen: Unseen[] = [];

  constructor(files: Files) {
    this.files = files;
  }

  note(path: string, reason: string): void {
    this.unseen.push({ path, reason });
  }

  /** A file's text without white space at its ends. */
  text(path: string): string | undefined {
    return this.#try(path, () => this.files.readText(path, LIMIT).trim());
  }

  /** The first bytes of a file, one character a byte. */
  bytes(path: string, length: number): string | undefined {
    return this.#try(path, () => this.files.readBytes(path, 0, length));
  }

  /** The names in a folder, numbers in their order (`gpu2` before `gpu10`). */
  names(path: string): string[] {
    const entries = this.#try(path, () => this.files.list(path)) ?? [];
    return entries.map((entry) => entry.name).sort(inNumericOrder);
  }

  /** Follows links. */
  stat(path: string): Stat | undefined {
    return this.#try(path, () => this.files.stat(path));
  }

  /** Where a link leads; `undefined` of what is no link. */
  link(path: string): string | undefined {
    return this.#try(path, () => (this.files.lstat(path)?.kind === "link" ? this.files.readLink(path) : undefined));
  }

  /** The last part of where a link leads, as the kernel names a device's driver and group. */
  linkName(path: string): string | undefined {
    const target = this.link(path);
    return target?.slice(target.lastIndexOf("/") + 1);
  }

  /** A whole number, decimal or with `0x`, that is the file's whole text. */
  number(path: string): number | undefined {
    const text = this.text(path);
    if (text === undefined) return undefined;
    if (/^(?:-?\d{1,15}|0x[0-9a-fA-F]{1,12})$/.test(text)) return Number(text);
    this.note(path, "it is not a number");
    return undefined;
  }

  #try<T>(path: string, look: () => T): T | undefined {
    try {
      return look();
    } catch (thrown) {
      if (!(thrown instanceof OsError)) throw thrown;
      if (thrown.code !== "ENOENT" && thrown.code !== "ENOTDIR") this.note(path, thrown.code);
      return undefined;
    }
  }
}

function inNumericOrder(a: string, b: string): number {
  const [x, y] = [/^(\D*)(\d+)$/.exec(a), /^(\D*)(\d+)$/.exec(b)];
  if (x !== null && y !== null && x[1] === y[1]) return Number(x[2]) - Number(y[2]);
  return a < b ? -1 : 1;
}
