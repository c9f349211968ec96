/**
 * The system interface over Node, for the daemon and the tests.
 *
 * What Node cannot do is refused, not imitated badly: `exec` and `run` belong to the doors, which are native.
 */

import { createHash } from "node:crypto";
import * as fs from "node:fs";
import { OsError } from "./error.ts";
import type { FileKind, Files, Stat, Sys } from "./sys.ts";

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

function kindOf(s: fs.BigIntStats | fs.Dirent): FileKind {
  if (s.isFile()) return "file";
  if (s.isDirectory()) return "dir";
  if (s.isSymbolicLink()) return "link";
  if (s.isCharacterDevice()) return "char";
  if (s.isBlockDevice()) return "block";
  if (s.isFIFO()) return "fifo";
  return s.isSocket() ? "socket" : "unknown";
}

function statOf(s: fs.BigIntStats): Stat {
  const kind = kindOf(s);
  const node = kind === "char" || kind === "block";
  const times = [s.mtimeNs / 1_000_000_000n, s.mtimeNs % 1_000_000_000n, s.ctimeNs / 1_000_000_000n];
  const stamp = [s.dev, s.ino, s.size, s.mode, s.uid, s.gid, ...times, s.ctimeNs % 1_000_000_000n];
  return {
    kind,
    mode: Number(s.mode & 0o7777n),
    uid: Number(s.uid),
    gid: Number(s.gid),
    size: Number(s.size),
    // As major(3) and minor(3) take the number apart.
    major: node ? Number(((s.rdev >> 8n) & 0xfffn) | ((s.rdev >> 32n) & ~0xfffn)) : 0,
    minor: node ? Number((s.rdev & 0xffn) | ((s.rdev >> 12n) & 0xffffff00n)) : 0,
    stamp: stamp.map((n) => n.toString(16)).join("."),
    ctimeMs: Number(s.ctimeNs / 1_000_000n),
  };
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

function statOrNothing(path: string, follow: boolean): Stat | undefined {
  try {
    return statOf(follow ? fs.statSync(path, { bigint: true }) : fs.lstatSync(path, { bigint: true }));
  } catch (thrown) {
    const code = (thrown as NodeJS.ErrnoException).code;
    if (code === "ENOENT" || code === "ENOTDIR") return undefined;
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

function write(path: string, text: string, mode: number, flag: "wx" | "a"): void {
  os(() => fs.writeFileSync(path, text, { mode, flag }));
}

function unsupported(what: string): never {
  throw new OsError("ENOTSUP", what, "");
}

export const sys: Sys = {
  ...filesUnder(undefined),
  args: process.argv.slice(1),
  euid: process.geteuid?.() ?? 0,
  under: filesUnder,
  env: (name) => process.env[name],
  cwd: () => process.cwd(),
  now: () => Date.now(),
  sha256: (text) => createHash("sha256").update(text, "utf8").digest("hex"),
  createFile: (path, text, mode) => write(path, text, mode, "wx"),
  appendFile: (path, text, mode) => write(path, text, mode, "a"),
  chmod: (path, mode) => os(() => fs.chmodSync(path, mode)),
  chown: (path, uid, gid) => os(() => fs.lchownSync(path, uid, gid)),
  rename: (from, to) => os(() => fs.renameSync(from, to)),
  unlink: (path) => os(() => fs.unlinkSync(path)),
  mkdir: (path, mode) => os(() => fs.mkdirSync(path, { mode })),
  out: (text) => void process.stdout.write(text),
  err: (text) => void process.stderr.write(text),
  exec: () => unsupported("execve"),
  run: () => unsupported("fork"),
};
