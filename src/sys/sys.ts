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

/**
 * A tree that somebody else wrote, to be changed: a container's root file system. Every path resolves beneath the root,
 * links on the way too, and is resolved once; what it leads to does not change meanwhile.
 */
export interface Tree extends Files {
  /**
   * A symbolic link to `target`, as given, in place of a file or a link, in one step. One that is there already stays.
   * @throws OsError `EISDIR` where a folder is there
   */
  symlink(target: string, path: string): void;
  /**
   * As `symlink`, for many links of one folder to entries of the same folder: those whose target is there. A target that
   * has the link's own name stays as it is. Those before one that fails are made.
   * @returns of each target whether it is there, links followed
   * @throws OsError with the path of the link, `EINVAL` where it or its target is no name of an entry; or of the folder
   */
  links(dir: string, names: readonly string[], targets: readonly string[]): boolean[];
  /**
   * A file of these bytes (one character a byte), in place of a file or a link, in one step. It has the owner and mode of
   * the file that it replaces, else `mode`.
   * @throws OsError `EISDIR` where a folder is there, `EINVAL` for a character above U+00FF
   */
  writeBytes(path: string, bytes: string, mode: number): void;
  /** The folder, and those on the way to it. What is there already stays. */
  mkdirs(path: string, mode: number): void;
  /**
   * Mounts the machine's file `source` over the file at `path`: read-only, nosuid, nodev, noexec and private, from the
   * moment it is there. Needs Linux 5.12.
   * @throws OsError `EINVAL` where one of them is not a regular file
   */
  bindOver(source: string, path: string): void;
  /**
   * The stamp (`Stat.stamp`) of what is mounted at the path by itself. Empty where it is no mount, where nothing is, and
   * where the kernel does not tell, as before Linux 5.8.
   */
  mountedStamp(path: string): string;
}

/** Entries of a loader's cache with some more among them. */
export interface Added {
  readonly count: number;
  /** The bytes of their paths; 0 where all stand there already. */
  readonly strings: number;
  /** All entries, for where their strings are now, and the paths of those that were added. */
  readonly text: string;
}

/** What a program said, and how it ended. */
export interface Captured {
  /** The exit code; 128 and the signal's number where one ended it. */
  readonly code: number;
  /** Its standard output; U+FFFD for what is not UTF-8. */
  readonly out: string;
}

export interface Sys extends Files {
  /** The command line; `[0]` is the name under which the program was called. */
  readonly args: readonly string[];
  /** Another tree: every path, and every link on the way, resolves beneath `root` (openat2 RESOLVE_IN_ROOT). */
  under(root: string): Files;
  /** As `under`, to be written to. */
  tree(root: string): Tree;
  /**
   * As `tree`, through a copy of the root's mounts that only we have, and that can be written to where the root is
   * mounted read-only and its file system is not. Needs Linux 5.12, and stays open until the process ends.
   */
  writableTree(root: string): Tree;

  /** A variable of our own environment. */
  env(name: string): string | undefined;
  cwd(): string;
  readonly euid: number;
  /** Milliseconds since the epoch. Never called inside planning. */
  now(): number;
  /** Milliseconds. */
  sleep(ms: number): void;

  /** SHA-256 of a text's UTF-8, as 64 hexadecimal digits. Here because an interpreter is too slow for it. */
  sha256(text: string): string;
  /**
   * Where the object, array or string that starts at `start` of a JSON text ends, behind its last character; below 0 where
   * it cannot tell. Only in the executable, where TypeScript is slow at it (see patchJson).
   */
  jsonEnd?(text: string, start: number): number;
  /**
   * Of the object that starts at `start` of a JSON text, start and end of each member's key and value; of an array, of each
   * element; and last, where it ends. `undefined` where it cannot tell. Only in the executable, as `jsonEnd`.
   */
  jsonParts?(text: string, start: number): readonly number[] | undefined;
  /**
   * Entries of a loader's cache (src/host/ld-cache.ts), from its header on, with libraries put among them; `undefined` where
   * one has a string that is not behind all entries. Only in the executable, as `jsonEnd`.
   */
  addCached?(
    bytes: string,
    count: number,
    libraries: readonly { readonly path: string; readonly flags: number }[],
  ): Added | undefined;

  /** The path of the same place without links, `.` and `..`. */
  realPath(path: string): string;
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

  /**
   * Waits until nobody else holds the lock of this file (flock; it is created, mode 0600, where it is missing) and holds
   * it until the function that it gives is called, or the process ends or becomes another program.
   */
  lock(path: string): () => void;

  /**
   * Standard input to its end.
   * @throws OsError `EFBIG` beyond `limit` bytes, `EILSEQ` if it is not UTF-8
   */
  readInput(limit: number): string;
  /** Writes to standard output or error; a reader that went away is not an error. */
  out(text: string): void;
  err(text: string): void;
  /**
   * Runs the program at `path` and gives what it writes. `args` are those behind its name, which is `path`; `env` is its
   * whole environment, as `NAME=value`. It has /dev/null as standard input and error, and dies with us.
   * @throws OsError `ETIMEDOUT` after `timeoutMs`, `EFBIG` beyond `limit` bytes: it is killed then, with its process
   * group; or what execve gives
   */
  capture(path: string, args: readonly string[], env: readonly string[], limit: number, timeoutMs: number): Captured;
  /**
   * Sends a text to the server that listens on a unix socket, and gives its answer, which ends where it closes. Only in the
   * executable: what has an event loop has better ways.
   * @throws OsError `EPERM` where the server is another user's, `ETIMEDOUT` after `timeoutMs`, `EFBIG` beyond `limit`
   * bytes, `EILSEQ` if it is not UTF-8; or what connect gives: `ENOENT`, `ECONNREFUSED`
   */
  ask?(path: string, text: string, limit: number, timeoutMs: number): string;
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
