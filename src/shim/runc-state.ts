/** What runc itself knows of a container, in its folder of it. */

import { OsError } from "../sys/error.ts";
import type { Files } from "../sys/sys.ts";

/** Where runc keeps its containers when it is root and `--root` does not say. */
const DEFAULT_ROOT = "/run/runc";

/** Bytes of a state.json, which holds the container's config.json too. */
const STATE_START = 512;
/** Bytes, of /proc/<pid>/stat. */
const STAT_LIMIT = 4096;

/** How a state.json begins (libcontainer.BaseState, runc 1.0 to 1.5): the container's first process. */
const INIT = /^\{"id":"[^"\\]*","init_process_pid":(\d+),"init_process_start":(\d+),/;

/**
 * Whether the first process of a container is gone, told as runc does by when it was started. `false` where that cannot be
 * told, as of another runtime's container.
 *
 * @param root runc's `--root`
 */
export function initHasEnded(files: Files, root: string | undefined, id: string): boolean {
  try {
    const state = files.readBytes(`${root ?? DEFAULT_ROOT}/${id}/state.json`, 0, STATE_START);
    const [, pid, start] = INIT.exec(state) ?? [];
    return pid !== undefined && pid !== "0" && !isAlive(files, pid, start as string);
  } catch (thrown) {
    if (!(thrown instanceof OsError)) throw thrown;
    return false;
  }
}

/** Whether the process that was started then, in clock ticks after boot, is there and is no zombie: proc_pid_stat(5). */
function isAlive(files: Files, pid: string, start: string): boolean {
  if (files.stat(`/proc/${pid}`) === undefined) return false;
  const stat = files.readText(`/proc/${pid}/stat`, STAT_LIMIT);
  // A process gives itself its name, which stands in parentheses and may hold some.
  const [state = "", ...rest] = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return rest[18] === start && !/^[ZX]$/.test(state);
}
