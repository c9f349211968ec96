/**
 * Who has the machine's GPUs open: the kernel says it of every process in /proc/<pid>/fd, and in /proc/<pid>/cgroup in
 * which container the process runs.
 */

import { OsError } from "../sys/error.ts";
import type { Files } from "../sys/sys.ts";
import type { Node } from "./node.ts";

/** A process that has a node open. */
export interface Holder {
  readonly pid: number;
  /** What the process calls itself (/proc/<pid>/comm): its own choice. */
  readonly name: string;
  /** The container that it runs in: 64 hexadecimal digits. */
  readonly container?: string;
  /** The machine's paths of the nodes that it has open, in the order in which they were asked for. */
  readonly nodes: readonly string[];
}

export interface Holders {
  readonly processes: readonly Holder[];
  /** How many processes were looked at; 0 in a tree that has none, or where there is no node to look for. */
  readonly total: number;
  /** How many of them would not let us look: other users', where we are not root. */
  readonly denied: number;
}

/** Bytes. A process is in one cgroup a hierarchy, and a path has at most 4096. */
const LIMIT = 64 << 10;
/** Bytes, of /proc/<pid>/mountinfo on a machine with thousands of mounts. */
const MOUNTS_LIMIT = 8 << 20;

/**
 * The processes that have one of the nodes open. Told by device numbers where that is safe, since a container may have
 * the node under another name, and another node under this one. Of a file that is mapped and closed, nothing is known.
 *
 * What goes while it is looked at counts as not there.
 */
export function readHolders(files: Files, nodes: readonly Node[]): Holders {
  const wanted: Wanted = {
    byNumbers: new Map(nodes.map(({ major, minor, path }) => [`${major}:${minor}`, path])),
    paths: new Set(nodes.map(({ path }) => path)),
  };
  const processes: Holder[] = [];
  if (nodes.length === 0) return { processes, total: 0, denied: 0 };
  let total = 0;
  let denied = 0;
  for (const { name: pid } of orNothing(() => files.list("/proc")) ?? []) {
    if (!/^\d+$/.test(pid)) continue;
    try {
      const held = heldBy(files, pid, wanted);
      if (held === undefined) continue;
      total++;
      if (held.size > 0)
        processes.push(
          describe(
            files,
            pid,
            [...wanted.paths].filter((path) => held.has(path)),
          ),
        );
    } catch (thrown) {
      if (!(thrown instanceof OsError)) throw thrown;
      if (thrown.code !== "EACCES" && thrown.code !== "EPERM") continue;
      total++;
      denied++;
    }
  }
  processes.sort((a, b) => a.pid - b.pid);
  return { processes, total, denied };
}

/** The nodes that are asked about. */
interface Wanted {
  /** Of `major:minor` the path. */
  readonly byNumbers: ReadonlyMap<string, string>;
  readonly paths: ReadonlySet<string>;
}

/** Nodes that nearly every process has open; to look at each would be most of the work. */
const USUAL = /^\/dev\/(?:null|zero|full|random|urandom|tty|ptmx|fuse|pts\/|shm\/)/;

/**
 * Which of the nodes a process has open; `undefined` of one that is gone.
 * @throws OsError where we may not know
 */
function heldBy(files: Files, pid: string, { byNumbers, paths }: Wanted): Set<string> | undefined {
  const descriptors = files.list(`/proc/${pid}/fd`);
  if (descriptors === undefined) return undefined;
  const held = new Set<string>();
  let mounts: string | undefined;
  for (const { name } of descriptors) {
    const descriptor = `/proc/${pid}/fd/${name}`;
    const target = orNothing(() => files.readLink(descriptor));
    // Nodes lie below /dev in every container too.
    if (target === undefined || target.slice(0, 5) !== "/dev/" || USUAL.test(target)) continue;
    mounts ??= orNothing(() => files.readText(`/proc/${pid}/mountinfo`, MOUNTS_LIMIT)) ?? "";
    const stat = isInMemory(files, pid, name, mounts) ? orNothing(() => files.stat(descriptor)) : undefined;
    const named = target.replace(/ \(deleted\)$/, "");
    const path =
      stat === undefined
        ? paths.has(named) && named
        : stat.kind === "char" && byNumbers.get(`${stat.major}:${stat.minor}`);
    if (path) held.add(path);
  }
  return held;
}

/**
 * Whether a descriptor's file lies in a file system of the kernel's own. One that a process or a server answers for (a
 * container can mount FUSE below its /dev) may never answer, and to look at its files would wait for that.
 */
function isInMemory(files: Files, pid: string, descriptor: string, mounts: string): boolean {
  const info = orNothing(() => files.readText(`/proc/${pid}/fdinfo/${descriptor}`, LIMIT)) ?? "";
  const id = /^mnt_id:\s*(\d+)$/m.exec(info)?.[1];
  if (id === undefined) return false;
  const line = mounts.split("\n").find((one) => one.startsWith(`${id} `));
  return line !== undefined && / - (?:devtmpfs|tmpfs) /.test(line);
}

function describe(files: Files, pid: string, nodes: readonly string[]): Holder {
  const name = orNothing(() => files.readText(`/proc/${pid}/comm`, LIMIT).trim()) ?? "?";
  const container = containerOf(orNothing(() => files.readText(`/proc/${pid}/cgroup`, LIMIT)) ?? "");
  return { pid: Number(pid), name, ...(container === undefined ? {} : { container }), nodes };
}

/**
 * The container that a cgroup is of, by the names that engines give: `docker-<id>.scope`, `cri-containerd-<id>.scope`,
 * `crio-<id>.scope`, `libpod-<id>.scope`, `...:cri-containerd:<id>` with systemd's names and no systemd, and `/<id>` or
 * `/docker/<id>` without. The outermost counts: what is below, the container itself can have made.
 *
 * @param text of /proc/<pid>/cgroup: lines of `hierarchy:controllers:path`
 */
export function containerOf(text: string): string | undefined {
  for (const line of text.split("\n")) {
    const path = line.split(":").slice(2).join(":");
    for (const step of path.split("/")) {
      const id = /^(?:.*[-:])?([0-9a-f]{64})(?:\.scope)?$/.exec(step)?.[1];
      if (id !== undefined) return id;
    }
  }
  return undefined;
}

/** What is there, of what may go at any moment. */
function orNothing<T>(look: () => T): T | undefined {
  try {
    return look();
  } catch (thrown) {
    if (thrown instanceof OsError) return undefined;
    throw thrown;
  }
}
