/** Containers of pods as engines describe them, and what the kubelet says of them. */

import { cli } from "../../src/cli/cli.ts";
import type { AllocatedClaim, AllocatedDevices, Evidence, PodContainer } from "../../src/policy/allocation.ts";
import { HOSTS, type HostName } from "../fixtures/hosts/hosts.ts";
import { dir, link, type MemorySys, memory, type Tree } from "./memory-files.ts";

export const POD: PodContainer = { namespace: "team", pod: "train-0", container: "main", uid: "6f1c" };
export const SANDBOX = "5a".repeat(32);

/** The annotations that containerd writes for a pod's container; `more` are the pod's own, which never win. */
export function containerd(more: Record<string, string> = {}, pod: PodContainer = POD): Record<string, string> {
  return {
    ...more,
    "io.kubernetes.cri.container-type": "container",
    "io.kubernetes.cri.sandbox-id": SANDBOX,
    "io.kubernetes.cri.sandbox-namespace": pod.namespace,
    "io.kubernetes.cri.sandbox-uid": pod.uid ?? "",
    "io.kubernetes.cri.sandbox-name": pod.pod,
    "io.kubernetes.cri.container-name": pod.container,
    "io.kubernetes.cri.image-name": "docker.io/library/busybox:1",
  };
}

/** Those of CRI-O, with the kubelet's labels. */
export function crio(more: Record<string, string> = {}, pod: PodContainer = POD): Record<string, string> {
  return {
    ...more,
    "io.kubernetes.cri-o.ContainerType": "container",
    "io.kubernetes.cri-o.ContainerID": "c1".repeat(32),
    "io.kubernetes.cri-o.SandboxID": SANDBOX,
    "io.kubernetes.cri-o.Metadata": JSON.stringify({ name: pod.container }),
    "io.container.manager": "cri-o",
    "io.kubernetes.pod.namespace": pod.namespace,
    "io.kubernetes.pod.name": pod.pod,
    "io.kubernetes.pod.uid": pod.uid ?? "",
    "io.kubernetes.container.name": pod.container,
  };
}

/** What `sluice cdi generate` wrote for a host, by the host's name. Many tests begin with it, and it takes a second. */
const written = new Map<HostName, readonly (readonly [path: string, text: string])[]>();

/** A fixture host with the CDI specs that Sluice writes for it. */
export function hostWithSpecs(name: HostName, more: Tree = {}): MemorySys {
  const sys = memory({
    ...HOSTS[name]().tree,
    "/proc/self/exe": link("/usr/bin/sluice"),
    "/run/cdi": dir(),
    "/run/other": "",
    "/var/log/other": "",
    ...more,
  });
  const isPlain = Object.keys(more).length === 0;
  const known = isPlain ? written.get(name) : undefined;
  sys.args.splice(0, sys.args.length, "sluice", "cdi", "generate");
  // The same host has the same stamps, which the specs' origins name.
  if (known !== undefined) for (const [path, text] of known) sys.put(path, text);
  else if (cli(sys) !== 0) throw new Error(sys.errors);
  if (isPlain && known === undefined) written.set(name, filesIn(sys, "/run"));
  sys.clock += 60_000;
  return sys;
}

function filesIn(sys: MemorySys, folder: string): (readonly [path: string, text: string])[] {
  return (sys.list(folder) ?? []).flatMap(({ name, kind }) => {
    const path = `${folder}/${name}`;
    if (kind === "dir") return filesIn(sys, path);
    return kind === "file" ? [[path, sys.text(path) ?? ""] as const] : [];
  });
}

export const SOCKET = "/run/sluice/sluiced.sock";

/** Lets sluiced answer with this. */
export function answer(sys: MemorySys, evidence: Evidence): void {
  sys.servers.set(SOCKET, () => `${JSON.stringify({ v: 1, ...evidence })}\n`);
}

/** Lets the kubelet have allocated this to every container that is asked for. */
export function allocate(
  sys: MemorySys,
  devices: readonly AllocatedDevices[],
  claims: readonly AllocatedClaim[] = [],
): void {
  answer(sys, { from: "PodResources Get", allocation: { devices, claims } });
}

export function claim(...cdiDevices: string[]): AllocatedClaim {
  return { namespace: "team", name: "gpus", driver: "gpu.nvidia.com", pool: "node-1", device: "gpu-0", cdiDevices };
}
