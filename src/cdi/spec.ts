/**
 * The types of the Container Device Interface, as in its specification 1.1.0. Field names and shapes are those of the
 * file; `undefined` is a field that is not there.
 */

export interface DeviceNode {
  /** Path inside the container. */
  path: string;
  /** Path on the host; the same as `path` where absent. Since 0.5.0. */
  hostPath?: string;
  /** `b`, `c`, `u` (unbuffered character) or `p` (FIFO); from the host's node where absent. */
  type?: string;
  major?: number;
  minor?: number;
  /** Permission bits as a number (0o666 = 438). */
  fileMode?: number;
  /** cgroup access: a mix of `r`, `w`, `m`; `none` for a node without access. `rwm` where absent. */
  permissions?: string;
  uid?: number;
  gid?: number;
}

export interface Mount {
  hostPath: string;
  containerPath: string;
  /** Since 0.4.0. */
  type?: string;
  options?: string[];
}

export interface Hook {
  /** OCI stage: prestart, createRuntime, createContainer, startContainer, poststart or poststop. */
  hookName: string;
  path: string;
  args?: string[];
  env?: string[];
  /** Seconds. */
  timeout?: number;
}

/** Since 1.1.0. */
export interface NetDevice {
  hostInterfaceName: string;
  name: string;
}

/** Since 0.7.0; `schemata` and `enableMonitoring` since 1.1.0, which removed `enableCMT` and `enableMBM`. */
export interface IntelRdt {
  closID?: string;
  l3CacheSchema?: string;
  memBwSchema?: string;
  schemata?: string[];
  enableMonitoring?: boolean;
  enableCMT?: boolean;
  enableMBM?: boolean;
}

export interface ContainerEdits {
  /** `KEY=value`. */
  env?: string[];
  deviceNodes?: DeviceNode[];
  netDevices?: NetDevice[];
  mounts?: Mount[];
  hooks?: Hook[];
  intelRdt?: IntelRdt;
  additionalGids?: number[];
}

export interface Device {
  name: string;
  annotations?: Record<string, string>;
  containerEdits: ContainerEdits;
}

export interface Spec {
  cdiVersion: string;
  /** `vendor/class`. */
  kind: string;
  annotations?: Record<string, string>;
  devices: Device[];
  containerEdits?: ContainerEdits;
}
