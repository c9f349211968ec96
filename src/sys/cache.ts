import { OsError } from "./error.ts";
import type { Stat, Sys } from "./sys.ts";

/*
 * Small files that save work between two starts. A cache is never needed and never trusted over what it was made
 * from: whoever reads one puts the stamps of its sources into the key, and every failure here means "no cache".
 *
 * On disk: one line `<key> <length of the body>`, then the body. The length tells a cut file from a whole one.
 */

/** Bytes of the largest cache file that is read. */
const LIMIT = 64 << 20;
/** Milliseconds after which a half-written file is taken to be left by a process that died. */
const ABANDONED = 10_000;
/** Milliseconds. Longer than the tick of any file system's clock (at most 10 ms at HZ=100), with room to spare. */
const SETTLED = 100;

/**
 * Whether a file's `stamp` identifies its content: one that changed within the last tick could be written once more
 * and keep its stamp. Only a settled file may be cached.
 */
export function isSettled(stat: Stat, now: number): boolean {
  return stat.ctimeMs <= now - SETTLED;
}

/** Only a folder that nobody else can write to holds caches: in any other, a stranger chooses what we believe. */
function isPrivate(stat: Stat, euid: number): boolean {
  return stat.kind === "dir" && stat.uid === euid && (stat.mode & 0o022) === 0;
}

/**
 * The body that `writeCache` stored under `name` in the folder `dir`, if it was stored with this very `key` and the
 * folder is ours alone. The body has the length it was written with, but its syntax is the caller's to check.
 */
export function readCache(sys: Sys, dir: string, name: string, key: string): string | undefined {
  try {
    const folder = sys.lstat(dir);
    if (folder === undefined || !isPrivate(folder, sys.euid)) return undefined;
    const text = sys.readText(`${dir}/${name}`, LIMIT);
    const end = text.indexOf("\n");
    return end >= 0 && text.slice(0, end) === `${key} ${text.length - end - 1}` ? text.slice(end + 1) : undefined;
  } catch (error) {
    if (error instanceof OsError) return undefined;
    throw error;
  }
}

/**
 * Stores `body` under `name`, replacing what is there in one step; creates `dir` (0755) where its parent exists.
 * `key` is one line, without line breaks. Where the folder is not ours alone, is not writable, or another process is
 * storing the same cache, nothing is written.
 *
 * @returns whether it was stored
 */
export function writeCache(sys: Sys, dir: string, name: string, key: string, body: string): boolean {
  const draft = `${dir}/.${name}.new`;
  try {
    let folder = sys.lstat(dir);
    if (folder === undefined) {
      sys.mkdir(dir, 0o755);
      folder = sys.lstat(dir);
    }
    if (folder === undefined || !isPrivate(folder, sys.euid)) return false;
    const left = sys.lstat(draft);
    if (left !== undefined) {
      if (left.ctimeMs > sys.now() - ABANDONED) return false;
      sys.unlink(draft);
    }
    sys.createFile(draft, `${key} ${body.length}\n${body}`, 0o600);
  } catch (error) {
    if (error instanceof OsError) return false;
    throw error;
  }
  try {
    sys.rename(draft, `${dir}/${name}`);
    return true;
  } catch (error) {
    if (!(error instanceof OsError)) throw error;
  }
  try {
    sys.unlink(draft);
  } catch (error) {
    if (!(error instanceof OsError)) throw error;
  }
  return false;
}
