/** The system interface over the executable's C module (native/sysmod.c), which alone calls the kernel. */

import { OsError } from "./error.ts";
import { makeFolders } from "./folders.ts";
import type { Captured, Entry, FileKind, Files, Stat, Sys, Tree } from "./sys.ts";

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
  realPath(path: string): string;
  writeFile(path: string, text: string, mode: number, append: boolean): void;
  chmod(path: string, mode: number): void;
  chown(path: string, uid: number, gid: number): void;
  unlink(path: string): void;
  mkdir(path: string, mode: number): void;
  rename(from: string, to: string): void;
  treeSymlink(root: string, target: string, path: string): void;
  treeLinks(root: string, dir: string, names: readonly string[], targets: readonly string[]): boolean[];
  treeWrite(root: string, path: string, bytes: string, mode: number): void;
  treeMkdir(root: string, path: string, mode: number): void;
  treeBind(root: string, source: string, path: string): void;
  treeMounted(root: string, path: string): string;
  treeWritable(root: string): number;
  lock(path: string): number;
  unlock(fd: number): void;
  readInput(limit: number): string;
  print(fd: number, text: string): void;
  getenv(name: string): string | undefined;
  cwd(): string;
  now(): number;
  sha256(text: string): string;
  jsonEnd(text: string, start: number): number;
  jsonParts(text: string, start: number): number[] | undefined;
  addCached(bytes: string, count: number, libraries: readonly object[]): [number, number, string] | undefined;
  sleep(ms: number): void;
  ask(path: string, text: string, limit: number, timeoutMs: number): string;
  capture(path: string, args: readonly string[], env: readonly string[], limit: number, timeoutMs: number): Captured;
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

function treeOf(root: string): Tree {
  const mkdir = (path: string, mode: number) => os(() => native.treeMkdir(root, path, mode));
  return {
    ...filesUnder(root),
    symlink: (target, path) => os(() => native.treeSymlink(root, target, path)),
    links: (dir, names, targets) => os(() => native.treeLinks(root, dir, names, targets)),
    writeBytes: (path, bytes, mode) => os(() => native.treeWrite(root, path, bytes, mode)),
    mkdirs: (path, mode) => makeFolders(mkdir, path, mode),
    bindOver: (source, path) => os(() => native.treeBind(root, source, path)),
    mountedStamp: (path) => os(() => native.treeMounted(root, path)),
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
  tree: treeOf,
  writableTree: (root) => treeOf(`/proc/self/fd/${os(() => native.treeWritable(root))}`),
  env: (name) => native.getenv(name),
  cwd: () => os(() => native.cwd()),
  now: () => native.now(),
  sleep: (ms) => os(() => native.sleep(ms)),
  sha256: (text) => native.sha256(text),
  jsonEnd: (text, start) => native.jsonEnd(text, start),
  jsonParts: (text, start) => native.jsonParts(text, start),
  addCached(bytes, entries, libraries) {
    const [count, strings, text] = native.addCached(bytes, entries, libraries) ?? [];
    return text === undefined ? undefined : { count: count as number, strings: strings as number, text };
  },
  realPath: (path) => os(() => native.realPath(path)),
  createFile: (path, text, mode) => os(() => native.writeFile(path, text, mode, false)),
  appendFile: (path, text, mode) => os(() => native.writeFile(path, text, mode, true)),
  chmod: (path, mode) => os(() => native.chmod(path, mode)),
  chown: (path, uid, gid) => os(() => native.chown(path, uid, gid)),
  rename: (from, to) => os(() => native.rename(from, to)),
  unlink: (path) => os(() => native.unlink(path)),
  mkdir: (path, mode) => os(() => native.mkdir(path, mode)),
  lock(path) {
    const fd = os(() => native.lock(path));
    let held = true;
    return () => {
      if (held) os(() => native.unlock(fd));
      held = false;
    };
  },
  readInput: (limit) => os(() => native.readInput(limit)),
  out: (text) => os(() => native.print(1, text)),
  err: (text) => os(() => native.print(2, text)),
  ask: (path, text, limit, timeoutMs) => os(() => native.ask(path, text, limit, timeoutMs)),
  capture: (path, args, env, limit, timeoutMs) => os(() => native.capture(path, args, env, limit, timeoutMs)),
  exec: (path, from) => os(() => native.exec(path, from)),
  run: (path, from) => os(() => native.run(path, from)),
};
