/**
 * The GPUs that a container carries in its config.json, whoever put them there: its engine's native CDI, a device plugin,
 * another NRI plugin, or the pod's author by a hostPath.
 */

import { Look } from "../host/look.ts";
import { readMajors } from "../host/node.ts";
import type { Config, DeviceCgroup } from "../oci/spec.ts";
import { OsError, quote } from "../sys/error.ts";
import type { Files } from "../sys/sys.ts";

export interface CarriedNode {
  /** For a person: `device node "/dev/nvidia0" (c 195:0)`. */
  readonly what: string;
  readonly major: number;
  /** Absent of a cgroup rule for all nodes of a driver. */
  readonly minor?: number;
}

export interface Carried {
  readonly nodes: readonly CarriedNode[];
  /** The device cgroup allows everything: so it is with a privileged container. */
  readonly isPrivileged: boolean;
}

/** Drivers of GPUs and of what belongs to them, by their names in /proc/devices. */
const DRIVERS = /^(?:nvidia.*|kfd|drm|accel)$/;
/** Numbers that are everybody's, also where no driver is loaded: NVIDIA's GPUs, and DRM. */
const FIXED = [195, 226];

/** Numbers that the kernel's list of devices gives to others: memory, terminals, misc. Every container has some of them. */
const OTHERS = [1, 5, 10, 136];

/** Entries of a folder below /dev that are looked at. */
const MOST = 4096;

export function findCarried(config: Config, host: Files): Carried {
  const rules = config.linux?.resources?.devices ?? [];
  const isPrivileged = rules.findLast(isForAll)?.allow === true;
  const devices = (config.linux?.devices ?? []).filter(({ type, major }) => /^[cu]$/.test(type) && !isOthers(major));
  const allowing = rules.filter((rule) => isOfGpuKind(rule) && !isOthers(rule.major));
  const sources = new Set<string>();
  for (const { source } of config.mounts ?? []) if (source && isBelowDev(source)) sources.add(source);
  if (devices.length === 0 && sources.size === 0 && allowing.length === 0) return { nodes: [], isPrivileged };

  const look = new Look(host);
  const majors = new Set(FIXED);
  for (const [name, major] of readMajors(look)) if (DRIVERS.test(name)) majors.add(major);

  const nodes: CarriedNode[] = [];
  for (const { path, major, minor } of devices) {
    if (major === undefined || !majors.has(major)) continue;
    nodes.push({ what: `device node ${quote(path)} (c ${major}:${minor ?? 0})`, major, minor: minor ?? 0 });
  }
  for (const { major, minor, access } of allowing) {
    const minors = isAny(minor) ? "*" : minor;
    const what = `device cgroup rule "c ${isAny(major) ? "*" : major}:${minors} ${access ?? "rwm"}"`;
    for (const own of isAny(major) ? majors : [major as number]) {
      if (majors.has(own)) nodes.push({ what, major: own, ...(isAny(minor) ? {} : { minor: minor as number }) });
    }
  }
  for (const source of sources) nodes.push(...nodesAt(look, source, majors));
  return { nodes, isPrivileged };
}

/** A folder or a file that holds nodes. All of /dev is no request for a GPU, and opens none: the device cgroup does. */
function isBelowDev(source: string): boolean {
  if (!source.includes("dev/")) return false;
  const path = `/${source
    .split("/")
    .filter((step) => step !== "" && step !== ".")
    .join("/")}`;
  // Where `..` leads the kernel knows, behind a link to elsewhere.
  if (path.includes("/../")) return true;
  return path.includes("/dev/") && !/^\/dev\/(?:shm|pts|mqueue|hugepages|termination-log)(?:\/|$)/.test(path);
}

/** For all devices, or all character devices: what allows nothing else, and what a privileged container has. */
function isForAll({ type, major, minor, access }: DeviceCgroup): boolean {
  return isOfCharacters(type) && isAny(major) && isAny(minor) && canOpen(access);
}

/** Allows some, of one driver's or with one number of any driver's. */
function isOfGpuKind({ allow, type, major, minor, access }: DeviceCgroup): boolean {
  return allow && isOfCharacters(type) && !(isAny(major) && isAny(minor)) && canOpen(access);
}

function isOfCharacters(type: string | undefined): boolean {
  return !type || type === "a" || type === "c";
}

function canOpen(access: string | undefined): boolean {
  return /[rw]/.test(access ?? "rwm");
}

function isOthers(major: number | undefined): boolean {
  return major !== undefined && OTHERS.includes(major);
}

function isAny(number: number | null | undefined): boolean {
  return number === undefined || number === null || number < 0;
}

function nodesAt(look: Look, source: string, majors: ReadonlySet<number>): CarriedNode[] {
  const found: CarriedNode[] = [];
  const visit = (path: string): string | undefined => {
    try {
      const stat = look.files.stat(path);
      if (stat?.kind === "char" && majors.has(stat.major)) {
        const via = path === source ? "" : `, which has ${quote(path)}`;
        const what = `mount of ${quote(source)}${via} (c ${stat.major}:${stat.minor})`;
        found.push({ what, major: stat.major, minor: stat.minor });
      }
      return stat?.kind;
    } catch (thrown) {
      if (!(thrown instanceof OsError)) throw thrown;
      return undefined; // what we cannot look at, no container gets either
    }
  };
  if (visit(source) === "dir") for (const name of look.names(source).slice(0, MOST)) visit(`${source}/${name}`);
  return found;
}
