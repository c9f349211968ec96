/** Versions of the CDI specification, and which field needs which (its "Released versions" table). */

import type { ContainerEdits, Spec } from "./spec.ts";

/** Every version that a spec can declare, oldest first. 0.1.0 and 0.2.0 existed, but no library takes them any more. */
export const VERSIONS: readonly string[] = ["0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];

/** A field that an older version does not have. */
export interface VersionNeed {
  readonly version: string;
  /** JSON pointer of the field, the first one where there are several. */
  readonly pointer: string;
  /** What about it, for an error: `the field netDevices`. */
  readonly reason: string;
}

/** The version without its optional leading `v`, whether known or not. */
export function plainVersion(text: string): string {
  return text.startsWith("v") ? text.slice(1) : text;
}

/** Order of a version (a leading `v` is ignored) among `VERSIONS`; -1 if it is none of them. */
export function versionRank(text: string): number {
  return VERSIONS.indexOf(plainVersion(text));
}

/**
 * What in a spec needs a version above 0.3.0: each reason once. A list or map without entries needs nothing (the
 * reference library writes none), but a flag does even if it is `false`: a library of an older version refuses the
 * field whatever its value.
 */
export function versionNeeds(spec: Spec): VersionNeed[] {
  const needs = new Map<string, VersionNeed>();
  const need = (version: string, pointer: string, reason: string): void => {
    if (!needs.has(reason)) needs.set(reason, { version, pointer, reason });
  };
  const annotations = (value: Readonly<Record<string, string>> | undefined, at: string): void => {
    if (value !== undefined && Object.keys(value).length > 0)
      need("0.6.0", `${at}/annotations`, "the field annotations");
  };
  const edits = (value: ContainerEdits, at: string): void => {
    const rdt = value.intelRdt;
    if (value.netDevices !== undefined && value.netDevices.length > 0) {
      need("1.1.0", `${at}/netDevices`, "the field netDevices");
    }
    if (rdt !== undefined) {
      need("0.7.0", `${at}/intelRdt`, "the field intelRdt");
      if (rdt.schemata !== undefined) need("1.1.0", `${at}/intelRdt/schemata`, "the field schemata");
      if (rdt.enableMonitoring !== undefined) {
        need("1.1.0", `${at}/intelRdt/enableMonitoring`, "the field enableMonitoring");
      }
    }
    if (value.additionalGids !== undefined && value.additionalGids.length > 0) {
      need("0.7.0", `${at}/additionalGids`, "the field additionalGids");
    }
    const node = value.deviceNodes?.findIndex((n) => n.hostPath !== undefined) ?? -1;
    if (node >= 0) need("0.5.0", `${at}/deviceNodes/${node}/hostPath`, "the field hostPath of a device node");
    const mount = value.mounts?.findIndex((m) => m.type !== undefined) ?? -1;
    if (mount >= 0) need("0.4.0", `${at}/mounts/${mount}/type`, "the field type of a mount");
  };

  annotations(spec.annotations, "");
  if (spec.kind.includes(".", spec.kind.indexOf("/"))) need("0.6.0", "/kind", 'a "." in the class');
  if (spec.containerEdits !== undefined) edits(spec.containerEdits, "/containerEdits");
  spec.devices.forEach((device, i) => {
    const at = `/devices/${i}`;
    annotations(device.annotations, at);
    if (/^[0-9]/.test(device.name)) need("0.5.0", `${at}/name`, "a device name that starts with a digit");
    edits(device.containerEdits, `${at}/containerEdits`);
  });
  return [...needs.values()];
}

/** The oldest version that a spec can declare, with what asks for it (a need without reason: nothing does). */
export function minimumVersion(spec: Spec): VersionNeed {
  let most: VersionNeed = { version: "0.3.0", pointer: "", reason: "" };
  for (const need of versionNeeds(spec)) {
    if (versionRank(need.version) > versionRank(most.version)) most = need;
  }
  return most;
}
