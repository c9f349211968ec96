/**
 * The system interface over Node, for the daemon and the tests.
 *
 * What Node cannot do is refused, not imitated badly: `exec`, `run` and mounts belong to the doors, which are
 * native. So does a tree that changes while it is written to: here a path is looked at step by step.
 */

import { spawnSync } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import * as fs from "node:fs";
import { constants } from "node:os";
import { OsError } from "./error.ts";
import { makeFolders } from "./folders.ts";
import type { Captured, FileKind, Files, Stat, Sys, Tree } from "./sys.ts";

const MAX_LINKS = 40;

function os<T>(call: () => T): T {
  try {
    return call();
  } catch (thrown) {
    if (thrown instanceof OsError) throw thrown;
    const e = thrown as NodeJS.ErrnoException;
    if (e.code === undefined) throw thrown;
    throw new OsError(e.code === "ERR_INVALID_ARG_VALUE" ? "EINVAL" : e.code, e.syscall ?? "", e.path ?? "");
  }
}

function kindOf(e: fs.Dirent): FileKind {
  if (e.isFile()) return "file";
  if (e.isDirectory()) return "dir";
  if (e.isSymbolicLink()) return "link";
  if (e.isCharacterDevice()) return "char";
  if (e.isBlockDevice()) return "block";
  if (e.isFIFO()) return "fifo";
  return e.isSocket() ? "socket" : "unknown";
}

/** By the bits of a mode that say what a file is. */
const KINDS: Readonly<Record<number, FileKind>> = {
  [fs.constants.S_IFREG]: "file",
  [fs.constants.S_IFDIR]: "dir",
  [fs.constants.S_IFLNK]: "link",
  [fs.constants.S_IFCHR]: "char",
  [fs.constants.S_IFBLK]: "block",
  [fs.constants.S_IFIFO]: "fifo",
  [fs.constants.S_IFSOCK]: "socket",
};

/** Nanoseconds. */
const SECOND = 1_000_000_000n;

/** What a caller does not ask for is not made: the daemon looks at files for each container. */
class NodeStat implements Stat {
  readonly #of: fs.BigIntStats;
  #stamp: string | undefined;
  readonly kind: FileKind;
  readonly mode: number;
  readonly major: number;
  readonly minor: number;

  constructor(of: fs.BigIntStats) {
    const { rdev } = of;
    const mode = Number(of.mode);
    this.#of = of;
    this.kind = KINDS[mode & fs.constants.S_IFMT] ?? "unknown";
    this.mode = mode & 0o7777;
    const isNode = this.kind === "char" || this.kind === "block";
    // As major(3) and minor(3) take the number apart.
    this.major = isNode ? Number(((rdev >> 8n) & 0xfffn) | ((rdev >> 32n) & ~0xfffn)) : 0;
    this.minor = isNode ? Number((rdev & 0xffn) | ((rdev >> 12n) & 0xffffff00n)) : 0;
  }

  get uid(): number {
    return Number(this.#of.uid);
  }

  get gid(): number {
    return Number(this.#of.gid);
  }

  get size(): number {
    return Number(this.#of.size);
  }

  get stamp(): string {
    if (this.#stamp === undefined) {
      const { dev, ino, size, mode, uid, gid, mtimeNs, ctimeNs } = this.#of;
      const times = [mtimeNs / SECOND, mtimeNs % SECOND, ctimeNs / SECOND, ctimeNs % SECOND];
      this.#stamp = [dev, ino, size, mode, uid, gid, ...times].map((n) => n.toString(16)).join(".");
    }
    return this.#stamp;
  }

  get ctimeMs(): number {
    return Number(this.#of.ctimeNs / 1_000_000n);
  }
}

/** A path beneath `root`, every link on the way resolved beneath it too: openat2's RESOLVE_IN_ROOT, without its atomicity. */
function resolveIn(root: string, path: string, followLast: boolean): string {
  let todo = path.split("/");
  const done: string[] = [];
  let links = 0;
  while (todo.length > 0) {
    const part = todo.shift();
    if (part === undefined || part === "" || part === ".") continue;
    if (part === "..") {
      done.pop();
      continue;
    }
    const at = `${root}/${[...done, part].join("/")}`;
    const last = todo.every((p) => p === "" || p === ".");
    const s = fs.lstatSync(at, { throwIfNoEntry: false });
    if (s?.isSymbolicLink() && (!last || followLast)) {
      if (++links > MAX_LINKS) throw new OsError("ELOOP", "open", path);
      const target = fs.readlinkSync(at);
      if (target.startsWith("/")) done.length = 0;
      todo = [...target.split("/"), ...todo];
    } else {
      done.push(part);
    }
  }
  return `${root}/${done.join("/")}`;
}

/**
 * What was last seen at a path: first in numbers, which cost a quarter of exact ones and tell whether it is the same
 * still. Times of theirs are exact to half a microsecond, and no file is changed twice in that with a look between.
 */
interface Seen {
  readonly roughly: fs.Stats;
  readonly stat: NodeStat;
}

const seen = new Map<string, Seen>();
/** Paths of which that is kept. */
const MOST_SEEN = 64;

function isSameFile(a: fs.Stats, b: fs.Stats): boolean {
  return (
    a.ctimeMs === b.ctimeMs &&
    a.mtimeMs === b.mtimeMs &&
    a.ino === b.ino &&
    a.dev === b.dev &&
    a.size === b.size &&
    a.mode === b.mode &&
    a.uid === b.uid &&
    a.gid === b.gid &&
    a.rdev === b.rdev
  );
}

const NO_ERROR = { throwIfNoEntry: false } as const;
const EXACTLY = { throwIfNoEntry: false, bigint: true } as const;

function statOrNothing(path: string, follow: boolean): Stat | undefined {
  try {
    // No error is made for what is not there, which costs more than all else.
    const roughly = follow ? fs.statSync(path, NO_ERROR) : fs.lstatSync(path, NO_ERROR);
    if (roughly === undefined) return undefined;
    const before = seen.get(path);
    if (before !== undefined && isSameFile(before.roughly, roughly)) return before.stat;
    const exactly = follow ? fs.statSync(path, EXACTLY) : fs.lstatSync(path, EXACTLY);
    if (exactly === undefined) return undefined;
    const stat = new NodeStat(exactly);
    if (before === undefined && seen.size >= MOST_SEEN) seen.clear();
    seen.set(path, { roughly, stat });
    return stat;
  } catch (thrown) {
    const code = (thrown as NodeJS.ErrnoException).code;
    if (code === "ENOTDIR") return undefined;
    throw thrown;
  }
}

function readAll(path: string, named: string, limit: number): string {
  const fd = fs.openSync(path, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK | fs.constants.O_NOCTTY);
  try {
    const s = fs.fstatSync(fd);
    if (!s.isFile()) throw new OsError("EINVAL", "read", named);
    if (s.size > limit) throw new OsError("EFBIG", "read", named);
    const data = fs.readFileSync(fd);
    if (data.length > limit) throw new OsError("EFBIG", "read", named);
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(data);
  } catch (thrown) {
    if (thrown instanceof TypeError) throw new OsError("EILSEQ", "read", named);
    throw thrown;
  } finally {
    fs.closeSync(fd);
  }
}

function readPart(path: string, named: string, offset: number, length: number): string {
  const fd = fs.openSync(path, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK | fs.constants.O_NOCTTY);
  try {
    const s = fs.fstatSync(fd);
    if (!s.isFile() || offset < 0 || length < 0) throw new OsError("EINVAL", "read", named);
    const data = Buffer.alloc(Math.max(0, Math.min(length, s.size - offset)));
    return data.toString("latin1", 0, fs.readSync(fd, data, 0, data.length, offset));
  } finally {
    fs.closeSync(fd);
  }
}

function filesUnder(root: string | undefined): Files {
  const at = (path: string, follow: boolean) => (root === undefined ? path : resolveIn(root, path, follow));
  return {
    readText: (path, limit) => os(() => readAll(at(path, true), path, limit)),
    readBytes: (path, offset, length) => os(() => readPart(at(path, true), path, offset, length)),
    stat: (path) => os(() => statOrNothing(at(path, true), true)),
    lstat: (path) => os(() => statOrNothing(at(path, false), false)),
    list: (path) =>
      os(() => {
        const dir = at(path, true);
        if (statOrNothing(dir, true) === undefined) return undefined;
        const entries = fs.readdirSync(dir, { withFileTypes: true });
        const listed = entries.map((e) => ({ name: e.name, kind: kindOf(e) }));
        return listed.sort((a, b) => Buffer.compare(Buffer.from(a.name), Buffer.from(b.name)));
      }),
    stamps: (dir, names) =>
      names.map((name) =>
        os(() => {
          try {
            return statOrNothing(at(`${dir}/${name}`, true), true)?.stamp ?? "";
          } catch (thrown) {
            if ((thrown as NodeJS.ErrnoException).code === "ELOOP") return "";
            throw thrown;
          }
        }),
      ),
    readLink: (path) => os(() => fs.readlinkSync(at(path, false))),
  };
}

function isEntryName(name: string): boolean {
  return !/^\.{0,2}$|\//.test(name);
}

/** Makes something beside `place`, and puts it there in one step. */
function replace(place: string, make: (draft: string) => void): void {
  const draft = `${place.slice(0, place.lastIndexOf("/"))}/.sluice-${randomBytes(8).toString("hex")}`;
  try {
    make(draft);
    fs.renameSync(draft, place);
  } catch (thrown) {
    fs.rmSync(draft, { force: true });
    throw thrown;
  }
}

function treeOf(root: string): Tree {
  /** Where a path's last name stands or would stand. */
  const at = (path: string): string => {
    const slash = path.lastIndexOf("/");
    const name = path.slice(slash + 1);
    if (name === "" || name === "." || name === "..") throw new OsError("EINVAL", "open", path);
    return `${resolveIn(root, path.slice(0, Math.max(0, slash)), true)}/${name}`;
  };
  const mkdir = (path: string, mode: number) => os(() => fs.mkdirSync(at(path), { mode }));
  const symlink = (target: string, path: string) =>
    os(() => {
      const place = at(path);
      const old = fs.lstatSync(place, { throwIfNoEntry: false });
      if (old?.isSymbolicLink() && fs.readlinkSync(place) === target) return;
      replace(place, (draft) => fs.symlinkSync(target, draft));
    });
  const files = filesUnder(root);
  return {
    ...files,
    symlink,
    links: (dir, names, targets) => {
      const under = (path: string, make: () => void): void => {
        try {
          os(make);
        } catch (thrown) {
          throw thrown instanceof OsError ? new OsError(thrown.code, thrown.syscall, path) : thrown;
        }
      };
      under(dir, () => fs.readdirSync(resolveIn(root, dir, true)));
      return names.map((name, i) => {
        const target = targets[i] ?? "";
        let there = false;
        under(`${dir}/${name}`, () => {
          if (![name, target].every(isEntryName)) throw new OsError("EINVAL", "symlink", name);
          there = files.stamps(dir, [target])[0] !== "";
          if (there && name !== target) symlink(target, `${dir}/${name}`);
        });
        return there;
      });
    },
    writeBytes: (path, bytes, mode) =>
      os(() => {
        if (/[^\0-\xff]/.test(bytes)) throw new OsError("EINVAL", "write", path);
        const place = at(path);
        const old = fs.lstatSync(place, { throwIfNoEntry: false });
        replace(place, (draft) => {
          fs.writeFileSync(draft, bytes, { encoding: "latin1", mode: 0o600, flag: "wx" });
          if (old?.isFile()) fs.chownSync(draft, old.uid, old.gid);
          fs.chmodSync(draft, old?.isFile() ? old.mode & 0o7777 : mode);
        });
      }),
    mkdirs: (path, mode) => makeFolders(mkdir, path, mode),
    bindOver: () => unsupported("mount"),
    mountedStamp: () => unsupported("statx"),
  };
}

/** Of a text, which Node then opens, writes and closes in one go. */
function write(path: string, text: string, mode: number, flag: "wx" | "a"): void {
  os(() => fs.writeFileSync(path, text, { mode, flag }));
}

function readInput(limit: number): string {
  const data = fs.readFileSync(0);
  if (data.length > limit) throw new OsError("EFBIG", "read", "");
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(data);
  } catch {
    throw new OsError("EILSEQ", "read", "");
  }
}

function capture(
  path: string,
  args: readonly string[],
  env: readonly string[],
  limit: number,
  timeoutMs: number,
): Captured {
  const pairs = env.map((pair): [string, string] => [
    pair.slice(0, pair.indexOf("=")),
    pair.slice(pair.indexOf("=") + 1),
  ]);
  const { status, signal, stdout, error } = spawnSync(path, args, {
    argv0: path,
    env: Object.fromEntries(pairs),
    stdio: ["ignore", "pipe", "ignore"],
    killSignal: "SIGKILL",
    timeout: timeoutMs,
    maxBuffer: limit,
  });
  const code = (error as NodeJS.ErrnoException | undefined)?.code;
  if (code === "ENOBUFS") throw new OsError("EFBIG", "read", path);
  if (code === "ETIMEDOUT") throw new OsError("ETIMEDOUT", "read", path);
  if (code !== undefined) throw new OsError(code, "execve", path);
  return { code: status ?? 128 + (signal === null ? 0 : constants.signals[signal]), out: stdout.toString("utf8") };
}

const FLOCK = ["/usr/bin/flock", "/bin/flock"];
/** As flock(1) of util-linux and of busybox say that somebody else has the lock. */
const TAKEN = 1;

/**
 * flock(2), which Node lacks. The lock belongs to the open file, so the program flock can take it for us; it is let go of
 * when the file is closed, however that comes.
 *
 * @returns whether we have it now: always, where we `wait`
 * @throws OsError `ENOTSUP` where there is no such program
 */
export function flock(fd: number, wait: boolean): boolean {
  const program = FLOCK.find((path) => fs.existsSync(path));
  if (program === undefined) return unsupported("flock");
  const args = wait ? ["3"] : ["-n", "3"];
  const { status, error } = spawnSync(program, args, { stdio: ["ignore", "ignore", "ignore", fd], env: {} });
  if (status === 0) return true;
  if (status === TAKEN && !wait) return false;
  throw new OsError((error as NodeJS.ErrnoException | undefined)?.code ?? "EIO", "flock", "");
}

function lock(path: string): () => void {
  const { O_RDWR, O_CREAT, O_NOFOLLOW } = fs.constants;
  const fd = fs.openSync(path, O_RDWR | O_CREAT | O_NOFOLLOW, 0o600);
  let held = true;
  const release = () => {
    if (held) fs.closeSync(fd);
    held = false;
  };
  try {
    flock(fd, true);
  } catch (thrown) {
    release();
    throw thrown;
  }
  return release;
}

function unsupported(what: string): never {
  throw new OsError("ENOTSUP", what, "");
}

export const sys: Sys = {
  ...filesUnder(undefined),
  args: process.argv.slice(1),
  euid: process.geteuid?.() ?? 0,
  under: filesUnder,
  tree: treeOf,
  writableTree: () => unsupported("open_tree"),
  env: (name) => process.env[name],
  cwd: () => process.cwd(),
  now: () => Date.now(),
  sleep: (ms) => void Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms),
  sha256: (text) => createHash("sha256").update(text, "utf8").digest("hex"),
  realPath: (path) => os(() => fs.realpathSync(path)),
  createFile: (path, text, mode) => write(path, text, mode, "wx"),
  appendFile: (path, text, mode) => write(path, text, mode, "a"),
  chmod: (path, mode) => os(() => fs.chmodSync(path, mode)),
  chown: (path, uid, gid) => os(() => fs.lchownSync(path, uid, gid)),
  rename: (from, to) => os(() => fs.renameSync(from, to)),
  unlink: (path) => os(() => fs.unlinkSync(path)),
  mkdir: (path, mode) => os(() => fs.mkdirSync(path, { mode })),
  lock: (path) => os(() => lock(path)),
  readInput: (limit) => os(() => readInput(limit)),
  out: (text) => void process.stdout.write(text),
  err: (text) => void process.stderr.write(text),
  capture: (path, args, env, limit, timeoutMs) => os(() => capture(path, args, env, limit, timeoutMs)),
  exec: () => unsupported("execve"),
  run: () => unsupported("fork"),
};
