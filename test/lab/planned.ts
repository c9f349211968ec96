/** What a plan does to a config.json, worked out here anew, so that it is not Sluice's own word for what Sluice does. */

import assert from "node:assert/strict";
import type { DeviceNode, Mount } from "../../src/cdi/spec.ts";
import type { Config } from "../../src/oci/spec.ts";
import type { Plan } from "../../src/plan/plan.ts";
import type { Machine } from "./machine.ts";
import type { Creation } from "./witness.ts";

/**
 * Asserts that the container got what `sluice plan` says of its config.json, and nothing else: environment, device
 * nodes with the right to use them, mounts, and the stamp.
 *
 * @returns the plan
 */
export function assertPlanned(machine: Machine, creation: Creation): Plan {
  const plan = planOf(machine, creation.before);
  const expected = JSON.parse(creation.before);
  expected.annotations = { ...expected.annotations, "sluice.dev/plan": plan.digest };
  for (const { edits } of plan.edits) {
    assert.deepEqual(
      Object.keys(edits)
        .sort()
        .filter((key) => !/^(deviceNodes|env|mounts)$/.test(key)),
      [],
    );
    for (const variable of edits.env ?? []) setVariable(expected.process, variable);
    for (const node of edits.deviceNodes ?? []) addDevice(expected, node);
    for (const mount of edits.mounts ?? []) addMount(expected, mount);
  }
  const actual = JSON.parse(creation.after ?? "null");
  assert.ok(actual !== null, "the low-level runtime was called");
  // Mounts are sorted, so that none hides another; which comes first of those beside each other does not matter.
  for (const config of [expected, actual] as Config[]) {
    config.mounts = [...(config.mounts ?? [])].sort((a, b) => (a.destination < b.destination ? -1 : 1));
  }
  assert.deepEqual(actual, expected);
  return plan;
}

/** The plan for a config.json, as `sluice plan` makes it on that machine. */
export function planOf(machine: Machine, config: string): Plan {
  machine.write("/tmp/config-of-plan.json", config);
  return JSON.parse(machine.must("sluice", "plan", "--spec", "/tmp/config-of-plan.json", "--json")) as Plan;
}

function setVariable(process: { env?: string[] }, variable: string): void {
  const name = variable.slice(0, variable.indexOf("=") + 1);
  const env = process.env ?? [];
  const at = env.findIndex((other) => other.startsWith(name));
  process.env = at < 0 ? [...env, variable] : env.map((other, i) => (i === at ? variable : other));
}

interface Changed {
  process: { user: { uid: number; gid: number } };
  linux: {
    devices?: { path: string; type: string; major?: number; minor?: number }[];
    resources?: { devices?: { allow: boolean; type?: string; major?: number; minor?: number; access?: string }[] };
  };
}

/** A node that the engine has put there is left alone, as in a privileged container; so is what it has allowed. */
function addDevice({ process, linux }: Changed, node: DeviceNode): void {
  const { path, type = "c", major = 0, minor = 0 } = node;
  const devices = linux.devices ?? [];
  const there = devices.some((d) => d.path === path && d.type === type && d.major === major && d.minor === minor);
  const device = { path, type, major, minor, fileMode: node.fileMode, ...ownerOf(process.user, node) };
  if (!there) linux.devices = [...devices, device];
  linux.resources ??= {};
  const rules = linux.resources.devices ?? [];
  // The last rule that matches decides (kernel documentation, cgroup-v1/devices).
  const last = rules.findLast(
    (rule) =>
      (rule.type === undefined || rule.type === "a" || rule.type === type) &&
      (rule.major === undefined || rule.major === -1 || rule.major === major) &&
      (rule.minor === undefined || rule.minor === -1 || rule.minor === minor),
  );
  if (last?.allow && last.access === "rwm") return;
  linux.resources.devices = [...rules, { allow: true, type, major, minor, access: node.permissions ?? "rwm" }];
}

/** Where the container's users are not the host's, a mount shows its files as those of the container's. */
function addMount(config: Config, { hostPath, containerPath, options = [] }: Mount): void {
  const mapped = config.linux?.namespaces?.some((namespace) => namespace.type === "user") ? ["ridmap"] : [];
  const mount = { destination: containerPath, source: hostPath, options: [...options, ...mapped] };
  const others = (config.mounts ?? []).filter((other) => other.destination !== containerPath);
  Object.assign(config, { mounts: [...others, mount] });
}

/** A node belongs to the container's user, where that is not root and the spec says nothing else. */
function ownerOf(user: { uid: number; gid: number }, node: DeviceNode): { uid?: number; gid?: number } {
  const uid = node.uid ?? (user.uid || undefined);
  const gid = node.gid ?? (user.gid || undefined);
  return { ...(uid === undefined ? {} : { uid }), ...(gid === undefined ? {} : { gid }) };
}
