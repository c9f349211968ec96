/** Which edits a config.json lacks: a stamped container must still have all of its own. */

import type { ContainerEdits } from "../cdi/spec.ts";
import { quote } from "../sys/error.ts";
import { envName, hasUserNamespace, toDeviceCgroup, toIntelRdt, toMount } from "./apply.ts";
import { escapePointer } from "./lossless.ts";
import { hasDevice, hasHook, isAllowed, isSame } from "./present.ts";
import type { Config } from "./spec.ts";

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

function lastByKey<T>(items: readonly T[], key: (item: T) => string): Map<string, T> {
  const last = new Map<string, T>();
  for (const item of items) last.set(key(item), item);
  return last;
}
