/** The system interface over the executable's C module (native/sysmod.c), which alone calls the kernel. */

import { OsError } from "./error.ts";
import type { Entry, FileKind, Files, Stat, Sys } from "./sys.ts";

/** The C module, function for function. It throws objects with `code`, `syscall` and `path`. */
interface Native {
  readonly args: readonly string[];
  readonly euid: number;
  readText(root: string | undefined, path: string, limit: number): string;
  readBytes(root: string | undefined, path: string, offset: number, length: number): string;
  stat(root: string | undefined, path: string, follow: boolean): Stat | undefined;
  stamps(root: string | undefined, dir: string, names: readonly string[]): string;
  list(root: string | undefined, path: string): string[] | undefined;
  readLink(root: string | undefined, path: string): string;
  writeFile(path: string, text: string, mode: number, append: boolean): void;
  chmod(path: string, mode: number): void;
  chown(path: string, uid: number, gid: number): void;
  unlink(path: string): void;
  mkdir(path: string, mode: number): void;
  rename(from: string, to: string): void;
  print(fd: number, text: string): void;
  getenv(name: string): string | undefined;
  cwd(): string;
  now(): number;
  sha256(text: string): string;
  jsonEnd(text: string, start: number): number;
  exec(path: string, from: number): never;
  run(path: string, from: number): number;
}

declare const native: Native;

function os<T>(call: () => T): T {
  try {
    return call();
  } catch (thrown) {
    const e = thrown as Partial<OsError>;
    if (e.code === undefined) throw thrown;
    throw new OsError(e.code, e.syscall ?? "", e.path ?? "");
  }
}

function filesUnder(root: string | undefined): Files {
  return {
    readText: (path, limit) => os(() => native.readText(root, path, limit)),
    readBytes: (path, offset, length) => os(() => native.readBytes(root, path, offset, length)),
    stat: (path) => os(() => native.stat(root, path, true)),
    lstat: (path) => os(() => native.stat(root, path, false)),
    list(path) {
      const flat = os(() => native.list(root, path));
      if (flat === undefined) return undefined;
      const entries: Entry[] = [];
      for (let i = 0; i < flat.length; i += 2) {
        entries.push({ name: flat[i] as string, kind: flat[i + 1] as FileKind });
      }
      return entries;
    },
    stamps: (dir, names) => (names.length === 0 ? [] : os(() => native.stamps(root, dir, names)).split("\t")),
    readLink: (path) => os(() => native.readLink(root, path)),
  };
}

export const sys: Sys = {
  ...filesUnder(undefined),
  // Asked for when needed: this module is loaded by the build (native/snapshot.h), long before the process starts.
  get args() {
    return native.args;
  },
  get euid() {
    return native.euid;
  },
  under: filesUnder,
  env: (name) => native.getenv(name),
  cwd: () => os(() => native.cwd()),
  now: () => native.now(),
  sha256: (text) => native.sha256(text),
  jsonEnd: (text, start) => native.jsonEnd(text, start),
  createFile: (path, text, mode) => os(() => native.writeFile(path, text, mode, false)),
  appendFile: (path, text, mode) => os(() => native.writeFile(path, text, mode, true)),
  chmod: (path, mode) => os(() => native.chmod(path, mode)),
  chown: (path, uid, gid) => os(() => native.chown(path, uid, gid)),
  rename: (from, to) => os(() => native.rename(from, to)),
  unlink: (path) => os(() => native.unlink(path)),
  mkdir: (path, mode) => os(() => native.mkdir(path, mode)),
  out: (text) => os(() => native.print(1, text)),
  err: (text) => os(() => native.print(2, text)),
  exec: (path, from) => os(() => native.exec(path, from)),
  run: (path, from) => os(() => native.run(path, from)),
};
