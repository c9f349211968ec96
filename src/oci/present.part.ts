/**
 * Which edits a config.json already has: a stamped container must still have all of its own, and what an engine's
 * native CDI has put in must not be put in a second time.
 */

import type { ContainerEdits, DeviceNode, Hook as HookEdit } from "../cdi/spec.ts";
import { quote } from "../sys/error.ts";
import {
  envName,
  hasUserNamespace,
  stageOf,
  toDeviceCgroup,
  toHook,
  toIntelRdt,
  toLinuxDevice,
  toMount,
} from "./apply.ts";
import { escapePointer } from "./lossless.ts";
import type { Config, DeviceCgroup, Hook } from "./spec.ts";

export interface Missing {
  /** JSON pointer of the part of config.json that lacks it. */
  readonly pointer: string;
  /** A sentence without a full stop. */
  readonly what: string;
}

/**
 * The parts of `edits` that `config` lacks, in the order in which they would be applied; none of
 * `applyEdits(config, edits)`. Where edits name one thing twice, the last one is what must be there.
 */
export function missingEdits(config: Config, edits: readonly ContainerEdits[]): Missing[] {
  const missing: Missing[] = [];
  const report = (pointer: string, what: string): void => {
    missing.push({ pointer, what });
  };

  const env = lastByKey(config.process?.env ?? [], envName);
  for (const [name, entry] of lastByKey(
    edits.flatMap((e) => e.env ?? []),
    envName,
  )) {
    const now = env.get(name);
    if (now === entry) continue;
    const what = now === undefined ? "is not set" : `is ${quote(now.slice(name.length + 1))}`;
    report("/process/env", `the variable ${quote(name)} ${what} and should be ${quote(entry.slice(name.length + 1))}`);
  }

  const rules = config.linux?.resources?.devices ?? [];
  for (const node of lastByKey(
    edits.flatMap((e) => e.deviceNodes ?? []),
    (n) => n.path,
  ).values()) {
    if (!hasDevice(config, node)) {
      const numbers = `${node.type ?? ""} ${node.major ?? 0}:${node.minor ?? 0}`;
      report("/linux/devices", `the device node ${quote(node.path)} (${numbers}) is not there`);
    }
    const rule = toDeviceCgroup(node);
    if (rule !== undefined && !isAllowed(rules, rule)) {
      const numbers = `${rule.type} ${rule.major}:${rule.minor} ${rule.access}`;
      report("/linux/resources/devices", `the device cgroup does not allow ${numbers} for ${quote(node.path)}`);
    }
  }

  const netDevices = config.linux?.netDevices ?? {};
  for (const edit of lastByKey(
    edits.flatMap((e) => e.netDevices ?? []),
    (d) => d.hostInterfaceName,
  ).values()) {
    const host = edit.hostInterfaceName;
    if (Object.hasOwn(netDevices, host) && netDevices[host]?.name === edit.name) continue;
    report(
      `/linux/netDevices/${escapePointer(host)}`,
      `the network device ${quote(host)} is not there as ${quote(edit.name)}`,
    );
  }

  const mounts = lastByKey(config.mounts ?? [], (mount) => mount.destination);
  const userNamespace = hasUserNamespace(config);
  for (const edit of lastByKey(
    edits.flatMap((e) => e.mounts ?? []),
    (m) => m.containerPath,
  ).values()) {
    const want = toMount(edit, userNamespace);
    const mount = mounts.get(want.destination);
    const options = mount?.options ?? [];
    const same =
      mount !== undefined &&
      mount.source === want.source &&
      (mount.type ?? "") === (want.type ?? "") &&
      (want.options ?? []).every((option) => options.includes(option));
    if (same) continue;
    const what = mount === undefined ? "is not there" : "has another source, type or options";
    report("/mounts", `the mount of ${quote(edit.hostPath)} on ${quote(edit.containerPath)} ${what}`);
  }

  for (const edit of edits.flatMap((e) => e.hooks ?? [])) {
    if (hasHook(config, edit)) continue;
    report(`/hooks/${edit.hookName}`, `the ${edit.hookName} hook ${quote(edit.path)} is not there`);
  }

  const intelRdt = edits.findLast((e) => e.intelRdt)?.intelRdt;
  if (intelRdt !== undefined) {
    const now: Record<string, unknown> = { ...config.linux?.intelRdt };
    for (const [name, value] of Object.entries(toIntelRdt(intelRdt))) {
      if (isSame(now[name], value)) continue;
      report(`/linux/intelRdt/${name}`, `the resource control setting ${name} is not ${quote(JSON.stringify(value))}`);
    }
  }

  const gids = config.process?.user?.additionalGids ?? [];
  for (const gid of new Set(edits.flatMap((e) => e.additionalGids ?? []))) {
    if (gid !== 0 && !gids.includes(gid)) report("/process/user/additionalGids", `the group ${gid} is not there`);
  }
  return missing;
}

/**
 * `edits` without what `config` has and what applying them would add again: identical hooks, and device nodes that are
 * there and allowed (their cgroup rules would double). The rest replaces itself and can be applied twice.
 */
export function withoutPresent(config: Config, edits: readonly ContainerEdits[]): ContainerEdits[] {
  const rules = config.linux?.resources?.devices ?? [];
  return edits.map((edit) => {
    const next = { ...edit };
    if (edit.hooks) next.hooks = edit.hooks.filter((hook) => !hasHook(config, hook));
    if (edit.deviceNodes) {
      next.deviceNodes = edit.deviceNodes.filter((node) => {
        const rule = toDeviceCgroup(node);
        return !hasDevice(config, node) || (rule !== undefined && !isAllowed(rules, rule));
      });
    }
    return next;
  });
}

function lastByKey<T>(items: readonly T[], key: (item: T) => string): Map<string, T> {
  const last = new Map<string, T>();
  for (const item of items) last.set(key(item), item);
  return last;
}

/**
 * Mode and owner count only where the edit gives them: the owner that a node gets otherwise depends on the door that
 * acted first.
 */
function hasDevice(config: Config, node: DeviceNode): boolean {
  const want = toLinuxDevice(node, undefined);
  return (config.linux?.devices ?? []).some(
    (device) =>
      device.path === want.path &&
      device.type === want.type &&
      (device.major ?? 0) === want.major &&
      (device.minor ?? 0) === want.minor &&
      (want.fileMode === undefined || device.fileMode === want.fileMode) &&
      (want.uid === undefined || device.uid === want.uid) &&
      (want.gid === undefined || device.gid === want.gid),
  );
}

/** Whether the rules let a container use a device: for each kind of access the last rule that matches decides. */
function isAllowed(rules: readonly DeviceCgroup[], want: DeviceCgroup): boolean {
  return [...(want.access ?? "")].every((access) => {
    const rule = rules.findLast(
      (r) =>
        (!r.type || r.type === "a" || r.type === want.type) &&
        matches(r.major, want.major) &&
        matches(r.minor, want.minor) &&
        (r.access ?? "").includes(access),
    );
    return rule?.allow === true;
  });
}

/** A rule without a number, or with -1, is for all. */
function matches(rule: number | null | undefined, number: number | undefined): boolean {
  return rule === undefined || rule === null || rule === -1 || rule === number;
}

function hasHook(config: Config, edit: HookEdit): boolean {
  const want = toHook(edit);
  return (config.hooks?.[stageOf(edit)] ?? []).some((hook: Hook) => {
    return (
      hook.path === want.path &&
      isSame(hook.args ?? [], want.args ?? []) &&
      isSame(hook.env ?? [], want.env) &&
      (hook.timeout ?? undefined) === want.timeout
    );
  });
}

/** For strings, booleans and lists of strings. */
function isSame(a: unknown, b: unknown): boolean {
  if (Array.isArray(a) && Array.isArray(b)) return a.length === b.length && a.every((item, i) => item === b[i]);
  return a === b;
}
