/**
 * The parts of the OCI runtime specification's config.json (1.3) that Sluice reads or writes. Everything else in the
 * file is kept as text and has no type here (see lossless.ts), so a newer specification needs no change.
 *
 * A field that is `null` in a file (Go writes a nil slice or map so) counts as absent: read with `??`.
 */

export interface User {
  uid?: number;
  gid?: number;
  additionalGids?: number[];
}

export interface Process {
  user?: User;
  env?: string[];
}

export interface Mount {
  destination: string;
  type?: string;
  source?: string;
  options?: string[];
}

export interface Hook {
  path: string;
  args?: string[];
  env?: string[];
  /** Seconds. */
  timeout?: number;
}

/** The OCI stages, in the order in which they run. */
export const HOOK_STAGES = [
  "prestart",
  "createRuntime",
  "createContainer",
  "startContainer",
  "poststart",
  "poststop",
] as const;
export type HookStage = (typeof HOOK_STAGES)[number];

export interface LinuxDevice {
  /** Inside the container. */
  path: string;
  /** `b`, `c`, `u` or `p`. */
  type: string;
  major?: number;
  minor?: number;
  /** Permission bits as a number. */
  fileMode?: number;
  uid?: number;
  gid?: number;
}

/** A rule of the device cgroup. Of all rules that match a device the last one counts. */
export interface DeviceCgroup {
  allow: boolean;
  /** `a`, `b` or `c`; all devices where absent. */
  type?: string;
  /** Any number where absent. */
  major?: number;
  minor?: number;
  /** A mix of `r`, `w`, `m`. */
  access?: string;
}

export interface NetDevice {
  /** Inside the container; as on the host where absent. */
  name?: string;
}

export interface IntelRdt {
  closID?: string;
  l3CacheSchema?: string;
  memBwSchema?: string;
  schemata?: string[];
  enableMonitoring?: boolean;
  enableCMT?: boolean;
  enableMBM?: boolean;
}

export interface Linux {
  devices?: LinuxDevice[];
  /** By the interface's name on the host. */
  netDevices?: Record<string, NetDevice>;
  namespaces?: { type: string; path?: string }[];
  resources?: { devices?: DeviceCgroup[] };
  intelRdt?: IntelRdt;
}

export type Hooks = Partial<Record<HookStage, Hook[]>>;

export interface Config {
  ociVersion?: string;
  process?: Process;
  mounts?: Mount[];
  hooks?: Hooks;
  annotations?: Record<string, string>;
  linux?: Linux;
}
