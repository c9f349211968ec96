/**
 * The operating system as one interface. Two implementations pass the same tests (test/unit/sys.test.ts):
 * `native.ts` over the C module inside the executable, `node.ts` over `node:fs` for the daemon and the tests.
 *
 * Wrappers only: no retries, no defaults, no policy. A failed call throws `OsError` with the errno's name.
 * Paths are absolute or relative to the working folder; a NUL in one gives `EINVAL`. Text is strict UTF-8.
 */

export type FileKind = "file" | "dir" | "link" | "char" | "block" | "fifo" | "socket" | "unknown";

export interface Stat {
  readonly kind: FileKind;
  /** Permission bits, setuid, setgid and sticky: `mode & 07777`. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  /** Bytes. */
  readonly size: number;
  /** Device number of a `char` or `block` node, else 0. */
  readonly major: number;
  readonly minor: number;
  /**
   * Identity of the content: device, inode, size, mode, owner, mtime and ctime in nanoseconds, as one opaque string
   * without spaces. Two equal stamps of one path mean that nobody wrote the file in between, except within one tick
   * of the file system's clock (`ctimeMs` lets a caller rule that out).
   */
  readonly stamp: string;
  /** When the inode last changed, in milliseconds since the epoch. */
  readonly ctimeMs: number;
}

/** A folder entry, links not followed. */
export interface Entry {
  readonly name: string;
  readonly kind: FileKind;
}

/** Reading a file tree: the machine's own (`sys`) or another one (`sys.under("/mnt/host")`). */
export interface Files {
  /**
   * The whole of a regular file.
   * @throws OsError `EFBIG` if it holds more than `limit` bytes, `EILSEQ` if it is not UTF-8, `EINVAL` if it is not a
   * regular file (opening never blocks on a FIFO), or what open and read give.
   */
  readText(path: string, limit: number): string;
  /**
   * At most `length` bytes of a regular file from `offset` on, as a string of one character a byte; fewer where the
   * file ends. Of a file that says that it is empty, as those of /proc do, none.
   * @throws OsError `EINVAL` if it is not a regular file, or what open and read give
   */
  readBytes(path: string, offset: number, length: number): string;
  /** Follows links. `undefined` where nothing is there (`ENOENT`, `ENOTDIR`); other failures throw. */
  stat(path: string): Stat | undefined;
  /** As `stat`, of the link itself. */
  lstat(path: string): Stat | undefined;
  /**
   * Entries of a folder without `.` and `..`, in the order of the bytes of their names. `undefined` where the folder does
   * not exist.
   */
  list(path: string): Entry[] | undefined;
  /** The stamps (`Stat.stamp`, links followed) of many entries of one folder at once; empty for those that are gone. */
  stamps(dir: string, names: readonly string[]): string[];
  /** The target of a symbolic link, as stored. */
  readLink(path: string): string;
}

export interface Sys extends Files {
  /** The command line; `[0]` is the name under which the program was called. */
  readonly args: readonly string[];
  /** Another tree: every path, and every link on the way, resolves beneath `root` (openat2 RESOLVE_IN_ROOT). */
  under(root: string): Files;

  /** A variable of our own environment. */
  env(name: string): string | undefined;
  cwd(): string;
  readonly euid: number;
  /** Milliseconds since the epoch. Never called inside planning. */
  now(): number;

  /** SHA-256 of a text's UTF-8, as 64 hexadecimal digits. Here because an interpreter is too slow for it. */
  sha256(text: string): string;
  /**
   * Where the object or array that starts at `start` of a JSON text ends, behind its last character; below 0 where it
   * cannot tell. Only in the executable, where TypeScript is slow at it (see patchJson).
   */
  jsonEnd?(text: string, start: number): number;

  /** Creates a file that must not exist (`O_EXCL`, never through a link) and writes `text` to it. Not synced to disk. */
  createFile(path: string, text: string, mode: number): void;
  /** Appends to a file with one write, creating it with `mode` where it does not exist. */
  appendFile(path: string, text: string, mode: number): void;
  chmod(path: string, mode: number): void;
  /** Does not follow a link. */
  chown(path: string, uid: number, gid: number): void;
  /** Atomic replacement. */
  rename(from: string, to: string): void;
  unlink(path: string): void;
  /** One folder; `EEXIST` if it is there. */
  mkdir(path: string, mode: number): void;

  /** Writes to standard output or error; a reader that went away is not an error. */
  out(text: string): void;
  err(text: string): void;
  /**
   * Becomes the program at `path`: its arguments are our own from number `from` on, to the byte (they need not be
   * UTF-8), its environment and descriptors are those that we were given. Returns only by throwing.
   */
  exec(path: string, from: number): never;
  /**
   * As `exec`, in a child, and waits for it: signals that reach us are passed on, and it dies with us (PDEATHSIG).
   * Gives its exit code; where a signal ended it, the same signal ends us.
   */
  run(path: string, from: number): number;
}
