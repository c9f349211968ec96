/** Which edits a config.json has already: what an engine's native CDI has put in must not be put in a second time. */

import type { ContainerEdits, DeviceNode, Hook as HookEdit } from "../cdi/spec.ts";
import { stageOf, toDeviceCgroup, toHook, toLinuxDevice } from "./apply.ts";
import type { Config, DeviceCgroup, Hook } from "./spec.ts";

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
      (want.fileMode === undefined || device.fileMode === want.fileMode) &&
      (want.uid === undefined || device.uid === want.uid) &&
      (want.gid === undefined || device.gid === want.gid),
  );
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
