import { OsError, quote, reasonOf, SluiceError } from "../sys/error.ts";
import type { Sys, Tree } from "../sys/sys.ts";

/** Bytes, of the state and of config.json, whose annotations the state repeats. */
const MAX = 16 << 20;

/**
 * A container's root file system, to be looked at and changed. Some runtimes (crun) mount that of a container which asks
 * for a read-only one so before its hooks run, others after.
 */
export class Rootfs {
  readonly tree: Tree;
  readonly #sys: Sys;
  readonly #path: string;
  #writable: Tree | undefined;

  constructor(sys: Sys, path: string) {
    this.tree = sys.tree(path);
    this.#sys = sys;
    this.#path = path;
  }

  /** @throws OsError `EROFS` where the file system itself is read-only */
  change(make: (tree: Tree) => void): void {
    try {
      make(this.#writable ?? this.tree);
    } catch (thrown) {
      if (!(thrown instanceof OsError) || thrown.code !== "EROFS" || this.#writable !== undefined) throw thrown;
      this.#writable = this.#writableTree(thrown);
      make(this.#writable);
    }
  }

  #writableTree(because: OsError): Tree {
    try {
      if (isReadOnlyByRuntime(this.#sys, this.#path)) return this.#sys.writableTree(this.#path);
    } catch (thrown) {
      if (!(thrown instanceof OsError)) throw thrown;
    }
    throw because;
  }
}

/**
 * Whether it was the runtime that made the root read-only, by a mount of its own over what the engine gave it. What the
 * engine itself mounted read-only may be an image that others share (`ctr run --read-only`).
 */
function isReadOnlyByRuntime(sys: Sys, path: string): boolean {
  const place = sys.realPath(path);
  const lines = sys.readText("/proc/self/mountinfo", MAX).split("\n");
  const mounts = lines.map((line) => line.split(" "));
  // proc(5): number, parent, device, root, mount point, options. The last mount at a place is the one that is seen.
  const top = mounts.findLast((mount) => pointOf(mount[4] ?? "") === place);
  const below = mounts.find(([number]) => number === top?.[1]);
  return /^rw(?:,|$)/.test(below?.[5] ?? "");
}

/** Spaces and what else would be taken for an end are octal numbers in mountinfo. */
function pointOf(text: string): string {
  return text.replace(/\\(\d{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));
}

/**
 * The container's root file system, as the machine sees it, for a createContainer hook.
 *
 * The way that the OCI runtime specification knows is the container's state on standard input: `root.path` of its
 * bundle's config.json. A hook that reads it waits some milliseconds for runc, even /bin/cat: runc's init has one
 * processor for its goroutines, and one of them writes the state while another waits for the hook's end. But runc's
 * working folder is the root by then, and where that can be proven, nobody has to read the state.
 *
 * @param files of the machine that the spec of the hook also mounts, at the same place
 * @throws SluiceError `E_HOOK_STATE`, `E_HOOK_BUNDLE`
 */
export function rootfsOf(sys: Sys, files: Iterable<string>): string {
  return rootAround(sys, files) ?? rootOfState(sys);
}

/**
 * The working folder, where that is the container's root: one of the files is mounted in it, by itself, and is the
 * machine's. Only whoever made this container's mounts can have done that.
 */
function rootAround(sys: Sys, files: Iterable<string>): string | undefined {
  try {
    const folder = sys.cwd();
    if (folder === "/") return undefined;
    const tree = sys.tree(folder);
    for (const file of files) {
      const stamp = tree.mountedStamp(file);
      if (stamp !== "") return stamp === sys.stat(file)?.stamp ? folder : undefined;
    }
  } catch (thrown) {
    if (!(thrown instanceof OsError)) throw thrown;
  }
  return undefined;
}

function rootOfState(sys: Sys): string {
  const bundle = bundleOf(sys);
  const path = `${bundle}/config.json`;
  let root: unknown;
  try {
    root = rootPath(sys, sys.readText(path, MAX));
  } catch (thrown) {
    if (!(thrown instanceof OsError) && !(thrown instanceof SyntaxError)) throw thrown;
    bundleError(path, reasonOf(thrown), thrown);
  }
  if (typeof root !== "string" || root === "") bundleError(path, "it names no root.path");
  return root.charCodeAt(0) === 0x2f ? root : `${bundle}/${root}`;
}

function bundleError(path: string, reason: string, cause?: unknown): never {
  throw new SluiceError(
    "E_HOOK_BUNDLE",
    `${quote(path)} does not tell the container's root file system: ${reason}`,
    "the hook must be run by an OCI runtime, as a createContainer hook, and must be able to read the bundle",
    cause,
  );
}

function bundleOf(sys: Sys): string {
  let bundle: unknown;
  try {
    bundle = (JSON.parse(sys.readInput(MAX)) as { bundle?: unknown } | null)?.bundle;
  } catch (thrown) {
    if (!(thrown instanceof OsError) && !(thrown instanceof SyntaxError)) throw thrown;
    stateError(reasonOf(thrown), thrown);
  }
  if (typeof bundle !== "string" || !bundle.startsWith("/")) stateError("it has no absolute path as bundle");
  return bundle;
}

function stateError(reason: string, cause?: unknown): never {
  throw new SluiceError(
    "E_HOOK_STATE",
    `standard input is not a container's state: ${reason}`,
    "the hook must be run by an OCI runtime, not by hand",
    cause,
  );
}

/**
 * `root.path` of a config.json. To parse all of it would take as long as all else that a hook does; where its places can
 * be found without (`Sys.jsonEnd`), only the object "root" is.
 */
function rootPath(sys: Sys, text: string): unknown {
  const root = sys.jsonEnd && memberOf(text, "root", sys.jsonEnd);
  const config = (root === undefined ? JSON.parse(text) : { root: JSON.parse(root) }) as {
    root?: { path?: unknown } | null;
  } | null;
  return config?.root?.path;
}

/** The text of an object's member that is an object; `undefined` where that is not plain to see. */
function memberOf(text: string, key: string, endOf: (text: string, start: number) => number): string | undefined {
  let at = skipSpace(text, 0);
  if (text.charCodeAt(at) !== 0x7b) return undefined;
  for (;;) {
    at = skipSpace(text, at + 1); // behind an opening brace or a comma
    const name = at;
    if (text.charCodeAt(at) !== QUOTE) return undefined;
    at = endOf(text, at);
    if (at < 0) return undefined;
    const found = text.slice(name + 1, at - 1) === key;
    at = skipSpace(text, at);
    if (text.charCodeAt(at) !== 0x3a) return undefined;
    at = skipSpace(text, at + 1);
    const value = at;
    const first = text.charCodeAt(at);
    if (first === QUOTE || first === 0x7b || first === 0x5b) at = endOf(text, at);
    else while (/[\w.+-]/.test(text.charAt(at))) at++;
    if (at < 0) return undefined;
    if (found) return first === 0x7b ? text.slice(value, at) : undefined;
    at = skipSpace(text, at);
    if (text.charCodeAt(at) !== 0x2c) return undefined;
  }
}

const QUOTE = 0x22;

function skipSpace(text: string, start: number): number {
  let at = start;
  while (text.charCodeAt(at) <= 0x20) at++;
  return at;
}
