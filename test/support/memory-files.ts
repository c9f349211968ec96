/**
 * A machine in memory for tests: the whole of `Sys` over a tree that is written as data.
 *
 *     const sys = memory({
 *       "/etc/cdi/gpu.json": "{...}",
 *       "/etc/cdi/open.json": file("{...}", { mode: 0o666 }),
 *       "/dev/nvidia0": char(195, 0),
 *       "/var/run": link("/run"),
 *       "/run/cdi": dir(),
 *     });
 *
 * Folders on the way exist (root, 0755). Permissions are kept and reported but not enforced: `fail` makes a call fail
 * where a test needs one to. Time stands still until a test moves `clock`; times of files have the tick of a file
 * system's clock (4 ms), so that two writes within one leave the same stamp, as on a real machine.
 */

import { OsError } from "../../src/sys/error.ts";
import { makeFolders } from "../../src/sys/folders.ts";
import { sys } from "../../src/sys/node.ts";
import type { Captured, Entry, FileKind, Files, Stat, Sys, Tree as WritableTree } from "../../src/sys/sys.ts";

const TICK_MS = 4;
const LINKS_MAX = 40;

export interface Attributes {
  readonly mode?: number;
  readonly uid?: number;
  readonly gid?: number;
}

/** What stands at a path. */
export interface NodeSpec extends Attributes {
  readonly kind: FileKind;
  /** Of a file. */
  readonly text?: string;
  /** Of a file, in place of `text`: one character a byte. Bytes beyond 0x7f cannot be read as text. */
  readonly bytes?: string;
  /** Of a link. */
  readonly target?: string;
  /** Of a `char` or `block` node. */
  readonly major?: number;
  readonly minor?: number;
}

/** Paths (absolute) and what stands there; a text is a file with mode 0644. */
export type Tree = Readonly<Record<string, string | NodeSpec>>;

export const file = (text: string, attributes: Attributes = {}): NodeSpec => ({ kind: "file", text, ...attributes });
export const binary = (bytes = "\xff", attributes: Attributes = {}): NodeSpec => ({
  kind: "file",
  bytes,
  ...attributes,
});
export const dir = (attributes: Attributes = {}): NodeSpec => ({ kind: "dir", ...attributes });
export const link = (target: string): NodeSpec => ({ kind: "link", target, mode: 0o777 });
export const char = (major: number, minor: number, attributes: Attributes = {}): NodeSpec => ({
  kind: "char",
  major,
  minor,
  ...attributes,
});
export const block = (major: number, minor: number, attributes: Attributes = {}): NodeSpec => ({
  ...char(major, minor, attributes),
  kind: "block",
});
export const fifo = (attributes: Attributes = {}): NodeSpec => ({ kind: "fifo", ...attributes });
export const socket = (attributes: Attributes = {}): NodeSpec => ({ kind: "socket", ...attributes });

/** Thrown by the call at which a `MemorySys` dies: nothing catches it, as nothing catches SIGKILL. */
export class Killed extends Error {
  override readonly name = "Killed";
}

interface Inode {
  kind: FileKind;
  mode: number;
  uid: number;
  gid: number;
  text: string;
  bytes: string | undefined;
  target: string;
  major: number;
  minor: number;
  readonly number: number;
  ctimeMs: number;
  /** Of a folder; in no order. */
  readonly entries: Map<string, Inode>;
}

const DEFAULT_MODE: Readonly<Record<FileKind, number>> = {
  file: 0o644,
  dir: 0o755,
  link: 0o777,
  char: 0o666,
  block: 0o660,
  fifo: 0o644,
  socket: 0o755,
  unknown: 0o644,
};

/** The first byte of a character in UTF-8, by the number of bytes that follow. */
const LEAD = [0, 0xc0, 0xe0, 0xf0];

/** A text in UTF-8, one character a byte. */
function utf8(text: string): string {
  if (!/[^\0-\x7f]/.test(text)) return text;
  let bytes = "";
  for (const c of text) {
    const code = c.codePointAt(0) ?? 0;
    const more = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    bytes += more === 0 ? c : String.fromCharCode((LEAD[more] as number) | (code >> (6 * more)));
    for (let i = more - 1; i >= 0; i--) bytes += String.fromCharCode(0x80 | ((code >> (6 * i)) & 0x3f));
  }
  return bytes;
}

/** What a file holds, or where a link leads, one character a byte. */
function contentOf(inode: Inode): string {
  return inode.bytes ?? utf8(inode.kind === "link" ? inode.target : inode.text);
}

/** Order of bytes in UTF-8, which is that of code points. */
function compareNames(a: string, b: string): number {
  const x = [...a];
  const y = [...b];
  for (let i = 0; i < Math.min(x.length, y.length); i++) {
    const difference = (x[i]?.codePointAt(0) ?? 0) - (y[i]?.codePointAt(0) ?? 0);
    if (difference !== 0) return difference;
  }
  return x.length - y.length;
}

interface Place {
  /** The folder, and the last step's name in it; the name of the root is empty. */
  readonly parent: Inode;
  readonly name: string;
  readonly inode: Inode | undefined;
}

export class MemorySys implements Sys {
  readonly args: string[] = ["sluice"];
  readonly environment = new Map<string, string>();
  euid = 0;
  /** Milliseconds since the epoch; a time that no coarse clock would give. */
  clock = 1_700_000_000_123;
  /** Every call with the path it was for, as `readText /etc/cdi/a.json`; a test may empty it. */
  readonly calls: string[] = [];
  /** What was written to standard output and error. */
  output = "";
  errors = "";
  /** Programs that `exec` and `run` were called for, with their arguments. */
  readonly programs: { readonly path: string; readonly argv: readonly string[] }[] = [];
  /** The exit code of each program that is run. */
  exitCode = 0;
  /** What `capture` gives, by path and arguments with spaces between; a program that is not here does not exist. */
  readonly answers = new Map<string, Captured>();
  /** What the servers that listen on unix sockets answer, by the socket's path. */
  readonly servers = new Map<string, (question: string) => string>();
  /** Standard input. */
  input = "";
  /** The working folder. */
  folder = "/";
  /** The files whose lock is held. */
  readonly locks = new Set<string>();

  readonly #root: Inode;
  /** What is mounted somewhere. */
  readonly #mounts = new Set<Inode>();
  readonly #failures = new Map<string, string>();
  #inodes = 0;
  #callsLeft = Number.POSITIVE_INFINITY;

  readonly sha256 = sys.sha256;

  constructor(tree: Tree = {}) {
    this.#root = this.#make("dir", {});
    this.clock -= 60_000; // what a test starts with is a minute old
    for (const [path, node] of Object.entries(tree)) this.put(path, node);
    this.clock += 60_000;
  }

  /** Puts something at a path, with the folders on the way; replaces what is there by a new inode. Not counted. */
  put(path: string, node: string | NodeSpec): void {
    let folder = this.#root;
    const steps = path.split("/").filter((step) => step !== "");
    const name = steps.pop();
    if (name === undefined) throw new RangeError("the root cannot be replaced");
    for (const step of steps) {
      let next = folder.entries.get(step);
      if (next?.kind === "link") next = this.#resolve(next.target, true, this.#root)?.inode;
      if (next === undefined) {
        next = this.#make("dir", {});
        this.#enter(folder, step, next);
      }
      folder = next;
    }
    const spec = typeof node === "string" ? file(node) : node;
    const old = folder.entries.get(name);
    const inode = this.#make(spec.kind, spec);
    // A folder that is there already keeps what it holds.
    if (spec.kind === "dir" && old?.kind === "dir") for (const [k, v] of old.entries) inode.entries.set(k, v);
    this.#enter(folder, name, inode);
  }

  /** Writes into a file in place: the same inode, as an editor does that truncates. Not counted. */
  overwrite(path: string, text: string): void {
    const inode = this.#find(path, true);
    if (inode === undefined) throw new OsError("ENOENT", "open", path);
    inode.text = text;
    inode.bytes = undefined;
    inode.ctimeMs = this.#time();
  }

  /** Removes whatever stands at a path, folders with what they hold. Not counted. */
  remove(path: string): void {
    const place = this.#resolve(path, false, this.#root);
    if (place !== undefined) this.#leave(place.parent, place.name);
  }

  /** The text of a file as it is now; `undefined` where there is none. Not counted. */
  text(path: string): string | undefined {
    const inode = this.#find(path, true);
    return inode?.kind === "file" ? inode.text : undefined;
  }

  /** The names in a folder, sorted. Not counted. */
  names(path: string): string[] {
    return [...(this.#find(path, true)?.entries.keys() ?? [])].sort(compareNames);
  }

  /** Makes every call `name` for a path (of any path, if that is `*`) fail with an errno's name. */
  fail(name: string, path: string, code: string): void {
    this.#failures.set(`${name} ${path}`, code);
  }

  /** Lets calls work again. */
  heal(): void {
    this.#failures.clear();
    this.#callsLeft = Number.POSITIVE_INFINITY;
  }

  /** Throws `Killed` instead of making the call after `calls` more, and at each one after it. */
  dieAfter(calls: number): void {
    this.#callsLeft = calls;
  }

  /** How many calls were made whose text (`readText /etc/cdi/a.json`) starts so. */
  count(prefix: string): number {
    return this.calls.filter((call) => call.startsWith(prefix)).length;
  }

  readText(path: string, limit: number): string {
    this.#call("readText", path);
    return this.#readText(this.#root, path, limit);
  }

  readBytes(path: string, offset: number, length: number): string {
    this.#call("readBytes", path);
    return this.#readBytes(this.#root, path, offset, length);
  }

  stat(path: string): Stat | undefined {
    this.#call("stat", path);
    return this.#stat(this.#root, path, true);
  }

  lstat(path: string): Stat | undefined {
    this.#call("lstat", path);
    return this.#stat(this.#root, path, false);
  }

  list(path: string): Entry[] | undefined {
    this.#call("list", path);
    return this.#list(this.#root, path);
  }

  stamps(path: string, names: readonly string[]): string[] {
    this.#call("stamps", path);
    return names.map((name) => this.#stat(this.#root, `${path}/${name}`, true)?.stamp ?? "");
  }

  readLink(path: string): string {
    this.#call("readLink", path);
    return this.#readLink(this.#root, path);
  }

  under(root: string): Files {
    return this.#under(root);
  }

  tree(root: string): WritableTree {
    return this.#tree(root, root);
  }

  /** Its calls are of `writable ROOT:PATH`, so that those of `tree` can fail beside it. */
  writableTree(root: string): WritableTree {
    this.#call("writableTree", root);
    return this.#tree(root, `writable ${root}`);
  }

  #tree(root: string, name: string): WritableTree {
    const files = this.#under(root);
    const top = this.#find(root, true) as Inode;
    const call = (what: string, path: string): void => this.#call(what, `${name}:${path}`);
    const replace = (path: string, inode: Inode): void => {
      const place = this.#parentOf(path, "open", top);
      if (/^\.{0,2}$/.test(place.name)) throw new OsError("EINVAL", "open", path);
      if (place.inode?.kind === "dir") throw new OsError("EISDIR", "rename", path);
      if (inode.kind === "file" && place.inode?.kind === "file") {
        Object.assign(inode, { mode: place.inode.mode, uid: place.inode.uid, gid: place.inode.gid });
      }
      this.#enter(place.parent, place.name, inode);
    };
    const symlink = (target: string, path: string): void => {
      call("symlink", path);
      const old = this.#parentOf(path, "open", top).inode;
      if (old?.kind !== "link" || old.target !== target) replace(path, this.#make("link", { target, mode: 0o777 }));
    };
    return {
      ...files,
      symlink,
      links: (dir, names, targets) => {
        if (files.stat(dir)?.kind !== "dir") throw new OsError("ENOENT", "open", dir);
        return names.map((linkName, i) => {
          const target = targets[i] ?? "";
          if (linkName.includes("/") || target.includes("/"))
            throw new OsError("EINVAL", "symlink", `${dir}/${linkName}`);
          const there = this.#stat(top, `${dir}/${target}`, true) !== undefined;
          if (there && linkName !== target) symlink(target, `${dir}/${linkName}`);
          return there;
        });
      },
      writeBytes: (path, bytes, mode) => {
        call("writeBytes", path);
        if (/[^\0-\xff]/.test(bytes)) throw new OsError("EINVAL", "write", path);
        const content = /[^\0-\x7f]/.test(bytes) ? { bytes } : { text: bytes };
        replace(path, this.#make("file", { ...content, mode, uid: this.euid }));
      },
      mkdirs: (path, mode) => {
        call("mkdirs", path);
        const make = (part: string): void => {
          const place = this.#parentOf(part, "mkdir", top);
          if (place.inode !== undefined) throw new OsError("EEXIST", "mkdir", part);
          this.#enter(place.parent, place.name, this.#make("dir", { mode, uid: this.euid }));
        };
        makeFolders(make, path, mode);
      },
      bindOver: (source, path) => {
        call("bindOver", path);
        const file = this.#need(source, true, "open");
        const place = this.#resolve(path, true, top);
        if (place?.inode === undefined) throw new OsError("ENOENT", "mount", path);
        if (file.kind !== "file" || place.inode.kind !== "file") throw new OsError("EINVAL", "mount", path);
        place.parent.entries.set(place.name, file);
        this.#mounts.add(file);
      },
      mountedStamp: (path) => {
        call("mountedStamp", path);
        const inode = this.#resolve(path, true, top)?.inode;
        return inode !== undefined && this.#mounts.has(inode) ? (this.#stat(top, path, true)?.stamp ?? "") : "";
      },
    };
  }

  #under(root: string): Files {
    const top = this.#find(root, true);
    if (top?.kind !== "dir") throw new OsError(top === undefined ? "ENOENT" : "ENOTDIR", "open", root);
    const call = (name: string, path: string): void => this.#call(name, `${root}:${path}`);
    return {
      readText: (path, limit) => {
        call("readText", path);
        return this.#readText(top, path, limit);
      },
      readBytes: (path, offset, length) => {
        call("readBytes", path);
        return this.#readBytes(top, path, offset, length);
      },
      stat: (path) => {
        call("stat", path);
        return this.#stat(top, path, true);
      },
      lstat: (path) => {
        call("lstat", path);
        return this.#stat(top, path, false);
      },
      list: (path) => {
        call("list", path);
        return this.#list(top, path);
      },
      stamps: (path, names) => {
        call("stamps", path);
        return names.map((name) => this.#stat(top, `${path}/${name}`, true)?.stamp ?? "");
      },
      readLink: (path) => {
        call("readLink", path);
        return this.#readLink(top, path);
      },
    };
  }

  env(name: string): string | undefined {
    return this.environment.get(name);
  }

  cwd(): string {
    return this.folder;
  }

  /** The file at `from` is at `to` as well, as where it is mounted. */
  bind(from: string, to: string): void {
    const { inode } = this.#parentOf(from, "open");
    if (inode === undefined) throw new OsError("ENOENT", "open", from);
    const place = this.#parentOf(to, "open");
    this.#enter(place.parent, place.name, inode);
    this.#mounts.add(inode);
  }

  now(): number {
    return this.clock;
  }

  sleep(ms: number): void {
    this.clock += ms;
  }

  lock(path: string): () => void {
    this.#call("lock", path);
    if (this.locks.has(path)) throw new Error(`${path} is locked: this would wait for ever`);
    const place = this.#parentOf(path, "open");
    if (place.inode?.kind === "link") throw new OsError("ELOOP", "open", path);
    if (place.inode === undefined) this.#enter(place.parent, place.name, this.#make("file", { mode: 0o600 }));
    this.locks.add(path);
    return () => void this.locks.delete(path);
  }

  readInput(limit: number): string {
    if (this.input.length > limit) throw new OsError("EFBIG", "read", "");
    return this.input;
  }

  /** Only of paths without links. */
  realPath(path: string): string {
    this.#call("realPath", path);
    this.#need(path, true, "realpath");
    return path;
  }

  createFile(path: string, text: string, mode: number): void {
    this.#call("createFile", path);
    const place = this.#parentOf(path, "open");
    if (place.inode !== undefined) throw new OsError("EEXIST", "open", path);
    this.#enter(place.parent, place.name, this.#make("file", { text, mode, uid: this.euid }));
  }

  appendFile(path: string, text: string, mode: number): void {
    this.#call("appendFile", path);
    const inode = this.#find(path, true);
    if (inode === undefined) {
      const place = this.#parentOf(path, "open");
      this.#enter(place.parent, place.name, this.#make("file", { text, mode, uid: this.euid }));
      return;
    }
    if (inode.kind === "dir") throw new OsError("EISDIR", "open", path);
    inode.text += text;
    inode.ctimeMs = this.#time();
  }

  chmod(path: string, mode: number): void {
    this.#call("chmod", path);
    const inode = this.#need(path, true, "chmod");
    inode.mode = mode;
    inode.ctimeMs = this.#time();
  }

  chown(path: string, uid: number, gid: number): void {
    this.#call("chown", path);
    const inode = this.#need(path, false, "chown");
    inode.uid = uid;
    inode.gid = gid;
    inode.ctimeMs = this.#time();
  }

  rename(from: string, to: string): void {
    this.#call("rename", from);
    const source = this.#parentOf(from, "rename");
    const target = this.#parentOf(to, "rename");
    if (source.inode === undefined) throw new OsError("ENOENT", "rename", from);
    if (source.inode.kind !== "dir" && target.inode?.kind === "dir") throw new OsError("EISDIR", "rename", to);
    this.#leave(source.parent, source.name);
    this.#enter(target.parent, target.name, source.inode);
    source.inode.ctimeMs = this.#time();
  }

  unlink(path: string): void {
    this.#call("unlink", path);
    const place = this.#parentOf(path, "unlink");
    if (place.inode === undefined) throw new OsError("ENOENT", "unlink", path);
    if (place.inode.kind === "dir") throw new OsError("EISDIR", "unlink", path);
    this.#leave(place.parent, place.name);
  }

  mkdir(path: string, mode: number): void {
    this.#call("mkdir", path);
    const place = this.#parentOf(path, "mkdir");
    if (place.inode !== undefined) throw new OsError("EEXIST", "mkdir", path);
    this.#enter(place.parent, place.name, this.#make("dir", { mode, uid: this.euid }));
  }

  out(text: string): void {
    this.output += text;
  }

  err(text: string): void {
    this.errors += text;
  }

  capture(path: string, args: readonly string[], _env: readonly string[], limit: number): Captured {
    this.#call("capture", path);
    const answer = this.answers.get([path, ...args].join(" "));
    if (answer === undefined) throw new OsError("ENOENT", "execve", path);
    if (answer.out.length > limit) throw new OsError("EFBIG", "read", path);
    return answer;
  }

  ask(path: string, text: string, limit: number): string {
    this.#call("ask", path);
    const server = this.servers.get(path);
    if (server === undefined) throw new OsError("ENOENT", "connect", path);
    const answer = server(text);
    if (answer.length > limit) throw new OsError("EFBIG", "read", path);
    return answer;
  }

  exec(path: string, from: number): never {
    this.#call("exec", path);
    this.programs.push({ path, argv: this.args.slice(from) });
    throw new Killed(`became ${path}`);
  }

  run(path: string, from: number): number {
    this.#call("run", path);
    this.programs.push({ path, argv: this.args.slice(from) });
    return this.exitCode;
  }

  #call(name: string, path: string): void {
    if (this.#callsLeft-- <= 0) throw new Killed(`killed before ${name} ${path}`);
    this.calls.push(`${name} ${path}`);
    if (path.includes("\0")) throw new OsError("EINVAL", name, path);
    const code = this.#failures.get(`${name} ${path}`) ?? this.#failures.get(`${name} *`);
    if (code !== undefined) throw new OsError(code, name, path);
  }

  #time(): number {
    return Math.floor(this.clock / TICK_MS) * TICK_MS;
  }

  /** Puts a name into a folder, whose time this changes. */
  #enter(folder: Inode, name: string, inode: Inode): void {
    folder.entries.set(name, inode);
    folder.ctimeMs = this.#time();
  }

  #leave(folder: Inode, name: string): void {
    folder.entries.delete(name);
    folder.ctimeMs = this.#time();
  }

  #make(kind: FileKind, spec: Partial<NodeSpec>): Inode {
    return {
      kind,
      mode: spec.mode ?? DEFAULT_MODE[kind],
      uid: spec.uid ?? 0,
      gid: spec.gid ?? 0,
      text: spec.text ?? "",
      bytes: spec.bytes,
      target: spec.target ?? "",
      major: spec.major ?? 0,
      minor: spec.minor ?? 0,
      number: ++this.#inodes,
      ctimeMs: this.#time(),
      entries: new Map(),
    };
  }

  /** Walks a path beneath `top`: links resolve there, and `..` does not leave it. `undefined`: a folder is missing. */
  #resolve(path: string, follow: boolean, top: Inode): Place | undefined {
    const stack: { folder: Inode; name: string }[] = [];
    let at: Inode = top;
    let steps = path.split("/");
    let links = 0;
    for (let step = steps.shift(); step !== undefined; step = steps.shift()) {
      if (step === "" || step === ".") continue;
      if (step === "..") {
        at = stack.pop()?.folder ?? top;
        continue;
      }
      if (at.kind !== "dir") return undefined;
      const next = at.entries.get(step);
      const isLast = steps.every((rest) => rest === "" || rest === ".");
      if (next?.kind === "link" && (!isLast || follow)) {
        if (++links > LINKS_MAX) throw new OsError("ELOOP", "open", path);
        if (next.target.startsWith("/")) {
          at = top;
          stack.length = 0;
        }
        steps = [...next.target.split("/"), ...steps];
        continue;
      }
      if (next === undefined || isLast) return { parent: at, name: step, inode: next };
      stack.push({ folder: at, name: step });
      at = next;
    }
    return { parent: stack.at(-1)?.folder ?? at, name: stack.at(-1)?.name ?? "", inode: at };
  }

  #find(path: string, follow: boolean): Inode | undefined {
    return this.#resolve(path, follow, this.#root)?.inode;
  }

  #need(path: string, follow: boolean, syscall: string): Inode {
    const inode = this.#find(path, follow);
    if (inode === undefined) throw new OsError("ENOENT", syscall, path);
    return inode;
  }

  /** Where a path's last step stands or would stand; its folder must exist. */
  #parentOf(path: string, syscall: string, top = this.#root): Place {
    const slash = path.lastIndexOf("/");
    const folder = this.#resolve(slash <= 0 ? "/" : path.slice(0, slash), true, top)?.inode;
    if (folder === undefined) throw new OsError("ENOENT", syscall, path);
    if (folder.kind !== "dir") throw new OsError("ENOTDIR", syscall, path);
    const name = path.slice(slash + 1);
    return { parent: folder, name, inode: folder.entries.get(name) };
  }

  #readText(top: Inode, path: string, limit: number): string {
    const inode = this.#resolve(path, true, top)?.inode;
    if (inode === undefined) throw new OsError("ENOENT", "open", path);
    if (inode.kind !== "file") throw new OsError("EINVAL", "open", path);
    if (contentOf(inode).length > limit) throw new OsError("EFBIG", "read", path);
    if (inode.bytes === undefined) return inode.text;
    if (/[^\0-\x7f]/.test(inode.bytes)) throw new OsError("EILSEQ", "read", path);
    return inode.bytes;
  }

  #readBytes(top: Inode, path: string, offset: number, length: number): string {
    const inode = this.#resolve(path, true, top)?.inode;
    if (inode === undefined) throw new OsError("ENOENT", "open", path);
    if (inode.kind !== "file" || offset < 0 || length < 0) throw new OsError("EINVAL", "read", path);
    return contentOf(inode).slice(offset, offset + length);
  }

  #stat(top: Inode, path: string, follow: boolean): Stat | undefined {
    const inode = this.#resolve(path, follow, top)?.inode;
    if (inode === undefined) return undefined;
    const { kind, mode, uid, gid, major, minor, ctimeMs } = inode;
    const size = contentOf(inode).length;
    const stamp = [1, inode.number, size, mode, uid, gid, ctimeMs].join(".");
    return { kind, mode, uid, gid, size, major, minor, stamp, ctimeMs };
  }

  #list(top: Inode, path: string): Entry[] | undefined {
    const inode = this.#resolve(path, true, top)?.inode;
    if (inode === undefined) return undefined;
    if (inode.kind !== "dir") throw new OsError("ENOTDIR", "open", path);
    const entries = [...inode.entries].map(([name, child]) => ({ name, kind: child.kind }));
    return entries.sort((a, b) => compareNames(a.name, b.name));
  }

  #readLink(top: Inode, path: string): string {
    const inode = this.#resolve(path, false, top)?.inode;
    if (inode === undefined) throw new OsError("ENOENT", "readlink", path);
    if (inode.kind !== "link") throw new OsError("EINVAL", "readlink", path);
    return inode.target;
  }
}

export function memory(tree: Tree = {}): MemorySys {
  return new MemorySys(tree);
}
