/** Which edits a config.json has already: what an engine's native CDI has put in must not be put in a second time. */

import type { ContainerEdits, DeviceNode, Hook as HookEdit } from "../cdi/spec.ts";
import { stageOf, toDeviceCgroup, toHook, toLinuxDevice } from "./apply.ts";
import type { Config, DeviceCgroup, Hook } from "./spec.ts";

/** What runc and crun give a device node without a mode. containerd 1.7 and 2.1 leave it out where the CDI spec does. */
const DEFAULT_MODE = 0o666;

/** A mode without the type of the file, which Podman writes into those of a privileged container's nodes. */
const PERMISSIONS = 0o7777;

/**
 * `edits` without what `config` has and what applying them would add again: identical hooks, device nodes that are
 * there and allowed, and the cgroup rule of a node that is allowed and must only be another's or have another mode. The
 * rest replaces itself and can be applied twice.
 */
export function withoutPresent(config: Config, edits: readonly ContainerEdits[]): ContainerEdits[] {
  const rules = config.linux?.resources?.devices ?? [];
  const hasDevices = (config.linux?.devices ?? []).length > 0;
  return edits.map((edit) => {
    const next = { ...edit };
    if (edit.hooks) next.hooks = edit.hooks.filter((hook) => !hasHook(config, hook));
    if (edit.deviceNodes && hasDevices) {
      next.deviceNodes = edit.deviceNodes.flatMap((node) => {
        const rule = toDeviceCgroup(node);
        const { fileMode: _, uid: __, gid: ___, ...numbers } = node;
        if (!hasDevice(config, numbers) || (rule !== undefined && !isAllowed(rules, rule))) return [node];
        return hasDevice(config, node) ? [] : [{ ...node, permissions: "none" }];
      });
    }
    return next;
  });
}

/**
 * Mode and owner count only where the edit gives them: the owner that a node gets otherwise depends on the door that
 * acted first.
 */
export function hasDevice(config: Config, node: DeviceNode): boolean {
  const want = toLinuxDevice(node, undefined);
  return (config.linux?.devices ?? []).some(
    (device) =>
      device.path === want.path &&
      device.type === want.type &&
      (device.major ?? 0) === want.major &&
      (device.minor ?? 0) === want.minor &&
      (want.fileMode === undefined || isSameMode(device.fileMode ?? DEFAULT_MODE, want.fileMode)) &&
      (want.uid === undefined || device.uid === want.uid) &&
      (want.gid === undefined || device.gid === want.gid),
  );
}

function isSameMode(a: number, b: number): boolean {
  return (a & PERMISSIONS) === (b & PERMISSIONS);
}

/** Whether the rules let a container use a device: for each kind of access the last rule that matches decides. */
export function isAllowed(rules: readonly DeviceCgroup[], want: DeviceCgroup): boolean {
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

export function hasHook(config: Config, edit: HookEdit): boolean {
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
export function isSame(a: unknown, b: unknown): boolean {
  if (Array.isArray(a) && Array.isArray(b)) return a.length === b.length && a.every((item, i) => item === b[i]);
  return a === b;
}
