/**
 * CDI edits applied to a config.json's tree. Order and merging are those of the CDI library for Go, which containerd,
 * CRI-O, Podman and Docker use, so that a container gets the same from us as from an engine's native CDI. Where we
 * differ, the comment says so.
 */

import type {
  IntelRdt as CdiIntelRdt,
  Mount as CdiMount,
  ContainerEdits,
  DeviceNode,
  Hook as HookEdit,
  NetDevice,
} from "../cdi/spec.ts";
import { quote, SluiceError } from "../sys/error.ts";
import {
  type Config,
  type DeviceCgroup,
  HOOK_STAGES,
  type Hook,
  type HookStage,
  type Hooks,
  type IntelRdt,
  type Linux,
  type LinuxDevice,
  type Mount,
  type Process,
  type User,
} from "./spec.ts";

/**
 * The environment of a hook whose edit gives none. It must not be left out: runc and crun then run the hook, as root of
 * the host, with an environment that the container image had a say in, and `LD_PRELOAD` there is host code execution
 * (CVE-2025-23266; CDI defect 2.8 k).
 */
export const HOOK_ENV: readonly string[] = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"];

/**
 * `config` with all edits applied, as one list of edits joined in their order. Pure: the result shares every part that
 * no edit touches with `config`, and is `config` itself where nothing changes.
 *
 * Device nodes must be resolved: `type` is there, and `major` and `minor` for `b`, `c` and `u`.
 *
 * @throws SluiceError `E_EDIT_HOOK` for a stage that OCI does not have, `E_EDIT_DEVICE` for a node without a type.
 */
export function applyEdits(config: Config, edits: readonly ContainerEdits[]): Config {
  const env = edits.flatMap((e) => e.env ?? []);
  const nodes = edits.flatMap((e) => e.deviceNodes ?? []);
  const netDevices = edits.flatMap((e) => e.netDevices ?? []);
  const userNamespace = hasUserNamespace(config);
  const mounts = edits.flatMap((e) => (e.mounts ?? []).map((mount) => toMount(mount, userNamespace)));
  const hooks = edits.flatMap((e) => e.hooks ?? []);
  const intelRdt = edits.findLast((e) => e.intelRdt)?.intelRdt;
  const gids = edits.flatMap((e) => e.additionalGids ?? []);

  const next: Config = { ...config };
  if (env.length > 0 || gids.length > 0) {
    const process = editProcess(config.process, env, gids);
    if (process !== undefined) next.process = process;
  }
  if (nodes.length > 0 || netDevices.length > 0 || intelRdt !== undefined) {
    next.linux = editLinux(config, nodes, netDevices, intelRdt);
  }
  if (mounts.length > 0) next.mounts = mergeMounts(config.mounts ?? [], mounts);
  if (hooks.length > 0) next.hooks = addHooks(config.hooks ?? {}, hooks);

  const same =
    next.process === config.process &&
    next.linux === config.linux &&
    next.mounts === config.mounts &&
    next.hooks === config.hooks;
  return same ? config : next;
}

function editProcess(
  process: Process | undefined,
  env: readonly string[],
  gids: readonly number[],
): Process | undefined {
  const oldEnv = process?.env ?? [];
  const nextEnv = mergeEnv(oldEnv, env);
  const oldGids = process?.user?.additionalGids ?? [];
  const nextGids = mergeGids(oldGids, gids);

  let next = process;
  if (nextEnv !== oldEnv) next = { ...next, env: nextEnv };
  if (nextGids !== oldGids) next = { ...next, user: { ...next?.user, additionalGids: nextGids } };
  return next;
}

/**
 * An entry replaces the one of the same name in its place, of several the last (the one that counts: runtimes set them
 * in turn). A new name goes to the end. Unlike in Go, entries without `=` are nobody's variable and stay.
 */
function mergeEnv(old: string[], added: readonly string[]): string[] {
  const places = new Map<string, number>();
  for (let i = 0; i < old.length; i++) {
    const entry = old[i] as string;
    const end = entry.indexOf("=");
    if (end > 0) places.set(entry.slice(0, end), i);
  }
  let changed = false;
  const next = [...old];
  for (const entry of added) {
    const name = envName(entry);
    const place = places.get(name) ?? next.length;
    if (next[place] === entry) continue;
    next[place] = entry;
    places.set(name, place);
    changed = true;
  }
  return changed ? next : old;
}

/** The name in `NAME=value`. */
export function envName(entry: string): string {
  const end = entry.indexOf("=");
  return end < 0 ? entry : entry.slice(0, end);
}

/** Group 0 is never added, and none twice. */
function mergeGids(old: number[], added: readonly number[]): number[] {
  const gids = new Set(old);
  const fresh: number[] = [];
  for (const gid of added) {
    if (gid === 0 || gids.has(gid)) continue;
    gids.add(gid);
    fresh.push(gid);
  }
  return fresh.length > 0 ? [...old, ...fresh] : old;
}

function editLinux(
  config: Config,
  nodes: readonly DeviceNode[],
  netDevices: readonly NetDevice[],
  intelRdt: CdiIntelRdt | undefined,
): Linux {
  const next: Linux = { ...config.linux };
  if (nodes.length > 0) {
    const { devices, rules } = toDevices(nodes, config.process?.user);
    // Go takes the first of several devices of one path out of the list and overwrites the second; here all go.
    const added = new Set(devices.map((device) => device.path));
    const kept = (next.devices ?? []).filter((device) => !added.has(device.path));
    next.devices = [...kept, ...devices];
    if (rules.length > 0) {
      // A replaced device's old rule stays, and rules are added even if there are equal ones: the last match counts.
      next.resources = { ...next.resources, devices: [...(next.resources?.devices ?? []), ...rules] };
    }
  }
  if (netDevices.length > 0) {
    const all = { ...next.netDevices };
    for (const device of netDevices) define(all, device.hostInterfaceName, { name: device.name });
    next.netDevices = all;
  }
  if (intelRdt !== undefined) next.intelRdt = toIntelRdt(intelRdt);
  return next;
}

/** The devices and cgroup rules of nodes: of several nodes of a path one device, the last. */
export function toDevices(
  nodes: readonly DeviceNode[],
  user: User | undefined,
): { readonly devices: LinuxDevice[]; readonly rules: DeviceCgroup[] } {
  const devices = new Map<string, LinuxDevice>();
  const rules: DeviceCgroup[] = [];
  for (const node of nodes) {
    // Deleted first, so that the last node of a path stands where it was named last.
    devices.delete(node.path);
    devices.set(node.path, toLinuxDevice(node, user));
    const rule = toDeviceCgroup(node);
    if (rule !== undefined) rules.push(rule);
  }
  return { devices: [...devices.values()], rules };
}

/** Sets a member under a name from outside: an assignment to `__proto__` would set the prototype. */
function define<T>(target: Record<string, T>, name: string, value: T): void {
  Object.defineProperty(target, name, { value, enumerable: true, configurable: true, writable: true });
}

/** A node without an owner belongs to the container's user, so that a process that is not root can open it. */
export function toLinuxDevice(node: DeviceNode, user: User | undefined): LinuxDevice {
  if (node.type === undefined || node.type === "") {
    throw new SluiceError(
      "E_EDIT_DEVICE",
      `the device node ${quote(node.path)} has no type`,
      "give its type, major and minor in the CDI spec, or create the node on the host",
    );
  }
  const device: LinuxDevice = { path: node.path, type: node.type, major: node.major ?? 0, minor: node.minor ?? 0 };
  if (node.fileMode !== undefined) device.fileMode = node.fileMode;
  const owner = ownerOf(user);
  const uid = node.uid ?? owner.uid;
  if (uid !== undefined) device.uid = uid;
  const gid = node.gid ?? owner.gid;
  if (gid !== undefined) device.gid = gid;
  return device;
}

/** Whom a node belongs to that the edits give no owner; root where nobody. */
export function ownerOf(user: User | undefined): { uid?: number; gid?: number } {
  const owner: { uid?: number; gid?: number } = {};
  if (user?.uid !== undefined && user.uid > 0) owner.uid = user.uid;
  if (user?.gid !== undefined && user.gid > 0) owner.gid = user.gid;
  return owner;
}

/**
 * The rule that lets the container use the node. `u` and `p` need none. For `permissions: none` Go adds a rule with no
 * access, which runc refuses ("device access ... cannot be empty"); no rule means the same and works.
 */
export function toDeviceCgroup(node: DeviceNode): DeviceCgroup | undefined {
  if ((node.type !== "b" && node.type !== "c") || node.permissions === "none") return undefined;
  const access = node.permissions === undefined || node.permissions === "" ? "rwm" : node.permissions;
  return { allow: true, type: node.type, major: node.major ?? 0, minor: node.minor ?? 0, access };
}

/** Absent and empty fields are left out, as Go's `omitempty` does; that holds for all of the conversions below. */
export function toIntelRdt(edit: CdiIntelRdt): IntelRdt {
  const rdt: IntelRdt = {};
  if (edit.closID) rdt.closID = edit.closID;
  if (edit.schemata && edit.schemata.length > 0) rdt.schemata = edit.schemata;
  if (edit.l3CacheSchema) rdt.l3CacheSchema = edit.l3CacheSchema;
  if (edit.memBwSchema) rdt.memBwSchema = edit.memBwSchema;
  if (edit.enableMonitoring) rdt.enableMonitoring = true;
  // CDI 0.7.0 to 1.0.0 and OCI up to 1.2 have these two (CDI defect 2.8 f: the Go library no longer takes them).
  if (edit.enableCMT) rdt.enableCMT = true;
  if (edit.enableMBM) rdt.enableMBM = true;
  return rdt;
}

export function toHook(edit: HookEdit): Hook {
  const hook: Hook = { path: edit.path };
  if (edit.args && edit.args.length > 0) hook.args = edit.args;
  hook.env = edit.env && edit.env.length > 0 ? edit.env : [...HOOK_ENV];
  if (edit.timeout !== undefined) hook.timeout = edit.timeout;
  return hook;
}

/** The stage of a hook edit. */
export function stageOf(edit: HookEdit): HookStage {
  const stage = HOOK_STAGES.find((name) => name === edit.hookName);
  if (stage !== undefined) return stage;
  throw new SluiceError(
    "E_EDIT_HOOK",
    `the hook ${quote(edit.path)} names the stage ${quote(edit.hookName)}, which OCI does not have`,
    `use one of ${HOOK_STAGES.join(", ")}`,
  );
}

function addHooks(old: Hooks, edits: readonly HookEdit[]): Hooks {
  const next: Hooks = { ...old };
  for (const edit of edits) {
    const stage = stageOf(edit);
    next[stage] = [...(next[stage] ?? []), toHook(edit)];
  }
  return next;
}

/** `userNamespace`: the container has one, so the host's files must be mapped to its users. */
export function toMount(edit: CdiMount, userNamespace: boolean): Mount {
  const mount: Mount = { destination: edit.containerPath, source: edit.hostPath };
  if (edit.type) mount.type = edit.type;
  const options = edit.options ?? [];
  const map = userNamespace ? idMapOption(edit.type, options) : undefined;
  if (map !== undefined) mount.options = [...options, map];
  else if (options.length > 0) mount.options = options;
  return mount;
}

/** The option that maps users in a bind mount: recursive for `rbind`; none if the edit has one or it is no bind mount. */
function idMapOption(type: string | undefined, options: readonly string[]): string | undefined {
  let option = type === "bind" ? "idmap" : undefined;
  for (const given of options) {
    if (given === "idmap" || given === "ridmap") return undefined;
    if (given === "bind") option = "idmap";
    else if (given === "rbind") option = "ridmap";
  }
  return option;
}

export function hasUserNamespace(config: Config): boolean {
  return (config.linux?.namespaces ?? []).some((namespace) => namespace.type === "user");
}

/**
 * An edit replaces the first mount of the same destination (compared as written), and then all mounts, those of the
 * container's own too, are ordered by depth (CDI defect 2.8 j, kept: engines' native CDI does the same).
 */
function mergeMounts(old: readonly Mount[], added: readonly Mount[]): Mount[] {
  const all: (Mount | undefined)[] = [...old];
  const places = new Map<string, number>();
  for (let i = all.length - 1; i >= 0; i--) places.set((all[i] as Mount).destination, i);
  for (const mount of added) {
    const { destination } = mount;
    const place = places.get(destination);
    if (place !== undefined) {
      all[place] = undefined;
      const next = all.findIndex((other) => other?.destination === destination);
      places.set(destination, next < 0 ? all.length : next);
    } else {
      places.set(destination, all.length);
    }
    all.push(mount);
  }
  return byDepth(all);
}

/** A stable sort by the number of components of the destination, so that nothing is mounted over a later mount. */
function byDepth(mounts: readonly (Mount | undefined)[]): Mount[] {
  const levels = new Map<number, Mount[]>();
  /** Most mounts of a driver are files of a few folders, each ended by its slash. */
  const folders = new Map<string, number>();
  for (const mount of mounts) {
    if (mount === undefined) continue;
    const { destination } = mount;
    const slash = destination.lastIndexOf("/") + 1;
    const folder = destination.slice(0, slash);
    // A last component that adds one to the depth of its folder: not empty, `.` or `..`.
    const isPlain = slash < destination.length && destination.charCodeAt(slash) !== DOT;
    let depth = isPlain ? folders.get(folder) : undefined;
    if (depth === undefined) {
      depth = depthOf(destination);
      if (isPlain) folders.set(folder, depth);
    }
    const level = levels.get(depth);
    if (level === undefined) levels.set(depth, [mount]);
    else level.push(mount);
  }
  return [...levels].sort((a, b) => a[0] - b[0]).flatMap((level) => level[1]);
}

const DOT = 0x2e;

/** The number of slashes in the destination as Go's `filepath.Clean` gives it. */
export function depthOf(destination: string): number {
  const parts = destination.split("/");
  const rooted = parts[0] === "";
  if (rooted && parts.indexOf("", 1) < 0 && !parts.includes(".") && !parts.includes("..")) return parts.length - 1;
  let depth = 0;
  let above = 0;
  for (const part of parts) {
    if (part === "" || part === ".") continue;
    if (part !== "..") depth++;
    else if (depth > 0) depth--;
    else if (!rooted) above++;
  }
  const left = depth + above;
  return rooted ? Math.max(left, 1) : Math.max(left - 1, 0);
}
