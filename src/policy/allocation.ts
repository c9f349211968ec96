/** A container of a pod, as an engine names it. */
export interface PodContainer {
  readonly namespace: string;
  readonly pod: string;
  readonly container: string;
  /** Of the pod. */
  readonly uid?: string;
}

/** What the kubelet allocated to one container (PodResources v1, reference sharing-kubernetes.md 5.3). */
export interface Allocation {
  /** By device plugins: the ids are the plugins' own. */
  readonly devices: readonly AllocatedDevices[];
  /** By DRA drivers. */
  readonly claims: readonly AllocatedClaim[];
}

export interface AllocatedDevices {
  /** `nvidia.com/gpu` */
  readonly resource: string;
  readonly ids: readonly string[];
  /** What the device plugin answered for these ids; absent where the kubelet's checkpoint does not tell. */
  readonly answer?: PluginAnswer;
}

/**
 * What of a device plugin's answer to the kubelet names devices. This is what the kubelet gives the container, whatever
 * the ids look like: some plugins number tickets, and choose the card when they are asked.
 */
export interface PluginAnswer {
  /** From NVIDIA_VISIBLE_DEVICES, or from mounts below /var/run/nvidia-container-devices: UUIDs, indices, CDI names. */
  readonly visible: readonly string[];
  /** CDI device names, from its field or from its annotations. */
  readonly cdiDevices: readonly string[];
  /** Paths of device nodes on the host. */
  readonly nodes: readonly string[];
}

export interface AllocatedClaim {
  readonly namespace: string;
  readonly name: string;
  readonly driver: string;
  readonly pool: string;
  readonly device: string;
  /** `vendor/class=name`, made by the driver for this claim. */
  readonly cdiDevices: readonly string[];
}

/** What the kubelet says of a container; or why it could not be asked. */
export type Evidence =
  | {
      /** How it was learnt, for a person: `PodResources Get`. */
      readonly from: string;
      /** With nothing in it where the kubelet knows the pod and allocated nothing, or does not know it. */
      readonly allocation: Allocation;
      /** For the audit: what was left out, and what could not be compared, in words. */
      readonly notes?: readonly string[];
    }
  | { readonly unavailable: string };
